//! What is told to people: status, events, metrics. Nothing is decided here: a status is computed from what was seen,
//! planned and done, and from nothing else.

pub(crate) mod cache;
pub(crate) mod conditions;
pub(crate) mod events;
mod failures;
mod gauges;
pub(crate) mod job;
pub(crate) mod publish;
pub mod status;
pub(crate) mod writer;

pub use status::{invalid, status};
