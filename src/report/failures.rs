//! Steps that failed, as problems: what only a person can mend, and is known at once. Pure.

use crate::{
    act::{Outcome, StepOutcome},
    api::ClusterId,
    plan::{KubernetesStep, Problem, Step},
    snapshot::FailureReason,
};

/// What only a person can mend, as the steps have found out. It is tried again all the same: nothing else tells when it
/// is mended outside the spec (an extension that the SQL needs, say).
#[must_use]
pub fn problems(outcome: &Outcome, cluster: &ClusterId) -> Vec<Problem> {
    outcome.steps.iter().filter_map(|step| problem_of(step, cluster)).collect()
}

fn problem_of(step: &StepOutcome, cluster: &ClusterId) -> Option<Problem> {
    let failure = step.result.as_ref().err()?;
    let message = failure.message.clone();
    match failure.reason {
        FailureReason::Schema => Some(Problem::SchemaFailed { message }),
        FailureReason::Extension => Some(Problem::ExtensionFailed { message }),
        FailureReason::ObjectConflict => object_conflict(&step.step, cluster),
        FailureReason::Kubernetes
        | FailureReason::Conflict
        | FailureReason::Postgres
        | FailureReason::LockTimeout
        | FailureReason::DeadlineExceeded
        | FailureReason::NotLeader
        | FailureReason::ShuttingDown
        | FailureReason::Secret => None,
    }
}

/// As the planner says it from the next look on: nothing changes for who reads it.
fn object_conflict(step: &Step, cluster: &ClusterId) -> Option<Problem> {
    match step {
        Step::Kubernetes(KubernetesStep::Create(object)) => {
            Some(Problem::ObjectConflict { kind: object.kind.clone(), name: object.name.clone() })
        }
        Step::Kubernetes(KubernetesStep::CreateSecret(kind)) => {
            Some(Problem::ObjectConflict { kind: "Secret".to_owned(), name: cluster.secret(*kind) })
        }
        // Only a create meets a name that is taken.
        Step::Kubernetes(_) | Step::Sql(_) => None,
    }
}
