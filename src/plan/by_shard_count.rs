//! What Citus will move by its strategy `by_shard_count` before it can be asked: to workers that do not exist yet, and
//! away from workers that are still to go. A pure function of the catalog, which real Citus agrees with in
//! `tests/citus/foretold.rs`.
//!
//! Of Citus' shard_rebalancer.c (`GetRebalanceSteps`, `MoveShardsAwayFromDisallowedNodes`, `FindAndMoveShardCost`), where
//! each shard costs 1, each node has a capacity of 1 and the threshold is 0.

use std::collections::{BTreeMap, BTreeSet};

use crate::snapshot::{DistNode, Placement};

/// The strategy's row of pg_dist_rebalance_strategy.
pub const BY_SHARD_COUNT: &str = "by_shard_count";

/// A move that Citus will plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForetoldMove {
    /// `shardid`; the shards that are colocated with it move along.
    pub shard: i64,
    /// `nodeid`.
    pub from: i32,
    /// `nodeid`.
    pub to: i32,
    /// Bytes of all that moves, when they are known.
    pub bytes: Option<i64>,
}

/// What `get_rebalance_table_shards_plan('by_shard_count', drain_only)` would list, in its order, with these nodes.
/// `None` when there is no active node for shards, when a placement is on none of these nodes or on an inactive one, and
/// when a shard has several.
#[must_use]
pub fn moves(nodes: &[DistNode], placements: &[Placement], drain_only: bool) -> Option<Vec<ForetoldMove>> {
    let active = || nodes.iter().filter(|node| node.active);
    let groups: BTreeMap<i32, i32> = active().map(|node| (node.group_id, node.node_id)).collect();
    let open: BTreeSet<i32> =
        active().filter(|node| node.should_have_shards).map(|node| node.node_id).collect();
    let bytes: BTreeMap<i64, Option<i64>> =
        placements.iter().map(|placement| (placement.shard, placement.bytes)).collect();
    if open.is_empty() || bytes.len() < placements.len() {
        return None;
    }
    let mut pools = pools(placements, &groups, open.len())?;
    let mut moves = Vec::new();
    for pool in &mut pools {
        pool.leave_closed_nodes(&open, &mut moves);
    }
    if !drain_only {
        for pool in &mut pools {
            pool.even_out(&open, &mut moves);
        }
    }
    for planned in &mut moves {
        planned.bytes = bytes.get(&planned.shard).copied().flatten();
    }
    Some(moves)
}

/// Colocation groups, each by itself; those with fewer shards than there are nodes together, as one.
fn pools(placements: &[Placement], groups: &BTreeMap<i32, i32>, nodes: usize) -> Option<Vec<Pool>> {
    let mut order = Vec::new();
    let mut shards: BTreeMap<i64, Vec<(i64, i32)>> = BTreeMap::new();
    for placement in placements {
        let of_group = shards.entry(placement.colocation).or_insert_with(|| {
            order.push(placement.colocation);
            Vec::new()
        });
        of_group.push((placement.shard, *groups.get(&placement.group_id)?));
    }
    let (mut pools, mut small) = (Vec::new(), Pool::default());
    for of_group in order.iter().filter_map(|colocation| shards.remove(colocation)) {
        if of_group.len() >= nodes {
            let mut pool = Pool::default();
            pool.extend(of_group);
            pools.push(pool);
        } else {
            small.extend(of_group);
        }
    }
    pools.push(small);
    Some(pools)
}

/// Shards that are evened out together, by node.
#[derive(Default)]
struct Pool(BTreeMap<i32, BTreeSet<i64>>);

