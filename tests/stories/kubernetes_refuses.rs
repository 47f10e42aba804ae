//! What Kubernetes refuses: its words are told, everything else goes on, and it heals by itself.

use std::time::{Duration, Instant};

use dialog_operator::api::{DialogCluster, Node};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{LimitRange, PersistentVolumeClaim, Pod, ResourceQuota},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::harness::{
    audit::Audit,
    cluster::{Cluster, condition, is, is_stalled, spec, with},
    image,
    mirror::MIRROR,
    operator::user,
    sql, story, wait,
};

/// A quota of the namespace, or a change of it.
async fn quota(cluster: &Cluster, hard: Value) {
    let quotas = cluster.api::<ResourceQuota>();
    let body = json!({"metadata": {"name": "quota"}, "spec": {"hard": hard}});
    let _ = quotas.delete("quota", &DeleteParams::default()).await;
    quotas.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
}

fn stalled(cluster: &DialogCluster) -> String {
    condition(cluster, "Stalled").map_or_else(String::new, |stalled| stalled.message.clone())
}

async fn claims(cluster: &Cluster, labels: &str) -> Vec<PersistentVolumeClaim> {
    let labels = format!("dialogcluster.dev/cluster={},{labels}", cluster.name);
    cluster.api().list(&ListParams::default().labels(&labels)).await.unwrap().items
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_is_refused_blocks_nothing_else() {
    story("storage", async |story| {
        let _operator = story.operator();
        let fixed = json!({
            "workers": {"storage": {"storageClassName": "fixed"}}, "schema": {"shardCount": 8}
        });
        let cluster = story.settled_cluster("talk", with(spec(2), &fixed)).await;
        cluster.load(2_000).await;
        cluster.scale(1).await;
        cluster.until_settled_with(1, 120).await;
        let kept = claims(&cluster, "dialogcluster.dev/decommissioned").await[0].name_any();

        // A size that the class cannot give, and a parameter that goes on meanwhile.
        let pod_uids = cluster.pod_uids().await;
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
        let after = cluster.pod_uids().await;
        for node in [Node::Coordinator, Node::Worker(0)] {
            let pod = node.pod_name(&cluster.name);
            assert_eq!(after[&pod], pod_uids[&pod], "{pod} was not restarted");
        }
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

/// One worker, eight shards.
fn small() -> Value {
    with(spec(1), &json!({"schema": {"shardCount": 8}}))
}

/// Waits until a condition has these words, and says how long that took.
async fn until_said(cluster: &Cluster, words: &str, since: Instant) -> Duration {
    let says = |cluster: &DialogCluster| {
        let conditions = &cluster.status.as_ref().unwrap().conditions;
        conditions.iter().any(|condition| condition.message.contains(words))
    };
    let (at, _) = cluster.until(&format!("{words:?} is said"), 30, says).await;
    at - since
}

/// The pod of worker-0 goes, and is not made again.
async fn lose_pod(cluster: &Cluster) -> Instant {
    let pods = cluster.api::<Pod>();
    pods.delete(&Node::Worker(0).pod_name(&cluster.name), &DeleteParams::default()).await.unwrap();
    wait::eventually("its pod is gone", Duration::from_mins(1), async || {
        if cluster.pods().await.len() == 1 { Ok(()) } else { Err("it is there") }
    })
    .await;
    Instant::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refuses_pods_is_told_in_its_own_words() {
    story("pods", async |story| {
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", small()).await;
        cluster.load(1_000).await;

        // Annotations are put on running pods.
        let pod_uids = cluster.pod_uids().await;
        let (key, since) = ("cluster-autoscaler.kubernetes.io/safe-to-evict", Instant::now());
        cluster.edit(json!({"workers": {"podAnnotations": {key: "true"}}})).await;
        wait::eventually("the annotation is on the pod", Duration::from_secs(30), async || {
            let pod = cluster.pod(Node::Worker(0)).await;
            let annotation = pod.annotations().get(key).cloned();
            if annotation.as_deref() == Some("true") { Ok(()) } else { Err(format!("{annotation:?}")) }
        })
        .await;
        story.figure_below("from podAnnotations to the pod", since.elapsed(), 30.0);
        let (_, seen) = cluster.until_settled(30).await;
        assert_eq!(cluster.pod_uids().await, pod_uids, "nobody was restarted");
        assert!(seen.status.unwrap().nodes.iter().all(|node| !node.update_available));

        // A tool that lets clusters sleep.
        let sets = cluster.api::<StatefulSet>();
        let sleep =
            PatchParams { field_manager: Some("kube-downscaler".to_owned()), ..PatchParams::default() };
        let nobody = Patch::Merge(json!({"spec": {"replicas": 0}}));
        for node in [Node::Worker(0), Node::Coordinator] {
            sets.patch(&node.object_name(&cluster.name), &sleep, &nobody).await.unwrap();
        }
        wait::eventually("who scales is named", Duration::from_secs(30), async || {
            let events = cluster.events().await;
            let told =
                |event: &&String| event.starts_with("ScaledBack:") && event.contains("kube-downscaler");
            if events.iter().filter(told).count() >= 2 { Ok(()) } else { Err(format!("{events:#?}")) }
        })
        .await;
        cluster.until_settled(90).await;

        // A quota of pods, before another one is made; then what pods do not say, and what they say too little of.
        quota(&cluster, json!({"pods": "2"})).await;
        let since = Instant::now();
        cluster.scale(2).await;
        let took = until_said(&cluster, "exceeded quota: quota, requested: pods=1", since).await;
        story.figure_below("from the quota of pods to its words", took, 30.0);
        cluster.scale(1).await;
        cluster.until_settled_with(1, 60).await;

        let restart = |at: &str| {
            let restarted = json!({"kubectl.kubernetes.io/restartedAt": at});
            Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": restarted}}}}))
        };
        let worker = Node::Worker(0).object_name(&cluster.name);
        quota(&cluster, json!({"limits.cpu": "8"})).await;
        let took = until_said(&cluster, "must specify limits.cpu", lose_pod(&cluster).await).await;
        story.figure_below("from limits.cpu without limits to the quota's words", took, 30.0);
        cluster.api::<ResourceQuota>().delete("quota", &DeleteParams::default()).await.unwrap();
        sets.patch(&worker, &PatchParams::default(), &restart("2026-01-01T00:00:00Z")).await.unwrap();
        cluster.until_settled(90).await;

        let range = json!({
            "metadata": {"name": "range"}, "spec": {"limits": [{"type": "Pod", "min": {"cpu": "1"}}]}
        });
        let ranges = cluster.api::<LimitRange>();
        ranges.create(&PostParams::default(), &serde_json::from_value(range).unwrap()).await.unwrap();
        let took = until_said(&cluster, "minimum cpu usage per Pod is 1", lose_pod(&cluster).await).await;
        story.figure_below("from a LimitRange to its words", took, 30.0);
        ranges.delete("range", &DeleteParams::default()).await.unwrap();
        sets.patch(&worker, &PatchParams::default(), &restart("2026-01-01T00:01:00Z")).await.unwrap();
        cluster.until_settled(90).await;
        assert_eq!(cluster.rows().await, 1_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_from_a_mirror_are_asked_once_and_rolled_out_once() {
    story("mirror", async |story| {
        let (one, other) = (image(), format!("{}-other", image()));
        let _mirror = story.mirror(&one, &[&one, &other]).await;
        let audit = Audit::from_now();
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", small()).await;
        let born = cluster.pod_uids().await;
        cluster.edit(json!({"image": other})).await;
        cluster
            .until("the image is rolled out", 120, |cluster| {
                is(cluster, "Reconciling", "False") && is(cluster, "Stalled", "False")
            })
            .await;
        let (_, seen) = cluster.until_settled(90).await;
        assert!(seen.status.unwrap().nodes.iter().all(|node| !node.update_available));
        let pod_uids = cluster.pod_uids().await;
        for (pod, (uid, restarts)) in &pod_uids {
            assert!(born[pod].0 != *uid && *restarts == 0, "{pod} was made again, and started once");
        }
        for (name, pod) in cluster.pods().await {
            let image = pod.spec.unwrap().containers[0].image.clone().unwrap();
            assert_eq!(image, format!("{MIRROR}/{other}"), "{name}");
        }
        // Nothing goes round in circles.
        wait::throughout("the pods stay", Duration::from_secs(15), async || {
            let now = cluster.pod_uids().await;
            if now == pod_uids { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        let written = audit.writes(&user(&story.namespace));
        let count = |what: &str| written.iter().filter(|write| write.starts_with(what)).count();
        story.figure("pods that asked an image, made", count("create pods/"));
        story.figure("pods deleted", count("delete pods/"));
        story.figure(
            "writes to StatefulSets",
            written.iter().filter(|w| w.contains(" statefulsets/")).count(),
        );
        assert!(count("create pods/") <= 2, "{written:#?}");
        // The two nodes once, and who was asked.
        assert!(count("delete pods/") <= 4, "{written:#?}");
    })
    .await;
}
