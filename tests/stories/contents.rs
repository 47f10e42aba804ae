//! What people keep on a worker beside the cluster's own does not go with it: the scale-in is refused with what is there
//! and how much, and goes on by itself when it is gone.

use std::time::Instant;

use dialog_operator::api::{DialogCluster, Node};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, condition, is, is_stalled, spec, with},
    sql, story,
};

const NODES: [Node; 3] = [Node::Coordinator, Node::Worker(0), Node::Worker(1)];

/// A database beside ours, on the same servers, with Citus, its own members and a table of eight shards.
async fn make_analytics(cluster: &Cluster) {
    for node in NODES {
        let admin = cluster.admin_over("postgres", node).await;
        sql::run(&admin, "CREATE DATABASE analytics").await;
        sql::run(&cluster.admin_over("analytics", node).await, "CREATE EXTENSION citus").await;
    }
    let admin = cluster.admin_over("analytics", Node::Coordinator).await;
    for (call, node) in ["citus_set_coordinator_host", "citus_add_node", "citus_add_node"].iter().zip(NODES) {
        sql::run(&admin, &format!("SELECT {call}('{}', 5432)", cluster.address_of(node))).await;
    }
    for statement in [
        "CREATE TABLE events (id bigint PRIMARY KEY)",
        "SELECT create_distributed_table('events', 'id', shard_count => 8)",
        "INSERT INTO events SELECT generate_series(1, 1000)",
    ] {
        sql::run(&admin, statement).await;
    }
}

/// The refusal, with the rows that it counts.
fn refusal(cluster: &DialogCluster) -> Option<(String, i64)> {
    let message = &condition(cluster, "Stalled").filter(|_| is_stalled(cluster, "ScaleInRefused"))?.message;
    let (_, rest) = message.split_once("the database analytics with 4 shards with about ")?;
    Some((message.clone(), rest.split(' ').next()?.parse().ok()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_keeps_a_worker_from_going() {
    story("contents", async |story| {
        let _operator = story.operator();
        let delete = json!({"schema": {"shardCount": 8}, "volumes": {"whenScaled": "Delete"}});
        let cluster = story.settled_cluster("talk", with(spec(2), &delete)).await;
        cluster.load(2_000).await;
        make_analytics(&cluster).await;
        // A kept volume is never used again: what is on it is as good as lost.
        for (volumes, workers) in [("Delete", 1), ("Retain", 1)] {
            let asked = Instant::now();
            cluster.edit(json!({"workers": {"replicas": workers}, "volumes": {"whenScaled": volumes}})).await;
            let (at, seen) = cluster.until("refused", 60, |cluster| refusal(cluster).is_some()).await;
            story.figure_below(&format!("asked for to refused, {volumes}"), at - asked, 30.0);
            let (message, rows) = refusal(&seen).unwrap();
            story.figure(&format!("what is said with {volumes}"), &message);
            assert!((1..1000).contains(&rows) && message.contains("talk-worker-1"), "{message}");
            assert!(is(&seen, "Ready", "True") && is(&seen, "Reconciling", "False"));
        }
        let admin = cluster.admin_over("analytics", Node::Coordinator).await;
        assert_eq!(sql::value::<i64>(&admin, "SELECT count(*) FROM events").await, 1_000);
        let has_shards = "SELECT bool_and(shouldhaveshards) FROM pg_dist_node WHERE groupid <> 0";
        assert!(sql::value::<bool>(&cluster.coordinator().await, has_shards).await, "nothing was begun");
        drop(admin);
        for node in NODES {
            let admin = cluster.admin_over("postgres", node).await;
            sql::run(&admin, "DROP DATABASE analytics WITH (FORCE)").await;
        }
        let dropped = Instant::now();
        let (drained, _) =
            cluster.until("the drain goes on", 60, |cluster| is(cluster, "Stalled", "False")).await;
        story.figure_below("dropped to going on", drained - dropped, 30.0);
        let (settled, _) = cluster.until_settled_with(1, 120).await;
        story.figure("dropped to settled with 1", crate::harness::seconds(settled - dropped));
        assert_eq!(cluster.rows().await, 2_000);
    })
    .await;
}
