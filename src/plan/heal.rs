//! States that Citus does not leave by itself: recognised from the catalog and the servers, and left where that can be
//! done without doubt. What only a person can decide is said by those who meet it.

use std::collections::BTreeSet;

use super::{Plan, Server, Step, View};
use crate::observe::snapshot::Citus;

/// Leaves what can be left.
pub fn plan(view: View, plan: &mut Plan) {
    let Some(citus) = view.citus().filter(|_| view.is_catalog_ours()) else { return };
    cleanup_of_nobody(citus, plan);
    if view.unwell().is_empty() && !view.move_may_run() {
        inactive_workers(view, plan);
    }
}

/// What dead moves left, last of all: whether it can be dropped concerns nothing else.
pub fn tidy(view: View, plan: &mut Plan) {
    if let Some(citus) = view.citus().filter(|_| view.is_catalog_ours() && view.open_job().is_none()) {
        leftovers(view, citus, plan);
    }
}

/// Rows of pg_dist_cleanup about a group that no node has any more: Citus can never act on them, and every later move
/// of that shard fails for ever.
fn cleanup_of_nobody(citus: &Citus, plan: &mut Plan) {
    if citus.nodes.is_empty() {
        return;
    }
    let groups: BTreeSet<i32> = citus.nodes.iter().map(|node| node.group_id).collect();
    let lost: Vec<_> = citus.cleanup.iter().filter(|row| !groups.contains(&row.group_id)).collect();
    if lost.is_empty() {
        return;
    }
    let names: Vec<&str> = lost.iter().map(|row| row.object_name.as_str()).collect();
    let why = format!(
        "{} was left on a node that is no member any more: as long as pg_dist_cleanup has it, no move of it can succeed",
        names.join(", ")
    );
    plan.step(Step::ForgetCleanup { records: lost.iter().map(|row| row.record_id).collect() }, why);
}

/// Only a server that is who it should be and has its tables: for an emptied one the activation would wipe the trace.
/// Those that count as active first: Citus refuses every other activation while the copy of one of these is old.
fn inactive_workers(view: View, plan: &mut Plan) {
    let mut workers: Vec<_> = view.registered_workers().into_iter().collect();
    workers.sort_by_key(|(_, row)| !row.active);
    for (node, row) in workers {
        if let Server::Known(postgres) = view.server(node)
            && postgres.missing_tables == 0
            && !(row.active && row.has_metadata && row.metadata_synced)
        {
            let synced = row.has_metadata && row.metadata_synced;
            plan.step(
                Step::ActivateNode { node, address: view.address(node) },
                format!("{} answers as who it should be, and pg_dist_node says active: {}, metadata synced: {synced}", view.name(node), row.active),
            );
        }
    }
}

/// What a dead move left and pg_dist_cleanup does not know: a slot keeps WAL until the disk is full.
fn leftovers(view: View, citus: &Citus, plan: &mut Plan) {
    for node in view.nodes() {
        let Server::Known(postgres) = view.server(node) else { continue };
        let unknown = |name: &str| !citus.cleanup.iter().any(|row| row.object_name == name);
        let leftovers: Vec<_> =
            postgres.leftovers.iter().filter(|left| unknown(&left.name)).cloned().collect();
        if !leftovers.is_empty() {
            let names: Vec<&str> = leftovers.iter().map(|left| left.name.as_str()).collect();
            let why = format!(
                "{} of a move that is over is on {}, and pg_dist_cleanup does not know it",
                names.join(", "),
                view.name(node)
            );
            plan.step(Step::DropLeftovers { node, leftovers }, why);
        }
    }
}
