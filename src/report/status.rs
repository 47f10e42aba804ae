//! The whole status, computed from what was seen, planned and done. Pure; writing it is not done here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{conditions, failures, job, writer};
use crate::{
    act::Outcome,
    api::{
        Desired, DialogClusterStatus, Invalid, Node,
        names::keys,
        status::{
            ByteCounts, ConditionType, MoveCounts, NodeState, NodeStatus, Phase, Purpose, RebalanceStatus,
            Role,
        },
    },
    plan::{
        Concern, KubernetesStep, Plan, Problem, ProblemReason, ServerCheck, SqlStep, Step, View, WaitingOn,
    },
    snapshot::{Job, Pod, Snapshot, Task, TaskState},
};

/// The status of a cluster whose spec can be followed.
#[must_use]
pub fn status(desired: &Desired, snapshot: &Snapshot, plan: &Plan, outcome: &Outcome) -> DialogClusterStatus {
    let mut plan = plan.clone();
    plan.problems.extend(failures::problems(outcome, &desired.cluster));
    let plan = &plan;
    let view = View { desired, snapshot };
    let mut updates = conditions::all(view, plan, outcome);
    let phase = phase(view, plan, &updates);
    let mut message = message(view, plan, outcome, &updates);
    // Its numbers are bytes and rows, which move with every write of a client.
    if plan.problems.first().is_some_and(|problem| problem.reason() == ProblemReason::ScaleInRefused) {
        message = writer::keep_similar_message(snapshot.status.message.as_deref(), message);
        keep_similar_messages(&snapshot.status, ConditionType::Stalled, &mut updates);
    }
    let nodes: Vec<NodeStatus> = view.nodes().into_iter().map(|node| node_status(view, plan, node)).collect();
    let workers = || view.nodes().into_iter().filter(|node| node.is_worker());
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    DialogClusterStatus {
        observed_generation: Some(desired.generation),
        phase: Some(phase),
        message: Some(message),
        conditions: conditions::with_times(
            updates,
            &snapshot.status.conditions,
            desired.generation,
            snapshot.now,
        ),
        replicas: count(workers().filter(|node| view.stateful_set(*node).is_some()).count()),
        ready_replicas: count(
            workers()
                .filter(|node| {
                    matches!(view.server(*node), ServerCheck::Verified(_) | ServerCheck::Unrecorded(_))
                })
                .count(),
        ),
        selector: Some(format!("{}={},{}=worker", keys::CLUSTER, desired.cluster.name, keys::ROLE)),
        nodes,
        rebalance: view
            .citus()
            .and_then(|citus| citus.job.as_ref())
            .map(|job| rebalance(view, job))
            .or_else(|| snapshot.status.rebalance.clone()),
        handled: snapshot
            .status
            .handled
            .iter()
            .chain(&plan.handled)
            // A request that is withdrawn may be made again.
            .filter(|(key, _)| match key.as_str() {
                keys::FORCE_REMOVE => desired.force_remove.is_some(),
                keys::NEW_AUTHORITY => desired.new_authority.is_some(),
                keys::RESTART_REQUESTED_AT => desired.restart_requested.is_some(),
                _ => true,
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    }
}

/// The status of a cluster whose spec cannot be followed: everything else stays as it was last seen.
#[must_use]
pub fn invalid(
    before: &DialogClusterStatus,
    generation: i64,
    invalid: &Invalid,
    now: jiff::Timestamp,
) -> DialogClusterStatus {
    let plan =
        Plan { problems: vec![Problem::InvalidSpec { message: invalid.to_string() }], ..Plan::default() };
    let updates = vec![
        (ConditionType::Reconciling, conditions::reconciling(&plan, &Outcome::default())),
        (ConditionType::Stalled, conditions::stalled(&plan)),
    ];
    let mut status = before.clone();
    let told = conditions::with_times(updates, &before.conditions, generation, now);
    status.conditions.retain(|old| told.iter().all(|new| new.type_ != old.type_));
    status.conditions.extend(told);
    status.observed_generation = Some(generation);
    status.phase = Some(Phase::Blocked);
    status.message = Some(invalid.to_string());
    status
}

/// What a condition said before, as long as it says the same with other numbers.
fn keep_similar_messages(
    before: &DialogClusterStatus,
    kind: ConditionType,
    updates: &mut [(ConditionType, conditions::ConditionUpdate)],
) {
    let told = before.condition(kind).map(|before| before.message.as_str());
    for (_, update) in updates.iter_mut().filter(|(of, _)| *of == kind) {
        update.message = writer::keep_similar_message(told, std::mem::take(&mut update.message));
    }
}

fn is(updates: &[(ConditionType, conditions::ConditionUpdate)], kind: ConditionType) -> bool {
    updates.iter().any(|(name, update)| *name == kind && update.status == "True")
}

fn phase(view: View, plan: &Plan, updates: &[(ConditionType, conditions::ConditionUpdate)]) -> Phase {
    let born = view.citus().is_some_and(|citus| citus.schema_hash.is_some());
    let wait = |wanted: fn(&WaitingOn) -> bool| plan.waits.iter().any(wanted);
    let step = |wanted: fn(&Step) -> bool| plan.steps.iter().any(|planned| wanted(&planned.step));
    if view.desired.paused {
        Phase::Paused
    } else if plan.problems.iter().any(|problem| problem.reason().consequence().not_served) {
        Phase::Failed
    } else if !plan.problems.is_empty() {
        Phase::Blocked
    } else if view.stateful_set(Node::Coordinator).is_none() {
        Phase::Pending
    } else if wait(|wait| matches!(wait, WaitingOn::Rolling { .. })) {
        Phase::Restarting
    } else if view.draining_workers().values().any(|row| view.shards(row) > 0)
        || view.open_job().is_some_and(|job| job::purpose(view, job) == Purpose::Drain)
    {
        Phase::Draining
    } else if !view.draining_workers().is_empty()
        || step(
            |step| matches!(step, Step::Kubernetes(KubernetesStep::Delete { kind, .. }) if kind == "StatefulSet"),
        )
    {
        Phase::Removing
    } else if view.open_job().is_some()
        || step(|step| matches!(step, Step::Sql(SqlStep::StartRebalance { .. })))
    {
        Phase::Rebalancing
    } else if !born && !view.snapshot.status.nodes.iter().any(|node| node.node_id.is_some()) {
        Phase::Provisioning
    } else if wait(|wait| matches!(wait, WaitingOn::WorkerMissing { timed_out: false, .. }))
        || step(|step| matches!(step, Step::Sql(SqlStep::AddNode { .. })))
    {
        Phase::Joining
    } else if is(updates, ConditionType::Ready) {
        Phase::Ready
    } else {
        // A node of a cluster that was born is away for a reason that is not the operator's.
        Phase::Restarting
    }
}

fn message(
    view: View,
    plan: &Plan,
    outcome: &Outcome,
    updates: &[(ConditionType, conditions::ConditionUpdate)],
) -> String {
    let text = if let Some(problem) = plan.problems.first() {
        problem.to_string()
    } else if let Some((step, failure)) = outcome.failure() {
        format!("{} failed and is tried again: {}", step, failure.message)
    } else if let Some(wait) =
        plan.waits.iter().find(|wait| matches!(wait, WaitingOn::Paused { .. } | WaitingOn::Rolling { .. }))
    {
        wait.to_string()
    } else if let Some(job) = view.open_job() {
        job::last_error(view, job).unwrap_or_else(|| job::progress(view, job))
    } else if let Some(wait) = plan.waits.iter().find(|wait| matches!(wait, WaitingOn::CleanupBlocked { .. }))
    {
        wait.to_string()
    // Whether evictions are allowed is nobody's concern who reads what happens.
    } else if let Some(planned) =
        plan.steps.iter().find(|planned| planned.step.effect().concerns != Concern::Evictions)
    {
        format!("{}: {}", planned.step, planned.why)
    } else if let Some(wait) = plan.waits.first() {
        wait.to_string()
    } else {
        let balanced = updates
            .iter()
            .find(|(kind, _)| *kind == ConditionType::Balanced)
            .map(|(_, update)| update.message.as_str());
        balanced.unwrap_or("nothing to do").to_owned()
    };
    text.chars().take(1024).collect()
}

fn node_status(view: View, plan: &Plan, node: Node) -> NodeStatus {
    let name = view.name(node);
    let before = view.snapshot.status.nodes.iter().find(|before| before.name == name);
    let row = view.registration(node);
    let postgres = view.postgres(node);
    let citus = view.citus();
    let group = row.and_then(|row| citus?.groups.get(&row.group_id));
    NodeStatus {
        role: if node.is_worker() { Role::Worker } else { Role::Coordinator },
        address: view.address(node),
        system_identifier: view.identity(node).map(ToOwned::to_owned),
        node_id: row.map(|row| row.node_id).or_else(|| if citus.is_none() { before?.node_id } else { None }),
        state: node_state(view, plan, node),
        postgres_version: postgres
            .map(|postgres| postgres.version.clone())
            .or_else(|| before?.postgres_version.clone()),
        citus_version: postgres
            .and_then(|postgres| postgres.extension.clone())
            .or_else(|| before?.citus_version.clone()),
        wal_level: postgres.map(|postgres| postgres.wal_level.clone()),
        pending_restart: postgres.is_some_and(|postgres| !postgres.pending_restart.is_empty()),
        update_available: view.update_available(node),
        shards: row.filter(|row| row.group_id != 0).map(|_| group.map_or(0, |group| group.shards)),
        bytes: group.and_then(|group| group.bytes).or_else(|| before?.bytes),
        name,
    }
}

fn node_state(view: View, plan: &Plan, node: Node) -> NodeState {
    let rolling =
        plan.waits.iter().any(|wait| matches!(wait, WaitingOn::Rolling { node: now, .. } if *now == node));
    let member = view.registration(node).is_some();
    // One whose drain is refused, or has still to begin, keeps what it has.
    let leaving = view.draining_workers().get(&node).copied().filter(|row| !row.should_have_shards);
    match view.server(node) {
        ServerCheck::IdentityMismatch(_) => NodeState::IdentityMismatch,
        _ if rolling => NodeState::Restarting,
        _ if view.is_decommissioned(node) => NodeState::Removing,
        ServerCheck::Verified(_) if leaving.is_some_and(|row| view.shards(row) > 0) => NodeState::Draining,
        ServerCheck::Verified(_) if leaving.is_some() => NodeState::Drained,
        ServerCheck::Verified(_) if member => NodeState::Active,
        ServerCheck::Verified(_) | ServerCheck::Unrecorded(_) => NodeState::Joining,
        ServerCheck::NotReady(_) | ServerCheck::Unreachable(_) if member => {
            let ends = |pod: &Pod| pod.deleting && !view.is_overdue(pod);
            let restarting =
                view.pod(node).is_none_or(|pod| ends(pod) || !pod.deleting && pod.waiting.is_none());
            if restarting { NodeState::Restarting } else { NodeState::Unreachable }
        }
        ServerCheck::Unreachable(_) => NodeState::Starting,
        ServerCheck::NotReady(_) => match view.pod(node) {
            Some(pod) if pod.address.is_some() => NodeState::Starting,
            _ => NodeState::Pending,
        },
    }
}

fn rebalance(view: View, job: &Job) -> RebalanceStatus {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let count = |wanted: &dyn Fn(&Task) -> bool| number(job.tasks.iter().filter(|task| wanted(task)).count());
    let done = count(&|task| task.state == TaskState::Done);
    let total = number(job.tasks.len());
    let bytes = |wanted: &dyn Fn(&Task) -> bool| {
        job.tasks
            .iter()
            .filter(|task| wanted(task))
            .filter_map(|task| task.transfer.as_ref())
            .map(|transfer| transfer.bytes)
            .sum()
    };
    let before = view.snapshot.status.rebalance.as_ref().filter(|before| before.job_id == job.id);
    RebalanceStatus {
        job_id: job.id,
        purpose: job::purpose(view, job),
        state: job.state.to_string(),
        progress: format!("{done}/{total}"),
        moves: MoveCounts {
            total,
            done,
            running: count(&|task| task.state == TaskState::Running),
            failing: count(&Task::is_failing),
        },
        bytes: ByteCounts { total: bytes(&|_| true), done: bytes(&|task| task.state == TaskState::Done) },
        started_at: job.started_at.map(Time),
        finished_at: job.finished_at.map(Time),
        estimated_finish: job::seconds_left(view, job)
            .and_then(|seconds| view.snapshot.now.checked_add(jiff::SignedDuration::from_secs(seconds)).ok())
            .map(Time),
        // Kept after the job ends: it is what a person looks for first.
        last_error: job::last_error(view, job)
            .or_else(|| before.and_then(|before| before.last_error.clone())),
    }
}
