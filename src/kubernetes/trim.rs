//! What of an object is kept in a watch cache. Whoever may make objects may give any number of large ones our label: of
//! what does not belong to a DialogCluster only what tells whose it is stays. Pure.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
};

use crate::api::{FIELD_MANAGER, GROUP};

/// An object that is cut down to what the operator looks at.
pub trait Trim {
    /// Cuts it down.
    fn trim(&mut self);
}

/// Answers whether the object belongs to a DialogCluster, and takes from one that does not all annotations but ours.
fn is_owned(metadata: &mut ObjectMeta, kinds: &[&str]) -> bool {
    metadata.managed_fields = None;
    let owners = metadata.owner_references.iter().flatten();
    let owned = owners.into_iter().any(|owner| kinds.contains(&owner.kind.as_str()));
    if !owned && let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| key.starts_with(GROUP));
    }
    owned
}

const CLUSTER: &[&str] = &["DialogCluster"];

impl Trim for ConfigMap {
    fn trim(&mut self) {
        if !is_owned(&mut self.metadata, CLUSTER) {
            (self.data, self.binary_data) = (None, None);
        }
    }
}

impl Trim for Secret {
    fn trim(&mut self) {
        if !is_owned(&mut self.metadata, CLUSTER) {
            (self.data, self.string_data) = (None, None);
        }
    }
}

impl Trim for Service {
    fn trim(&mut self) {
        if !is_owned(&mut self.metadata, CLUSTER) {
            (self.spec, self.status) = (None, None);
        }
    }
}

impl Trim for PodDisruptionBudget {
    fn trim(&mut self) {
        if !is_owned(&mut self.metadata, CLUSTER) {
            (self.spec, self.status) = (None, None);
        }
    }
}

impl Trim for ServiceAccount {
    fn trim(&mut self) {
        if !is_owned(&mut self.metadata, CLUSTER) {
            (self.secrets, self.image_pull_secrets) = (None, None);
        }
    }
}

impl Trim for StatefulSet {
    fn trim(&mut self) {
        let scaled = self.metadata.managed_fields.take().and_then(scaled_by);
        if !is_owned(&mut self.metadata, CLUSTER) {
            (self.spec, self.status) = (None, None);
        }
        self.metadata.managed_fields = scaled.map(|entry| vec![entry]);
    }
}

impl Trim for Pod {
    fn trim(&mut self) {
        // Of a node, or one that asks an image what is in it.
        if !is_owned(&mut self.metadata, &["StatefulSet", "DialogCluster"]) {
            (self.spec, self.status) = (None, None);
        }
    }
}

/// A volume outlives its cluster: who owns none of it is told by its labels, and what it asks for is needed.
impl Trim for PersistentVolumeClaim {
    fn trim(&mut self) {
        is_owned(&mut self.metadata, CLUSTER);
    }
}

/// Who owns `spec.replicas`, if not we.
fn scaled_by(owners: Vec<ManagedFieldsEntry>) -> Option<ManagedFieldsEntry> {
    let scales = |entry: &ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
    };
    let others = owners.into_iter().filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    let last = others.filter(scales).max_by_key(|entry| entry.time.as_ref().map(|at| at.0))?;
    Some(ManagedFieldsEntry { fields_v1: None, ..last })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(owner: Option<&str>) -> serde_json::Value {
        json!({
            "name": "x", "labels": {"dialogcluster.dev/cluster": "x"},
            "annotations": {"dialogcluster.dev/applied-hash": "1", "note": "n".repeat(200_000)},
            "ownerReferences": owner.map(|kind| json!([{"apiVersion": "v", "kind": kind, "name": "x", "uid": "u"}])),
        })
    }

    /// Three hundred ConfigMaps of 1 MiB with our label are no more than 300 names.
    #[test]
    fn of_a_stranger_only_what_tells_whose_it_is_stays() {
        let map = |owner| -> ConfigMap {
            let data = json!({"a": "x".repeat(1_000_000)});
            let mut map: ConfigMap = serde_json::from_value(
                json!({"metadata": metadata(owner), "data": data, "binaryData": {"b": "eA=="}}),
            )
            .unwrap();
            map.trim();
            map
        };
        let size = |map: &ConfigMap| serde_json::to_string(map).unwrap().len();
        assert!(size(&map(None)) < 1_000, "{}", size(&map(None)));
        assert!(size(&map(Some("Deployment"))) < 1_000);
        assert!(size(&map(Some("DialogCluster"))) > 1_200_000);
        assert_eq!(map(None).metadata.annotations.unwrap().len(), 1, "what we wrote on it");
    }

    #[test]
    fn of_a_secret_that_is_not_ours_nothing_is_kept() {
        let mut secret: Secret =
            serde_json::from_value(json!({"metadata": metadata(None), "data": {"password": "eA=="}}))
                .unwrap();
        secret.trim();
        assert_eq!(secret.data, None);
    }

    #[test]
    fn what_a_volume_asks_for_stays_whoever_owns_it() {
        let mut claim: PersistentVolumeClaim = serde_json::from_value(
            json!({"metadata": metadata(None), "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}),
        )
        .unwrap();
        claim.trim();
        assert!(claim.spec.is_some() && claim.status.is_some());
    }

    #[test]
    fn who_scaled_a_stateful_set_stays() {
        let entry = |manager: &str, at: &str, fields: serde_json::Value| json!({"manager": manager, "operation": "Update", "time": at, "fieldsType": "FieldsV1", "fieldsV1": fields});
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        let mut metadata = metadata(Some("DialogCluster"));
        metadata["managedFields"] = json!([
            entry(FIELD_MANAGER, "2026-01-01T00:00:09Z", replicas()),
            entry("kubectl", "2026-01-01T00:00:01Z", replicas()),
            entry("sleeper", "2026-01-01T00:00:02Z", replicas()),
            entry("kube-controller-manager", "2026-01-01T00:00:03Z", json!({"f:status": {"f:replicas": {}}})),
        ]);
        let mut set: StatefulSet = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        set.trim();
        let kept = set.metadata.managed_fields.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].manager.as_deref(), Some("sleeper"));
    }
}
