//! Events: one for each change of a person's interest, found by comparing the status written last with the new one,
//! so that neither a steady state nor a restart of the operator repeats any. Pure but for the sending at the end.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

use crate::{
    act::Outcome,
    api::{
        ClusterId, DialogClusterStatus, Node,
        names::keys,
        status::{ConditionType, NodeState, NodeStatus, RebalanceStatus},
        words::several,
    },
    plan::{Concern, KubernetesStep, Plan, ProblemReason, RestartCause, SqlStep, Step},
    snapshot::JobState,
};

/// Why an event is sent: its `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display)]
#[allow(missing_docs)] // the contract lists them
pub enum EventReason {
    NodeCreated,
    WorkerJoined,
    RollingRestartStarted,
    NodeRestarted,
    RollingRestartFinished,
    WalLevelRepaired,
    RebalanceStarted,
    RebalanceProgress,
    RebalanceFinished,
    RebalanceFailing,
    RebalanceStopped,
    DrainStarted,
    WorkerDrained,
    WorkerRemoved,
    WorkerForceRemoved,
    VolumeRetained,
    ScaleInRefused,
    ConfigurationRejected,
    SchemaApplied,
    ScaledBack,
}

impl EventReason {
    /// Somebody should look at it.
    fn is_worrying(self) -> bool {
        match self {
            Self::RebalanceFailing
            | Self::ScaleInRefused
            | Self::ConfigurationRejected
            | Self::WorkerForceRemoved => true,
            Self::NodeCreated
            | Self::WorkerJoined
            | Self::RollingRestartStarted
            | Self::NodeRestarted
            | Self::RollingRestartFinished
            | Self::WalLevelRepaired
            | Self::RebalanceStarted
            | Self::RebalanceProgress
            | Self::RebalanceFinished
            | Self::RebalanceStopped
            | Self::DrainStarted
            | Self::WorkerDrained
            | Self::WorkerRemoved
            | Self::VolumeRetained
            | Self::SchemaApplied
            | Self::ScaledBack => false,
        }
    }
}

/// An event that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEvent {
    /// Why.
    pub reason: EventReason,
    /// For people.
    pub note: String,
    /// What tells it from others of the same reason: Kubernetes counts equal ones instead of showing each.
    pub about: String,
    /// The node that it is about, if it is about one.
    pub node: Option<Node>,
}

/// What an event can be found in.
pub struct Transition<'a> {
    /// The status written last.
    pub before: &'a DialogClusterStatus,
    /// The status now.
    pub after: &'a DialogClusterStatus,
    /// What was to be done.
    pub plan: &'a Plan,
    /// What was done.
    pub outcome: &'a Outcome,
    /// Nodes that this operator has restarted since the last rolling restart was finished, and why.
    pub rolling: &'a BTreeMap<Node, RestartCause>,
    /// The cluster.
    pub cluster: &'a ClusterId,
}

/// The events of one reconcile: first what is told now or never, because its step is done once; then what is found by
/// comparing, and would be found again as long as the status was not written.
#[must_use]
pub fn events(transition: &Transition) -> (Vec<PendingEvent>, Vec<PendingEvent>) {
    let (mut once, mut events) = (Vec::new(), Vec::new());
    events_from_steps(transition, &mut once);
    events_from_restarts(transition, &mut events);
    events_from_conditions(transition, &mut events);
    if let Some(job) = &transition.after.rebalance {
        events_from_job(transition.before.rebalance.as_ref(), job, &mut events);
    }
    (once, events)
}

fn push_event(
    events: &mut Vec<PendingEvent>,
    reason: EventReason,
    node: Option<Node>,
    about: &str,
    text: String,
) {
    events.push(PendingEvent { reason, note: text, about: about.to_owned(), node });
}

/// Somebody else has scaled a node.
fn events_from_scaling(transition: &Transition, name: &str, events: &mut Vec<PendingEvent>) {
    let cluster = &transition.cluster.name;
    let Some((node, by)) = transition.plan.scaled.iter().find(|(node, _)| node.object_name(cluster) == name)
    else {
        return;
    };
    let by = by.as_deref().unwrap_or("somebody");
    let text = format!(
        "StatefulSet {name} was scaled by {by} and is set back to 1: it is one node of {cluster}. The number of workers is spec.workers.replicas of the DialogCluster"
    );
    push_event(events, EventReason::ScaledBack, Some(*node), by, text);
}

