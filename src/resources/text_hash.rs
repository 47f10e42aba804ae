//! Hashes of text, short enough to stand in a name, a label or a setting. Nothing secret is hashed here.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Letters and digits that Kubernetes uses for generated names: no vowels, so that no word comes out.
const NAME_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length first: ("ab", "c") and ("a", "bc") are not the same.
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// 16 hexadecimal digits of the SHA-256 of `parts`.
pub(super) fn hex(parts: &[&str]) -> String {
    let number = digest(parts).iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    format!("{number:016x}")
}

/// The JSON in one spelling: keys in order, whatever map the JSON library is built with. A hash must outlive that.
pub(super) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (number, (key, value)) in sorted.into_iter().enumerate() {
                text.push_str(if number > 0 { "," } else { "" });
                // Writing to a String cannot fail.
                let _ = write!(text, "{}:", json!(key));
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            for (number, value) in list.iter().enumerate() {
                text.push_str(if number > 0 { "," } else { "" });
                write_canonical(value, text);
            }
            text.push(']');
        }
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

/// Five characters that may stand in the name of an object.
pub(super) fn suffix(parts: &[&str]) -> String {
    digest(parts).iter().take(5).map(|byte| char::from(NAME_ALPHABET[usize::from(*byte) % 27])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(hex(&["ab", "c"]), hex(&["a", "bc"]));
        assert_ne!(suffix(&["ab", "c"]), suffix(&["a", "bc"]));
        assert_eq!(hex(&["ab"]).len(), 16);
        assert_eq!(suffix(&["ab"]).len(), 5);
    }
}
