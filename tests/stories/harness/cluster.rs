//! A DialogCluster and what belongs to it, as a person sees it through the API.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use dialog_operator::api::{DialogCluster, Node};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Event, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};

use super::Story;

/// A cluster of a story.
pub struct Cluster {
    pub client: Client,
    pub namespace: String,
    pub name: String,
}

/// A small cluster with this many workers. `DIALOG_IMAGE_UID` and `DIALOG_IMAGE_GID` are of the user postgres in the image
/// when they are not the usual ones.
pub fn spec(workers: u16) -> Value {
    let storage = json!({"size": "1Gi"});
    let mut spec =
        json!({"coordinator": {"storage": storage}, "workers": {"replicas": workers, "storage": storage}});
    for (field, variable) in [("uid", "DIALOG_IMAGE_UID"), ("gid", "DIALOG_IMAGE_GID")] {
        if std::env::var_os(variable).is_some() {
            spec["postgres"][field] = json!(super::setting(variable, 0));
        }
    }
    spec
}

/// `spec` with `more` merged into it.
pub fn with(mut spec: Value, more: &Value) -> Value {
    fn merge(into: &mut Value, more: &Value) {
        match (into.as_object_mut(), more.as_object()) {
            (Some(fields), Some(more)) => {
                for (name, value) in more {
                    merge(fields.entry(name).or_insert(Value::Null), value);
                }
            }
            _ => *into = more.clone(),
        }
    }
    merge(&mut spec, more);
    spec
}

/// The condition, when it was computed for what the spec says now.
pub fn condition<'a>(cluster: &'a DialogCluster, kind: &str) -> Option<&'a Condition> {
    let generation = cluster.metadata.generation;
    let conditions = &cluster.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == kind && condition.observed_generation == generation)
}

/// Whether a condition has this status for what the spec says now.
pub fn is(cluster: &DialogCluster, kind: &str, status: &str) -> bool {
    condition(cluster, kind).is_some_and(|condition| condition.status == status)
}

/// `Stalled=True` with this reason.
pub fn is_stalled(cluster: &DialogCluster, reason: &str) -> bool {
    condition(cluster, "Stalled").is_some_and(|stalled| stalled.status == "True" && stalled.reason == reason)
}

/// Everything is as asked for.
pub fn is_settled(cluster: &DialogCluster) -> bool {
    is(cluster, "Ready", "True")
        && is(cluster, "Reconciling", "False")
        && is(cluster, "Stalled", "False")
        && is(cluster, "Balanced", "True")
        && is(cluster, "WorkersRegistered", "True")
        && is(cluster, "ConfigurationApplied", "True")
}

/// Settled, and no worker is there but those that are asked for.
pub fn is_settled_with(cluster: &DialogCluster, workers: usize) -> bool {
    is_settled(cluster) && cluster.status.as_ref().is_some_and(|status| status.nodes.len() == workers + 1)
}

/// The conditions in one line each.
pub fn said(cluster: &DialogCluster) -> String {
    let mut text = format!("generation {:?}", cluster.metadata.generation);
    let Some(status) = &cluster.status else { return text + ", no status" };
    let _ = write!(text, ", phase {:?}: {:?}", status.phase, status.message);
    for condition in &status.conditions {
        let _ = write!(
            text,
            "\n  {}={} ({}, generation {:?}): {}",
            condition.type_,
            condition.status,
            condition.reason,
            condition.observed_generation,
            condition.message
        );
    }
    text
}

impl Story {
    /// Asks for a cluster.
    pub async fn cluster(&self, name: &str, spec: Value) -> Cluster {
        let cluster =
            Cluster { client: self.client.clone(), namespace: self.namespace.clone(), name: name.to_owned() };
        cluster.create(spec).await;
        cluster
    }

    /// A cluster that is there, with everything settled.
    pub async fn settled_cluster(&self, name: &str, spec: Value) -> Cluster {
        let cluster = self.cluster(name, spec).await;
        cluster.until_settled(90).await;
        cluster
    }
}

impl Cluster {
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn create(&self, spec: Value) {
        let body = json!({
            "apiVersion": "dialogcluster.dev/v1alpha1", "kind": "DialogCluster",
            "metadata": {"name": self.name}, "spec": spec
        });
        let api: Api<DialogCluster> = self.api();
        api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
    }

