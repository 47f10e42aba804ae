//! Steps that write to Kubernetes. Each object is created under a name that must be free, and later written only
//! under the uid that the plan knew.

use std::time::Instant;

use super::Executor;
use crate::{
    api::{Node, names::keys, spec::VolumePolicy},
    kubernetes::{ApiError, ObjectKey},
    resources::{self, BuildContext, Manifest},
    snapshot::{Failure, FailureReason, Ownership, live},
};
use serde_json::{Value, json};

impl Executor<'_> {
    pub(super) fn address<'a>(&'a self, api_version: &'a str, kind: &'a str, name: &'a str) -> ObjectKey<'a> {
        ObjectKey { api_version, kind, namespace: &self.desired.cluster.namespace, name }
    }
}

pub(super) async fn create(executor: &Executor<'_>, object: &Manifest) -> Result<(), Failure> {
    let address = executor.address(&object.api_version, &object.kind, &object.name);
    match executor.context.client.create(address, &object.json).await {
        Ok(answer) => {
            executor.observed.with(|observed| {
                observed.admitted(object, &answer);
                observed.wrote(object.key(), answer);
            });
            Ok(())
        }
        Err(ApiError::AlreadyExists(words)) => check_owner(executor, address, &words).await,
        Err(refusal) => Err(Failure::refused(&address, &refusal)),
    }
}

/// Whose is the object that has the name? Ours when the cache is only behind.
pub(super) async fn check_owner(
    executor: &Executor<'_>,
    address: ObjectKey<'_>,
    words: &str,
) -> Result<(), Failure> {
    let key = format!("{}/{}", address.kind, address.name);
    let answer =
        executor.context.client.get(address).await.map_err(|refusal| Failure::refused(&address, &refusal))?;
    let cluster = &executor.desired.cluster;
    // Gone again since: the next look creates it.
    let Some(json) = answer else {
        return Err(Failure::new(FailureReason::Conflict, format!("{address}: {words}")));
    };
    let Some(object) = live(json.clone(), cluster) else {
        return Err(Failure::new(FailureReason::Conflict, format!("{address}: {words}")));
    };
    match object.ownership {
        Ownership::Owned => {
            executor.observed.with(|observed| observed.wrote(key, object.json));
            Ok(())
        }
        Ownership::Left => Err(Failure::new(
            FailureReason::Conflict,
            format!("{address} was left behind by a deleted DialogCluster of this name"),
        )),
        Ownership::OwnedByDeleted => Err(Failure::new(
            FailureReason::Conflict,
            format!("{address} belonged to a deleted DialogCluster of this name and is still being removed"),
        )),
        Ownership::Foreign => {
            executor.observed.with(|observed| observed.mark_foreign(key, object));
            let message =
                format!("{address} exists and does not belong to this DialogCluster: rename or delete it");
            Err(Failure::new(FailureReason::ObjectConflict, message))
        }
    }
}

pub(super) async fn apply(executor: &Executor<'_>, object: &Manifest, uid: &str) -> Result<(), Failure> {
    let address = executor.address(&object.api_version, &object.kind, &object.name);
    let answer = executor.context.client.apply(address, uid, &object.json).await;
    let answer = answer.map_err(|refusal| Failure::refused(&address, &refusal))?;
    executor.observed.with(|observed| {
        observed.admitted(object, &answer);
        observed.wrote(object.key(), answer);
    });
    Ok(())
}

/// A patch of an object's metadata, which the next look sees although the cache may not show it yet.
async fn write_metadata(
    executor: &Executor<'_>,
    address: ObjectKey<'_>,
    uid: &str,
    metadata: &Value,
) -> Result<(), Failure> {
    let answer = executor.context.client.patch_metadata(address, uid, metadata).await;
    let answer = answer.map_err(|refusal| Failure::refused(&address, &refusal))?;
    executor.observed.with(|observed| observed.wrote(format!("{}/{}", address.kind, address.name), answer));
    Ok(())
}

/// Its owner, and nothing else of it: what else is to be so the next plan says.
pub(super) async fn adopt(executor: &Executor<'_>, kind: &str, name: &str, uid: &str) -> Result<(), Failure> {
    let address = executor.address(api_version(kind), kind, name);
    let live = executor.snapshot.objects.get(&format!("{kind}/{name}"));
    let notes = json!({
        "ownerReferences": [resources::owner(&executor.desired.cluster)],
        // Nobody else has taken it since.
        "resourceVersion": live.and_then(|live| live.json.pointer("/metadata/resourceVersion")),
    });
    write_metadata(executor, address, uid, &notes).await
}

pub(super) async fn inspect_image(executor: &Executor<'_>, image: &str) -> Result<(), Failure> {
    let inputs = BuildContext { desired: executor.desired, operator: &executor.snapshot.operator, image };
    create(executor, &resources::inspection_pod(&inputs, image)).await
}

