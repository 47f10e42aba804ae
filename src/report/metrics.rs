//! Metrics in the OpenMetrics format. Labels are bounded: names of clusters and nodes that exist, and enums; never a
//! text that somebody else wrote. What a cluster shows is gone when the cluster is.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    api::{DialogClusterStatus, names::keys, status::Role},
    snapshot::{LiveObject, Ownership, Snapshot},
};

type Pair = (&'static str, String);
type Latencies<const N: usize> = Family<[Pair; N], Histogram, fn() -> Histogram>;

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    clusters: Arc<Clusters>,
    reconciles: Latencies<2>,
    errors: Family<[Pair; 1], Counter>,
    requests: Family<[Pair; 2], Counter>,
    statements: Latencies<1>,
}

impl Default for Metrics {
    fn default() -> Self {
        let clusters = Arc::new(Clusters::default());
        let reconciles = Latencies::new_with_constructor(latencies);
        let statements = Latencies::new_with_constructor(latencies);
        let (errors, requests) = (Family::default(), Family::default());
        let mut registry = Registry::with_prefix("dialogcluster");
        registry.register(
            "reconcile_duration_seconds",
            "How long a reconcile of the cluster took",
            reconciles.clone(),
        );
        registry.register("reconcile_errors", "Reconciles that ended with a failed step", errors.clone());
        registry.register(
            "kubernetes_requests",
            "Requests to the Kubernetes API, without watches",
            requests.clone(),
        );
        registry.register(
            "sql_duration_seconds",
            "How long a statement, or a group of statements in one round trip, took",
            statements.clone(),
        );
        registry.register_collector(Box::new(Arc::clone(&clusters)));
        Self { registry, clusters, reconciles, errors, requests, statements }
    }
}

fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 14))
}

impl Metrics {
    /// The page at `/metrics`.
    ///
    /// # Errors
    /// Never in practice: writing to a string cannot fail.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
    /// A request to the Kubernetes API is made.
    pub fn kubernetes_request(&self, verb: &'static str, kind: &str) {
        self.requests.get_or_create(&[("verb", verb.to_owned()), ("kind", kind.to_owned())]).inc();
    }
    /// A reconcile ended.
    pub fn reconciled(&self, namespace: &str, name: &str, took: Duration) {
        self.reconciles.get_or_create(&cluster_labels(namespace, name)).observe(took.as_secs_f64());
    }
    /// A reconcile failed.
    pub fn reconcile_failed(&self, reason: &'static str) {
        self.errors.get_or_create(&[("reason", reason.to_owned())]).inc();
    }
    /// A statement was run.
    pub fn sql(&self, statement: &'static str, took: Duration) {
        self.statements.get_or_create(&[("statement", statement.to_owned())]).observe(took.as_secs_f64());
    }
    /// What the cluster shows from now on.
    pub fn show(&self, namespace: &str, name: &str, status: &DialogClusterStatus, seen: &Snapshot) {
        let key = (namespace.to_owned(), name.to_owned());
        self.clusters.lock().insert(key, Shown::new(status, seen));
    }
    /// Clusters that are gone show nothing any more.
    pub fn keep_only(&self, exists: impl Fn(&str, &str) -> bool) {
        let mut clusters = self.clusters.lock();
        let gone: Vec<_> =
            clusters.keys().filter(|(namespace, name)| !exists(namespace, name)).cloned().collect();
        for (namespace, name) in gone {
            self.reconciles.remove(&cluster_labels(&namespace, &name));
            clusters.remove(&(namespace, name));
        }
    }
    /// Another operator leads now.
    pub fn forget_all(&self) {
        self.clusters.lock().clear();
        self.reconciles.clear();
    }
}

fn cluster_labels(namespace: &str, name: &str) -> [Pair; 2] {
    [("namespace", namespace.to_owned()), ("name", name.to_owned())]
}

/// The gauges of every cluster, written out at each scrape: a removed cluster leaves nothing behind.
#[derive(Debug, Default)]
struct Clusters(Mutex<BTreeMap<(String, String), Shown>>);