/// What happens once, because its step is done once.
#[allow(clippy::too_many_lines)] // one arm a step
fn events_from_steps(transition: &Transition, events: &mut Vec<PendingEvent>) {
    let name = |node: &Node| node.object_name(&transition.cluster.name);
    for taken in transition.outcome.steps.iter().filter(|taken| taken.result.is_ok()) {
        match &taken.step {
            Step::Sql(SqlStep::SetShouldHaveShards { node, should: false, shards, .. }) => {
                let note = format!(
                    "{} is draining: {} to move to the remaining workers",
                    name(node),
                    several(*shards, "shard")
                );
                push_event(events, EventReason::DrainStarted, Some(*node), &node.to_string(), note);
            }
            Step::Sql(SqlStep::RemoveNode { node, kept, .. }) => {
                let note = format!("{} holds no shards", name(node));
                push_event(events, EventReason::WorkerDrained, Some(*node), &node.to_string(), note);
                let note = format!("{} is no longer a member", name(node));
                push_event(events, EventReason::WorkerRemoved, Some(*node), &node.to_string(), note);
                if let Some(claim) = kept {
                    let note = format!(
                        "the volume claim {claim} of {} is kept, under the label {}, and never used again",
                        name(node),
                        keys::DECOMMISSIONED
                    );
                    push_event(events, EventReason::VolumeRetained, Some(*node), claim, note);
                }
            }
            Step::Sql(SqlStep::ForceRemove { .. }) => {
                let note = taken
                    .detail
                    .clone()
                    .unwrap_or_else(|| "the data of lost workers was given up".to_owned());
                push_event(events, EventReason::WorkerForceRemoved, None, "", note);
            }
            Step::Kubernetes(KubernetesStep::Apply { object, .. }) if object.kind == "StatefulSet" => {
                events_from_scaling(transition, &object.name, events);
            }
            Step::Kubernetes(KubernetesStep::Create(object)) if object.kind == "StatefulSet" => {
                let node = object.json.pointer("/metadata/labels").and_then(|labels| labels.get(keys::NODE));
                let node = node.and_then(|node| node.as_str()?.parse().ok());
                let text = format!("created {}", object.name);
                push_event(events, EventReason::NodeCreated, node, &object.name, text);
            }
            Step::Sql(SqlStep::AddNode { node, address }) => {
                let note = format!("registered {} as {address}", node.object_name(&transition.cluster.name));
                push_event(events, EventReason::WorkerJoined, Some(*node), &node.to_string(), note);
            }
            Step::Sql(SqlStep::ApplySchema { .. }) => {
                push_event(events, EventReason::SchemaApplied, None, "", "the schema is applied".to_owned());
            }
            // Objects, settings and repairs are seen where they are; moves, restarts and drains by their states.
            Step::Kubernetes(
                KubernetesStep::Create(_)
                | KubernetesStep::Apply { .. }
                | KubernetesStep::Adopt { .. }
                | KubernetesStep::CreateSecret(_)
                | KubernetesStep::SetConnectionKeys { .. }
                | KubernetesStep::InspectImage { .. }
                | KubernetesStep::DeleteInspectionPod { .. }
                | KubernetesStep::RefreshConfiguration { .. }
                | KubernetesStep::PatchPod { .. }
                | KubernetesStep::RecordIdentity { .. }
                | KubernetesStep::RestartNode { .. }
                | KubernetesStep::Decommission { .. }
                | KubernetesStep::Delete { .. },
            )
            | Step::Sql(
                SqlStep::BootstrapNode { .. }
                | SqlStep::GrantRights { .. }
                | SqlStep::Reload { .. }
                | SqlStep::ResetAlterSystem { .. }
                | SqlStep::CheckParameter { .. }
                | SqlStep::SetCoordinatorHost { .. }
                | SqlStep::CreateExtension { .. }
                | SqlStep::CreateOwner { .. }
                | SqlStep::RecoverTransactions
                | SqlStep::StartRebalance { .. }
                | SqlStep::PinGroups(_)
                | SqlStep::StopRebalance { .. }
                | SqlStep::SetShouldHaveShards { should: true, .. }
                | SqlStep::CleanUpOrphans
                | SqlStep::ActivateNode { .. }
                | SqlStep::DeleteStaleCleanupRecords { .. }
                | SqlStep::DropLeftovers { .. },
            ) => {}
        }
    }
    let restarts = |step: &Step| step.effect().concerns == Concern::Restart;
    if transition.rolling.is_empty() && transition.outcome.succeeded().any(restarts) {
        let why = transition
            .plan
            .steps
            .iter()
            .find(|planned| restarts(&planned.step))
            .map(|planned| planned.why.clone());
        push_event(events, EventReason::RollingRestartStarted, None, "", why.unwrap_or_default());
    }
}

