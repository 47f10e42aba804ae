//! A `DialogCluster` that is deleted with `--cascade=orphan` and applied again: everything is taken over as it runs.

use std::time::{Duration, Instant};

use dialog_operator::api::{DialogCluster, Node};
use serde_json::json;

use crate::harness::{
    Story,
    cluster::{Cluster, condition, is_stalled, spec, with},
    story, wait,
};

/// Only the DialogCluster goes. That is the garbage collector's work, which waits for whatever the API server's discovery
/// lists and does not serve, such as the group of a CustomResourceDefinition that was just deleted.
async fn leave_behind(story: &Story, cluster: &Cluster) {
    story.kubectl(&["delete", "dialogcluster", &cluster.name, "--cascade=orphan", "--wait=false"]);
    wait::eventually("the DialogCluster is gone", Duration::from_mins(2), async || {
        let api = cluster.api::<DialogCluster>();
        api.get_opt(&cluster.name).await.unwrap().map_or(Ok(()), |_| Err("it is there"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_cluster_of_the_name_adopts_what_was_left_behind() {
    story("left", async |story| {
        let _operator = story.operator();
        let spec = || with(spec(2), &json!({"schema": {"shardCount": 8}}));
        let cluster = story.settled_cluster("talk", spec()).await;
        cluster.load(2_000).await;
        let (pod_uids, writer) = (cluster.pod_uids().await, cluster.writer().await);

        leave_behind(story, &cluster).await;
        assert_eq!(cluster.pod_uids().await, pod_uids);
        let since = Instant::now();
        cluster.create(spec()).await;
        let (settled, _) = cluster.until_settled_with(2, 60).await;
        story.figure("from applied again to settled", crate::harness::seconds(settled - since));
        assert_eq!(cluster.pod_uids().await, pod_uids, "nobody was restarted");
        let ledger = writer.stop().await;
        assert_eq!(ledger.phase("all").words, Vec::<String>::new(), "writes that failed");
        cluster.assert_kept(&ledger, 2_000).await;
        let kinds = "statefulsets,services,configmaps,secrets,serviceaccounts,poddisruptionbudgets";
        let all = story.kubectl(&["get", kinds, "-l", "dialogcluster.dev/cluster=talk", "-o", "json"]);
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        let all = all["items"].as_array().unwrap();
        assert!(all.len() > 15, "{}", all.len());
        for object in all {
            let metadata = &object["metadata"];
            assert_eq!(metadata["ownerReferences"][0]["kind"], "DialogCluster", "{}", metadata["name"]);
        }

        // A StatefulSet that is not the one of its volume.
        leave_behind(story, &cluster).await;
        let set = Node::Worker(1).object_name(&cluster.name);
        story.kubectl(&[
            "annotate",
            "--overwrite",
            "statefulset",
            &set,
            "dialogcluster.dev/system-identifier=7",
        ]);
        cluster.create(spec()).await;
        let (_, seen) =
            cluster.until("it is told", 30, |cluster| is_stalled(cluster, "ObjectConflict")).await;
        let message = condition(&seen, "Stalled").unwrap().message.clone();
        story.figure("what is said of another one", &message);
        let typed = format!("kubectl -n {} delete statefulset {set}", story.namespace);
        assert!(message.contains(&typed), "{message}");
        assert_eq!(cluster.pod_uids().await, pod_uids, "nobody was restarted");
        story.kubectl(&["delete", "statefulset", &set]);
        cluster.until_settled_with(2, 90).await;
        let now = cluster.pod_uids().await;
        for (pod, life) in &pod_uids {
            assert_eq!(now[pod] == *life, *pod != Node::Worker(1).pod_name(&cluster.name), "{pod}");
        }
        cluster.assert_kept(&ledger, 2_000).await;
    })
    .await;
}
