//! Tests of the Kubernetes part of a snapshot.

use serde_json::json;

use super::{
    kubernetes::*,
    snapshot::{ImageFacts, Ownership, Seen},
};
use crate::api::ClusterId;

fn cluster() -> ClusterId {
    ClusterId { namespace: "market".into(), name: "shop".into(), uid: "u-2".into() }
}

fn owned_by(uid: &str) -> serde_json::Value {
    json!([{"apiVersion": "dialogcluster.dev/v1alpha1", "kind": "DialogCluster", "name": "shop", "uid": uid}])
}

#[test]
fn of_a_secret_only_the_names_of_its_keys_are_seen() {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": "shop-app", "uid": "s", "managedFields": [{"manager": "x"}], "ownerReferences": owned_by("u-2"),
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "c2VjcmV0"}
        },
        "data": {"password": "c2VjcmV0"}, "stringData": {"other": "c2VjcmV0"}
    });
    let live = live(secret, &cluster()).unwrap();
    let text = serde_json::to_string(&live).unwrap();
    assert!(!text.contains("c2VjcmV0"), "{text}");
    assert!(live.json["data"].as_object().unwrap().contains_key("password"));
    assert!(live.json["metadata"].get("managedFields").is_none());
    assert_eq!(live.ownership, Ownership::Ours);
}

#[test]
fn an_owner_is_known_by_its_uid() {
    let service = |owners| json!({"kind": "Service", "metadata": {"uid": "s", "ownerReferences": owners}});
    let whose = |json| live(json, &cluster()).unwrap().ownership;
    assert_eq!(whose(service(owned_by("u-2"))), Ownership::Ours);
    assert_eq!(whose(service(owned_by("u-1"))), Ownership::Former);
    assert_eq!(whose(service(json!([]))), Ownership::Stranger);
    let mut other = owned_by("u-2");
    other[0]["apiVersion"] = "shop.example/v1".into();
    assert_eq!(whose(service(other)), Ownership::Stranger);
}

/// What `kubectl delete --cascade=orphan` leaves, and what only looks like it.
#[test]
fn what_is_left_behind_is_known_by_label_and_by_what_is_written_on_it() {
    let whose =
        |kind: &str, labels: serde_json::Value, annotations: serde_json::Value, owners: serde_json::Value| {
            let metadata =
                json!({"uid": "s", "labels": labels, "annotations": annotations, "ownerReferences": owners});
            live(json!({"kind": kind, "metadata": metadata}), &cluster()).unwrap().ownership
        };
    let label = || json!({"dialogcluster.dev/cluster": "shop"});
    let rendered = || json!({"dialogcluster.dev/rendered": "1f"});
    assert_eq!(whose("Service", label(), rendered(), json!(null)), Ownership::Left);
    assert_eq!(whose("Service", label(), rendered(), owned_by("u-2")), Ownership::Ours);
    assert_eq!(whose("Service", label(), json!({}), json!([])), Ownership::Stranger);
    assert_eq!(
        whose("Service", json!({"dialogcluster.dev/cluster": "x"}), rendered(), json!([])),
        Ownership::Stranger
    );
    let somebody = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "x", "uid": "d"}]);
    assert_eq!(whose("Service", label(), rendered(), somebody), Ownership::Stranger);
    assert_eq!(whose("Secret", label(), json!({}), json!([])), Ownership::Stranger);
    let made =
        json!({"dialogcluster.dev/cluster": "shop", "app.kubernetes.io/managed-by": "dialog-operator"});
    assert_eq!(whose("Secret", made, json!({}), json!([])), Ownership::Left);
}

#[test]
fn a_volume_is_known_by_its_labels() {
    let claim = |labels| json!({"kind": "PersistentVolumeClaim", "metadata": {"uid": "c", "labels": labels}});
    let whose = |json| live(json, &cluster()).unwrap().ownership;
    assert_eq!(whose(claim(json!({"dialogcluster.dev/cluster": "shop"}))), Ownership::Ours);
    assert_eq!(whose(claim(json!({"dialogcluster.dev/cluster": "shop2"}))), Ownership::Stranger);
}

#[test]
fn a_pod_waits_in_the_words_of_who_holds_it_up() {
    let status = |json| serde_json::from_value::<k8s_openapi::api::core::v1::PodStatus>(json).unwrap();
    let scheduler = waiting(&status(json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"
    }]})))
    .unwrap();
    assert_eq!(
        (scheduler.reason.as_str(), scheduler.message.as_str()),
        ("Unschedulable", "0/3 nodes are available")
    );
    let kubelet = waiting(&status(json!({"containerStatuses": [{
        "name": "postgres", "image": "x", "imageID": "", "ready": false, "restartCount": 3,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}}
    }]})))
    .unwrap();
    assert_eq!(kubelet.reason, "ImagePullBackOff");
    assert_eq!(waiting(&status(json!({"phase": "Running"}))), None);
}

#[test]
fn an_image_says_what_is_in_it() {
    let facts = "postgres=15 citus=13.2-1\n".parse::<ImageFacts>().unwrap();
    assert_eq!((facts.postgres_major, facts.citus.as_str()), (15, "13.2-1"));
    assert!("no initdb on the PATH".parse::<ImageFacts>().is_err());
}

/// A mesh may add a container to every pod, and it goes on when ours has ended.
#[test]
fn an_image_is_asked_by_one_container_whatever_others_there_are() {
    let pod = |message: &str| -> k8s_openapi::api::core::v1::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "shop-image-abcde"},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "mesh", "image": "m", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "inspect", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state":
                    {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}},
            ]}
        }))
        .unwrap()
    };
    let facts = ImageFacts { postgres_major: 15, citus: "13.2-1".to_owned() };
    assert_eq!(inspection(&pod("postgres=15 citus=13.2-1\n")), Some(Seen::Known(facts)));
    let refused = inspection(&pod("the image has no citus extension"));
    assert_eq!(refused, Some(Seen::Unknown("Completed: the image has no citus extension".to_owned())));
}
