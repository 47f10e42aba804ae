//! Watch caches: what Kubernetes holds of ours, kept up to date by watches, so that a reconcile asks nothing. Each
//! change wakes the DialogCluster that it belongs to. Nothing is decided here.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{
            ConfigMap, Event as KubernetesEvent, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
        },
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

use super::{
    trim::Trim,
    warnings::{self, Warnings},
};
use crate::api::{DialogCluster, names::keys};

/// So long a write of ours may be missing in a cache before the cache is believed.
pub const CACHE_LAG: Duration = Duration::from_secs(5);

/// A stored DialogCluster, or what is wrong with it: one that cannot be read must not stop the watch of all.
pub type GuardedCluster = DeserializeGuard<DialogCluster>;

/// The caches of all namespaces that are watched.
pub struct Caches {
    /// One for all namespaces, or one for each that was named.
    pub scopes: Vec<Arc<WatchScope>>,
}

/// The caches of one namespace, or of all.
pub struct WatchScope {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    /// DialogClusters.
    pub clusters: Store<GuardedCluster>,
    /// ReconcileTrigger DialogClusters while somebody listens.
    pub wakes: Arc<ReconcileTrigger>,
    filled: Vec<CacheSync>,
    pub(crate) stateful_sets: Store<StatefulSet>,
    pub(crate) pods: Store<Pod>,
    pub(crate) claims: Store<PersistentVolumeClaim>,
    pub(crate) services: Store<Service>,
    pub(crate) config_maps: Store<ConfigMap>,
    pub(crate) secrets: Store<Secret>,
    pub(crate) accounts: Store<ServiceAccount>,
    pub(crate) budgets: Store<PodDisruptionBudget>,
    pub(crate) warnings: Arc<Warnings>,
}

impl WatchScope {
    /// A Secret with one of our labels.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.secrets.get(&ObjectRef::new(name).within(namespace))
    }
    /// Waits until every cache was filled once. What is not in a cache before that may still be there.
    pub async fn wait_for_sync(&self) {
        for cache in &self.filled {
            cache.done.cancelled().await;
        }
    }
}

struct CacheSync {
    kind: String,
    /// Cancelled when the cache is filled: a flag that can be waited for.
    done: CancellationToken,
}

/// Where a change is told: to the controller, while this operator leads.
#[derive(Default)]
pub struct ReconcileTrigger(Mutex<Option<UnboundedSender<ObjectRef<GuardedCluster>>>>);

impl ReconcileTrigger {
    /// Listens from now on; an earlier listener hears no more.
    pub fn listen(&self) -> UnboundedReceiver<ObjectRef<GuardedCluster>> {
        let (sender, receiver) = unbounded();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
    fn wake(&self, cluster: ObjectRef<GuardedCluster>) {
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
                CachesBuilder { client, namespace, tasks, stop, filled: Vec::new(), wakes: Arc::default() };
            Arc::new(starter.scope())
        };
        let scopes = if namespaces.is_empty() {
            vec![scope(None)]
        } else {
            // Each once: two queues would look after the same clusters.
            let named: BTreeSet<&String> = namespaces.iter().collect();
            named.into_iter().map(|namespace| scope(Some(namespace.clone()))).collect()
        };
        Self { scopes }
    }
    /// The caches in which objects of this namespace are.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Option<&WatchScope> {
        self.scopes
            .iter()
            .find(|scope| scope.namespace.as_deref().is_none_or(|watched| watched == namespace))
            .map(AsRef::as_ref)
    }
    /// Kinds whose cache has not been filled once.
    #[must_use]
    pub fn unsynced(&self) -> Vec<String> {
        let waiting = self.scopes.iter().flat_map(|scope| &scope.filled);
        waiting.filter(|cache| !cache.done.is_cancelled()).map(|cache| cache.kind.clone()).collect()
    }
}

struct CachesBuilder<'a> {
    client: &'a Client,
    namespace: Option<String>,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    filled: Vec<CacheSync>,
    wakes: Arc<ReconcileTrigger>,
}

