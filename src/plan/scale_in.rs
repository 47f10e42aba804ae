//! Fewer workers: those that go are emptied by a job of Citus, looked at, and only then removed. What cannot be done
//! safely is refused with its numbers. A worker that is wanted again gets its shards back, as long as it was not decommissioned.

use std::collections::BTreeMap;

use super::{
    Findings, Gate, Plan, PlannedStep, Problem, ResolvedSpec, SqlStep, Step, View, WaitingOn,
    by_shard_count::{self, BY_SHARD_COUNT},
    contents, foretold,
    problem::DrainRefusal,
    rebalance, volumes,
};
use crate::{
    api::{
        Node,
        spec::{RebalanceMode, VolumePolicy},
        words::several,
    },
    snapshot::{Citus, DistNode, Job},
};

/// Citus refuses a move after which less is free (`citus.desired_percent_disk_available_after_move`).
pub const KEPT_FREE_PERCENT: i64 = 10;

type Workers<'a> = BTreeMap<Node, &'a DistNode>;

/// Takes every worker that is to go one step further on its way out, and every one that is wanted again back in.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    if view.citus().is_none() {
        return;
    }
    let leaving = view.draining_workers();
    let problems = plan.problems.len();
    continue_drain(view, wanted, leaving.clone(), plan);
    // What keeps them is said first; and what a person has to solve first keeps all of them.
    if plan.problems.len() > problems {
        return;
    }
    for (node, row) in leaving {
        plan.wait(WaitingOn::Draining { node, shards: view.shards(row) });
    }
}

fn continue_drain(view: View, wanted: &ResolvedSpec, leaving: Workers, plan: &mut Plan) {
    let back: Workers =
        view.remaining_workers().into_iter().filter(|(_, row)| !row.should_have_shards).collect();
    if leaving.is_empty() && back.is_empty() {
        return;
    }
    if let Some(job) = view.open_job() {
        // `shouldhaveshards` never changes under a job: Citus would try its moves for ever.
        if is_unwanted(view, job) && job.can_be_stopped() {
            let why =
                format!("job {} moves shards to a worker that is to go, or from one that is to stay", job.id);
            plan.step(SqlStep::StopRebalance { job: job.id }, why);
        }
        return;
    }
    // Every call about members needs every member; that of the silent one is said by `membership`.
    if !view.unhealthy_members().is_empty() {
        return;
    }
    for (node, row) in back {
        let step = should_have_shards(view, node, row, true);
        plan.step(step, format!("{} is wanted again and gets shards", view.name(node)));
    }
    let (asked, decided): (Workers, Workers) =
        leaving.into_iter().partition(|(_, row)| row.should_have_shards);
    let (full, empty): (Workers, Workers) = decided.into_iter().partition(|(_, row)| view.shards(row) > 0);
    let (free, findings) = removable(view, &empty);
    plan.add(findings);
    if !free.is_empty() {
        remove(view, free, plan);
    } else if !asked.is_empty() {
        if plan.pass(may_drain(view, &asked)).is_some() {
            begin_drain(view, &asked, plan);
        }
    } else if !full.is_empty() {
        drain(view, wanted, &full, plan);
    }
}

/// The job moves shards to a worker that is to go, or drains one that is to stay.
fn is_unwanted(view: View, job: &Job) -> bool {
    let (leaving, staying) = (view.draining_workers(), view.remaining_workers());
    let open = job.tasks.iter().filter(|task| !task.state.has_ended());
    open.filter_map(|task| task.transfer.as_ref()).any(|transfer| {
        leaving.values().any(|row| row.node_id == transfer.to)
            || staying.values().any(|row| row.node_id == transfer.from && !row.should_have_shards)
    })
}

fn should_have_shards(view: View, node: Node, row: &DistNode, should: bool) -> Step {
    Step::Sql(SqlStep::SetShouldHaveShards {
        node,
        address: view.address(node),
        should,
        shards: view.shards(row),
    })
}

fn refused(view: View, asked: &Workers, why: DrainRefusal) -> Findings {
    let workers = asked.keys().map(|node| view.name(*node)).collect();
    let (staying, registered) = (view.remaining_workers().len(), view.registered_workers().len());
    Problem::ScaleInRefused { workers, staying, registered, why }.into()
}

/// Nothing but the cluster's own is on those that are to go.
fn hold_nothing_foreign(view: View, asked: &Workers) -> Gate {
    let (mut found, mut findings) = (Vec::new(), Findings::default());
    for node in asked.keys() {
        match contents::foreign_contents(view, *node) {
            Ok(contents) => found.extend(contents.map(|contents| (view.name(*node), contents.clone()))),
            Err(unknown) => findings.add(unknown),
        }
    }
    if !found.is_empty() {
        findings.add(refused(view, asked, DrainRefusal::Contents(found)));
    }
    findings.gate()
}

/// The last moment at which a scale-in can be refused without anything having been changed.
fn may_drain(view: View, asked: &Workers) -> Gate {
    hold_nothing_foreign(view, asked)?;
    if view.desired.rebalance.mode == RebalanceMode::Off {
        return Err(refused(view, asked, DrainRefusal::RebalanceOff));
    }
    // Those who wait to join get their part first; a drain before that would move shards twice.
    let waiting = view
        .missing_workers()
        .iter()
        .any(|missing| !missing.timed_out && !view.is_decommissioned(missing.node));
    if waiting {
        return Err(Findings::default());
    }
    if view.remaining_workers().is_empty() {
        return Err(refused(view, asked, DrainRefusal::NoWorkerRemains));
    }
    rebalance::can_drain(view, &asked.values().map(|row| row.group_id).collect())?;
    match lacks_space(view) {
        Err(why) => Err(WaitingOn::SpaceUnknown { why }.into()),
        Ok(Some(lack)) => Err(refused(view, asked, lack)),
        Ok(None) => Ok(()),
    }
}

