//! What a rebalance job is for, how far it is and what it met. Pure.

use std::fmt::Write;

use crate::{
    api::{status::Purpose, words::several},
    plan::View,
    snapshot::{Job, Task, TaskState},
};

/// `9 of 16 moves done, about 4 s left`.
#[must_use]
pub fn progress(view: View, job: &Job) -> String {
    let done = job.tasks.iter().filter(|task| task.state == TaskState::Done).count();
    let mut text = format!("{done} of {} done", several(job.tasks.len(), "move"));
    if let Some(seconds) = seconds_left(view, job) {
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
    let before = view.snapshot.status.rebalance.as_ref().filter(|before| before.job_id == job.id);
    if !transfers.is_empty() && transfers.iter().all(|transfer| drained(transfer.from)) {
        return Purpose::Drain;
    }
    // A worker that was removed since, or is wanted again, no longer tells.
    before.map_or(Purpose::Rebalance, |before| before.purpose)
}

/// Seconds until the job ends at the speed so far; `None` before the first move is done.
#[must_use]
pub fn seconds_left(view: View, job: &Job) -> Option<i64> {
    let done = i64::try_from(job.tasks.iter().filter(|task| task.state == TaskState::Done).count()).ok()?;
    let left = i64::try_from(job.tasks.len()).ok()? - done;
    let spent = view.snapshot.now.duration_since(job.started_at?).as_secs().max(0);
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
        "shard {} from {} to {} (tried {}): {message}",
        transfer.shard,
        name(transfer.from),
        name(transfer.to),
        several(task.retried, "time")
    ))
}
