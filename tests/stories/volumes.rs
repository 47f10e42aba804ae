//! Volumes: kept when the DialogCluster goes, taken back when it comes again, and never initialised a second time.

use std::{path::PathBuf, sync::Arc, time::Duration};

use dialog_operator::api::Node;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, condition, is, is_stalled, spec},
    refused_image, sql, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_never_initialised_twice() {
    story("volumes", async |story| {
        let operator = story.operator();
        let cluster = Arc::new(story.settled_cluster("talk", spec(2)).await);
        cluster.load(5_000).await;
        let identity = identities(&cluster).await;

        // Deleted and made again: the volumes and the rows are taken back, with the image that they ran with, whatever
        // new clusters are made with by now.
        cluster.delete().await;
        drop(operator);
        let _operator = story.operator_with(&["--default-image", &refused_image("other-major")]);
        cluster.create(spec(2)).await;
        cluster.until_settled(90).await;
        assert_eq!(identities(&cluster).await, identity, "the same servers");
        assert_eq!(cluster.rows().await, 5_000);
        // Its Secret was made anew, with another password.
        cluster.application().await;

        for node in [Node::Worker(1), Node::Coordinator] {
            emptied(&cluster, node).await;
            assert_eq!(identities(&cluster).await, identity, "the same servers");
            assert_eq!(cluster.rows().await, 5_000, "the volume of {node} is back and everything is there");
        }

        // Made again without the coordinator's volume: the metadata is gone, so nothing is initialised.
        let lost = cluster.claim(Node::Coordinator).await.name_any();
        cluster.delete().await;
        let claims = cluster.api::<PersistentVolumeClaim>();
        claims.delete(&lost, &DeleteParams::default()).await.unwrap();
        wait::eventually("the claim is gone", Duration::from_secs(30), async || {
            claims.get_opt(&lost).await.unwrap().map_or(Ok(()), |claim| Err(format!("{claim:?}")))
        })
        .await;
        cluster.create(spec(2)).await;
        let (_, seen) = cluster
            .until("incomplete volumes are told", 30, |cluster| is_stalled(cluster, "IncompleteVolumes"))
            .await;
        let message = &condition(&seen, "Stalled").unwrap().message;
        assert!(message.contains("coordinator") && message.contains("talk-worker-"), "{message}");
        assert!(!is(&seen, "Ready", "True"));
        wait::throughout("nothing is started", Duration::from_secs(3), async || {
            let pods = cluster.pods().await;
            if pods.is_empty() { Ok(()) } else { Err(format!("{:?}", pods.keys())) }
        })
        .await;
    })
    .await;
}

const NODES: [Node; 3] = [Node::Coordinator, Node::Worker(0), Node::Worker(1)];

async fn identities(cluster: &Cluster) -> Vec<String> {
    let mut identities = Vec::new();
    for node in NODES {
        let admin = cluster.admin(node).await;
        identities.push(sql::value(&admin, "SELECT system_identifier::text FROM pg_control_system()").await);
    }
    identities
}

/// The node's volume is emptied while its pod is down. Nothing is made in its place; the old data heals it.
async fn emptied(cluster: &Cluster, node: Node) {
    let name = node.object_name(&cluster.name);
    let volume = cluster.volume(node).await;
    stop(cluster, node).await;
    let aside = put_aside(&volume);
    cluster.edit(json!({"paused": false})).await;
    let (_, seen) = cluster
        .until("the emptied volume is told", 60, |cluster| {
            is_stalled(cluster, "VolumeLost") && is(cluster, "Ready", "False")
        })
        .await;
    let message = &condition(&seen, "Stalled").unwrap().message;
    let claim = cluster.claim(node).await.name_any();
    assert!(message.contains(&name) && message.contains(&claim), "names {name} and {claim}: {message}");
    wait::throughout("nothing is initialised", Duration::from_secs(3), async || {
        match std::fs::read_dir(&volume).unwrap().next() {
            None => Ok(()),
            Some(entry) => Err(entry.unwrap().path().display().to_string()),
        }
    })
    .await;
    for entry in std::fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), volume.join(entry.file_name())).unwrap();
    }
    std::fs::remove_dir(aside).unwrap();
    cluster.until_settled(150).await;
}

/// With the operator told to keep its hands off.
async fn stop(cluster: &Cluster, node: Node) {
    cluster.edit(json!({"paused": true})).await;
    cluster
        .until("the pause is seen", 30, |cluster| {
            cluster.status.as_ref().unwrap().observed_generation == cluster.metadata.generation
        })
        .await;
    let sets = cluster.api::<StatefulSet>();
    let nobody = Patch::Merge(json!({"spec": {"replicas": 0}}));
    sets.patch(&node.object_name(&cluster.name), &PatchParams::default(), &nobody).await.unwrap();
    let pod = node.pod_name(&cluster.name);
    wait::eventually("the pod is gone", Duration::from_mins(1), async || {
        let pods = cluster.pods().await;
        pods.get(&pod).map_or(Ok(()), |pod| Err(format!("{:?}", pod.status)))
    })
    .await;
}

fn put_aside(volume: &std::path::Path) -> PathBuf {
    let aside = volume.with_extension("aside");
    std::fs::create_dir(&aside).unwrap();
    for entry in std::fs::read_dir(volume).unwrap() {
        let entry = entry.unwrap();
        std::fs::rename(entry.path(), aside.join(entry.file_name())).unwrap();
    }
    aside
}
