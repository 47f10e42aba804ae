//! Watch caches: what Kubernetes holds of ours, kept up to date by watches, so that a reconcile asks nothing. Each
//! change wakes the DialogCluster that it belongs to. Nothing is decided here.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::api::{DialogCluster, names::keys};

/// A stored DialogCluster, or what is wrong with it: one that cannot be read must not stop the watch of all.
pub type Stored = DeserializeGuard<DialogCluster>;

/// The caches of all namespaces that are watched.
pub struct Caches {
    /// One for all namespaces, or one for each that was named.
    pub scopes: Vec<Arc<Scope>>,
}

/// The caches of one namespace, or of all.
pub struct Scope {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    /// DialogClusters.
    pub clusters: Store<Stored>,
    /// Wakes DialogClusters while somebody listens.
    pub wakes: Arc<Wakes>,
    filled: Vec<Filled>,
    pub(super) stateful_sets: Store<StatefulSet>,
    pub(super) pods: Store<Pod>,
    pub(super) claims: Store<PersistentVolumeClaim>,
    pub(super) services: Store<Service>,
    pub(super) config_maps: Store<ConfigMap>,
    pub(crate) secrets: Store<Secret>,
    pub(super) accounts: Store<ServiceAccount>,
    pub(super) budgets: Store<PodDisruptionBudget>,
}

struct Filled {
    kind: String,
    /// Cancelled when the cache is filled: a flag that can be waited for.
    done: CancellationToken,
}

/// Where a change is told: to the controller, while this operator leads.
#[derive(Default)]
pub struct Wakes(Mutex<Option<UnboundedSender<ObjectRef<Stored>>>>);

impl Wakes {
    /// Listens from now on; an earlier listener hears no more.
    pub fn listen(&self) -> UnboundedReceiver<ObjectRef<Stored>> {
        let (sender, receiver) = unbounded();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
    fn wake(&self, cluster: ObjectRef<Stored>) {
        if let Some(sender) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // Nobody listens any more: this operator no longer leads.
            let _ = sender.unbounded_send(cluster);
        }
    }
}

impl Caches {
    /// Starts all watches; they end when `stop` is cancelled.
    #[must_use]
    pub fn start(
        client: &Client,
        namespaces: &[String],
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let scope = |namespace| {
            let starter =
                Starter { client, namespace, tasks, stop, filled: Vec::new(), wakes: Arc::default() };
            Arc::new(starter.scope())
        };
        let scopes = if namespaces.is_empty() {
            vec![scope(None)]
        } else {
            namespaces.iter().map(|namespace| scope(Some(namespace.clone()))).collect()
        };
        Self { scopes }
    }
    /// The caches in which objects of this namespace are.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Option<&Scope> {
        self.scopes
            .iter()
            .find(|scope| scope.namespace.as_deref().is_none_or(|watched| watched == namespace))
            .map(AsRef::as_ref)
    }
    /// Waits until every cache was filled once. What is not in a cache before that may still be there.
    pub async fn filled(&self) {
        for cache in self.scopes.iter().flat_map(|scope| &scope.filled) {
            cache.done.cancelled().await;
        }
    }
    /// Kinds whose cache has not been filled once.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        let waiting = self.scopes.iter().flat_map(|scope| &scope.filled);
        waiting.filter(|cache| !cache.done.is_cancelled()).map(|cache| cache.kind.clone()).collect()
    }
}

struct Starter<'a> {
    client: &'a Client,
    namespace: Option<String>,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    filled: Vec<Filled>,
    wakes: Arc<Wakes>,
}

impl Starter<'_> {
    fn scope(mut self) -> Scope {
        let mut last = HashMap::new();
        let clusters = self.watch(watcher::Config::default(), move |cluster: &Stored| {
            let changed = last.insert(cluster.uid(), interest(cluster)) != Some(interest(cluster));
            changed.then(|| ObjectRef::from_obj(cluster))
        });
        Scope {
            stateful_sets: self.children(),
            pods: self.children(),
            claims: self.children(),
            services: self.children(),
            config_maps: self.children(),
            secrets: self.children(),
            accounts: self.children(),
            budgets: self.children(),
            clusters,
            namespace: self.namespace,
            wakes: self.wakes,
            filled: self.filled,
        }
    }

    /// Objects with the label of a cluster wake that cluster.
    fn children<K>(&mut self) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.watch(watcher::Config::default().labels(keys::CLUSTER), |child: &K| {
            let cluster = child.labels().get(keys::CLUSTER)?;
            Some(ObjectRef::new(cluster).within(&child.namespace()?))
        })
    }

    fn watch<K>(
        &mut self,
        config: watcher::Config,
        mut whose: impl FnMut(&K) -> Option<ObjectRef<Stored>> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let api: Api<K> = match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let kind = K::kind(&()).into_owned();
        let (store, writer) = reflector::store::<K>();
        let done = CancellationToken::new();
        self.filled.push(Filled { kind: kind.clone(), done: done.clone() });
        let (reader, wakes, stop) = (store.clone(), Arc::clone(&self.wakes), self.stop.clone());
        self.tasks.spawn(async move {
            let changes = watcher::watcher(api, config)
                .default_backoff()
                .modify(|object: &mut K| object.managed_fields_mut().clear())
                .reflect(writer)
                .take_until(stop.cancelled_owned());
            let mut changes = pin!(changes);
            while let Some(change) = changes.next().await {
                match change {
                    Ok(Event::Apply(object) | Event::Delete(object)) => {
                        if let Some(cluster) = whose(&object) {
                            wakes.wake(cluster);
                        }
                    }
                    Ok(Event::InitDone) => {
                        done.cancel();
                        reader
                            .state()
                            .iter()
                            .filter_map(|object| whose(object))
                            .for_each(|cluster| wakes.wake(cluster));
                    }
                    Ok(Event::Init | Event::InitApply(_)) => {}
                    Err(error) => tracing::warn!(%error, kind, "a watch failed and is tried again"),
                }
            }
        });
        store
    }
}

/// What of a DialogCluster is worth a reconcile: all but the status, which only this operator writes.
fn interest(cluster: &Stored) -> u64 {
    let mut hasher = DefaultHasher::new();
    let meta = cluster.meta();
    meta.generation.hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    meta.labels.hash(&mut hasher);
    cluster.0.as_ref().err().map(|invalid| &invalid.error).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(json: serde_json::Value) -> Stored {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_status_is_no_reason_to_look_again() {
        let base = serde_json::json!({
            "apiVersion": "dialogcluster.dev/v1alpha1", "kind": "DialogCluster",
            "metadata": {"name": "shop", "generation": 3}, "spec": {}
        });
        let mut with_status = base.clone();
        with_status["status"] = serde_json::json!({"message": "all is well"});
        with_status["metadata"]["resourceVersion"] = "9".into();
        assert_eq!(interest(&stored(base.clone())), interest(&stored(with_status)));
        let mut asked = base.clone();
        asked["metadata"]["annotations"] = serde_json::json!({"dialogcluster.dev/restart-requested-at": "1"});
        assert_ne!(interest(&stored(base)), interest(&stored(asked)));
    }

    #[test]
    fn a_cluster_that_cannot_be_read_keeps_its_name() {
        let broken = stored(serde_json::json!({
            "apiVersion": "dialogcluster.dev/v1alpha1", "kind": "DialogCluster",
            "metadata": {"name": "shop"}, "spec": {"workers": {"replicas": "three"}}
        }));
        assert!(broken.0.is_err());
        assert_eq!(broken.name_any(), "shop");
    }
}
