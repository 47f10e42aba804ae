//! What Kubernetes refuses: its words are told, everything else goes on, and it heals by itself.

use dialog_operator::api::Node;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::harness::{
    cluster::{Cluster, condition, is, is_stalled, spec, with},
    sql, story,
};

/// A quota of the namespace, or a change of it.
async fn quota(cluster: &Cluster, hard: Value) {
    let quotas = cluster.api::<ResourceQuota>();
    let body = json!({"metadata": {"name": "quota"}, "spec": {"hard": hard}});
    let _ = quotas.delete("quota", &DeleteParams::default()).await;
    quotas.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
}

fn stalled(cluster: &dialog_operator::api::DialogCluster) -> String {
    condition(cluster, "Stalled").map_or_else(String::new, |stalled| stalled.message.clone())
}

async fn claims(cluster: &Cluster, labels: &str) -> Vec<PersistentVolumeClaim> {
    let labels = format!("dialogcluster.dev/cluster={},{labels}", cluster.name);
    cluster.api().list(&ListParams::default().labels(&labels)).await.unwrap().items
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_is_not_to_be_had_keeps_nothing_else_from_being_done() {
    story("storage", async |story| {
        let _operator = story.operator();
        let fixed = json!({
            "workers": {"storage": {"storageClassName": "fixed"}}, "schema": {"shardCount": 8}
        });
        let cluster = story.settled_cluster("talk", with(spec(2), &fixed)).await;
        cluster.load(2_000).await;
        cluster.scale(1).await;
        cluster.until_settled_with(1, 120).await;
        let kept = claims(&cluster, "dialogcluster.dev/drained").await[0].name_any();

        // A size that the class cannot give, and a parameter that goes on meanwhile.
        let lives = cluster.lives().await;
        cluster
            .edit(json!({
                "workers": {"storage": {"size": "2Gi"}},
                "postgres": {"parameters": {"work_mem": "9MB"}}
            }))
            .await;
        let (_, seen) = cluster
            .until("the size is told", 120, |cluster| {
                is_stalled(cluster, "StorageCannotGrow") && is(cluster, "ConfigurationApplied", "True")
            })
            .await;
        let message = stalled(&seen);
        story.figure("what is said of storage that cannot grow", &message);
        for words in ["talk-worker-0-", "(1Gi)", "must support resize", "storage.size back to 1Gi"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        assert!(is(&seen, "Ready", "True") && is(&seen, "Reconciling", "False"), "it serves");
        assert_eq!(sql::value::<String>(&cluster.admin(Node::Worker(0)).await, "SHOW work_mem").await, "9MB");

        // And another worker, for which a quota has no claim left.
        quota(&cluster, json!({"persistentvolumeclaims": "3"})).await;
        cluster.scale(2).await;
        let (_, seen) = cluster
            .until("the quota is told", 120, |cluster| stalled(cluster).contains("exceeded quota"))
            .await;
        let message = stalled(&seen);
        story.figure("what is said of a claim that a quota refuses", &message);
        assert!(message.contains(&kept), "names what may be deleted: {message}");
        cluster.api::<PersistentVolumeClaim>().delete(&kept, &DeleteParams::default()).await.unwrap();
        cluster
            .until("the worker has joined", 120, |cluster| {
                is(cluster, "WorkersRegistered", "True") && is(cluster, "Balanced", "True")
            })
            .await;
        for claim in claims(&cluster, "dialogcluster.dev/node").await {
            let size = &claim.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0;
            assert_eq!(size, "1Gi", "no volume is larger than the others");
        }

        cluster.edit(json!({"workers": {"storage": {"size": "1Gi"}}})).await;
        cluster.until_settled_with(2, 60).await;
        let after = cluster.lives().await;
        assert!(lives.iter().all(|(pod, life)| after[pod] == *life), "nobody was restarted: {after:?}");
        assert_eq!(cluster.rows().await, 2_000);

        // Less than there is.
        cluster.edit(json!({"workers": {"storage": {"size": "512Mi"}}})).await;
        let (_, seen) = cluster
            .until("the smaller size is told", 30, |cluster| is_stalled(cluster, "StorageCannotShrink"))
            .await;
        assert!(stalled(&seen).contains("Set the size to 1Gi."), "{}", stalled(&seen));
        cluster.edit(json!({"workers": {"storage": {"size": "1Gi"}}})).await;
        cluster.until_settled_with(2, 30).await;
    })
    .await;
}