impl Pool {
    fn extend(&mut self, placements: Vec<(i64, i32)>) {
        for (shard, node) in placements {
            self.0.entry(node).or_default().insert(shard);
        }
    }
    fn count(&self, node: i32) -> usize {
        self.0.get(&node).map_or(0, BTreeSet::len)
    }
    fn emptiest(&self, open: &BTreeSet<i32>) -> Option<i32> {
        open.iter().copied().min_by_key(|node| (self.count(*node), *node))
    }
    fn fullest(&self, open: &BTreeSet<i32>) -> Option<i32> {
        open.iter().copied().max_by_key(|node| (self.count(*node), *node))
    }
    fn transfer(&mut self, shard: i64, from: i32, to: i32, moves: &mut Vec<ForetoldMove>) {
        self.0.entry(from).or_default().remove(&shard);
        self.0.entry(to).or_default().insert(shard);
        moves.push(ForetoldMove { shard, from, to, bytes: None });
    }
    /// From nodes that should have no shards each shard goes to the emptiest node, the lowest number first.
    fn leave_closed_nodes(&mut self, open: &BTreeSet<i32>, moves: &mut Vec<ForetoldMove>) {
        let closed = self.0.iter().filter(|(node, _)| !open.contains(node));
        let leaving: BTreeMap<i64, i32> =
            closed.flat_map(|(node, shards)| shards.iter().map(|shard| (*shard, *node))).collect();
        for (shard, from) in leaving {
            let Some(to) = self.emptiest(open) else { return };
            self.transfer(shard, from, to, moves);
        }
    }
    /// From the fullest node to the emptiest, until they differ by less than two.
    fn even_out(&mut self, open: &BTreeSet<i32>, moves: &mut Vec<ForetoldMove>) {
        while let (Some(from), Some(to)) = (self.fullest(open), self.emptiest(open))
            && self.count(from) >= self.count(to) + 2
            && let Some(shard) = self.0.get(&from).and_then(BTreeSet::first).copied()
        {
            self.transfer(shard, from, to, moves);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node_id: i32, should_have_shards: bool) -> DistNode {
        DistNode { node_id, group_id: node_id + 10, active: true, should_have_shards, ..DistNode::default() }
    }

    fn placements(colocation: i64, first: i64, on: &[i32]) -> Vec<Placement> {
        let shards = (first..).zip(on);
        shards
            .map(|(shard, node)| Placement { shard, colocation, group_id: node + 10, bytes: Some(shard) })
            .collect()
    }

    fn told(moves: Option<Vec<ForetoldMove>>) -> Vec<(i64, i32, i32)> {
        moves.unwrap().iter().map(|one| (one.shard, one.from, one.to)).collect()
    }

    #[test]
    fn new_nodes_get_the_lowest_shards_of_the_fullest() {
        let nodes = [node(1, true), node(2, true), node(3, true)];
        let there = placements(7, 100, &[1, 2, 1, 2, 1, 2]);
        assert_eq!(told(moves(&nodes, &there, false)), [(101, 2, 3), (100, 1, 3)]);
        assert_eq!(told(moves(&nodes, &there, true)), []);
        assert_eq!(moves(&nodes, &there, false).unwrap()[0].bytes, Some(101));
    }

    #[test]
    fn a_node_that_goes_is_emptied_to_the_emptiest() {
        let nodes = [node(0, false), node(1, true), node(2, true), node(3, false)];
        let there = placements(7, 100, &[1, 1, 2, 3, 3, 3]);
        assert_eq!(told(moves(&nodes, &there, true)), [(103, 3, 2), (104, 3, 1), (105, 3, 2)]);
    }

    #[test]
    fn groups_smaller_than_the_nodes_are_one() {
        let nodes = [node(1, true), node(2, true), node(3, true)];
        let there = [placements(7, 100, &[1]), placements(8, 200, &[1]), placements(9, 300, &[1])].concat();
        assert_eq!(told(moves(&nodes, &there, false)), [(100, 1, 2), (200, 1, 3)]);
    }

    #[test]
    fn what_citus_would_not_plan_alike_has_no_plan() {
        assert_eq!(moves(&[node(1, true)], &placements(7, 100, &[2]), false), None, "on an unknown node");
        assert_eq!(moves(&[node(1, false)], &placements(7, 100, &[1]), true), None, "nowhere to go");
        let twice = [placements(7, 100, &[1]), placements(7, 100, &[2])].concat();
        assert_eq!(moves(&[node(1, true), node(2, true)], &twice, false), None, "in two places");
    }
}
