//! The operator is killed again and again in the middle of a scale-out, and each time another one goes on.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Event};
use kube::api::{DeleteParams, ListParams};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, is_settled, spec},
    setting, sql, story, wait,
};

/// How often the operator is killed.
const KILLS: usize = 10;
/// A killed operator has led for at most this many milliseconds: some lives of it fit into a scale-out.
const LONGEST_LIFE: u64 = 1500;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_ten_random_moments_it_still_evens_out() {
    story("crashes", async |story| {
        let seed = setting("STORY_SEED", u64::from(rand::random::<u32>()));
        story.figure("STORY_SEED", seed);
        let mut random = StdRng::seed_from_u64(seed);
        let mut operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(1)).await;
        cluster.load(20_000).await;
        let writer = cluster.writer().await;
        let before = cluster.pod_uids().await;
        let mut workers = 3;
        cluster.edit(json!({"workers": {"replicas": workers}})).await;

        let mut kills = 0;
        while kills < KILLS {
            let life = wait::patient(Duration::from_millis(random.random_range(0..LONGEST_LIFE)));
            let settled = cluster.until("the cluster is settled", 600, is_settled);
            if tokio::time::timeout(life, settled).await.is_ok() {
                // That was quick: there is nothing left in whose middle it could be killed.
                workers += 1;
                cluster.edit(json!({"workers": {"replicas": workers}})).await;
                continue;
            }
            operator.kill();
            kills += 1;
            // How long a Lease binds the others has a story of its own.
            let leases = cluster.api::<Lease>();
            let _ = leases.delete("dialog-operator", &DeleteParams::default()).await;
            operator = story.operator();
            operator.until_it_leads().await;
        }
        story.figure("killed in the middle of a scale-out, times", kills);
        story.figure("workers at the end", workers);

        cluster.until_settled(180).await;
        let ledger = writer.stop().await;
        cluster.assert_even(workers).await;
        assert_eq!(ledger.phase("all").words, Vec::<String>::new(), "writes that failed");
        cluster.assert_kept(&ledger, 20_000).await;
        let admin = cluster.coordinator().await;
        let nodes: i64 = sql::value(&admin, "SELECT count(*) FROM pg_dist_node").await;
        let names: i64 = sql::value(&admin, "SELECT count(DISTINCT nodename) FROM pg_dist_node").await;
        let all = i64::try_from(workers).unwrap() + 1;
        assert_eq!((nodes, names), (all, all), "nobody was registered twice");
        let after = cluster.pod_uids().await;
        assert!(before.iter().all(|(pod, life)| after.get(pod) == Some(life)), "{before:?} became {after:?}");
        let made = pods_made(&cluster).await;
        assert!(
            i64::try_from(made.len()).unwrap() == all && made.values().all(|times| *times == 1),
            "each node has had one pod: {made:?}"
        );
        drop(operator);
    })
    .await;
}

/// How many pods each StatefulSet has made.
async fn pods_made(cluster: &Cluster) -> BTreeMap<String, i32> {
    let events = cluster.api::<Event>().list(&ListParams::default()).await.unwrap();
    let mut made = BTreeMap::new();
    for event in events {
        let message = event.message.unwrap_or_default();
        if event.reason.as_deref() == Some("SuccessfulCreate") && message.starts_with("create Pod") {
            *made.entry(event.involved_object.name.unwrap_or_default()).or_insert(0) +=
                event.count.unwrap_or(1);
        }
    }
    made
}
