//! States that Citus does not leave by itself: recognised from the catalog and the servers, and left where that can be
//! done without doubt. What only a person can decide is said by those who meet it.

use std::collections::BTreeSet;

use super::{Plan, ServerCheck, SqlStep, View};
use crate::{
    api::Node,
    snapshot::{Citus, DistNode},
};

/// Leaves what can be left.
pub fn plan(view: View, plan: &mut Plan) {
    let Some(citus) = view.citus().filter(|_| view.is_catalog_ours()) else { return };
    stale_cleanup_records(citus, plan);
    if view.unhealthy_members().is_empty() && !view.move_may_run() {
        inactive_workers(view, plan);
    }
}

/// What dead moves left, last of all: whether it can be dropped concerns nothing else.
pub fn drop_leftovers(view: View, plan: &mut Plan) {
    if let Some(citus) = view.citus().filter(|_| view.is_catalog_ours() && view.open_job().is_none()) {
        leftovers_of_moves(view, citus, plan);
    }
}

/// So many objects are named.
const NAMED: usize = 5;

/// Rows of pg_dist_cleanup about a group that no node has any more: Citus can never act on them, and every later move
/// of that shard fails for ever.
fn stale_cleanup_records(citus: &Citus, plan: &mut Plan) {
    if citus.nodes.is_empty() {
        return;
    }
    let groups: BTreeSet<i32> = citus.nodes.iter().map(|node| node.group_id).collect();
    let lost: Vec<_> = citus.cleanup.iter().filter(|row| !groups.contains(&row.group_id)).collect();
    if lost.is_empty() {
        return;
    }
    let names: Vec<&str> = lost.iter().take(NAMED).map(|row| row.object_name.as_str()).collect();
    let more = match lost.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let why = format!(
        "{}{more} was left on a node that is no longer a member: as long as pg_dist_cleanup has it, no move of it can succeed",
        names.join(", ")
    );
    plan.step(
        SqlStep::DeleteStaleCleanupRecords { records: lost.iter().map(|row| row.record_id).collect() },
        why,
    );
}

/// Only servers that are who they should be and have their tables: for an emptied one the activation would wipe the
/// trace.
///
/// Citus copies its metadata to a worker without the placements of members that are inactive, and does not add them
/// when these are activated: the worker refuses moves and queries of such shards from then on. So nobody gets a copy
/// while somebody else stays inactive, and of several that were inactive all but the last get another one at the end.
/// An active one whose copy is old is brought up to date by Citus meanwhile (`citus.metadata_sync_interval`).
fn inactive_workers(view: View, plan: &mut Plan) {
    let whole = |row: &DistNode| row.active && row.has_metadata && row.metadata_synced;
    let fit = |node: &Node| matches!(view.server(*node), ServerCheck::Verified(postgres) if postgres.missing_tables == 0);
    let workers = view.registered_workers();
    let mut to_activate: Vec<Node> =
        workers.iter().filter(|(_, row)| !row.active).map(|(node, _)| *node).collect();
    if to_activate.is_empty() {
        to_activate =
            workers.iter().filter(|(node, row)| !whole(row) && fit(node)).map(|(node, _)| *node).collect();
    } else if !to_activate.iter().all(fit) {
        return;
    } else {
        to_activate.extend_from_within(..to_activate.len() - 1);
    }
    for node in to_activate {
        let Some(row) = workers.get(&node) else { continue };
        let synced = row.has_metadata && row.metadata_synced;
        plan.step(
            SqlStep::ActivateNode { node, address: view.address(node) },
            format!(
                "{} answers with the recorded system identifier, and pg_dist_node says active: {}, metadata synced: {synced}",
                view.name(node),
                row.active
            ),
        );
    }
}

/// No more of it is dropped in one step: the next look sees what is left.
const BATCH: usize = 100;

/// What a dead move left and pg_dist_cleanup does not know: a slot keeps WAL until the disk is full.
fn leftovers_of_moves(view: View, citus: &Citus, plan: &mut Plan) {
    // What is not among the rows that were listed may be among the others.
    if citus.cleanup_in_all > citus.cleanup.len() {
        return;
    }
    for node in view.nodes() {
        let ServerCheck::Verified(postgres) = view.server(node) else { continue };
        let unknown = |name: &str| !citus.cleanup.iter().any(|row| row.object_name == name);
        let leftovers: Vec<_> =
            postgres.leftovers.iter().filter(|left| unknown(&left.name)).take(BATCH).cloned().collect();
        if let Some(first) = leftovers.first() {
            let more = match postgres.leftovers_in_all {
                ..=1 => "1 such thing".to_owned(),
                all => format!("{all} such things"),
            };
            let why = format!(
                "{} of a move that is over is on {} ({more} there), and pg_dist_cleanup does not know it",
                first.name,
                view.name(node)
            );
            plan.step(SqlStep::DropLeftovers { node, leftovers }, why);
        }
    }
}
