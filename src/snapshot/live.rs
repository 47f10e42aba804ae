//! A stored object as a snapshot shows it: whose it is, and nothing of a Secret but the names of its keys. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use super::{LiveObject, Ownership};
use crate::api::{ClusterId, FIELD_MANAGER, GROUP, names::keys};

/// The object as a snapshot shows it. `None`: it has no uid, so it was never stored.
#[must_use]
pub fn live(mut json: Value, cluster: &ClusterId) -> Option<LiveObject> {
    let scaled_by = json.pointer("/metadata/managedFields/0/manager").and_then(Value::as_str);
    let scaled_by = scaled_by.filter(|_| is_of_kind(&json, "StatefulSet")).map(ToOwned::to_owned);
    redact(&mut json);
    let metadata = json.get("metadata")?;
    let uid = metadata.get("uid")?.as_str()?.to_owned();
    let created_at = metadata.get("creationTimestamp").and_then(Value::as_str);
    Some(LiveObject {
        uid,
        ownership: ownership(&json, cluster),
        created_at: created_at.and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH),
        deleting: metadata.get("deletionTimestamp").is_some_and(|at| !at.is_null()),
        scaled_by,
        json,
    })
}

fn is_of_kind(json: &Value, kind: &str) -> bool {
    json.get("kind").and_then(Value::as_str) == Some(kind)
}

/// Takes managedFields away, and everything of a Secret but the names of its keys.
fn redact(json: &mut Value) {
    let secret = is_of_kind(json, "Secret");
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if secret && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // kubectl apply keeps the whole Secret here.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    if secret && let Some(object) = json.as_object_mut() {
        object.remove("stringData");
        if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
            data.values_mut().for_each(|value| *value = Value::Null);
        }
    }
}

/// Whose an object with one of our labels or names is.
fn ownership(json: &Value, cluster: &ClusterId) -> Ownership {
    let owners = json.pointer("/metadata/ownerReferences").cloned().unwrap_or_default();
    let owners: Vec<OwnerReference> = serde_json::from_value(owners).unwrap_or_default();
    let ours = owners.iter().find(|owner| {
        owner.kind == "DialogCluster"
            && owner.name == cluster.name
            && owner.api_version.split('/').next() == Some(GROUP)
    });
    let label = json.pointer("/metadata/labels").and_then(|labels| labels.get(keys::CLUSTER));
    let claim = is_of_kind(json, "PersistentVolumeClaim");
    match ours {
        Some(owner) if owner.uid == cluster.uid => Ownership::Owned,
        Some(_) => Ownership::OwnedByDeleted,
        // A volume outlives its cluster, so it has no owner to be collected with: its labels tell.
        None if claim && owners.is_empty() && label.and_then(Value::as_str) == Some(&cluster.name) => {
            Ownership::Owned
        }
        // What the garbage collector leaves behind when it is told to: only the reference to the owner is gone.
        None if owners.is_empty()
            && label.and_then(Value::as_str) == Some(&cluster.name)
            && is_rendered(json) =>
        {
            Ownership::Left
        }
        None => Ownership::Foreign,
    }
}

/// This operator has made it. A Secret has no hash of what is in it.
fn is_rendered(json: &Value) -> bool {
    let noted = |path: &str| json.pointer(path).and_then(Value::as_str);
    noted("/metadata/annotations/dialogcluster.dev~1applied-hash").is_some()
        || is_of_kind(json, "Secret")
            && noted("/metadata/labels/app.kubernetes.io~1managed-by") == Some(FIELD_MANAGER)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        assert_eq!(live.ownership, Ownership::Owned);
    }

    #[test]
    fn an_owner_is_known_by_its_uid() {
        let service =
            |owners| json!({"kind": "Service", "metadata": {"uid": "s", "ownerReferences": owners}});
        let whose = |json| live(json, &cluster()).unwrap().ownership;
        assert_eq!(whose(service(owned_by("u-2"))), Ownership::Owned);
        assert_eq!(whose(service(owned_by("u-1"))), Ownership::OwnedByDeleted);
        assert_eq!(whose(service(json!([]))), Ownership::Foreign);
        let mut other = owned_by("u-2");
        other[0]["apiVersion"] = "shop.example/v1".into();
        assert_eq!(whose(service(other)), Ownership::Foreign);
    }

    /// What `kubectl delete --cascade=orphan` leaves, and what only looks like it.
    #[test]
    fn what_is_left_behind_is_known_by_label_and_annotation() {
        let whose = |kind: &str,
                     labels: serde_json::Value,
                     annotations: serde_json::Value,
                     owners: serde_json::Value| {
            let metadata =
                json!({"uid": "s", "labels": labels, "annotations": annotations, "ownerReferences": owners});
            live(json!({"kind": kind, "metadata": metadata}), &cluster()).unwrap().ownership
        };
        let label = || json!({"dialogcluster.dev/cluster": "shop"});
        let rendered = || json!({"dialogcluster.dev/applied-hash": "1f"});
        assert_eq!(whose("Service", label(), rendered(), json!(null)), Ownership::Left);
        assert_eq!(whose("Service", label(), rendered(), owned_by("u-2")), Ownership::Owned);
        assert_eq!(whose("Service", label(), json!({}), json!([])), Ownership::Foreign);
        assert_eq!(
            whose("Service", json!({"dialogcluster.dev/cluster": "x"}), rendered(), json!([])),
            Ownership::Foreign
        );
        let somebody = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "x", "uid": "d"}]);
        assert_eq!(whose("Service", label(), rendered(), somebody), Ownership::Foreign);
        assert_eq!(whose("Secret", label(), json!({}), json!([])), Ownership::Foreign);
        let made =
            json!({"dialogcluster.dev/cluster": "shop", "app.kubernetes.io/managed-by": "dialog-operator"});
        assert_eq!(whose("Secret", made, json!({}), json!([])), Ownership::Left);
    }

    #[test]
    fn a_volume_is_known_by_its_labels() {
        let claim =
            |labels| json!({"kind": "PersistentVolumeClaim", "metadata": {"uid": "c", "labels": labels}});
        let whose = |json| live(json, &cluster()).unwrap().ownership;
        assert_eq!(whose(claim(json!({"dialogcluster.dev/cluster": "shop"}))), Ownership::Owned);
        assert_eq!(whose(claim(json!({"dialogcluster.dev/cluster": "shop2"}))), Ownership::Foreign);
    }
}
