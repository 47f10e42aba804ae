//! When to look at a cluster again if nothing wakes us: servers wake nobody. Fast while something moves, slower the
//! longer nothing changes, and never a hot loop. No I/O, and nothing else is decided here.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::{
    act::Outcome,
    api::Desired,
    plan::{Plan, Step, WaitingOn},
    snapshot::{Job, Snapshot},
};

/// The look at a cluster that needs nothing.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// After something was done: what it changed is to be seen.
const SETTLE_INTERVAL: Duration = Duration::from_millis(50);
/// While a server starts, joins or loads.
const POLL_INTERVAL: Duration = Duration::from_millis(400);
/// While a job runs.
const JOB_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// After failures in a row, or steps that change nothing: doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What has been the same for how long.
#[derive(Default)]
pub struct RequeuePolicy {
    failures: u32,
    repeats: u32,
    steps: Vec<Step>,
    waits: Option<(Vec<WaitingOn>, Instant)>,
}

impl RequeuePolicy {
    /// The pause after a reconcile.
    pub fn after(
        &mut self,
        desired: &Desired,
        snapshot: &Snapshot,
        (plan, outcome): (&Plan, &Outcome),
    ) -> Duration {
        // What failed is tried again after a pause of its own, and slows down nothing else.
        let steps: Vec<Step> = outcome.succeeded().cloned().collect();
        self.failures = 0;
        if !steps.is_empty() {
            return self.after_steps(steps);
        }
        (self.steps, self.repeats) = (steps, 0);
        if desired.paused {
            return RESYNC_INTERVAL;
        }
        let waited = self.waited(&plan.waits);
        let moving = snapshot.citus.known().and_then(|citus| citus.job.as_ref()).is_some_and(Job::is_open);
        let waits = plan.waits.iter().filter_map(|wait| after_wait(wait, waited, snapshot.now));
        waits.chain(moving.then_some(JOB_POLL_INTERVAL)).min().unwrap_or(RESYNC_INTERVAL)
    }

    /// The pause after a failure.
    pub fn after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        doubled(self.failures)
    }

    /// Steps that are done again and again change nothing: a plan that does not come to rest must not run hot.
    fn after_steps(&mut self, steps: Vec<Step>) -> Duration {
        let same = self.steps == steps;
        (self.steps, self.repeats) = (steps, if same { self.repeats.saturating_add(1) } else { 0 });
        if self.repeats == 0 {
            return SETTLE_INTERVAL;
        }
        if self.repeats > 3 {
            let names: Vec<&str> = self.steps.iter().map(Step::name).collect();
            tracing::warn!(
                times = self.repeats,
                steps = names.join(" "),
                "the same steps are done again and again"
            );
        }
        doubled(self.repeats)
    }

    /// For how long the same has been waited for.
    fn waited(&mut self, waits: &[WaitingOn]) -> Duration {
        match &self.waits {
            Some((same, since)) if same == waits => since.elapsed(),
            _ => {
                self.waits = Some((waits.to_vec(), Instant::now()));
                Duration::ZERO
            }
        }
    }
}

fn doubled(times: u32) -> Duration {
    BACKOFF.0.saturating_mul(1 << times.saturating_sub(1).min(10)).min(BACKOFF.1)
}

