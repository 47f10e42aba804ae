//! A worker whose volume is destroyed: nothing is given up before a person names it, and then only that.

use std::time::Duration;

use dialog_operator::api::{DialogCluster, Node, names::keys};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, is_settled, is_stalled, spec},
    sql, story, wait,
};

async fn annotate(cluster: &Cluster, value: Option<&str>) {
    let api: Api<DialogCluster> = cluster.api();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {keys::FORCE_REMOVE: value}}}));
    api.patch(&cluster.name, &PatchParams::default(), &patch).await.unwrap();
}

/// Who a node is, by the status.
fn identity(seen: &DialogCluster, name: &str) -> String {
    let node = seen.status.as_ref().unwrap().nodes.iter().find(|node| node.name == name).unwrap();
    node.system_identifier.clone().expect("a recorded identity")
}

/// Messages in the shards on a worker.
async fn rows_on(cluster: &Cluster, node: Node) -> i64 {
    let shards =
        "SELECT shardid FROM pg_dist_placement JOIN pg_dist_node USING (groupid) WHERE nodename LIKE $1";
    let name = format!("{}.%", node.object_name(&cluster.name));
    let shards = cluster.coordinator().await.query(shards, &[&name]).await.unwrap();
    let worker = cluster.admin(node).await;
    let mut rows = 0;
    for shard in shards {
        let shard: i64 = shard.get(0);
        rows += sql::value::<i64>(&worker, &format!("SELECT count(*) FROM dialogs_{shard}")).await;
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_is_given_up_by_name_and_once() {
    story("force-remove", async |story| {
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(3)).await;
        cluster.load(20_000).await;
        let seen = cluster.get().await;
        let lost = identity(&seen, "talk-worker-1");
        let coordinator = cluster.coordinator().await;
        let on_lost = rows_on(&cluster, Node::Worker(1)).await;

        // Named although it answers: refused.
        annotate(&cluster, Some(&format!("talk-worker-1/{lost}"))).await;
        cluster.until("refused", 30, |cluster| is_stalled(cluster, "ForceRemoveRefused")).await;
        annotate(&cluster, None).await;
        cluster.until("no longer refused", 30, |cluster| !is_stalled(cluster, "ForceRemoveRefused")).await;

        let volume = cluster.volume(Node::Worker(1)).await;
        story.kubectl(&["delete", "pod", "talk-worker-1-0", "--grace-period=0", "--force"]);
        for entry in std::fs::read_dir(&volume).unwrap() {
            let path = entry.unwrap().path();
            wait::eventually("the volume is destroyed", Duration::from_secs(20), async || {
                if path.exists() { std::fs::remove_dir_all(&path) } else { Ok(()) }
            })
            .await;
        }
        cluster.until("the loss is told", 90, |cluster| is_stalled(cluster, "VolumeLost")).await;
        let nodes: i64 = sql::value(&coordinator, "SELECT count(*) FROM pg_dist_node").await;
        assert_eq!(nodes, 4, "nothing is given up before a person says so");

        annotate(&cluster, Some(&format!("talk-worker-1/{lost}"))).await;
        let (_, seen) = cluster.until("settled again", 180, |seen| {
            is_settled(seen) && identity(seen, "talk-worker-1") != lost
        }).await;
        cluster.assert_even(3).await;
        assert_eq!(cluster.rows().await, 20_000 - on_lost);
        sql::run(&coordinator, "INSERT INTO dialogs (from_user, to_user, message) SELECT 1, n, 'again' FROM generate_series(1, 500) n").await;
        let told: Vec<String> = cluster.events().await.into_iter().filter(|event| event.contains("given up")).collect();
        story.figure("what is said of it", told.join(" "));
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(seen.status.unwrap().handled[keys::FORCE_REMOVE], format!("talk-worker-1/{lost}"));
    })
    .await;
}
