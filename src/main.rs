//! The command line. Wiring only.
fn main() {
    println!("{}", serde_saphyr::to_string(&dialog_operator::api::crd()).unwrap_or_default());
}