pub(super) async fn delete_inspection_pod(executor: &Executor<'_>, pod: &str) -> Result<(), Failure> {
    match executor.snapshot.objects.get(&format!("Pod/{pod}")) {
        Some(live) => delete(executor, "Pod", pod, &live.uid).await,
        None => Ok(()),
    }
}

pub(super) async fn refresh_configuration(
    executor: &Executor<'_>,
    node: Node,
    pod_uid: &str,
    value: &str,
) -> Result<(), Failure> {
    patch_pod(executor, node, pod_uid, &json!({ "annotations": { keys::CONFIG_REFRESH: value } })).await
}

pub(super) async fn patch_pod(
    executor: &Executor<'_>,
    node: Node,
    pod_uid: &str,
    metadata: &Value,
) -> Result<(), Failure> {
    let name = node.pod_name(&executor.desired.cluster.name);
    let address = executor.address("v1", "Pod", &name);
    let answer = executor.context.client.patch_metadata(address, pod_uid, metadata).await;
    answer.map(drop).map_err(|refusal| Failure::refused(&address, &refusal))
}

/// The claim first: it is what outlives the StatefulSet.
pub(super) async fn record_identity(
    executor: &Executor<'_>,
    node: Node,
    system_identifier: &str,
    claim: &str,
) -> Result<(), Failure> {
    let set = node.object_name(&executor.desired.cluster.name);
    for (version, kind, name) in [("v1", "PersistentVolumeClaim", claim), ("apps/v1", "StatefulSet", &set)] {
        let key = format!("{kind}/{name}");
        let address = executor.address(version, kind, name);
        let Some(live) = executor.snapshot.objects.get(&key) else {
            let message = format!("{address} was not seen, so nothing can be written down on it");
            return Err(Failure::new(FailureReason::Conflict, message));
        };
        if live.annotation(keys::SYSTEM_IDENTIFIER) == Some(system_identifier) {
            continue;
        }
        let notes = json!({ "annotations": { keys::SYSTEM_IDENTIFIER: system_identifier } });
        write_metadata(executor, address, &live.uid, &notes).await?;
    }
    Ok(())
}

/// The claim first: it is what outlives the StatefulSet.
pub(super) async fn decommission(
    executor: &Executor<'_>,
    node: Node,
    claim: Option<&str>,
    (mark, reclaim): (&str, VolumePolicy),
) -> Result<(), Failure> {
    let set = node.object_name(&executor.desired.cluster.name);
    let reclaim = reclaim.to_string();
    let of_claim = claim.map(|claim| {
        let notes = json!({ "labels": { keys::DECOMMISSIONED: mark }, "annotations": { keys::RECLAIM_POLICY: reclaim } });
        ("v1", "PersistentVolumeClaim", claim, notes)
    });
    let of_set =
        ("apps/v1", "StatefulSet", set.as_str(), json!({ "annotations": { keys::DECOMMISSIONED: mark } }));
    for (version, kind, name, notes) in of_claim.into_iter().chain([of_set]) {
        let key = format!("{kind}/{name}");
        let Some(live) = executor.snapshot.objects.get(&key) else { continue };
        // The first mark says when.
        if live.label(keys::DECOMMISSIONED).or_else(|| live.annotation(keys::DECOMMISSIONED)).is_some() {
            continue;
        }
        let address = executor.address(version, kind, name);
        write_metadata(executor, address, &live.uid, &notes).await?;
    }
    Ok(())
}

pub(super) async fn record_restart(executor: &Executor<'_>, node: Node, booted: &str) -> Result<(), Failure> {
    let set = node.object_name(&executor.desired.cluster.name);
    let key = format!("StatefulSet/{set}");
    let address = executor.address("apps/v1", "StatefulSet", &set);
    let Some(live) = executor.snapshot.objects.get(&key) else { return Ok(()) };
    let notes = json!({ "annotations": { keys::LAST_STARTED_WITH: booted } });
    write_metadata(executor, address, &live.uid, &notes).await
}

pub(super) async fn delete_pod(executor: &Executor<'_>, node: Node, pod_uid: &str) -> Result<(), Failure> {
    let name = node.pod_name(&executor.desired.cluster.name);
    delete(executor, "Pod", &name, pod_uid).await?;
    executor.observed.with(|observed| observed.deleted_pods.insert(pod_uid.to_owned(), Instant::now()));
    Ok(())
}

pub(super) async fn delete(
    executor: &Executor<'_>,
    kind: &str,
    name: &str,
    uid: &str,
) -> Result<(), Failure> {
    let address = executor.address(api_version(kind), kind, name);
    let answer = executor.context.client.delete(address, uid).await;
    answer.map_err(|refusal| Failure::refused(&address, &refusal))?;
    executor.observed.with(|observed| observed.writes.remove(&format!("{kind}/{name}")));
    Ok(())
}

/// `apiVersion` of the kinds that the operator makes.
fn api_version(kind: &str) -> &'static str {
    match kind {
        "StatefulSet" => "apps/v1",
        "PodDisruptionBudget" => "policy/v1",
        "NetworkPolicy" => "networking.k8s.io/v1",
        _ => "v1",
    }
}