fn events_from_restarts(transition: &Transition, events: &mut Vec<PendingEvent>) {
    for node in transition.rolling.keys() {
        let name = node.object_name(&transition.cluster.name);
        let state = |status: &DialogClusterStatus| find_node(status, &name).map(|node| node.state);
        // While the coordinator is away nobody knows who is a member, so the state need not be Restarting.
        let waited = state(transition.before).is_some_and(|state| state != NodeState::Active);
        if waited && state(transition.after) == Some(NodeState::Active) {
            push_event(
                events,
                EventReason::NodeRestarted,
                Some(*node),
                &name,
                format!("{name} answers again after its restart"),
            );
        }
    }
    if rolling_restart_is_over(transition) {
        let note = format!("{} restarted one by one", several(transition.rolling.len(), "node"));
        push_event(events, EventReason::RollingRestartFinished, None, "", note);
    }
}

/// Nodes were restarted, and nothing is left to be brought to the observed generation.
fn rolling_restart_is_over(transition: &Transition) -> bool {
    let settled = condition(transition.after, ConditionType::Reconciling) == Some("False");
    !transition.rolling.is_empty()
        && settled
        && transition.after.nodes.iter().all(|node| node.state != NodeState::Restarting)
}

/// Nodes restarted since the last finished rolling restart, after this reconcile; one is finished when that was told.
#[must_use]
pub fn rolling(transition: &Transition, told: bool) -> BTreeMap<Node, RestartCause> {
    let mut rolling = if told && rolling_restart_is_over(transition) {
        BTreeMap::new()
    } else {
        transition.rolling.clone()
    };
    rolling.extend(transition.outcome.succeeded().filter_map(|step| {
        let Step::Kubernetes(KubernetesStep::RestartNode { node, cause, .. }) = step else { return None };
        Some((*node, *cause))
    }));
    rolling
}

fn events_from_conditions(transition: &Transition, events: &mut Vec<PendingEvent>) {
    let wal_level = |status| condition(status, ConditionType::WalLevelLogical);
    // A node that restarts does not answer, so that False becomes Unknown before it becomes True: of our own restarts
    // it is told at their end.
    let repaired = if transition.rolling.values().any(|cause| *cause == RestartCause::WalLevel) {
        rolling_restart_is_over(transition)
    } else {
        wal_level(transition.before) == Some("False")
    };
    if repaired && wal_level(transition.after) == Some("True") {
        let note = "every node runs wal_level = logical again".to_owned();
        push_event(events, EventReason::WalLevelRepaired, None, "", note);
    }
    for (problem, reason) in [
        (ProblemReason::ScaleInRefused, EventReason::ScaleInRefused),
        (ProblemReason::ConfigurationRejected, EventReason::ConfigurationRejected),
    ] {
        let reported = |status: &DialogClusterStatus| {
            let stalled = status.condition(ConditionType::Stalled)?;
            (stalled.status == "True" && stalled.reason == problem.to_string())
                .then(|| stalled.message.clone())
        };
        if let Some(message) = reported(transition.after)
            && reported(transition.before).as_ref() != Some(&message)
        {
            push_event(events, reason, None, "", message);
        }
    }
}

