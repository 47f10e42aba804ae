//! Workers go and come with a writer at work: what they held is elsewhere before they go, and nothing is left behind.

use std::time::Duration;

use dialog_operator::api::{DialogCluster, Node, names::keys};
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, is_settled_with, is_stalled, spec, with},
    seconds, setting, sql, story, wait,
};

/// Volume claims that were drained.
async fn drained(cluster: &Cluster) -> Vec<PersistentVolumeClaim> {
    let api: Api<PersistentVolumeClaim> = cluster.api();
    api.list(&ListParams::default().labels(keys::DECOMMISSIONED)).await.unwrap().items
}

#[tokio::test(flavor = "multi_thread")]
async fn five_to_two_to_five_to_one_to_three_workers_under_load() {
    story("scale-in", async |story| {
        let rows = setting("STORY_ROWS", 200_000);
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(5)).await;
        cluster.load(rows).await;
        let writer = cluster.writer().await;
        let mut from = 5_u16;
        for workers in [2_u16, 5, 1, 3] {
            let edited = std::time::Instant::now();
            cluster.edit(json!({"workers": {"replicas": workers}})).await;
            let what = format!("settled with {workers} workers");
            let (settled, _) =
                cluster.until(&what, 300, |cluster| is_settled_with(cluster, workers.into())).await;
            story.figure(&format!("{from} to {workers} workers"), seconds(settled - edited));
            cluster.assert_even(workers.into()).await;
            cluster.assert_nothing_is_left_behind(workers).await;
            let sets: Api<StatefulSet> = cluster.api();
            let sets = sets.list(&ListParams::default()).await.unwrap().items;
            assert_eq!(sets.len(), usize::from(workers) + 1);
            from = workers;
        }
        let ledger = writer.stop().await;
        let figures = ledger.phase("all");
        story.figure("rows written meanwhile", figures.writes);
        story.figure("longest write", seconds(figures.longest));
        assert_eq!(figures.words, Vec::<String>::new(), "writes that failed");
        cluster.assert_kept(&ledger, rows).await;

        // 5 to 2, and 5 to 1: seven workers were drained, and each left its volume.
        let kept = drained(&cluster).await;
        assert_eq!(kept.len(), 7, "{:?}", kept.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
        for claim in &kept {
            assert!(claim.labels()[keys::DECOMMISSIONED].starts_with("20"), "{:?}", claim.labels());
            assert!(claim.labels()[keys::NODE].starts_with("worker-"));
        }
        for (reason, times) in
            [("DrainStarted", 7), ("WorkerDrained", 7), ("WorkerRemoved", 7), ("VolumeRetained", 7)]
        {
            cluster.assert_events(reason, times).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_change_their_minds_in_the_middle_of_a_drain() {
    story("turn-round", async |story| {
        let rows = setting("STORY_ROWS", 200_000);
        let _operator = story.operator();
        let delete = json!({"volumes": {"whenScaled": "Delete"}});
        let cluster = story.settled_cluster("talk", with(spec(5), &delete)).await;
        cluster.load(rows).await;
        let writer = cluster.writer().await;
        let identities = |cluster: &DialogCluster| -> Vec<Option<String>> {
            cluster.status.as_ref().unwrap().nodes.iter().map(|node| node.system_identifier.clone()).collect()
        };
        let before = identities(&cluster.get().await);
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        cluster
            .until("a drain runs", 60, |cluster| {
                let job = cluster.status.as_ref().and_then(|status| status.rebalance.as_ref());
                job.is_some_and(|job| job.purpose.to_string() == "Drain" && job.moves.done > 0)
            })
            .await;
        cluster.edit(json!({"workers": {"replicas": 4}})).await;
        let (_, seen) = cluster.until("settled with 4", 300, |cluster| is_settled_with(cluster, 4)).await;
        assert_eq!(identities(&seen), before[..5], "those that were wanted again are the same servers");
        cluster.assert_even(4).await;
        cluster.assert_nothing_is_left_behind(4).await;
        // The volume of the fifth is deleted, as the spec says.
        wait::eventually("the volume is deleted", Duration::from_secs(30), async || {
            let left = drained(&cluster).await;
            if left.is_empty() { Ok(()) } else { Err(format!("{} drained claims", left.len())) }
        })
        .await;

        let ledger = writer.stop().await;
        // Deleted in the middle of a drain and made again, it goes on from where it was.
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        cluster
            .until("a drain runs", 60, |cluster| {
                cluster
                    .status
                    .as_ref()
                    .is_some_and(|status| status.phase.is_some_and(|phase| phase.to_string() == "Draining"))
            })
            .await;
        cluster.delete().await;
        cluster.create(with(spec(2), &delete)).await;
        cluster.until("settled with 2", 300, |cluster| is_settled_with(cluster, 2)).await;
        cluster.assert_even(2).await;
        cluster.assert_kept(&ledger, rows).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_worker_from_being_removed_is_named() {
    story("cleanup-held", async |story| {
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(2)).await;
        cluster.load(2_000).await;
        // A report that reads for hours, from the worker that is to go.
        let shard: String = sql::value(
            &cluster.coordinator().await,
            "SELECT 'dialogs_' || min(shardid) FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
             WHERE nodename LIKE 'talk-worker-1.%'",
        )
        .await;
        let reader = cluster.admin(Node::Worker(1)).await;
        sql::run(
            &reader,
            &format!("SET citus.override_table_visibility = off; BEGIN; SELECT count(*) FROM {shard}"),
        )
        .await;
        cluster.edit(json!({"workers": {"replicas": 1}})).await;
        let (_, seen) = cluster
            .until("the session is named", 90, |cluster| {
                let message = cluster.status.as_ref().and_then(|status| status.message.clone());
                message.is_some_and(|message| message.contains("story") && message.contains("pid"))
            })
            .await;
        story.figure("what is said of the session", seen.status.unwrap().message.unwrap());
        let nodes: i64 = sql::value(&cluster.coordinator().await, "SELECT count(*) FROM pg_dist_node").await;
        assert_eq!(nodes, 3, "it is not removed meanwhile");
        sql::run(&reader, "COMMIT").await;
        cluster.until("settled with 1", 90, |cluster| is_settled_with(cluster, 1)).await;
        cluster.assert_nothing_is_left_behind(1).await;
        assert_eq!(cluster.rows().await, 2_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_in_that_cannot_be_is_refused() {
    story("scale-in-refused", async |story| {
        let _operator = story.operator();
        let off = json!({"rebalance": {"mode": "Off"}});
        let cluster = story.settled_cluster("talk", with(spec(2), &off)).await;
        cluster.edit(json!({"workers": {"replicas": 1}})).await;
        let (_, seen) = cluster.until("refused", 30, |cluster| is_stalled(cluster, "ScaleInRefused")).await;
        story.figure("what is said of the refusal", seen.status.unwrap().message.unwrap());
        cluster.assert_events("ScaleInRefused", 1).await;
        cluster.assert_even(2).await;
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        cluster.until_settled(30).await;
    })
    .await;
}
