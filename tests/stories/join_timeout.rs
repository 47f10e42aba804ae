//! A worker that never gets ready: the others go on without it, and it is told why.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::harness::{
    cluster::{condition, is, spec, with},
    story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_goes_on_without_a_worker_that_never_gets_ready() {
    story("join-timeout", async |story| {
        let _operator = story.operator();
        let short = json!({"workers": {"joinTimeout": "25s"}});
        let cluster = story.settled_cluster("talk", with(spec(1), &short)).await;
        cluster.load(1_000).await;
        let born = cluster.pod_uids().await;
        // Worker 1 gets its pod; then the image has to be pulled for each new one, and there is no registry.
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        wait::eventually("worker 1 has a pod", Duration::from_secs(30), async || {
            cluster.api::<Pod>().get_opt("talk-worker-1-0").await.unwrap().ok_or("none")
        })
        .await;
        cluster.edit(json!({"workers": {"replicas": 3}, "imagePullPolicy": "Always"})).await;
        let (_, seen) = cluster
            .until("the others have gone on", 120, |cluster| {
                let job = cluster.status.as_ref().and_then(|status| status.rebalance.as_ref());
                is(cluster, "WorkersRegistered", "False") && job.is_some_and(|job| job.state == "finished")
            })
            .await;
        cluster.assert_even(2).await;
        let registered = condition(&seen, "WorkersRegistered").unwrap();
        story.figure("what is said of a worker that did not join", &registered.message);
        assert_eq!(registered.reason, "JoinTimeout");
        for words in ["talk-worker-2", "pod talk-worker-2-0", "ImagePull"] {
            assert!(registered.message.contains(words), "{}", registered.message);
        }
        let balanced = condition(&seen, "Balanced").unwrap();
        assert_eq!((balanced.status.as_str(), balanced.reason.as_str()), ("False", "WorkersMissing"));
        assert!(is(&seen, "Ready", "True"), "the cluster serves");

        // Healed by the spec alone.
        cluster.edit(json!({"imagePullPolicy": "IfNotPresent"})).await;
        cluster.until_settled(120).await;
        cluster.assert_even(3).await;
        let after = cluster.pod_uids().await;
        assert!(born.iter().all(|(pod, life)| after.get(pod) == Some(life)), "{born:?} became {after:?}");
        assert_eq!(cluster.rows().await, 1_000);
    })
    .await;
}
