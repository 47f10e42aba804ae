//! Sentences for people: of holds, of steps, of a job's progress. Text only.

use std::fmt;

use crate::{
    api::status::Purpose,
    observe::snapshot::{Job, Task, TaskState},
    plan::{Hold, KubernetesStep, SqlStep, Step, View},
};

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused { steps: 0 } => write!(f, "paused"),
            Self::Paused { steps } => write!(f, "paused: {steps} changes wait until spec.paused is false"),
            Self::FormerObjects { object } => {
                write!(f, "waiting until {object} of an earlier cluster of this name is gone")
            }
            Self::PodNotReady { node, why } => write!(f, "waiting for {node}: {why}"),
            Self::NotAnswering { node, why } => write!(f, "waiting for {node} to answer: {why}"),
            Self::CatalogUnknown { why } => write!(f, "waiting for the coordinator's catalog: {why}"),
            Self::NodeNotPrepared { node } => write!(f, "preparing {node}"),
            Self::ConfigurationOnItsWay { node } => {
                write!(f, "waiting until {node} has the changed configuration")
            }
            Self::Rolling { node, cause, remaining } => {
                write!(f, "restarting {node} ({cause}), {remaining} more after it")
            }
            Self::RestartWaitsForMoves { node, cause } => {
                write!(f, "the restart of {node} ({cause}) waits until no shard is moved")
            }
            Self::MemberInactive { node } => write!(
                f,
                "no worker can be registered while {node} is inactive in pg_dist_node: it would not learn where that one's shards are"
            ),
            Self::RegisteredNodeSilent { node, why } => {
                write!(f, "no worker can be registered while {node} does not answer: {why}")
            }
            Self::NotConnected { from, to, why } => write!(f, "{from} cannot reach {to} yet: {why}"),
            Self::WorkerMissing { node, why, timed_out: false } => {
                write!(f, "waiting for {node} to join: {why}")
            }
            Self::WorkerMissing { node, why, timed_out: true } => {
                write!(f, "going on without {node}, which did not join in time: {why}")
            }
            Self::Leaving { node, shards: 0 } => write!(f, "{node} holds no shard any more and is removed"),
            Self::Leaving { node, shards } => write!(f, "{node} is drained: {shards} shards are on it"),
            Self::RoomUnknown { why } => {
                write!(f, "nothing is drained before it is known whether those that stay have room: {why}")
            }
            Self::ContentsUnknown { node, why } => {
                write!(f, "{node} does not go before it is known what else people keep on it: {why}")
            }
            Self::CleanupBlocked { node, objects, holders } if holders.is_empty() => {
                write!(f, "{node} is removed when Citus has dropped {objects} objects that moves left on it")
            }
            Self::CleanupBlocked { node, objects, holders } => write!(
                f,
                "{node} is removed when {objects} objects that moves left on it are dropped, which is kept from it by {}",
                holders.join("; ")
            ),
            Self::HeldUp { sessions, .. } => write!(f, "held up by {}", sessions.join("; ")),
            Self::JobRunning { job } => write!(f, "rebalance job {job} runs"),
            Self::RebalancePause { state, until } => {
                let until = until.round(jiff::Unit::Second).unwrap_or(*until);
                write!(f, "the last rebalance ended {state}; the next one starts at {until}")
            }
            Self::InspectingImage { image } => write!(f, "asking {image} what is in it"),
            Self::VolumesGrow { volumes, moves } => volumes_grow(f, volumes, *moves),
            Self::SchemaSource { why } => write!(f, "waiting for the schema: {why}"),
        }
    }
}

fn volumes_grow(f: &mut fmt::Formatter<'_>, volumes: &str, moves: bool) -> fmt::Result {
    let when = if moves { "these volumes grow when no shard is moved" } else { "these volumes are growing" };
    write!(f, "{when}: {volumes}")
}

/// What a step does, in the -ing form.
#[must_use]
pub fn doing(step: &Step) -> String {
    match step {
        Step::Kubernetes(step) => writing(step),
        Step::Sql(step) => executing(step),
    }
}

fn writing(step: &KubernetesStep) -> String {
    match step {
        KubernetesStep::Create(object) => format!("creating {}", object.key()),
        KubernetesStep::Apply { object, .. } => format!("applying {}", object.key()),
        KubernetesStep::CreateSecret(kind) => format!("creating the Secret for {kind}"),
        KubernetesStep::SetConnectionKeys { .. } => {
            "bringing the application's Secret up to its password".to_owned()
        }
        KubernetesStep::InspectImage { image } => format!("asking {image} what is in it"),
        KubernetesStep::Adopt { kind, name, .. } => format!("taking over {kind}/{name}"),
        KubernetesStep::ForgetInspection { pod } => format!("removing pod {pod}"),
        KubernetesStep::HurryConfiguration { node, .. } => format!("hurrying the configuration of {node}"),
        KubernetesStep::PatchPod { node, .. } => format!("labelling the pod of {node}"),
        KubernetesStep::RecordIdentity { node, .. } => format!("recording who {node} is"),
        KubernetesStep::RestartNode { node, cause, .. } => format!("restarting {node} ({cause})"),
        KubernetesStep::Retire { node, .. } => format!("putting the volume of {node} aside"),
        KubernetesStep::Delete { kind, name, .. } => format!("deleting {kind} {name}"),
    }
}