/// What became of a job between two looks: nothing is missed when it began and ended in between.
fn events_from_job(before: Option<&RebalanceStatus>, job: &RebalanceStatus, events: &mut Vec<PendingEvent>) {
    let before = before.filter(|before| before.job_id == job.job_id);
    let (id, state) = (job.job_id, JobState::from(job.state.as_str()));
    let about = format!("Job{id}");
    if before.is_none() {
        let note = format!("job {id} began: {}", several(job.moves.total, "move"));
        push_event(events, EventReason::RebalanceStarted, None, &about, note);
    }
    let quarter =
        |job: &RebalanceStatus| (job.moves.done * 4).checked_div(job.moves.total).unwrap_or_default();
    let passed = quarter(job);
    if !state.has_ended() && passed > before.map_or(0, quarter) && passed < 4 {
        let note = format!("job {id}: {} of {} done", job.moves.done, several(job.moves.total, "move"));
        push_event(events, EventReason::RebalanceProgress, None, &format!("{about}Quarter{passed}"), note);
    }
    let words = || job.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    if !state.has_ended() && job.moves.failing > 0 && before.is_none_or(|before| before.moves.failing == 0) {
        let note =
            format!("job {id}: {} failing, tried again{}", several(job.moves.failing, "move"), words());
        push_event(events, EventReason::RebalanceFailing, None, &about, note);
    }
    if before.is_some_and(|before| before.state == job.state) {
        return;
    }
    let (reason, note) = match state {
        JobState::Finished => (
            EventReason::RebalanceFinished,
            format!("job {id} finished: {}", several(job.moves.total, "move")),
        ),
        JobState::Cancelled => (
            EventReason::RebalanceStopped,
            format!("job {id} was stopped after {} of {} moves", job.moves.done, job.moves.total),
        ),
        JobState::Failed => (
            EventReason::RebalanceFailing,
            format!("job {id} failed after {} of {} moves{}", job.moves.done, job.moves.total, words()),
        ),
        JobState::Scheduled
        | JobState::Running
        | JobState::Cancelling
        | JobState::Failing
        | JobState::Other(_) => return,
    };
    push_event(events, reason, None, &format!("{about}End"), note);
}

fn condition(status: &DialogClusterStatus, kind: ConditionType) -> Option<&str> {
    status.condition(kind).map(|condition| condition.status.as_str())
}

fn find_node<'a>(status: &'a DialogClusterStatus, name: &str) -> Option<&'a NodeStatus> {
    status.nodes.iter().find(|node| node.name == name)
}

