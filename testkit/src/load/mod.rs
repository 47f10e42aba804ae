//! A load whose every row is accounted for: rows loaded at once, a writer that never gives a key up and remembers each
//! acknowledged one, and the comparison of all that with the table. It knows PostgreSQL
//! and the Secret of an application, and nothing of the operator.

pub mod access;
pub mod ledger;
pub mod rows;
pub mod writer;
