//! What the planner foretells of moves, against Citus' own plan over random catalogs: nodes that are only rows, and shards
//! that are moved by an UPDATE, in transactions that are rolled back. `ORACLE_CATALOGS` says how many (200).

use dialog_operator::{
    citus::commands,
    plan::by_shard_count,
    snapshot::{DistNode, Observed, Placement},
};
use serde::Deserialize;
use testkit::{
    postgres::{Cluster, OnlyCitus, skipped},
    tell,
};

use crate::moves::{catalog, with_dialogs};

/// Tables of so many shards, and one that is colocated with the fourth.
const SHARDS: [u32; 5] = [1, 2, 5, 16, 32];

/// Of one seed: up to twelve nodes more, of which some should have no shards, and each shard with its colocated ones
/// somewhere, more often on the first nodes. Numbers of nodes and of groups run against each other.
const RANDOM_CATALOG: &str = "
WITH added AS (
  INSERT INTO pg_dist_node (nodeid, groupid, nodename, nodeport, isactive, shouldhaveshards)
  SELECT 1000 + i, 2000 - i, 'added' || i, 5432, true, i = 1 OR random() < 0.75
  FROM generate_series(1, 1 + floor(random() * 12)::int) AS i RETURNING groupid),
groups AS MATERIALIZED (SELECT array_agg(groupid ORDER BY groupid) AS ids FROM (
  SELECT groupid FROM added UNION ALL SELECT groupid FROM pg_dist_node) AS all_groups),
place AS MATERIALIZED (
  SELECT colocationid, shardminvalue, ids[1 + floor(power(random(), 2) * cardinality(ids))::int] AS groupid
  FROM groups, (SELECT DISTINCT colocationid, shardminvalue FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
    ORDER BY 1, 2) AS shards)
UPDATE pg_dist_placement p SET groupid = place.groupid
FROM pg_dist_shard s JOIN pg_dist_partition USING (logicalrelid) JOIN place USING (colocationid, shardminvalue)
WHERE p.shardid = s.shardid";

/// Nodes, placements as the operator reads them, and Citus' plan of the tables that these are of.
const QUESTION: &str = "
WITH representative AS (
  SELECT DISTINCT ON (colocationid) logicalrelid, colocationid, place FROM (
    SELECT *, row_number() OVER (ORDER BY ctid) AS place FROM pg_dist_partition) AS tables ORDER BY colocationid, place),
plan AS (SELECT p.shardid, f.nodeid AS source, t.nodeid AS target, number
  FROM get_rebalance_table_shards_plan(rebalance_strategy => 'by_shard_count', drain_only => $1)
    WITH ORDINALITY AS p (table_name, shardid, size, sourcename, sourceport, targetname, targetport, number)
  JOIN pg_dist_shard USING (shardid) JOIN representative USING (logicalrelid)
  JOIN pg_dist_node f ON (f.nodename, f.nodeport) = (sourcename, sourceport)
  JOIN pg_dist_node t ON (t.nodename, t.nodeport) = (targetname, targetport))
SELECT json_build_object(
  'nodes', (SELECT json_agg(json_build_object('nodeId', nodeid, 'groupId', groupid, 'active', isactive,
    'shouldHaveShards', shouldhaveshards)) FROM pg_dist_node),
  'placements', (SELECT json_agg(json_build_array(shardid, colocationid, groupid, NULL) ORDER BY place, shardid)
    FROM representative JOIN pg_dist_shard USING (logicalrelid) JOIN pg_dist_placement USING (shardid)),
  'plan', (SELECT coalesce(json_agg(json_build_array(shardid, source, target) ORDER BY number), '[]') FROM plan))::text";

#[derive(Deserialize)]
struct Answer {
    nodes: Vec<DistNode>,
    placements: Vec<Placement>,
    plan: Vec<(i64, i32, i32)>,
}

/// A coordinator that may have no shards, a worker, and tables.
async fn tables() -> Cluster {
    let cluster = Cluster::start(1, 1, "").await;
    for (number, shards) in SHARDS.iter().enumerate() {
        let create = format!("CREATE TABLE t{number} (id bigint)");
        let distribute = format!(
            "SELECT create_distributed_table('t{number}', 'id', colocate_with => 'none', shard_count => {shards})"
        );
        cluster.coordinator.sql(&[&create, &distribute]).await.unwrap();
    }
    let colocated = "SELECT create_distributed_table('beside', 'id', colocate_with => 't3')";
    cluster.coordinator.sql(&["CREATE TABLE beside (id bigint)", colocated]).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn citus_plans_what_is_foretold_by_shard_count() {
    if skipped(OnlyCitus::PlansOfManyNodes) {
        return;
    }
    let catalogs = std::env::var("ORACLE_CATALOGS").map_or(200, |count| count.parse().unwrap());
    let cluster = tables().await;
    let mut client = cluster.coordinator.client("postgres").await.unwrap();
    let (mut moves, mut idle) = (0, 0);
    for catalog in 0..catalogs {
        let seed = f64::from(catalog) / f64::from(catalogs);
        let transaction = client.transaction().await.unwrap();
        transaction.execute("SELECT setseed($1)", &[&seed]).await.unwrap();
        transaction.execute(RANDOM_CATALOG, &[]).await.unwrap();
        for drain_only in [true, false] {
            let row = transaction.query_one(QUESTION, &[&drain_only]).await.unwrap();
            let answer: Answer = serde_json::from_str(row.get(0)).unwrap();
            let foretold = by_shard_count::moves(&answer.nodes, &answer.placements, drain_only).unwrap();
            let foretold: Vec<_> = foretold.iter().map(|one| (one.shard, one.from, one.to)).collect();
            assert_eq!(foretold, answer.plan, "seed {seed}, drain only: {drain_only}");
            moves += foretold.len();
            idle += usize::from(foretold.is_empty());
        }
        transaction.rollback().await.unwrap();
    }
    assert!(moves > 0);
    tell(&format!("{catalogs} catalogs, each whole and as a drain: {moves} moves, {idle} plans without one"));
}

/// The operator's own look has what the planner needs for it.
#[tokio::test(flavor = "multi_thread")]
async fn placements_are_seen_as_citus_goes_through_them() {
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();
    let citus = catalog(&session).await;
    let placements = citus.placements.clone().unwrap();
    assert!(placements.iter().all(|placement| placement.bytes.is_some()), "{placements:?}");
    let foretold = by_shard_count::moves(&citus.nodes, &placements, false).unwrap();
    let Some(Observed::Known(planned)) = citus.planned_moves else { panic!("{:?}", citus.planned_moves) };
    let planned: Vec<_> = planned.iter().map(|one| (one.shard, one.from, one.to, Some(one.bytes))).collect();
    let foretold: Vec<_> = foretold.iter().map(|one| (one.shard, one.from, one.to, one.bytes)).collect();
    assert!(!foretold.is_empty());
    assert_eq!(foretold, planned);
}