impl PendingEvent {
    /// As Kubernetes wants it.
    #[must_use]
    pub fn event(&self, cluster: &ClusterId) -> Event {
        let worrying = self.reason.is_worrying();
        let secondary = self.node.map(|node| ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("StatefulSet".to_owned()),
            name: Some(node.object_name(&cluster.name)),
            namespace: Some(cluster.namespace.clone()),
            ..ObjectReference::default()
        });
        Event {
            type_: if worrying { EventType::Warning } else { EventType::Normal },
            reason: self.reason.to_string(),
            // The API takes 1 kB.
            note: Some(self.note.chars().take(1000).collect()),
            action: format!("{}{}", self.reason, self.about).chars().take(128).collect(),
            secondary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(transition: &Transition) -> Vec<PendingEvent> {
        let (once, found) = events(transition);
        once.into_iter().chain(found).collect()
    }
    use crate::{
        act::StepOutcome,
        api::status::MoveCounts,
        snapshot::{Failure, FailureReason},
    };

    fn cluster() -> ClusterId {
        ClusterId { namespace: "market".into(), name: "shop".into(), uid: "u".into() }
    }
    fn job(id: i64, state: &str, done: i64, failing: i64) -> DialogClusterStatus {
        DialogClusterStatus {
            rebalance: Some(RebalanceStatus {
                job_id: id,
                state: state.into(),
                moves: MoveCounts { total: 16, done, running: 0, failing },
                ..Default::default()
            }),
            ..Default::default()
        }
    }
    #[test]
    fn who_scales_a_node_is_named() {
        let set = |name: &str| crate::resources::Manifest {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            name: name.into(),
            json: serde_json::Value::Null,
        };
        let apply =
            |name| Step::Kubernetes(KubernetesStep::Apply { object: Box::new(set(name)), uid: "u".into() });
        let done =
            |name| Outcome { steps: vec![StepOutcome { step: apply(name), result: Ok(()), detail: None }] };
        let plan = Plan { scaled: [(Node::Worker(0), Some("sleeper".to_owned()))].into(), ..Plan::default() };
        let status = DialogClusterStatus::default();
        let told = |name| {
            let (done, cluster) = (done(name), cluster());
            let rolling = BTreeMap::new();
            let transition = Transition {
                before: &status,
                after: &status,
                plan: &plan,
                outcome: &done,
                rolling: &rolling,
                cluster: &cluster,
            };
            all(&transition)
        };
        let event = &told("shop-worker-0")[0];
        assert_eq!((event.reason, event.node), (EventReason::ScaledBack, Some(Node::Worker(0))));
        assert!(event.note.contains("scaled by sleeper"), "{}", event.note);
        assert_eq!(told("shop-worker-1"), []);
    }
    fn with_condition(kind: &str, status: &str, reason: &str) -> DialogClusterStatus {
        let conditions = serde_json::json!([{
            "type": kind, "status": status, "reason": reason, "message": reason,
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]);
        DialogClusterStatus { conditions: serde_json::from_value(conditions).unwrap(), ..Default::default() }
    }
    fn between(
        before: &DialogClusterStatus,
        after: &DialogClusterStatus,
        steps: Vec<Step>,
    ) -> Vec<EventReason> {
        let (plan, rolling, cluster) = (Plan::default(), BTreeMap::new(), cluster());
        let done = Outcome {
            steps: steps.into_iter().map(|step| StepOutcome { step, result: Ok(()), detail: None }).collect(),
        };
        let transition =
            Transition { before, after, plan: &plan, outcome: &done, rolling: &rolling, cluster: &cluster };
        all(&transition).into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn a_job_is_told_once_each_quarter() {
        let mut before = DialogClusterStatus::default();
        let mut told = Vec::new();
        for done in 0..=16 {
            let after = job(4, if done == 16 { "finished" } else { "running" }, done, 0);
            told.extend(between(&before, &after, vec![]));
            assert_eq!(between(&after, &after, vec![]), [], "nothing changed at {done}");
            before = after;
        }
        assert_eq!(
            told,
            [
                EventReason::RebalanceStarted,
                EventReason::RebalanceProgress,
                EventReason::RebalanceProgress,
                EventReason::RebalanceProgress,
                EventReason::RebalanceFinished,
            ]
        );
    }

    #[test]
    fn a_job_that_began_and_ended_between_two_looks_is_told_whole() {
        let told = between(&DialogClusterStatus::default(), &job(4, "finished", 16, 0), vec![]);
        assert_eq!(told, [EventReason::RebalanceStarted, EventReason::RebalanceFinished]);
    }

    #[test]
    fn failing_moves_are_told_once_and_a_stop_is_told() {
        assert_eq!(
            between(&job(4, "running", 1, 0), &job(4, "running", 1, 2), vec![]),
            [EventReason::RebalanceFailing]
        );
        assert_eq!(between(&job(4, "running", 1, 2), &job(4, "running", 1, 3), vec![]), []);
        assert_eq!(
            between(&job(4, "running", 1, 0), &job(4, "cancelled", 1, 0), vec![]),
            [EventReason::RebalanceStopped]
        );
    }

    #[test]
    fn a_repaired_wal_level_is_told_but_not_the_first_look() {
        let yes = with_condition("WalLevelLogical", "True", "Running");
        let told = between(&with_condition("WalLevelLogical", "False", "Wrong"), &yes, vec![]);
        assert_eq!(told, [EventReason::WalLevelRepaired]);
        assert_eq!(between(&with_condition("WalLevelLogical", "Unknown", "NoWorkers"), &yes, vec![]), []);
    }

    #[test]
    fn repaired_wal_level_is_told_once_despite_silence() {
        let (plan, cluster) = (Plan::default(), cluster());
        let status = |level: &str, reconciling: &str| {
            let mut status = with_condition("WalLevelLogical", level, "R");
            status.conditions.extend(with_condition("Reconciling", reconciling, "R").conditions);
            status
        };
        let restart = Step::Kubernetes(KubernetesStep::RestartNode {
            node: Node::Worker(0),
            pod_uid: "p".into(),
            cause: RestartCause::WalLevel,
            start_marker: String::new(),
        });
        let mut done = Outcome { steps: vec![StepOutcome { step: restart, result: Ok(()), detail: None }] };
        let looks =
            [("False", "True"), ("Unknown", "True"), ("True", "True"), ("True", "False"), ("True", "False")];
        let (mut before, mut rolling, mut told) = (status("False", "True"), BTreeMap::new(), 0);
        for (level, reconciling) in looks {
            let after = status(level, reconciling);
            let transition = Transition {
                before: &before,
                after: &after,
                plan: &plan,
                outcome: &done,
                rolling: &rolling,
                cluster: &cluster,
            };
            told +=
                all(&transition).iter().filter(|event| event.reason == EventReason::WalLevelRepaired).count();
            rolling = super::rolling(&transition, true);
            (before, done) = (after, Outcome::default());
        }
        assert_eq!(told, 1);
    }

    #[test]
    fn a_refusal_is_told_once() {
        let refused = with_condition("Stalled", "True", "ConfigurationRejected");
        let told = between(&DialogClusterStatus::default(), &refused, vec![]);
        assert_eq!(told, [EventReason::ConfigurationRejected]);
        assert_eq!(between(&refused, &refused, vec![]), []);
    }

    #[test]
    fn only_a_step_that_succeeded_is_told() {
        let add = Step::Sql(SqlStep::AddNode {
            node: Node::Worker(1),
            address: "shop-worker-1.market.svc.cluster.local".into(),
        });
        let (before, plan, rolling, cluster) =
            (DialogClusterStatus::default(), Plan::default(), BTreeMap::new(), cluster());
        let failure = Failure::new(FailureReason::Postgres, "no");
        let done =
            Outcome { steps: vec![StepOutcome { step: add.clone(), result: Err(failure), detail: None }] };
        let transition = Transition {
            before: &before,
            after: &before,
            plan: &plan,
            outcome: &done,
            rolling: &rolling,
            cluster: &cluster,
        };
        assert_eq!(all(&transition), []);
        assert_eq!(between(&before, &before, vec![add]), [EventReason::WorkerJoined]);
        let lost = Step::Sql(SqlStep::ForceRemove { workers: vec![] });
        assert_eq!(between(&before, &before, vec![lost]), [EventReason::WorkerForceRemoved]);
        assert!(EventReason::WorkerForceRemoved.is_worrying());
    }

    #[test]
    fn a_rolling_restart_has_a_beginning_its_nodes_and_an_end() {
        let cluster = cluster();
        let restart = Step::Kubernetes(KubernetesStep::RestartNode {
            node: Node::Worker(0),
            pod_uid: "p".into(),
            cause: RestartCause::Parameters,
            start_marker: String::new(),
        });
        let mut plan = Plan::default();
        plan.step(restart.clone(), "due");
        let node = |state| NodeStatus { name: "shop-worker-0".into(), state, ..Default::default() };
        let status = |state, reconciling: &str| DialogClusterStatus {
            nodes: vec![node(state)],
            ..with_condition("Reconciling", reconciling, "Rolling")
        };
        let (calm, busy) = (status(NodeState::Active, "False"), status(NodeState::Restarting, "True"));
        let mut rolling = BTreeMap::new();
        let mut told = Vec::new();
        let done = Outcome { steps: vec![StepOutcome { step: restart, result: Ok(()), detail: None }] };
        let nothing = Outcome::default();
        for (before, after, done) in [
            (&calm, &busy, &done),
            (&busy, &busy, &nothing),
            (&busy, &calm, &nothing),
            (&calm, &calm, &nothing),
        ] {
            let transition = Transition {
                before,
                after,
                plan: &plan,
                outcome: done,
                rolling: &rolling,
                cluster: &cluster,
            };
            told.extend(all(&transition).into_iter().map(|event| event.reason));
            rolling = super::rolling(&transition, true);
        }
        assert_eq!(
            told,
            [
                EventReason::RollingRestartStarted,
                EventReason::NodeRestarted,
                EventReason::RollingRestartFinished
            ]
        );
    }
}
