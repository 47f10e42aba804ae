//! The controller: caches wake it, and each reconcile reads as one sentence. Clusters are reconciled beside each other
//! without limit, so that one that is slow delays no other; every wait in here has a deadline.

mod requeue;

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream};
use kube::{
    Resource, ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Error},
    },
};
use tokio::time::timeout;
use tracing::Instrument;

use self::requeue::RequeuePolicy;
use crate::{
    act::{Executor, act},
    api::{ClusterId, Desired, Invalid},
    context::{ClusterCache, ClusterCaches, Context},
    kubernetes::{
        ApiError,
        caches::{GuardedCluster, WatchScope},
    },
    observe::{cache::ObservationCache, observe},
    plan::{View, contents, plan_checked, refusals},
    report::{
        cache::ReportCache,
        publish::{publish, refuse},
    },
    snapshot::{Attempt, Snapshot},
};

/// No reconcile takes longer: then it is dropped and begun anew from a fresh look.
const DEADLINE: Duration = Duration::from_mins(10);
/// How often clusters that are gone are forgotten.
const DROP_DELETED_EVERY: Duration = Duration::from_secs(10);

/// The program: what a reconcile may use, and what its verbs keep of each cluster between two looks.
pub struct Operator {
    context: Context,
    observed: ClusterCaches<ObservationCache>,
    reported: ClusterCaches<ReportCache>,
    queued: ClusterCaches<Queued>,
}

/// What the queue keeps of one cluster.
#[derive(Default)]
struct Queued {
    /// How soon to look again.
    requeue: RequeuePolicy,
    /// The last snapshot, for people who ask.
    snapshot: Option<(Desired, Arc<Snapshot>)>,
}

impl Operator {
    /// One that remembers nothing yet.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self {
            context,
            observed: ClusterCaches::default(),
            reported: ClusterCaches::default(),
            queued: ClusterCaches::default(),
        }
    }
    /// What it may use.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }
    /// The last snapshot of the cluster with this namespace and name.
    #[must_use]
    pub fn snapshot(&self, namespace: &str, name: &str) -> Option<(Desired, Arc<Snapshot>)> {
        self.queued
            .all()
            .iter()
            .filter_map(|one| one.with(|queued| queued.snapshot.clone()))
            .find(|(desired, _)| desired.cluster.namespace == namespace && desired.cluster.name == name)
    }
    fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.observed.retain(&exists);
        self.reported.retain(&exists);
        self.queued.retain(&exists);
    }
    fn clear(&self) {
        self.observed.clear();
        self.reported.clear();
        self.queued.clear();
    }
}

/// Reconciles while this operator leads, until the program is to end.
pub async fn run(operator: Arc<Operator>) {
    let context = &operator.context;
    while !context.stop.is_cancelled() {
        tokio::select! {
            () = context.stop.cancelled() => return,
            () = context.leader.wait_until(true) => {}
        }
        // Another operator may have led meanwhile: what is remembered may no longer be so.
        operator.clear();
        let controllers = context
            .caches
            .scopes
            .iter()
            .map(|scope| run_controller(Arc::clone(&operator), Arc::clone(scope)));
        tokio::select! {
            // Reconciles that run are dropped: this operator may no longer act.
            () = context.leader.wait_until(false) => context.metrics.forget_all(),
            _ = futures::future::join_all(controllers) => {}
        }
    }
}

/// One queue a namespace: one that cannot be looked at (it is gone, or its Role is) stops no other.
async fn run_controller(operator: Arc<Operator>, scope: Arc<WatchScope>) {
    scope.wait_for_sync().await;
    let everything = stream::once(async {});
    let stop = operator.context.stop.clone();
    let controller = Controller::for_shared_stream(stream::empty(), scope.clusters.clone())
        .reconcile_on(scope.wakes.listen())
        .reconcile_all_on(everything)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, _, _| Action::requeue(requeue::RESYNC_INTERVAL), Arc::clone(&operator));
    let forget = async {
        loop {
            tokio::time::sleep(DROP_DELETED_EVERY).await;
            drop_deleted(&operator);
        }
    };
    let reconciles = controller.for_each(|result| async {
        match result {
            // It was deleted between its wake and now.
            Ok(_) | Err(Error::ObjectNotFound(_)) => {}
            Err(error) => tracing::warn!(%error, "the queue of clusters"),
        }
    });
    tokio::select! { () = reconciles => {}, () = forget => {} }
}

fn drop_deleted(operator: &Operator) {
    let context = &operator.context;
    let clusters: Vec<_> = context.caches.scopes.iter().flat_map(|scope| scope.clusters.state()).collect();
    let uids: Vec<_> = clusters.iter().filter_map(|cluster| cluster.uid()).collect();
    operator.retain(|uid| uids.iter().any(|kept| kept == uid));
    let named = |namespace: &str, name: &str| {
        clusters
            .iter()
            .any(|cluster| cluster.name_any() == name && cluster.namespace().as_deref() == Some(namespace))
    };
    context.metrics.keep_only(named);
}

