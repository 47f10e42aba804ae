//! Writes only: exactly what the plan says, in its order, stopping at the first failure. Nothing is decided here and
//! nothing is remembered here but what a write has answered.

pub mod pki;

use serde::{Deserialize, Serialize};

use crate::plan::Step;

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The steps that were tried, in order; only the last one can have failed.
    pub steps: Vec<DoneStep>,
}

/// A step that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoneStep {
    /// What was tried.
    pub step: Step,
    /// What came of it.
    pub result: Result<(), Failure>,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// In one word, for metrics and events.
    pub reason: FailureReason,
    /// What was wrong, where, and in whose words. Never a secret.
    pub message: String,
}

/// Why a step failed, in one word.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::IntoStaticStr,
    strum::EnumIter,
)]
pub enum FailureReason {
    /// The API server refused a request.
    Kubernetes,
    /// An object changed meanwhile: its uid is no longer the one that the plan knew.
    Conflict,
    /// A stranger's object has one of our names.
    NameTaken,
    /// PostgreSQL or Citus refused a statement, or could not be reached.
    Postgres,
    /// There was no answer within the step's deadline.
    DeadlineExceeded,
    /// This operator no longer holds its Lease.
    NotLeader,
    /// The operator is being shut down.
    ShuttingDown,
    /// A Secret that this step needs is missing or cannot be read.
    Secret,
}

impl Done {
    /// The failure that ended the plan early, if one did.
    #[must_use]
    pub fn failure(&self) -> Option<(&Step, &Failure)> {
        let last = self.steps.last()?;
        last.result.as_ref().err().map(|failure| (&last.step, failure))
    }
    /// Steps that succeeded.
    pub fn succeeded(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|done| done.result.is_ok()).map(|done| &done.step)
    }
}