fn executing(step: &SqlStep) -> String {
    match step {
        SqlStep::PrepareNode { node, .. } => format!("preparing {node}"),
        SqlStep::GrantRights { node, owner } => format!("giving {owner} its rights on {node}"),
        SqlStep::Reload { node } => format!("reloading {node}"),
        SqlStep::ResetAlterSystem { node, names } => format!("resetting {} on {node}", names.join(", ")),
        SqlStep::TryParameter { node, name, .. } => format!("trying {name} on {node}"),
        SqlStep::SetCoordinatorHost { address } => {
            format!("telling Citus the coordinator's address {address}")
        }
        SqlStep::AddNode { node, .. } => format!("registering {node}"),
        SqlStep::CreateExtension { name } => format!("making the extension {name}"),
        SqlStep::CreateOwner { owner, .. } => format!("making the role {owner}"),
        SqlStep::ApplySchema { .. } => "applying the schema".to_owned(),
        SqlStep::SetShouldHaveShards { node, should: true, .. } => format!("giving {node} shards again"),
        SqlStep::SetShouldHaveShards { node, should: false, .. } => {
            format!("putting no shards on {node} any more")
        }
        SqlStep::CleanUp => "dropping what moves left behind".to_owned(),
        SqlStep::RemoveNode { node, .. } => format!("removing {node}"),
        SqlStep::GiveUp { workers } => {
            let names: Vec<String> = workers.iter().map(|(node, _)| node.to_string()).collect();
            format!("giving up the data of {}", names.join(", "))
        }
        SqlStep::ActivateNode { node, .. } => format!("activating {node}"),
        SqlStep::ForgetCleanup { records } => format!("forgetting {} rows of pg_dist_cleanup", records.len()),
        SqlStep::DropLeftovers { node, leftovers } => {
            format!("dropping {} leftovers of moves on {node}", leftovers.len())
        }
        SqlStep::RecoverTransactions => "recovering prepared transactions".to_owned(),
        SqlStep::StartRebalance { drain: true, moves, .. } => format!("starting a drain of {moves} shards"),
        SqlStep::StartRebalance { moves, .. } => format!("starting a rebalance of {moves} moves"),
        SqlStep::PinGroups(pins) if pins.groups.is_empty() => "letting all groups move again".to_owned(),
        SqlStep::PinGroups(pins) => format!("keeping {} colocation groups where they are", pins.groups.len()),
        SqlStep::StopRebalance { job } => format!("stopping rebalance job {job}"),
    }
}

/// `9 of 16 moves done, about 4 s left`.
#[must_use]
pub fn progress(view: View, job: &Job) -> String {
    let done = job.tasks.iter().filter(|task| task.state == TaskState::Done).count();
    let mut text = format!("{done} of {} moves done", job.tasks.len());
    if let Some(seconds) = seconds_left(view, job) {
        use fmt::Write;
        let _ = write!(text, ", about {seconds} s left");
    }
    text
}

/// What an open or ended job is for: a drain moves shards only away from workers that should have none.
#[must_use]
pub fn purpose(view: View, job: &Job) -> Purpose {
    let rows = view.citus().map(|citus| citus.nodes.as_slice()).unwrap_or_default();
    let transfers: Vec<_> = job.tasks.iter().filter_map(|task| task.transfer.as_ref()).collect();
    let drained = |id: i32| rows.iter().any(|row| row.node_id == id && !row.should_have_shards);
    let before = view.seen.status.rebalance.as_ref().filter(|before| before.job_id == job.id);
    if !transfers.is_empty() && transfers.iter().all(|transfer| drained(transfer.from)) {
        return Purpose::Drain;
    }
    // A worker that was removed since, or is wanted again, no longer tells.
    before.map_or(Purpose::Even, |before| before.purpose)
}

/// Seconds until the job ends at the speed so far; `None` before the first move is done.
#[must_use]
pub fn seconds_left(view: View, job: &Job) -> Option<i64> {
    let done = i64::try_from(job.tasks.iter().filter(|task| task.state == TaskState::Done).count()).ok()?;
    let left = i64::try_from(job.tasks.len()).ok()? - done;
    let spent = view.seen.now.duration_since(job.started_at?).as_secs().max(0);
    (done > 0 && job.is_open()).then(|| (spent * left + done - 1) / done)
}

/// The first failing task in Citus' own words, with the shard and the two nodes.
#[must_use]
pub fn last_error(view: View, job: &Job) -> Option<String> {
    let task = job.tasks.iter().find(|task| Task::is_failing(task) && task.message.is_some())?;
    let message = task.message.as_deref()?.trim();
    let Some(transfer) = &task.transfer else { return Some(message.to_owned()) };
    let name = |id: i32| {
        let row = view.citus().and_then(|citus| citus.nodes.iter().find(|row| row.node_id == id));
        row.and_then(|row| view.node_of(row)).map_or_else(|| format!("node {id}"), |node| view.name(node))
    };
    Some(format!(
        "shard {} from {} to {} (tried {} times): {message}",
        transfer.shard,
        name(transfer.from),
        name(transfer.to),
        task.retried
    ))
}
