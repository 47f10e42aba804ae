//! From the watch caches to the Kubernetes part of a snapshot: objects and pods. No request is made
//! here, and nothing of a Secret but the names of its keys leaves this place.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod as KubernetesPod, PodStatus};
use kube::{Resource, ResourceExt, runtime::reflector::Store};
use serde::Serialize;
use serde_json::Value;

use super::cache::ObservationCache;
use crate::{
    api::{ClusterId, Node, names::keys},
    kubernetes::caches::WatchScope,
    resources::{INSPECTION, SERVER},
    snapshot::{ImageFacts, LiveObject, Observed, Pod, ReasonMessage, Termination, Warning, live},
};

/// Every object that carries the cluster's label or is known to have one of its names, by `Kind/name`. Pods of nodes
/// are not here: see [`pods`].
pub fn objects(
    scope: &WatchScope,
    cache: &mut ObservationCache,
    cluster: &ClusterId,
) -> BTreeMap<String, LiveObject> {
    cache.expire();
    let mut found = BTreeMap::new();
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    collect(&scope.stateful_sets, cluster, &mut seen);
    collect(&scope.claims, cluster, &mut seen);
    collect(&scope.services, cluster, &mut seen);
    collect(&scope.config_maps, cluster, &mut seen);
    collect(&scope.secrets, cluster, &mut seen);
    collect(&scope.accounts, cluster, &mut seen);
    collect(&scope.budgets, cluster, &mut seen);
    for pod in of_cluster(&scope.pods, cluster).filter(|pod| !pod.labels().contains_key(keys::NODE)) {
        put(pod.as_ref(), &mut seen);
    }
    let written: Vec<String> = cache.writes.keys().cloned().collect();
    for key in written {
        let cached = seen.remove(&key);
        if let Some(newer) = cache.newer(&key, cached) {
            seen.insert(key, newer);
        }
    }
    for (key, (stranger, _)) in &cache.foreign_objects {
        found.insert(key.clone(), stranger.clone());
    }
    for (key, json) in seen {
        if let Some(object) = live(json, cluster) {
            found.insert(key, object);
        }
    }
    found
}

/// Objects of one kind with the cluster's label in its namespace.
fn of_cluster<K>(store: &Store<K>, cluster: &ClusterId) -> impl Iterator<Item = std::sync::Arc<K>> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mine = |object: &K| {
        object.meta().namespace.as_deref() == Some(&cluster.namespace)
            && object.labels().get(keys::CLUSTER) == Some(&cluster.name)
    };
    store.state_filter(mine).into_iter()
}

fn collect<K>(store: &Store<K>, cluster: &ClusterId, seen: &mut BTreeMap<String, Value>)
where
    K: Resource<DynamicType = ()> + Serialize + Clone + 'static,
{
    of_cluster(store, cluster).for_each(|object| put(object.as_ref(), seen));
}

fn put<K: Resource<DynamicType = ()> + Serialize>(object: &K, seen: &mut BTreeMap<String, Value>) {
    let key = format!("{}/{}", K::kind(&()), object.name_any());
    if let Ok(json) = serde_json::to_value(object) {
        seen.insert(key, json);
    }
}

/// Pods of the cluster's nodes. A pod of an earlier StatefulSet of the same name is not the node's, and neither is one
/// whose StatefulSet is gone: it may be of a worker that was removed, and the next of that name starts clean.
pub fn pods(
    scope: &WatchScope,
    cache: &mut ObservationCache,
    cluster: &ClusterId,
    objects: &BTreeMap<String, LiveObject>,
) -> BTreeMap<Node, Pod> {
    let mut found = BTreeMap::new();
    for pod in of_cluster(&scope.pods, cluster) {
        let Some(node) = pod.labels().get(keys::NODE).and_then(|node| node.parse::<Node>().ok()) else {
            continue;
        };
        let set = objects.get(&format!("StatefulSet/{}", node.object_name(&cluster.name)));
        let of_set = |set: &LiveObject| pod.owner_references().iter().any(|owner| owner.uid == set.uid);
        if pod.name_any() != node.pod_name(&cluster.name) || !set.is_some_and(of_set) {
            continue;
        }
        let mut pod = facts(&pod);
        pod.deleting |= cache.deleted_pods.contains_key(&pod.uid);
        add_warnings(scope, cluster, &mut pod);
        found.insert(node, pod);
    }
    found
}

