//! The contract with Citus: every call that the operator makes, and every trap that it relies on or steers clear of,
//! against whichever Citus this machine has. The first line of a run says which one that is; what the stand-in cannot
//! show is skipped by name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "citus/birth.rs"]
mod birth;
#[path = "citus/bounds.rs"]
mod bounds;
#[path = "citus/contents.rs"]
mod contents;
#[path = "citus/faults.rs"]
mod faults;
#[path = "citus/force_remove.rs"]
mod force_remove;
#[path = "citus/harness.rs"]
mod harness;
#[path = "citus/held.rs"]
mod held;
#[path = "citus/hostile.rs"]
mod hostile;
#[path = "citus/joining.rs"]
mod joining;
#[path = "citus/moves.rs"]
mod moves;
#[path = "citus/planted.rs"]
mod planted;
#[path = "citus/preflights.rs"]
mod preflights;
#[path = "citus/reach.rs"]
mod reach;
#[path = "citus/remains.rs"]
mod remains;
#[path = "citus/schemas.rs"]
mod schemas;
#[path = "citus/settings.rs"]
mod settings;
#[path = "citus/stops.rs"]
mod stops;