    /// The one edit of a person: a merge into the spec.
    pub async fn edit(&self, spec: Value) {
        let api: Api<DialogCluster> = self.api();
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch(&self.name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Deletes the DialogCluster, and waits until it and its pods are gone.
    pub async fn delete(&self) {
        let api: Api<DialogCluster> = self.api();
        api.delete(&self.name, &DeleteParams::default()).await.unwrap();
        super::wait::eventually("the cluster's pods are gone", Duration::from_mins(1), async || {
            let pods = self.pods().await;
            let cluster = api.get_opt(&self.name).await.unwrap();
            if pods.is_empty() && cluster.is_none() { Ok(()) } else { Err(format!("{:?}", pods.keys())) }
        })
        .await;
    }

    pub async fn get(&self) -> DialogCluster {
        let api: Api<DialogCluster> = self.api();
        api.get(&self.name).await.unwrap()
    }

    /// Waits until the DialogCluster is as the condition wants it; returns when that was seen, and what.
    pub async fn until(
        &self,
        what: &str,
        seconds: u64,
        condition: impl Fn(&DialogCluster) -> bool,
    ) -> (Instant, DialogCluster) {
        let waiting = async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                let met = |cluster: Option<&DialogCluster>| cluster.is_some_and(&condition);
                // A watch ends when the API server has forgotten where it was: soon, when a CRD is applied meanwhile.
                match await_condition(self.api(), &self.name, met).await {
                    Ok(seen) => break seen,
                    Err(error) => eprintln!("watched again: {error}"),
                }
            }
        };
        let deadline = super::wait::patient(Duration::from_secs(seconds));
        let Ok(seen) = tokio::time::timeout(deadline, waiting).await else {
            panic!("not within {deadline:?}: {what}; last seen: {}", said(&self.get().await));
        };
        (Instant::now(), seen.unwrap_or_else(|| panic!("{what}: the DialogCluster is gone")))
    }

    pub async fn until_settled(&self, seconds: u64) -> (Instant, DialogCluster) {
        self.until("the cluster is settled", seconds, is_settled).await
    }

    /// Settled with as many workers as this.
    pub async fn until_settled_with(&self, workers: u16, seconds: u64) -> (Instant, DialogCluster) {
        let what = format!("settled with {workers} workers");
        self.until(&what, seconds, |cluster| is_settled_with(cluster, workers.into())).await
    }

    /// How many workers are wanted.
    pub async fn scale(&self, workers: u16) {
        self.edit(json!({"workers": {"replicas": workers}})).await;
    }

    /// Pods of nodes by name.
    pub async fn pods(&self) -> BTreeMap<String, Pod> {
        let api: Api<Pod> = self.api();
        let labels = format!("dialogcluster.dev/cluster={},dialogcluster.dev/node", self.name);
        let pods = api.list(&ListParams::default().labels(&labels)).await.unwrap();
        pods.into_iter().map(|pod| (pod.name_any(), pod)).collect()
    }

    /// Which pod each node has, and how often its server was started in it: the same again means that nothing restarted.
    pub async fn pod_uids(&self) -> BTreeMap<String, (String, i32)> {
        let life = |pod: &Pod| {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            let restarts = statuses.and_then(|all| all.first()).map_or(0, |one| one.restart_count);
            (pod.uid().unwrap(), restarts)
        };
        self.pods().await.iter().map(|(name, pod)| (name.clone(), life(pod))).collect()
    }

    pub async fn pod(&self, node: Node) -> Pod {
        let api: Api<Pod> = self.api();
        api.get(&node.pod_name(&self.name)).await.unwrap()
    }

    /// Events about this cluster as `reason: note`, as often as each was counted.
    pub async fn events(&self) -> Vec<String> {
        let api: Api<Event> = self.api();
        let events = api.list(&ListParams::default()).await.unwrap();
        events
            .into_iter()
            .filter(|event| {
                event.reporting_component.as_deref() == Some("dialog-operator")
                    && event.involved_object.name.as_deref().is_some_and(|name| name.starts_with(&self.name))
            })
            .flat_map(|event| {
                let times = event.series.and_then(|series| series.count).unwrap_or(1).max(1);
                let text =
                    format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default());
                vec![text; usize::try_from(times).unwrap()]
            })
            .collect()
    }

    /// Exactly so many events have this reason. An event is sent after the status in which the same can be seen.
    pub async fn assert_events(&self, reason: &str, times: usize) {
        let told = super::wait::eventually(reason, Duration::from_secs(30), async || {
            let events = self.events().await;
            let told = events.iter().filter(|event| event.starts_with(&format!("{reason}:"))).count();
            if told < times { Err(format!("{events:#?}")) } else { Ok(told) }
        });
        assert_eq!(told.await, times, "{reason}: {:#?}", self.events().await);
    }
}

/// Whether a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
