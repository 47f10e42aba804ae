//! Writes only: exactly what the plan says, in its order, stopping what stands on a step that failed. Nothing is decided here and nothing is remembered here but what a write has answered.

pub mod concurrency;
mod kubernetes;
pub mod pki;
mod secrets;
mod sql;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::Desired,
    context::Context,
    observe::cache::CacheHandle,
    plan::{KubernetesStep, Plan, PlannedStep, Step, refusals},
    snapshot::{Cause, Failure, FailureReason, Snapshot},
};

/// After so long no further step of a plan is begun: what is left is planned again from a fresh look.
const PLAN_DEADLINE: Duration = Duration::from_mins(1);
/// Nodes that are worked on beside each other.
const MAX_CONCURRENT_NODES: usize = 16;
/// Sessions of the operator wait no longer for a lock.
const LOCKED: Duration = Duration::from_secs(4);
/// A checkpoint that takes longer goes on by itself while the server is stopped.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(10);

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The steps that were tried, in order.
    pub steps: Vec<StepOutcome>,
}

/// A step that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepOutcome {
    /// What was tried.
    pub step: Step,
    /// What came of it.
    pub result: Result<(), Failure>,
    /// What it told beyond that it was done, for people.
    pub detail: Option<String>,
}

impl Outcome {
    /// The first failure: of the whole plan, or of one node.
    #[must_use]
    pub fn failure(&self) -> Option<(&Step, &Failure)> {
        self.failures().next()
    }
    /// All failures, in order.
    pub fn failures(&self) -> impl Iterator<Item = (&Step, &Failure)> {
        self.steps.iter().filter_map(|done| done.result.as_ref().err().map(|failure| (&done.step, failure)))
    }
    /// Steps that succeeded.
    pub fn succeeded(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|done| done.result.is_ok()).map(|done| &done.step)
    }
}

/// What a step may use, and the one cluster that it is about.
pub struct Executor<'a> {
    /// Clients, caches, memory.
    pub context: &'a Context,
    /// What is wanted: the builders of pods and Secrets look at it.
    pub desired: &'a Desired,
    /// What the plan was made from.
    pub snapshot: &'a Snapshot,
    /// What is remembered of the cluster.
    pub observed: CacheHandle,
}

/// Does what the plan says, in its order.
///
/// Steps in a row that are about one node each, and disturb nobody, are done for all these nodes beside each other
/// and for each node in their order: a hundred workers are born as fast as one. What a failure stops is
/// [`concurrency::FailureScope`]'s; a step that failed a moment ago has its turn last, and not before its pause is over.
pub async fn act(executor: &Executor<'_>, plan: &Plan) -> Outcome {
    let mut done = Outcome::default();
    let started = Instant::now();
    let mut stopped = concurrency::FailureScope::default();
    let steps = concurrency::in_turn(&plan.steps, |step| {
        executor.snapshot.refusals.of(&refusals::attempt_of(step)).is_some()
    });
    let put_off = |step: &Step| executor.put_off(step).is_some();
    for mut batch in concurrency::batches(&steps) {
        if started.elapsed() > PLAN_DEADLINE {
            break;
        }
        batch.retain(|of_node| !of_node.iter().any(|planned| stopped.includes(&planned.step)));
        batch.retain(|of_node| {
            !of_node
                .iter()
                .any(|planned| concurrency::prepares_only_postponed(&planned.step, &steps, put_off))
        });
        let scopes: Vec<_> =
            batch.into_iter().map(|steps| run_sequentially(executor, steps).boxed()).collect();
        let mut results: Vec<_> = stream::iter(scopes).buffered(MAX_CONCURRENT_NODES).concat().await;
        for done in &results {
            if let Err(failure) = &done.result {
                stopped.after(&done.step, failure);
            }
        }
        done.steps.append(&mut results);
    }
    done
}

async fn run_sequentially(executor: &Executor<'_>, steps: Vec<&PlannedStep>) -> Vec<StepOutcome> {
    let mut done = Vec::new();
    for PlannedStep { step, why } in steps {
        let result = match executor.put_off(step) {
            Some(failure) => Err(failure),
            None => tried(executor, step, why).await,
        };
        let failed = result.is_err();
        let (result, said) = match result {
            Ok(said) => (Ok(()), said),
            Err(failure) => (Err(failure), None),
        };
        done.push(StepOutcome { step: step.clone(), result, detail: said });
        if failed {
            break;
        }
    }
    done
}