impl Clusters {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values of one cluster by metric; each with the labels that come after namespace and name.
#[derive(Debug, Default)]
struct Shown(BTreeMap<&'static str, Vec<(Vec<Pair>, f64)>>);

/// Every gauge of a cluster and what it means.
const GAUGES: [(&str, &str); 9] = [
    ("condition", "1 for the status that the condition has"),
    ("workers", "Workers by state"),
    ("worker_shards", "Shards of distributed tables on the worker"),
    ("worker_bytes", "Bytes of the shards on the worker, looked at every few minutes"),
    ("rebalance_moves", "Moves of the latest rebalance by state"),
    ("rebalance_bytes", "Bytes of the latest rebalance by state"),
    ("rebalance_duration_seconds", "How long the latest rebalance took, or has been running"),
    ("cleanup_backlog", "Rows of pg_dist_cleanup: what Citus has still to remove"),
    ("kept_volumes", "Volume claims of workers that were drained: kept, and never used again"),
];

impl Shown {
    fn new(status: &DialogClusterStatus, seen: &Snapshot) -> Self {
        let mut shown = Self::default();
        for condition in &status.conditions {
            for state in ["True", "False", "Unknown"] {
                let labels = vec![("type", condition.type_.clone()), ("status", state.to_owned())];
                shown.add("condition", labels, f64::from(u8::from(condition.status == state)));
            }
        }
        shown.workers(status, seen);
        shown.rebalance(status, seen);
        shown.add("kept_volumes", vec![], count(kept_volumes(seen)));
        shown
    }

    fn workers(&mut self, status: &DialogClusterStatus, seen: &Snapshot) {
        let mut counts = BTreeMap::<String, u32>::new();
        for node in status.nodes.iter().filter(|node| node.role == Role::Worker) {
            *counts.entry(node.state.to_string()).or_default() += 1;
            let worker = || vec![("worker", node.name.clone())];
            if let Some(shards) = node.shards {
                self.add("worker_shards", worker(), number(shards));
            }
            // Exact here, while the status rounds: from the catalog by the node's group, else what the status has.
            let group = seen.citus.known().and_then(|citus| {
                let row = citus.nodes.iter().find(|row| Some(row.node_id) == node.node_id)?;
                citus.groups.get(&row.group_id)?.bytes
            });
            if let Some(bytes) = group.or(node.bytes) {
                self.add("worker_bytes", worker(), number(bytes));
            }
        }
        for (state, count) in counts {
            self.add("workers", vec![("state", state)], f64::from(count));
        }
    }

    fn rebalance(&mut self, status: &DialogClusterStatus, seen: &Snapshot) {
        if let Some(citus) = seen.citus.known() {
            self.add("cleanup_backlog", vec![], count(citus.cleanup_in_all.max(citus.cleanup.len())));
        }
        let Some(job) = &status.rebalance else { return };
        let moves = [
            ("done", job.moves.done),
            ("running", job.moves.running),
            ("failing", job.moves.failing),
            ("waiting", job.moves.total - job.moves.done - job.moves.running - job.moves.failing),
        ];
        for (state, value) in moves {
            self.add("rebalance_moves", vec![("state", state.to_owned())], number(value.max(0)));
        }
        for (state, value) in [("done", job.bytes.done), ("waiting", job.bytes.total - job.bytes.done)] {
            self.add("rebalance_bytes", vec![("state", state.to_owned())], number(value.max(0)));
        }
        if let Some(start) = &job.started_at {
            let end = job.finished_at.as_ref().map_or(seen.now, |end| end.0);
            self.add("rebalance_duration_seconds", vec![], end.duration_since(start.0).as_secs_f64());
        }
    }

    fn add(&mut self, metric: &'static str, labels: Vec<Pair>, value: f64) {
        self.0.entry(metric).or_default().push((labels, value));
    }
}

fn kept_volumes(seen: &Snapshot) -> usize {
    let kept = |live: &&LiveObject| {
        live.ownership == Ownership::Ours && !live.deleting && live.label(keys::DRAINED).is_some()
    };
    let claims = seen.objects.iter().filter(|(key, _)| key.starts_with("PersistentVolumeClaim/"));
    claims.map(|(_, live)| live).filter(kept).count()
}

#[allow(clippy::cast_precision_loss)] // a gauge is a double; 2^53 bytes are 9 PB
fn number(value: i64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    u32::try_from(value).map_or(f64::INFINITY, f64::from)
}

impl Collector for Clusters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let clusters = self.lock();
        for (metric, help) in GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for ((namespace, name), shown) in clusters.iter() {
                for (labels, value) in shown.0.get(metric).into_iter().flatten() {
                    let mut all = cluster_labels(namespace, name).to_vec();
                    all.extend(labels.iter().cloned());
                    ConstGauge::new(*value).encode(family.encode_family(&all)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::status::{MoveCounts, NodeState, NodeStatus, RebalanceStatus},
        snapshot::{Citus, CleanupRow, OperatorConfig, Seen},
    };

    fn status() -> DialogClusterStatus {
        DialogClusterStatus {
            conditions: serde_json::from_value(serde_json::json!([{
                "type": "Ready", "status": "True", "reason": "Serving", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"
            }]))
            .unwrap(),
            nodes: vec![
                NodeStatus { name: "shop-coordinator".into(), ..Default::default() },
                NodeStatus {
                    name: "shop-worker-0".into(),
                    role: Role::Worker,
                    state: NodeState::Active,
                    shards: Some(16),
                    bytes: Some(1000),
                    ..Default::default()
                },
            ],
            rebalance: Some(RebalanceStatus {
                moves: MoveCounts { total: 16, done: 9, running: 4, failing: 1 },
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_cluster_shows_its_gauges_until_it_is_gone() {
        let metrics = Metrics::default();
        let mut seen = {
            let operator = OperatorConfig { default_image: String::new(), cluster_domain: String::new() };
            Snapshot::empty(&operator, jiff::Timestamp::UNIX_EPOCH)
        };
        seen.citus = Seen::Known(Citus {
            cleanup: vec![CleanupRow::default(), CleanupRow::default()],
            ..Default::default()
        });
        let labels = [json!({}), json!({keys::DRAINED: "2026"}), json!({keys::DRAINED: "2026"})];
        for (number, labels) in labels.into_iter().enumerate() {
            let live = LiveObject {
                uid: "c".to_owned(),
                // The last one is another cluster's.
                ownership: if number == 2 { Ownership::Stranger } else { Ownership::Ours },
                created_at: seen.now,
                deleting: false,
                scaled_by: None,
                json: json!({"metadata": {"labels": labels}}),
            };
            seen.objects.insert(format!("PersistentVolumeClaim/shop-worker-{number}-abcde"), live);
        }
        metrics.show("market", "shop", &status(), &seen);
        metrics.reconciled("market", "shop", Duration::from_millis(20));
        let page = metrics.render().unwrap();
        for line in [
            r#"dialogcluster_condition{namespace="market",name="shop",type="Ready",status="True"} 1.0"#,
            r#"dialogcluster_condition{namespace="market",name="shop",type="Ready",status="False"} 0.0"#,
            r#"dialogcluster_workers{namespace="market",name="shop",state="Active"} 1.0"#,
            r#"dialogcluster_worker_shards{namespace="market",name="shop",worker="shop-worker-0"} 16.0"#,
            r#"dialogcluster_rebalance_moves{namespace="market",name="shop",state="waiting"} 2.0"#,
            r#"dialogcluster_cleanup_backlog{namespace="market",name="shop"} 2.0"#,
            r#"dialogcluster_kept_volumes{namespace="market",name="shop"} 1.0"#,
            r#"dialogcluster_reconcile_duration_seconds_count{namespace="market",name="shop"} 1"#,
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        metrics.keep_only(|_, name| name != "shop");
        let page = metrics.render().unwrap();
        assert!(!page.contains("market"), "{page}");
    }

    #[test]
    fn requests_are_counted_by_verb_and_kind() {
        let metrics = Metrics::default();
        metrics.kubernetes_request("create", "Service");
        metrics.kubernetes_request("create", "Service");
        let page = metrics.render().unwrap();
        assert!(
            page.contains(r#"dialogcluster_kubernetes_requests_total{verb="create",kind="Service"} 2"#),
            "{page}"
        );
        assert!(page.ends_with("# EOF\n"));
    }
}
