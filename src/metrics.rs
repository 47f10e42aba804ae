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

/// A label and its value.
pub type Pair = (&'static str, String);
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
    pub fn set(&self, namespace: &str, name: &str, gauges: ClusterGauges) {
        let key = (namespace.to_owned(), name.to_owned());
        self.clusters.lock().insert(key, gauges);
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
struct Clusters(Mutex<BTreeMap<(String, String), ClusterGauges>>);

impl Clusters {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), ClusterGauges>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values of one cluster by metric; each with the labels that come after namespace and name.
#[derive(Debug, Default)]
pub struct ClusterGauges(BTreeMap<&'static str, Vec<(Vec<Pair>, f64)>>);

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

impl ClusterGauges {
    /// Adds a value of one of the gauges, with the labels that come after namespace and name.
    pub fn add(&mut self, metric: &'static str, labels: Vec<Pair>, value: f64) {
        debug_assert!(GAUGES.iter().any(|(name, _)| *name == metric), "{metric} is none of the gauges");
        self.0.entry(metric).or_default().push((labels, value));
    }
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
    use super::*;

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
