//! Parameters that no server takes, and parameters that only a start shows to be bad: the cluster serves all the time.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use dialog_operator::api::Node;
use serde_json::{Value, json};

use crate::harness::{
    cluster::{Cluster, condition, is, is_stalled, spec},
    sql, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn bad_parameters_are_refused_and_good_ones_roll_one_by_one() {
    story("parameters", async |story| {
        let _operator = story.operator();
        let cluster = Arc::new(story.settled_cluster("talk", spec(2)).await);
        cluster.load(1_000).await;
        let born = cluster.pod_uids().await;

        // Postgres knows no such parameter; cannot take such a value: nothing is restarted, or even changed.
        for (name, value, words) in [
            ("no_such_parameter", "1", "unrecognized configuration parameter"),
            ("work_mem", "plenty", "invalid value for parameter \"work_mem\""),
            ("max_connections", "-5", "outside the valid range"),
        ] {
            cluster.edit(json!({"postgres": {"parameters": {name: value}}})).await;
            refused(&cluster, &[name, words]).await;
            assert_eq!(cluster.pod_uids().await, born, "{name} = {value} restarts nobody");
            cluster.edit(json!({"postgres": {"parameters": {name: Value::Null}}})).await;
            cluster.until_settled(30).await;
        }

        // A reload, not a restart.
        let edited = Instant::now();
        cluster.edit(json!({"rebalance": {"maxMovesPerNode": 2}})).await;
        until_everywhere(&cluster, "citus.max_background_task_executors_per_node", "2").await;
        story.figure_below("a changed maxMovesPerNode to loaded on every node", edited.elapsed(), 5.0);
        cluster.until_settled(30).await;
        assert_eq!(cluster.pod_uids().await, born, "maxMovesPerNode is a reload");

        // Only a start shows it: one worker finds out, comes back with its old values, and nobody follows it.
        cluster.edit(json!({"postgres": {"parameters": {"superuser_reserved_connections": "200"}}})).await;
        let said = refused(
            &cluster,
            &["talk-worker-0", "did not start with spec.postgres.parameters", "must be less than"],
        )
        .await;
        story.figure("the words of a start that failed", said);
        let tried = cluster.pod_uids().await;
        let changed: Vec<_> = born.iter().filter(|(pod, life)| tried[*pod] != **life).collect();
        assert!(changed.len() <= 1, "at most one worker is restarted: {changed:?}");
        assert_eq!(born["talk-coordinator-0"], tried["talk-coordinator-0"]);
        assert_eq!(cluster.rows().await, 1_000, "the cluster serves");
        assert!(is(&cluster.get().await, "Ready", "True"));
        until_everywhere(&cluster, "superuser_reserved_connections", "3").await;

        // Healed by the next good spec, which needs a restart of everybody: workers first, the coordinator last.
        let writer = cluster.writer().await;
        cluster.edit(json!({"postgres": {"parameters": {"max_connections": "250"}}})).await;
        let (_, healed) = cluster.until_settled(120).await;
        let ledger = writer.stop().await;
        cluster.assert_kept(&ledger, 1_000).await;
        assert!(condition(&healed, "ConfigurationApplied").is_some_and(|one| one.status == "True"));
        until_everywhere(&cluster, "superuser_reserved_connections", "200").await;
        until_everywhere(&cluster, "max_connections", "250").await;
        in_order(&cluster, &tried).await;
    })
    .await;
}

async fn refused(cluster: &Cluster, words: &[&str]) -> String {
    let (_, seen) = cluster
        .until("the configuration is rejected", 60, |cluster| is_stalled(cluster, "ConfigurationRejected"))
        .await;
    let message = condition(&seen, "Stalled").unwrap().message.clone();
    assert!(words.iter().all(|words| message.contains(words)), "{message}");
    assert!(is(&seen, "ConfigurationApplied", "False"));
    assert!(is(&seen, "Ready", "True"), "the cluster serves");
    assert!(!is(&seen, "Reconciling", "True"), "never together with Reconciling");
    message
}

const NODES: [Node; 3] = [Node::Coordinator, Node::Worker(0), Node::Worker(1)];

async fn until_everywhere(cluster: &Cluster, name: &str, value: &str) {
    wait::eventually(&format!("{name} = {value} everywhere"), Duration::from_secs(20), async || {
        for node in NODES {
            let sql = format!("SELECT current_setting('{name}')");
            let found: String = sql::value(&cluster.admin(node).await, &sql).await;
            if found != value {
                return Err(format!("{node}: {found}"));
            }
        }
        Ok(())
    })
    .await;
}

/// Each node was restarted once, each after the one before it was up.
async fn in_order(cluster: &Cluster, before: &BTreeMap<String, (String, i32)>) {
    let after = cluster.pod_uids().await;
    let mut starts = Vec::new();
    for node in [Node::Worker(0), Node::Worker(1), Node::Coordinator] {
        let pod = node.pod_name(&cluster.name);
        assert_ne!(before[&pod], after[&pod], "{pod} was restarted");
        assert_eq!(after[&pod].1, 0, "{pod}: as a new pod, once");
        let admin = cluster.admin(node).await;
        let start: String = sql::value(
            &admin,
            "SELECT to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'HH24:MI:SS.US')",
        )
        .await;
        starts.push(start);
    }
    assert!(starts.is_sorted(), "workers by ordinal, the coordinator last: {starts:?}");
}
