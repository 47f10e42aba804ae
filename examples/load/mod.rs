//! A load whose every row is accounted for: rows loaded at once, a writer that never gives a key up and remembers each
//! acknowledged one, and the comparison of all that with the table. The demo and the stories on Kubernetes include it
//! by `#[path]`; it knows PostgreSQL and the Secret of an application, and nothing of the operator.
#![allow(dead_code)] // each of those who include it uses a part

pub mod access;
pub mod ledger;
pub mod rows;
pub mod writer;