/// Those that a plan looks at.
fn annotations(pod: &KubernetesPod) -> BTreeMap<String, String> {
    let ours = |key: &String| {
        [crate::api::GROUP, "kubectl.kubernetes.io"].iter().any(|group| key.starts_with(group))
    };
    pod.annotations()
        .iter()
        .filter(|(key, _)| ours(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// A container that is being made says no more than that: what it waits for, its machine says in an event.
fn add_warnings(scope: &WatchScope, cluster: &ClusterId, pod: &mut Pod) {
    let key = format!("Pod/{}", pod.name);
    if pod.ready {
        scope.warnings.forget(&cluster.namespace, &key);
        return;
    }
    let Some(waiting) = pod.waiting.as_mut().filter(|waiting| waiting.message.is_empty()) else { return };
    if let Some(warning) = scope.warnings.about(&cluster.namespace, &key, &pod.uid) {
        *waiting = ReasonMessage { reason: warning.reason, message: warning.message };
    }
}

/// What controllers say about objects that get no further; what is over is forgotten.
#[must_use]
pub fn warnings(
    scope: &WatchScope,
    cluster: &ClusterId,
    objects: &BTreeMap<String, LiveObject>,
    pods: &BTreeMap<Node, Pod>,
) -> BTreeMap<String, Warning> {
    let has_pod =
        |name: &str| Node::from_object_name(name, &cluster.name).is_some_and(|node| pods.contains_key(&node));
    let mut found = BTreeMap::new();
    for (key, object) in objects {
        let is_over = match key.split_once('/') {
            Some(("StatefulSet", name)) => has_pod(name),
            Some(("PersistentVolumeClaim", _)) => false,
            _ => continue,
        };
        if is_over {
            scope.warnings.forget(&cluster.namespace, key);
        } else if let Some(warning) = scope.warnings.about(&cluster.namespace, key, &object.uid) {
            found.insert(key.clone(), warning);
        }
    }
    found
}

/// What of a pod a plan may need.
fn facts(pod: &KubernetesPod) -> Pod {
    let status = pod.status.clone().unwrap_or_default();
    let condition = |name: &str| status.conditions.iter().flatten().find(|c| c.type_ == name);
    let ready = condition("Ready");
    let server = pod.spec.iter().flat_map(|spec| &spec.containers).find(|container| container.name == SERVER);
    let server = server.or_else(|| pod.spec.as_ref()?.containers.first());
    Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        created_at: pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |at| at.0),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        deletion_timestamp: pod.metadata.deletion_timestamp.as_ref().map(|at| at.0),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ready: ready.is_some_and(|condition| condition.status == "True"),
        ready_since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(|at| at.0),
        address: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        image: server.and_then(|container| container.image.clone()).unwrap_or_default(),
        user_template: pod.annotations().get(keys::USER_TEMPLATE_HASH).cloned(),
        config_refresh: pod.annotations().get(keys::CONFIG_REFRESH).cloned(),
        annotations: annotations(pod),
        waiting: waiting(&status),
        last_termination: last_termination(&status),
    }
}

/// What the pods that were asked about images have said so far: by image, `None` as long as they say nothing.
#[must_use]
pub fn inspections(scope: &WatchScope, cluster: &ClusterId) -> Vec<(String, Option<Observed<ImageFacts>>)> {
    let ours = |pod: &KubernetesPod| {
        !pod.labels().contains_key(keys::NODE)
            && pod.owner_references().iter().any(|owner| owner.uid == cluster.uid)
    };
    let pods = of_cluster(&scope.pods, cluster).filter(|pod| ours(pod));
    pods.filter_map(|pod| {
        // Not the image in the pod: admission may have put another there.
        let image = pod.annotations().get(keys::IMAGE)?.clone();
        Some((image, inspection(&pod)))
    })
    .collect()
}

/// What one such pod has said.
pub(super) fn inspection(pod: &KubernetesPod) -> Option<Observed<ImageFacts>> {
    let status = pod.status.as_ref()?;
    // Evicted or preempted: that is about the machine.
    if status.phase.as_deref() == Some("Failed") && status.reason.is_some() {
        return None;
    }
    let asked = status.container_statuses.iter().flatten().find(|container| container.name == INSPECTION);
    if let Some(Termination { reason, message, .. }) = asked.and_then(terminated) {
        // The script writes such a line at its very end, and only there.
        return Some(match message.parse() {
            Ok(facts) => Observed::Known(facts),
            Err(_) => Observed::Unknown(format!("{reason}: {message}")),
        });
    }
    let held = waiting(status)?;
    let cannot = [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerError",
        "RunContainerError",
    ];
    cannot
        .contains(&held.reason.as_str())
        .then(|| Observed::Unknown(format!("{}: {}", held.reason, held.message)))
}

/// Why a pod does not run, in the words of whoever holds it up: the scheduler, or the kubelet about a container.
#[must_use]
pub fn waiting(status: &PodStatus) -> Option<ReasonMessage> {
    let scheduled =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = scheduled {
        return Some(words(condition.reason.as_ref(), condition.message.as_ref()));
    }
    let init = status.init_container_statuses.iter().flatten();
    let blocked = init.chain(status.container_statuses.iter().flatten()).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        Some(words(waiting.reason.as_ref(), waiting.message.as_ref()))
    });
    blocked.or_else(|| {
        (status.phase.as_deref() == Some("Failed"))
            .then(|| words(status.reason.as_ref(), status.message.as_ref()))
    })
}

/// How the server's container ended last: now, or before its last restart.
fn last_termination(status: &PodStatus) -> Option<Termination> {
    let server = status.container_statuses.iter().flatten().find(|container| container.name == SERVER)?;
    terminated(server)
}

/// A container's end, if it ended.
#[must_use]
pub fn terminated(container: &ContainerStatus) -> Option<Termination> {
    let ended = |state: &Option<ContainerState>| state.as_ref()?.terminated.clone();
    let end = ended(&container.state).or_else(|| ended(&container.last_state))?;
    let reason = end.reason.unwrap_or_else(|| format!("exit code {}", end.exit_code));
    let message = end.message.map(|message| message.trim().to_owned()).filter(|message| !message.is_empty());
    let message = message.unwrap_or_else(|| format!("exit code {}", end.exit_code));
    Some(Termination { reason, message, exit_code: end.exit_code })
}

fn words(reason: Option<&String>, message: Option<&String>) -> ReasonMessage {
    ReasonMessage {
        reason: reason.cloned().unwrap_or_default(),
        message: message.cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        assert_eq!(inspection(&pod("postgres=15 citus=13.2-1\n")), Some(Observed::Known(facts)));
        let refused = inspection(&pod("the image has no citus extension"));
        assert_eq!(
            refused,
            Some(Observed::Unknown("Completed: the image has no citus extension".to_owned()))
        );
    }
}
