//! What can be seen of a cluster from outside, kept up to date: its DialogCluster, its pods, and Citus' own catalog.
//! Waiting for something is done here; what is waited for is not known here.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use dialog_operator::api::{DialogCluster, DialogClusterStatus, names::keys};
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client as Kube, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use testkit::load::access::Access;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    catalog::{self, Progress},
    screen::{self, Screen},
};

/// How often the catalog is looked at: how exact the times are that nobody writes down.
const LOOK: Duration = Duration::from_millis(100);

/// Everything as last seen.
#[derive(Clone, Default)]
pub struct View {
    /// The status of the DialogCluster, empty before the first one.
    pub status: DialogClusterStatus,
    /// Pods by name.
    pub pods: BTreeMap<String, PodSeen>,
    /// Citus' catalog.
    pub catalog: Progress,
}

/// A pod.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Tells it from an earlier one of the same name.
    pub uid: String,
    /// Since when it is ready, if it is.
    pub ready: Option<Timestamp>,
}

impl View {
    /// Whether a condition is True, computed for this generation of the spec or a later one.
    pub fn is_true(&self, condition: &str, generation: i64) -> bool {
        self.status.conditions.iter().any(|said| {
            said.type_ == condition
                && said.status == "True"
                && said.observed_generation.is_some_and(|observed| observed >= generation)
        })
    }

    /// Since when a pod other than the one of that uid is ready.
    pub fn ready_again(&self, pod: &str, uid: &str) -> Option<Timestamp> {
        self.pods.get(pod).filter(|pod| pod.uid != uid)?.ready
    }

    fn stalled(&self) -> Option<&str> {
        let said = &self.status.conditions;
        let stalled = said.iter().find(|said| said.type_ == "Stalled" && said.status == "True")?;
        Some(&stalled.message)
    }
}

/// Looks at one cluster for as long as it lives.
pub struct Watch {
    view: watch::Receiver<View>,
    _task: JoinSet<()>,
}

impl Watch {
    /// Begins to look.
    pub fn start(kube: &Kube, access: &Access, namespace: &str, name: &str) -> Self {
        let config = watcher::Config::default();
        let clusters: Api<DialogCluster> = Api::namespaced(kube.clone(), namespace);
        let clusters = watcher(clusters, config.clone().fields(&format!("metadata.name={name}")));
        let pods: Api<Pod> = Api::namespaced(kube.clone(), namespace);
        let pods = watcher(pods, config.labels(&format!("{}={name}", keys::CLUSTER)));
        let (sender, view) = watch::channel(View::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(look(
            sender,
            clusters.default_backoff().applied_objects().boxed(),
            pods.default_backoff().applied_objects().boxed(),
            access.clone(),
        ));
        Self { view, _task: tasks }
    }

    /// Everything as last seen.
    pub fn now(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until `found` finds something, and shows meanwhile how things stand.
    ///
    /// # Errors
    /// When patience ends, or the operator says that it cannot go on by itself.
    pub async fn until<T>(
        &mut self,
        screen: &mut Screen,
        what: &str,
        patience: Duration,
        found: impl Fn(&View) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            let view = self.view.borrow_and_update().clone();
            screen.show(&view);
            if let Some(found) = found(&view) {
                return Ok(found);
            }
            if let Some(stalled) = view.stalled() {
                bail!("waited for {what}, and the operator needs a person: {stalled}");
            }
            match tokio::time::timeout_at(deadline, self.view.changed()).await {
                Ok(changed) => changed.context("nobody looks at the cluster any more")?,
                Err(_) => bail!(
                    "gave up waiting for {what} after {} s; last seen: {}",
                    patience.as_secs(),
                    screen::line(&view)
                ),
            }
        }
    }
}

/// Keeps the view up to date. An error of a watch or of the catalog is a moment in which nothing is seen.
async fn look<E>(
    view: watch::Sender<View>,
    mut clusters: impl Stream<Item = Result<DialogCluster, E>> + Unpin,
    mut pods: impl Stream<Item = Result<Pod, E>> + Unpin,
    access: Access,
) {
    let mut client = None;
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(seen) = clusters.next() => if let Ok(cluster) = seen {
                view.send_modify(|view| view.status = cluster.status.unwrap_or_default());
            },
            Some(seen) = pods.next() => if let Ok(pod) = seen {
                view.send_modify(|view| note(&mut view.pods, &pod));
            },
            _ = clock.tick() => if let Ok(seen) = catalog::progress(&mut client, &access).await {
                view.send_if_modified(|view| view.catalog.update(seen, Timestamp::now()));
            },
            else => return,
        }
    }
}

fn note(pods: &mut BTreeMap<String, PodSeen>, pod: &Pod) {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|said| said.type_ == "Ready" && said.status == "True");
    let uid = pod.uid().unwrap_or_default();
    let seen = pods.entry(pod.name_any()).or_default();
    // Kubernetes writes down whole seconds only.
    let since = seen.ready.filter(|_| seen.uid == uid).unwrap_or_else(Timestamp::now);
    *seen = PodSeen { uid, ready: ready.then_some(since) };
}
