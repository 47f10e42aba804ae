//! The planner: a pure function from what is wanted and what was seen to what to do now. No client, no async, no
//! clock, no randomness, no state lives here.

pub mod step;

pub use step::{Hold, Plan, Planned, Problem, ProblemReason, RestartCause, Step};
