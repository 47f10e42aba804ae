//! The contract with Citus: every call that the operator makes, and every trap that it relies on or steers clear of,
//! against whichever Citus this machine has. The first line of a run says which one that is; what the stand-in cannot
//! show is skipped by name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod birth;
mod bounds;
mod contents;
mod faults;
mod force_remove;
mod foretold;
mod held;
mod hostile;
mod joining;
mod moves;
mod planted;
mod preflights;
mod reach;
mod remains;
mod schemas;
mod settings;
mod stops;