/// One look at a cluster and what follows from it. It never fails: what fails is told and tried again.
async fn reconcile(cluster: Arc<GuardedCluster>, operator: Arc<Operator>) -> Result<Action, Infallible> {
    let id = identity(&cluster);
    let context = &operator.context;
    let queued = operator.queued.of(&id.uid);
    let started = Instant::now();
    let look = RandomState::new().hash_one(started);
    let span = tracing::info_span!(
        "reconcile",
        namespace = id.namespace,
        name = id.name,
        generation = cluster.meta().generation,
        reconcile = format!("{look:08x}"),
    );
    // A bug that one cluster meets must not end the queue of all.
    let look = AssertUnwindSafe(reconcile_cluster(&operator, &cluster, &id, &queued)).catch_unwind();
    let result = timeout(DEADLINE, look.instrument(span.clone())).await;
    context.metrics.reconciled(&id.namespace, &id.name, started.elapsed());
    let _entered = span.enter();
    let pause = match result {
        Ok(Ok(Ok(pause))) => pause,
        // It was deleted, or made anew under its name, while we looked at it: the watch tells.
        Ok(Ok(Err(ApiError::NotFound(_) | ApiError::Conflict(_)))) => requeue::RESYNC_INTERVAL,
        Ok(Ok(Err(refusal))) => {
            tracing::warn!(error = %refusal, "the status could not be written");
            context.metrics.reconcile_failed("Status");
            queued.with(|queued| queued.requeue.after_failure())
        }
        Ok(Err(_)) => {
            tracing::error!("a bug: the reconcile panicked, see above; it is retried");
            context.metrics.reconcile_failed("Panic");
            queued.with(|queued| queued.requeue.after_failure())
        }
        Err(_) => {
            tracing::warn!(
                seconds = DEADLINE.as_secs(),
                "a reconcile exceeded its deadline and is started again"
            );
            context.metrics.reconcile_failed("DeadlineExceeded");
            queued.with(|queued| queued.requeue.after_failure())
        }
    };
    tracing::debug!(milliseconds = started.elapsed().as_millis(), pause = pause.as_millis(), "reconciled");
    Ok(Action::requeue(jittered(pause)))
}

async fn reconcile_cluster(
    operator: &Operator,
    cluster: &GuardedCluster,
    id: &ClusterId,
    queued: &ClusterCache<Queued>,
) -> Result<Duration, ApiError> {
    let context = &operator.context;
    let (observed, reported) = (operator.observed.of(&id.uid), operator.reported.of(&id.uid));
    let cached = cluster.0.as_ref().ok().and_then(|cluster| cluster.status.as_ref());
    let desired = match desired(cluster) {
        Ok(desired) => desired,
        Err(invalid) => {
            let generation = cluster.meta().generation.unwrap_or_default();
            refuse(context, &reported, id, (generation, cached), &invalid).await?;
            return Ok(requeue::RESYNC_INTERVAL);
        }
    };
    let status = reported.with(|reported| reported.status(cached));
    let asks =
        |desired: &Desired, snapshot: &Snapshot| contents::workers_to_inspect(View { desired, snapshot });
    let snapshot = Arc::new(observe(context, &desired, status, &observed, asks).await);
    queued.with(|queued| queued.snapshot = Some((desired.clone(), Arc::clone(&snapshot))));
    let plan = plan_checked(&desired, &snapshot);
    let acts: Vec<Attempt> = plan.steps.iter().map(|planned| refusals::attempt_of(&planned.step)).collect();
    observed.with(|observed| observed.refusals.retain_attempts(&acts, snapshot.now));
    let executor = Executor { context, desired: &desired, snapshot: &snapshot, observed: observed.clone() };
    let outcome = act(&executor, &plan).await;
    publish(context, &reported, &desired, &snapshot, (&plan, &outcome)).await?;
    let again = observed.with(|observed| observed.refusals.pause(&acts, jiff::Timestamp::now()));
    let pause = queued.with(|queued| queued.requeue.after(&desired, &snapshot, (&plan, &outcome)));
    Ok(pause.min(again.unwrap_or(Duration::MAX)))
}

fn identity(cluster: &GuardedCluster) -> ClusterId {
    ClusterId {
        namespace: cluster.namespace().unwrap_or_default(),
        name: cluster.name_any(),
        uid: cluster.uid().unwrap_or_default(),
    }
}

fn desired(cluster: &GuardedCluster) -> Result<Desired, Invalid> {
    match &cluster.0 {
        Ok(cluster) => Desired::try_from(cluster),
        Err(unreadable) => Err(Invalid { field: "*".to_owned(), problem: unreadable.error.clone() }),
    }
}

/// Up to a tenth more, so that many clusters do not look all at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(1.0..1.1))
}