/// Tries it, and remembers what came of it.
async fn tried(executor: &Executor<'_>, step: &Step, why: &str) -> Result<Option<String>, Failure> {
    tracing::info!(step = step.name(), why, "{step}");
    let started = Instant::now();
    let result = run_step(executor, step).await.map_err(|failure| failure.after(started.elapsed()));
    if let Err(failure) = &result {
        let reason: &'static str = failure.reason.into();
        tracing::warn!(step = step.name(), reason, error = failure.message, "a step failed");
        executor.context.metrics.reconcile_failed(reason);
    }
    if let Ok(Some(said)) = &result {
        tracing::info!(step = step.name(), "{said}");
    }
    let (act, node) = (refusals::attempt_of(step), step.effect().scope.node());
    executor.observed.with(|memory| match &result {
        Ok(_) => memory.refusals.succeeded(&act),
        Err(failure) => {
            memory.refusals.failed((&act, node), failure, executor.desired.generation, Timestamp::now());
        }
    });
    result
}

async fn run_step(executor: &Executor<'_>, step: &Step) -> Result<Option<String>, Failure> {
    if executor.context.stop.is_cancelled() {
        return Err(Failure::new(
            FailureReason::ShuttingDown,
            "the operator is shutting down; its successor continues",
        ));
    }
    if step.effect().disruptive {
        let held = executor.context.leader.still_held().await;
        held.map_err(|error| Failure::new(FailureReason::NotLeader, error.to_string()))?;
    }
    let deadline = deadline(step);
    tokio::time::timeout(deadline, run(executor, step)).await.unwrap_or_else(|_| {
        let message = format!("{}: no answer within {} s", step, deadline.as_secs());
        Err(Failure::new(FailureReason::DeadlineExceeded, message))
    })
}

/// The last resort: requests and statements have shorter deadlines of their own, which end them in order.
fn deadline(step: &Step) -> Duration {
    match step {
        Step::Kubernetes(_) => Duration::from_mins(2),
        Step::Sql(step) => sql::deadline(step),
    }
}

/// Does it; what it has to tell beyond that it is done.
async fn run(executor: &Executor<'_>, step: &Step) -> Result<Option<String>, Failure> {
    match step {
        Step::Kubernetes(step) => write(executor, step).await.map(|()| None),
        Step::Sql(step) => sql::run(executor, step).await,
    }
}

/// Writes it: one arm a step.
async fn write(executor: &Executor<'_>, step: &KubernetesStep) -> Result<(), Failure> {
    match step {
        KubernetesStep::Create(object) => kubernetes::create(executor, object).await,
        KubernetesStep::Apply { object, uid } => kubernetes::apply(executor, object, uid).await,
        KubernetesStep::CreateSecret(kind) => secrets::create(executor, *kind).await,
        KubernetesStep::SetConnectionKeys { uid, version } => {
            secrets::set_connection_keys(executor, uid, version).await
        }
        KubernetesStep::InspectImage { image } => kubernetes::inspect_image(executor, image).await,
        KubernetesStep::Adopt { kind, name, uid } => kubernetes::adopt(executor, kind, name, uid).await,
        KubernetesStep::DeleteInspectionPod { pod } => kubernetes::delete_inspection_pod(executor, pod).await,
        KubernetesStep::RefreshConfiguration { node, pod_uid, value } => {
            kubernetes::refresh_configuration(executor, *node, pod_uid, value).await
        }
        KubernetesStep::PatchPod { node, pod_uid, metadata } => {
            kubernetes::patch_pod(executor, *node, pod_uid, metadata).await
        }
        KubernetesStep::RecordIdentity { node, system_identifier, claim } => {
            kubernetes::record_identity(executor, *node, system_identifier, claim).await
        }
        KubernetesStep::RestartNode { node, pod_uid, start_marker: booted, .. } => {
            kubernetes::record_restart(executor, *node, booted).await?;
            // What is on disk already need not be written by the fast shutdown, nor replayed after it.
            sql::checkpoint(executor, *node).await;
            kubernetes::delete_pod(executor, *node, pod_uid).await
        }
        KubernetesStep::Delete { kind, name, uid } => kubernetes::delete(executor, kind, name, uid).await,
        KubernetesStep::Decommission { node, claim, mark, reclaim } => {
            kubernetes::decommission(executor, *node, claim.as_deref(), (mark, *reclaim)).await
        }
    }
}

impl Executor<'_> {
    /// The failure of a moment ago, when it is too early to try the step again.
    fn put_off(&self, step: &Step) -> Option<Failure> {
        let (act, now) = (refusals::attempt_of(step), self.snapshot.now);
        self.snapshot.refusals.put_off(&act, self.desired.generation, now).map(|one| one.failure.clone())
    }
}

impl Failure {
    /// A timeout that strikes at once is a setting of somebody; one after seconds may be a lock that somebody holds.
    fn after(self, elapsed: Duration) -> Self {
        let waited = elapsed > LOCKED && self.cause == Cause::Sqlstate("57014".to_owned());
        if waited { self.for_cause(Cause::Wait) } else { self }
    }
}
