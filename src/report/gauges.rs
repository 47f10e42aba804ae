//! What the gauges of `/metrics` show of a cluster, made of its status and of what was seen. Pure.

use std::collections::BTreeMap;

use crate::{
    api::{DialogClusterStatus, names::keys, status::Role},
    metrics::ClusterGauges,
    snapshot::{LiveObject, Ownership, Snapshot},
};

/// The gauges of a cluster.
#[must_use]
pub fn gauges(status: &DialogClusterStatus, snapshot: &Snapshot) -> ClusterGauges {
    let mut shown = ClusterGauges::default();
    for condition in &status.conditions {
        for state in ["True", "False", "Unknown"] {
            let labels = vec![("type", condition.type_.clone()), ("status", state.to_owned())];
            shown.add("condition", labels, f64::from(u8::from(condition.status == state)));
        }
    }
    workers(&mut shown, status, snapshot);
    rebalance(&mut shown, status, snapshot);
    shown.add("kept_volumes", vec![], count(kept_volumes(snapshot)));
    shown
}

fn workers(shown: &mut ClusterGauges, status: &DialogClusterStatus, snapshot: &Snapshot) {
    let mut counts = BTreeMap::<String, u32>::new();
    for node in status.nodes.iter().filter(|node| node.role == Role::Worker) {
        *counts.entry(node.state.to_string()).or_default() += 1;
        let worker = || vec![("worker", node.name.clone())];
        if let Some(shards) = node.shards {
            shown.add("worker_shards", worker(), number(shards));
        }
        // Exact here, while the status rounds: from the catalog by the node's group, else what the status has.
        let group = snapshot.citus.known().and_then(|citus| {
            let row = citus.nodes.iter().find(|row| Some(row.node_id) == node.node_id)?;
            citus.groups.get(&row.group_id)?.bytes
        });
        if let Some(bytes) = group.or(node.bytes) {
            shown.add("worker_bytes", worker(), number(bytes));
        }
    }
    for (state, count) in counts {
        shown.add("workers", vec![("state", state)], f64::from(count));
    }
}

fn rebalance(shown: &mut ClusterGauges, status: &DialogClusterStatus, snapshot: &Snapshot) {
    if let Some(citus) = snapshot.citus.known() {
        shown.add("cleanup_backlog", vec![], count(citus.cleanup_in_all.max(citus.cleanup.len())));
    }
    let Some(job) = &status.rebalance else { return };
    let moves = [
        ("done", job.moves.done),
        ("running", job.moves.running),
        ("failing", job.moves.failing),
        ("waiting", job.moves.total - job.moves.done - job.moves.running - job.moves.failing),
    ];
    for (state, value) in moves {
        shown.add("rebalance_moves", vec![("state", state.to_owned())], number(value.max(0)));
    }
    for (state, value) in [("done", job.bytes.done), ("waiting", job.bytes.total - job.bytes.done)] {
        shown.add("rebalance_bytes", vec![("state", state.to_owned())], number(value.max(0)));
    }
    if let Some(start) = &job.started_at {
        let end = job.finished_at.as_ref().map_or(snapshot.now, |end| end.0);
        shown.add("rebalance_duration_seconds", vec![], end.duration_since(start.0).as_secs_f64());
    }
}

fn kept_volumes(snapshot: &Snapshot) -> usize {
    let kept = |live: &&LiveObject| {
        live.ownership == Ownership::Owned && !live.deleting && live.label(keys::DECOMMISSIONED).is_some()
    };
    let claims = snapshot.objects.iter().filter(|(key, _)| key.starts_with("PersistentVolumeClaim/"));
    claims.map(|(_, live)| live).filter(kept).count()
}

#[allow(clippy::cast_precision_loss)] // a gauge is a double; 2^53 bytes are 9 PB
fn number(value: i64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    u32::try_from(value).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{
        api::status::{MoveCounts, NodeState, NodeStatus, RebalanceStatus},
        metrics::Metrics,
        snapshot::{Citus, CleanupRow, Observed, OperatorConfig},
    };

    fn status() -> DialogClusterStatus {
        DialogClusterStatus {
            conditions: serde_json::from_value(serde_json::json!([{
                "type": "Ready", "status": "True", "reason": "Available", "message": "",
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
        let mut snapshot = {
            let operator = OperatorConfig { default_image: String::new(), cluster_domain: String::new() };
            Snapshot::empty(&operator, jiff::Timestamp::UNIX_EPOCH)
        };
        snapshot.citus = Observed::Known(Citus {
            cleanup: vec![CleanupRow::default(), CleanupRow::default()],
            ..Default::default()
        });
        let labels =
            [json!({}), json!({keys::DECOMMISSIONED: "2026"}), json!({keys::DECOMMISSIONED: "2026"})];
        for (number, labels) in labels.into_iter().enumerate() {
            let live = LiveObject {
                uid: "c".to_owned(),
                // The last one is another cluster's.
                ownership: if number == 2 { Ownership::Foreign } else { Ownership::Owned },
                created_at: snapshot.now,
                deleting: false,
                scaled_by: None,
                json: json!({"metadata": {"labels": labels}}),
            };
            snapshot.objects.insert(format!("PersistentVolumeClaim/shop-worker-{number}-abcde"), live);
        }
        metrics.set("market", "shop", gauges(&status(), &snapshot));
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
}
