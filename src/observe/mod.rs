//! Reads only: everything that is, gathered into one plain value, the [`Snapshot`]. Nothing is written here and
//! nothing is decided; what could not be seen is `Unknown` with its reason.

pub mod snapshot;

pub use snapshot::Snapshot;