/// How soon a wait may be over. What has lasted for minutes will not end within the next tenth of a second; and the
/// end of most waits wakes us by a change of a pod.
fn after_wait(wait: &WaitingOn, waited: Duration, now: Timestamp) -> Option<Duration> {
    let soon = if waited < Duration::from_mins(1) {
        POLL_INTERVAL
    } else {
        (waited / 60).clamp(JOB_POLL_INTERVAL, RESYNC_INTERVAL)
    };
    match wait {
        WaitingOn::Paused { .. } => None,
        WaitingOn::JobRunning { .. } | WaitingOn::RestartWaitsForMoves { .. } => Some(JOB_POLL_INTERVAL),
        WaitingOn::RebalancePause { until, .. } => {
            Some(until.duration_since(now).unsigned_abs().clamp(JOB_POLL_INTERVAL, RESYNC_INTERVAL))
        }
        WaitingOn::WorkerMissing { timed_out: true, .. } => Some(soon.max(Duration::from_secs(2))),
        WaitingOn::FormerObjects { .. }
        | WaitingOn::PodNotReady { .. }
        | WaitingOn::NotAnswering { .. }
        | WaitingOn::CatalogUnknown { .. }
        | WaitingOn::NodeNotPrepared { .. }
        | WaitingOn::ConfigurationPending { .. }
        | WaitingOn::Rolling { .. }
        | WaitingOn::MemberInactive { .. }
        | WaitingOn::RegisteredNodeSilent { .. }
        | WaitingOn::NotConnected { .. }
        | WaitingOn::WorkerMissing { timed_out: false, .. }
        | WaitingOn::Draining { .. }
        | WaitingOn::SpaceUnknown { .. }
        | WaitingOn::ContentsUnknown { .. }
        | WaitingOn::CleanupBlocked { .. }
        | WaitingOn::HeldUp { .. }
        | WaitingOn::InspectingImage { .. }
        | WaitingOn::VolumesGrow { .. }
        | WaitingOn::SchemaSource { .. } => Some(soon),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SqlStep;
    use crate::{
        act::StepOutcome,
        api::{DialogCluster, Node},
        snapshot::{Citus, Failure, FailureReason, JobState, Observed, OperatorConfig},
    };

    fn desired() -> Desired {
        Desired::try_from(&DialogCluster::new("shop", serde_json::from_value(serde_json::json!({})).unwrap()))
            .unwrap()
    }
    fn nothing() -> Snapshot {
        let operator = OperatorConfig { default_image: String::new(), cluster_domain: String::new() };
        Snapshot::empty(&operator, Timestamp::now())
    }
    fn did(result: Result<(), Failure>) -> Outcome {
        Outcome {
            steps: vec![StepOutcome { step: SqlStep::RecoverTransactions.into(), result, detail: None }],
        }
    }
    fn waits(wait: WaitingOn) -> Plan {
        Plan { waits: vec![wait], ..Plan::default() }
    }

    #[test]
    fn a_cluster_at_rest_is_left_in_peace() {
        assert_eq!(
            RequeuePolicy::default().after(&desired(), &nothing(), (&Plan::default(), &Outcome::default())),
            RESYNC_INTERVAL
        );
    }

    #[test]
    fn what_was_done_is_looked_at_at_once_but_never_in_a_hot_loop() {
        let (mut pace, desired, snapshot, plan, outcome) =
            (RequeuePolicy::default(), desired(), nothing(), Plan::default(), did(Ok(())));
        let pauses: Vec<_> = (0..8).map(|_| pace.after(&desired, &snapshot, (&plan, &outcome))).collect();
        assert_eq!(pauses[0], SETTLE_INTERVAL);
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses[7], BACKOFF.1);
        pace.after(&desired, &snapshot, (&plan, &Outcome::default()));
        assert_eq!(
            pace.after(&desired, &snapshot, (&plan, &outcome)),
            SETTLE_INTERVAL,
            "a look without steps ends the row"
        );
    }

    #[test]
    fn looks_that_fail_are_begun_anew_with_growing_pauses() {
        let mut pace = RequeuePolicy::default();
        let pauses: Vec<_> = (0..8).map(|_| pace.after_failure()).collect();
        assert_eq!((pauses[0], pauses[7]), BACKOFF);
        pace.after(&desired(), &nothing(), (&Plan::default(), &Outcome::default()));
        assert_eq!(pace.after_failure(), BACKOFF.0);
    }

    #[test]
    fn a_step_that_fails_slows_down_nothing_else() {
        let wait = waits(WaitingOn::NotAnswering { node: Node::Worker(0), why: "silent".into() });
        let failed = did(Err(Failure::new(FailureReason::Postgres, "no")));
        let mut pace = RequeuePolicy::default();
        for _ in 0..8 {
            assert_eq!(pace.after(&desired(), &nothing(), (&wait, &failed)), POLL_INTERVAL);
        }
    }

    #[test]
    fn a_job_is_watched_each_second() {
        let mut snapshot = nothing();
        let job = Job { state: JobState::Running, ..Job::default() };
        snapshot.citus = Observed::Known(Citus { job: Some(job), ..Citus::default() });
        let pace = |snapshot: &Snapshot| {
            RequeuePolicy::default().after(&desired(), snapshot, (&Plan::default(), &Outcome::default()))
        };
        assert_eq!(pace(&snapshot), JOB_POLL_INTERVAL);
    }

    #[test]
    fn a_wait_that_lasts_is_looked_at_less_often() {
        let wait = WaitingOn::NotAnswering { node: Node::Worker(0), why: "silent".into() };
        let mut pace = RequeuePolicy::default();
        assert_eq!(
            pace.after(&desired(), &nothing(), (&waits(wait.clone()), &Outcome::default())),
            POLL_INTERVAL
        );
        assert_eq!(after_wait(&wait, Duration::from_mins(5), nothing().now), Some(Duration::from_secs(5)));
        assert_eq!(after_wait(&wait, Duration::from_hours(1), nothing().now), Some(RESYNC_INTERVAL));
        assert_eq!(after_wait(&WaitingOn::Paused { steps: 1 }, Duration::ZERO, nothing().now), None);
    }
}
