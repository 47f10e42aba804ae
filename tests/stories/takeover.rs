//! Another operator takes over: when the first ends, when it is killed, and when it is of another version.

use std::time::{Duration, Instant};

use dialog_operator::api::Node;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, is_ready, is_settled, spec},
    operator::Operator,
    sql, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_operator_takes_over_and_restarts_nobody() {
    story("takeover", async |story| {
        let first = story.operator();
        first.until_it_leads().await;
        let second = story.operator();
        let cluster = story.settled_cluster("talk", spec(2)).await;
        let born = cluster.pod_uids().await;
        assert!(!second.leads(), "one leads");

        let ended = Instant::now();
        assert!(first.stop().await.success());
        second.until_it_leads().await;
        story.figure_below("SIGTERM to the other one leading", ended.elapsed(), 3.0);
        acts(&cluster, "1").await;

        let third = story.operator();
        third.until_it_waits().await;
        let killed = Instant::now();
        second.kill();
        third.until_it_leads().await;
        story.figure_below(
            "SIGKILL to the other one leading (the Lease is for 15 s)",
            killed.elapsed(),
            17.0,
        );
        acts(&cluster, "2").await;
        assert_eq!(cluster.pod_uids().await, born, "nobody was restarted");
        assert!(third.stop().await.success());

        another_version_takes_over(&cluster, || {
            story.operator_with(&["--default-image", "localhost/nothing:here"])
        })
        .await;
    })
    .await;
}

/// Something that only an operator at work does.
async fn acts(cluster: &Cluster, moves: &str) {
    cluster.edit(json!({"rebalance": {"maxMovesPerNode": moves.parse::<i32>().unwrap()}})).await;
    let admin = cluster.coordinator().await;
    wait::eventually("the operator acts", Duration::from_secs(20), async || {
        let now: String =
            sql::value(&admin, "SELECT current_setting('citus.max_background_task_executors_per_node')")
                .await;
        if now == moves { Ok(()) } else { Err(now) }
    })
    .await;
    cluster.until_settled(30).await;
}

/// A worker runs a pod that another version of the operator would have made, and the default image is another one:
/// both are taken over as they are.
async fn another_version_takes_over(cluster: &Cluster, start: impl FnOnce() -> Operator) {
    let (sets, pods) = (cluster.api::<StatefulSet>(), cluster.api::<Pod>());
    let (set, pod) = (Node::Worker(0).object_name(&cluster.name), Node::Worker(0).pod_name(&cluster.name));
    let older = json!({
        "metadata": {"annotations": {"dialogcluster.dev/applied-hash": "by-another-version"}},
        "spec": {"template": {
            "metadata": {"annotations": {"dialogcluster.dev/pod-template-hash": "by-another-version"}},
            "spec": {"terminationGracePeriodSeconds": 120}
        }}
    });
    sets.patch(&set, &PatchParams::default(), &Patch::Merge(older)).await.unwrap();
    let uid = pods.get(&pod).await.unwrap().metadata.uid;
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    wait::eventually("the pod of the older template is ready", Duration::from_mins(1), async || {
        match pods.get_opt(&pod).await.unwrap() {
            Some(again) if again.metadata.uid != uid && is_ready(&again) => Ok(()),
            other => Err(format!("{:?}", other.and_then(|pod| pod.status))),
        }
    })
    .await;
    let before = cluster.pod_uids().await;

    let operator = start();
    operator.until_it_leads().await;
    let update_available = |cluster: &dialog_operator::api::DialogCluster| {
        let nodes = &cluster.status.as_ref().unwrap().nodes;
        nodes.iter().filter(|node| node.update_available).map(|node| node.name.clone()).collect::<Vec<_>>()
    };
    cluster
        .until("worker 0 has an update waiting", 60, |cluster| {
            is_settled(cluster) && update_available(cluster) == ["talk-worker-0"]
        })
        .await;
    let template = sets.get(&set).await.unwrap().spec.unwrap().template.spec.unwrap();
    assert_eq!(template.termination_grace_period_seconds, Some(300), "the template is this version's again");
    wait::throughout("nobody is restarted", Duration::from_secs(5), async || {
        let now = cluster.pod_uids().await;
        if now == before { Ok(()) } else { Err(format!("{before:?} became {now:?}")) }
    })
    .await;
    let image = template.containers[0].image.clone();
    assert_eq!(
        image,
        Some(crate::harness::image()),
        "a cluster that names no image keeps the one that it runs"
    );
}