impl CachesBuilder<'_> {
    fn scope(mut self) -> WatchScope {
        let mut last = HashMap::new();
        let without_owners = |cluster: &mut GuardedCluster| cluster.managed_fields_mut().clear();
        let clusters = self.watch(watched(), without_owners, move |cluster: &GuardedCluster| {
            let changed = last.insert(cluster.uid(), reconcile_fingerprint(cluster))
                != Some(reconcile_fingerprint(cluster));
            changed.then(|| ObjectRef::from_obj(cluster))
        });
        WatchScope {
            stateful_sets: self.children(),
            pods: self.children(),
            claims: self.children(),
            services: self.children(),
            config_maps: self.children(),
            secrets: self.children(),
            accounts: self.children(),
            budgets: self.children(),
            warnings: self.warnings(),
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
        K: Trim + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.watch(watched().labels(keys::CLUSTER), K::trim, |child: &K| {
            let cluster = child.labels().get(keys::CLUSTER)?;
            Some(ObjectRef::new(cluster).within(&child.namespace()?))
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Words of controllers about objects that get no further wake their cluster. Nothing waits for these: without the
    /// right to read events less is told, and all goes on.
    fn warnings(&self) -> Arc<Warnings> {
        let warnings = Arc::new(Warnings::default());
        for (kind, reason) in warnings::WATCHED_REASONS {
            let config = watched().fields(&format!("involvedObject.kind={kind},reason={reason}"));
            let changes = watcher::watcher(self.api::<KubernetesEvent>(), config).default_backoff();
            let (warnings, wakes) = (Arc::clone(&warnings), Arc::clone(&self.wakes));
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let mut changes = pin!(changes.take_until(stop.cancelled_owned()));
                while let Some(change) = changes.next().await {
                    match change {
                        Ok(Event::Apply(event) | Event::InitApply(event)) => {
                            let namespace = event.namespace().unwrap_or_default();
                            if let Some(cluster) = warnings.record(&event) {
                                wakes.wake(ObjectRef::new(&cluster).within(&namespace));
                            }
                        }
                        Ok(Event::Delete(event)) => warnings.remove_stale(&event),
                        Ok(Event::Init | Event::InitDone) => {}
                        Err(error) => tracing::warn!(%error, reason, "events cannot be watched; tried again"),
                    }
                }
            });
        }
        warnings
    }

    fn watch<K>(
        &mut self,
        config: watcher::Config,
        trim: impl FnMut(&mut K) + Send + 'static,
        mut whose: impl FnMut(&K) -> Option<ObjectRef<GuardedCluster>> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let api = self.api::<K>();
        let kind = K::kind(&()).into_owned();
        let (store, writer) = reflector::store::<K>();
        let done = CancellationToken::new();
        self.filled.push(CacheSync { kind: kind.clone(), done: done.clone() });
        let (reader, wakes, stop) = (store.clone(), Arc::clone(&self.wakes), self.stop.clone());
        self.tasks.spawn(async move {
            let changes = watcher::watcher(api, config)
                .default_backoff()
                .modify(trim)
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

/// A watch is asked for anew each minute: one whose other end is gone without a word would show nothing for so long.
fn watched() -> watcher::Config {
    watcher::Config::default().timeout(60)
}

/// What of a DialogCluster is worth a reconcile: all but the status, which only this operator writes.
fn reconcile_fingerprint(cluster: &GuardedCluster) -> u64 {
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

    use axum::http::{Request, Response};
    use kube::client::Body;

    fn stored(json: serde_json::Value) -> GuardedCluster {
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
        assert_eq!(reconcile_fingerprint(&stored(base.clone())), reconcile_fingerprint(&stored(with_status)));
        let mut asked = base.clone();
        asked["metadata"]["annotations"] = serde_json::json!({"dialogcluster.dev/restart-requested-at": "1"});
        assert_ne!(reconcile_fingerprint(&stored(base)), reconcile_fingerprint(&stored(asked)));
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

    /// Its Role is gone, say, or it is.
    #[tokio::test]
    async fn a_namespace_that_cannot_be_looked_at_holds_up_no_other() {
        let (service, mut requests) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let api = tokio::spawn(async move {
            let mut watches = Vec::new();
            while let Some((request, answer)) = requests.next_request().await {
                let respond = |code: u16, json: serde_json::Value| {
                    Response::builder()
                        .status(code)
                        .body(Body::from(serde_json::to_vec(&json).unwrap()))
                        .unwrap()
                };
                if request.uri().path().contains("/namespaces/b/") {
                    let refusal = serde_json::json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"});
                    answer.send_response(respond(403, refusal));
                } else if request.uri().query().is_some_and(|query| query.contains("watch=")) {
                    watches.push(answer);
                } else {
                    answer.send_response(respond(
                        200,
                        serde_json::json!({"metadata": {"resourceVersion": "1"}, "items": []}),
                    ));
                }
            }
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let named = ["b", "a", "a"].map(str::to_owned);
        let caches = Caches::start(&Client::new(service, "default"), &named, &tasks, &stop);
        assert_eq!(caches.scopes.len(), 2, "each namespace once");
        let a = caches.scopes.iter().find(|scope| scope.namespace.as_deref() == Some("a")).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), a.wait_for_sync()).await.unwrap();
        assert!(!caches.unsynced().is_empty(), "and it is told that the other one is not");
        stop.cancel();
        api.abort();
    }
}
