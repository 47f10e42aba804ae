//! What a reconcile may use: clients, caches, connections, and how the operator was started. One for the program, handed to
//! each verb. Nothing is done here.

mod cluster_cache;

use std::sync::Arc;

use kube::runtime::events::Recorder;
use tokio_util::sync::CancellationToken;

use crate::{
    citus::ConnectionPool,
    kubernetes::{ApiClient, caches::Caches, leader::LeaderGuard},
    metrics::Metrics,
    snapshot::OperatorConfig,
};

pub use cluster_cache::{ClusterCache, ClusterCaches};

/// What a reconcile may use.
pub struct Context {
    /// The way to the Kubernetes API.
    pub client: ApiClient,
    /// What Kubernetes holds of ours.
    pub caches: Caches,
    /// Connections to servers.
    pub connections: ConnectionPool,
    /// Whether this operator leads.
    pub leader: LeaderGuard,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Sends events.
    pub recorder: Recorder,
    /// How this operator was started.
    pub operator: OperatorConfig,
    /// Cancelled when the program is to end: the running step is finished and no other begun.
    pub stop: CancellationToken,
}
