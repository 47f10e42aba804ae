//! What another number of workers would mean: the moves of Citus, foretold from a snapshot. Nothing of it is done.

use std::{collections::BTreeMap, fmt};

use super::{
    View,
    by_shard_count::{self, BY_SHARD_COUNT, ForetoldMove},
};
use crate::{
    api::{
        Node,
        words::{several, size},
    },
    snapshot::{Citus, DistNode},
};

/// Moves between nodes, for people to read.
#[derive(Debug)]
pub struct Foretold {
    workers: u16,
    moves: Vec<ForetoldMove>,
    names: BTreeMap<i32, String>,
}

/// Why moves cannot be foretold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotForetold {
    /// The strategy's costs are functions in the database.
    #[error(
        "only moves by {BY_SHARD_COUNT} can be foretold, and spec.rebalance.strategy is {0}: ask Citus itself"
    )]
    Strategy(String),
    /// The catalog is not in the snapshot.
    #[error("the snapshot has no catalog: {0}")]
    Catalog(String),
    /// The placements are not in the snapshot, or on nodes that are not active.
    #[error(
        "the snapshot does not say where every shard is: it was taken while shards moved, or before they were looked at (then take another one), or a worker is inactive"
    )]
    Placements,
}

/// The moves when `view.desired` is asked for: away from workers that are no longer wanted, and to those that are missing,
/// which Citus numbers in the order in which they are registered.
///
/// # Errors
/// What keeps them from being foretold.
pub fn moves(view: View) -> Result<Foretold, NotForetold> {
    let strategy = &view.desired.rebalance.strategy;
    if strategy != BY_SHARD_COUNT {
        return Err(NotForetold::Strategy(strategy.clone()));
    }
    let Some(citus) = view.citus() else {
        return Err(NotForetold::Catalog(view.snapshot.citus.unknown().unwrap_or_default().to_owned()));
    };
    let placements = citus.placements.as_ref().ok_or(NotForetold::Placements)?;
    let mut nodes = nodes(view, citus);
    let mut names: BTreeMap<i32, String> = citus
        .nodes
        .iter()
        .map(|row| (row.node_id, view.node_of(row).map_or_else(|| row.name.clone(), |node| node.to_string())))
        .collect();
    let last = |key: fn(&DistNode) -> i32| citus.nodes.iter().map(key).max().unwrap_or_default();
    let (last_id, last_group) = (last(|row| row.node_id), last(|row| row.group_id));
    for (number, missing) in (1..).zip(view.missing_workers()) {
        names.insert(last_id + number, missing.node.to_string());
        nodes.push(DistNode {
            node_id: last_id + number,
            group_id: last_group + number,
            active: true,
            should_have_shards: true,
            ..DistNode::default()
        });
    }
    let moves = by_shard_count::moves(&nodes, placements, false).ok_or(NotForetold::Placements)?;
    Ok(Foretold { workers: view.desired.workers, moves, names })
}

/// pg_dist_node with shards allowed on all workers that are to stay, and on none that is to go.
pub(crate) fn nodes(view: View, citus: &Citus) -> Vec<DistNode> {
    let (leaving, staying) = (view.draining_workers(), view.remaining_workers());
    let mut nodes = citus.nodes.clone();
    for row in &mut nodes {
        let among = |workers: &BTreeMap<Node, &DistNode>| {
            workers.values().any(|worker| worker.node_id == row.node_id)
        };
        row.should_have_shards = among(&staying) || row.should_have_shards && !among(&leaving);
    }
    nodes
}

impl fmt::Display for Foretold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = several(self.workers, "worker");
        if self.moves.is_empty() {
            return writeln!(f, "with {workers}, Citus moves no shard");
        }
        let bytes: Option<i64> = self.moves.iter().map(|planned| planned.bytes).sum();
        let count = several(self.moves.len(), "move");
        writeln!(f, "with {workers}, Citus makes {count}{}:", in_bytes(bytes))?;
        for planned in &self.moves {
            let name = |id| self.names.get(&id).map_or("?", String::as_str);
            let (from, to) = (name(planned.from), name(planned.to));
            writeln!(f, "move    shard {} from {from} to {to}{}", planned.shard, in_bytes(planned.bytes))?;
        }
        Ok(())
    }
}

fn in_bytes(bytes: Option<i64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(" ({})", size(bytes)))
}