fn begin_drain(view: View, asked: &Workers, plan: &mut Plan) {
    for (node, row) in asked {
        let why = format!("{} is no longer wanted: no new shard is placed on it", view.name(*node));
        plan.step(should_have_shards(view, *node, row, false), why);
    }
}

/// Whether those that stay have room for what those that go hold: `None` when they have.
///
/// Each gets what Citus will move to it, or an even part where only Citus knows; and a quarter more is needed for indexes
/// that are built and WAL that is written meanwhile.
///
/// # Errors
/// What is not known.
fn lacks_space(view: View) -> Result<Option<DrainRefusal>, String> {
    let citus = view.citus().ok_or("the catalog is not known")?;
    let mut total: i64 = 0;
    for (node, row) in view.draining_workers() {
        let group = citus.groups.get(&row.group_id).copied().unwrap_or_default();
        let bytes = if group.shards == 0 { Some(0) } else { group.bytes };
        total +=
            bytes.ok_or_else(|| format!("the size of the shards on {} is not known", view.name(node)))?;
    }
    if total == 0 {
        return Ok(None);
    }
    let staying = view.remaining_workers();
    let even = total / i64::try_from(staying.len()).unwrap_or(1).max(1);
    let incoming = incoming(view, citus);
    for (node, row) in staying {
        let part = incoming.as_ref().map_or(even, |bytes| bytes.get(&row.node_id).copied().unwrap_or(0));
        let needed = part + part / 4;
        let disk = view.postgres(node).and_then(|postgres| postgres.disk);
        let disk = disk.ok_or_else(|| format!("the free space of {} is not known", view.name(node)))?;
        let room = (disk.free - disk.total / 100 * KEPT_FREE_PERCENT).max(0);
        if needed > room {
            return Ok(Some(DrainRefusal::NoSpace {
                node: view.name(node),
                moved: total,
                needed,
                available: room,
                free: disk.free,
                capacity: disk.total,
            }));
        }
    }
    Ok(None)
}

/// Bytes that each node will get, by `nodeid`; `None` where that cannot be foretold.
fn incoming(view: View, citus: &Citus) -> Option<BTreeMap<i32, i64>> {
    if view.desired.rebalance.strategy != BY_SHARD_COUNT {
        return None;
    }
    let nodes = foretold::nodes(view, citus);
    let mut incoming = BTreeMap::new();
    for planned in by_shard_count::moves(&nodes, citus.placements.as_ref()?, true)? {
        *incoming.entry(planned.to).or_default() += planned.bytes?;
    }
    Some(incoming)
}

/// Starts the job that empties workers.
fn drain(view: View, wanted: &ResolvedSpec, full: &Workers, plan: &mut Plan) {
    let shards: i64 = full.values().map(|row| view.shards(row)).sum();
    let names: Vec<String> = full.keys().map(|node| view.name(*node)).collect();
    let why =
        format!("{} of {} to move to the workers that stay", several(shards, "shard"), names.join(", "));
    let nodes = full.values().map(|row| row.group_id).collect();
    rebalance::drain(view, wanted, (shards, &nodes), &why, plan);
}

/// Workers that hold nothing any more and can be removed now, and what keeps the others.
fn removable<'a>(view: View, empty: &Workers<'a>) -> (Workers<'a>, Findings) {
    let Some(citus) = view.citus() else { return (Workers::new(), Findings::default()) };
    let left = |row: &DistNode| citus.cleanup.iter().filter(|left| left.group_id == row.group_id).count();
    let (dirty, clean): (Workers, Workers) =
        empty.iter().map(|(node, row)| (*node, *row)).partition(|(_, row)| left(row) > 0);
    let mut findings = Findings::default();
    for (node, row) in &dirty {
        let sessions = view.snapshot.blocking_sessions.get(node).cloned().unwrap_or_default();
        findings.add(WaitingOn::CleanupBlocked { node: *node, objects: left(row), sessions });
    }
    if !dirty.is_empty() {
        let why = "orphaned objects on a draining worker are dropped before it is removed: a row of pg_dist_cleanup that outlives its node blocks every later move of that shard";
        findings.add(PlannedStep::new(SqlStep::CleanUpOrphans, why));
    }
    let mut free = clean;
    free.retain(|node, _| may_be_removed(view, *node).map_err(|why| findings.add(why)).is_ok());
    (free, findings)
}

fn remove(view: View, free: Workers, plan: &mut Plan) {
    plan.step(SqlStep::RecoverTransactions, "transactions prepared on a draining worker are recovered first");
    for node in free.into_keys() {
        let reclaim = view.desired.volumes.when_scaled;
        let claim = view.claim(node).map(ToOwned::to_owned);
        let kept = claim.clone().filter(|_| reclaim == VolumePolicy::Retain);
        if !view.is_decommissioned(node) {
            let why = format!("{} holds no shards and no orphaned objects", view.name(node));
            plan.step(volumes::decommission(view, node, reclaim), why);
        }
        let address = view.address(node);
        plan.step(SqlStep::RemoveNode { node, address, kept }, format!("{} is drained", view.name(node)));
    }
}

/// A person may have put something there since its drain began: then it stays, registered and without shards.
fn may_be_removed(view: View, node: Node) -> Gate {
    match contents::foreign_contents(view, node)? {
        None => Ok(()),
        Some(found) => {
            let found = Box::new(found.clone());
            Err(Problem::RemovalRefused { node: view.name(node), found }.into())
        }
    }
}
