//! What is told to people: status, events, metrics. Nothing is decided here: a status is computed from what was seen,
//! planned and done, and from nothing else.

pub mod cache;
pub mod conditions;
pub mod events;
mod failures;
mod gauges;
pub mod job;
pub mod publish;
pub mod status;
pub mod writer;

pub use status::{invalid, status};
