//! A node that somebody put back to `wal_level = replica` is repaired by one restart, before any shard moves.

use std::{sync::Arc, time::Duration};

use dialog_operator::api::Node;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, condition, is, is_ready, spec},
    sql, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_wal_level_is_repaired_by_one_restart_before_the_move() {
    story("wal-level", async |story| {
        let _operator = story.operator();
        let cluster = Arc::new(story.settled_cluster("talk", spec(1)).await);
        cluster.load(20_000).await;

        put_back_to_replica(&cluster, Node::Worker(0)).await;
        let (_, seen) = cluster
            .until("the wrong wal_level is told", 30, |cluster| is(cluster, "WalLevelLogical", "False"))
            .await;
        let told = condition(&seen, "WalLevelLogical").unwrap();
        assert!(told.message.contains("talk-worker-0 runs wal_level = replica"), "{told:?}");
        let node = seen.status.unwrap().nodes.into_iter().find(|node| node.name == "talk-worker-0").unwrap();
        assert_eq!(node.wal_level.as_deref(), Some("replica"));
        let before = cluster.pod_uids().await;

        let writer = cluster.writer().await;
        cluster.edit(json!({"paused": false, "workers": {"replicas": 2}})).await;
        cluster.until_settled(120).await;
        let ledger = writer.stop().await;
        cluster.assert_even(2).await;
        cluster.assert_kept(&ledger, 20_000).await;
        let figures = ledger.phase("all");
        story.figure("tries that failed during the restart and were repeated", figures.failed_tries);
        story.figure("longest write, the restart included", crate::harness::seconds(figures.longest));

        let after = cluster.pod_uids().await;
        assert_ne!(before["talk-worker-0-0"], after["talk-worker-0-0"], "the worker was restarted");
        assert_eq!(before["talk-coordinator-0"], after["talk-coordinator-0"], "and nobody else");
        cluster.assert_events("NodeRestarted", 1).await;
        cluster.assert_events("WalLevelRepaired", 1).await;
        cluster.assert_events("RebalanceStarted", 1).await;
        for node in [Node::Coordinator, Node::Worker(0), Node::Worker(1)] {
            let admin = cluster.admin(node).await;
            assert_eq!(sql::value::<String>(&admin, "SELECT current_setting('wal_level')").await, "logical");
        }
        let worker = cluster.admin(Node::Worker(0)).await;
        let started: bool = sql::value(
            &cluster.coordinator().await,
            &format!(
                "SELECT min(started_at) > '{}'::timestamptz FROM pg_dist_background_job",
                sql::value::<String>(&worker, "SELECT pg_postmaster_start_time()::text").await
            ),
        )
        .await;
        assert!(started, "no move before the restart");
    })
    .await;
}

/// For real: while the operator is told to keep its hands off, the start script is changed and the pod deleted.
pub async fn put_back_to_replica(cluster: &Cluster, node: Node) {
    cluster.edit(json!({"paused": true})).await;
    cluster
        .until("the pause is seen", 30, |cluster| {
            cluster.status.as_ref().unwrap().observed_generation == cluster.metadata.generation
        })
        .await;
    let maps = cluster.api::<ConfigMap>();
    let name = node.object_name(&cluster.name);
    let map = maps.get(&name).await.unwrap();
    let script = &map.data.as_ref().unwrap()["start.sh"];
    let changed = script.replace("wal_level=logical", "wal_level=replica");
    assert_ne!(*script, changed, "the start script sets wal_level");
    let patch = json!({"data": {"start.sh": changed, "boot-hash": "by-hand"}});
    maps.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();

    let pods = cluster.api::<Pod>();
    let (pod, uid) = (node.pod_name(&cluster.name), cluster.pod(node).await.metadata.uid);
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    wait::eventually("the pod is ready again", Duration::from_mins(1), async || {
        match pods.get_opt(&pod).await.unwrap() {
            Some(again) if again.metadata.uid != uid && is_ready(&again) => Ok(()),
            other => Err(format!("{:?}", other.and_then(|pod| pod.status))),
        }
    })
    .await;
    let level: String = sql::value(&cluster.admin(node).await, "SELECT current_setting('wal_level')").await;
    assert_eq!(level, "replica", "the pod was made from the changed start script");
}
