//! Moves that fail are told with Citus' own error, soon, and go on when the cause is gone.

use std::time::Duration;

use dialog_operator::api::Node;
use serde_json::json;

use crate::harness::{
    cluster::{condition, is, spec, with},
    sql, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_fail_are_told_with_their_error() {
    story("moves-fail", async |story| {
        let _operator = story.operator();
        // Slots that a backup tool forgot, on a server that has few.
        let few = json!({"postgres": {"parameters": {"max_replication_slots": "5"}}});
        let cluster = story.settled_cluster("talk", with(spec(1), &few)).await;
        cluster.load(2_000).await;
        let worker = cluster.admin(Node::Worker(0)).await;
        sql::run(
            &worker,
            "SELECT pg_create_physical_replication_slot('forgotten_' || i) FROM generate_series(1, 5) i",
        )
        .await;
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        let admin = cluster.coordinator().await;
        let started = wait::eventually("the job is started", Duration::from_mins(1), async || {
            let jobs: i64 = sql::value(&admin, "SELECT count(*) FROM pg_dist_background_job").await;
            if jobs > 0 { Ok(std::time::Instant::now()) } else { Err("no job") }
        })
        .await;
        let (told, seen) = cluster
            .until("the failing moves are told", 60, |cluster| {
                condition(cluster, "Balanced").is_some_and(|one| one.reason == "MovesFailing")
            })
            .await;
        story.figure_below("job started to its error told", told - started, 15.0);
        let message = &condition(&seen, "Balanced").unwrap().message;
        story.figure("what is said of moves that fail", message);
        for words in ["all replication slots are in use", "from talk-worker-0 to talk-worker-1"] {
            assert!(message.contains(words), "{message}");
        }
        let job = seen.status.as_ref().unwrap().rebalance.clone().unwrap();
        assert!(job.last_error.is_some_and(|error| error.contains("all replication slots are in use")));
        assert!(job.moves.failing > 0);
        assert!(is(&seen, "Ready", "True") && !is(&seen, "Stalled", "True"), "a retry can heal it");
        cluster.assert_events("RebalanceFailing", 1).await;

        sql::run(&worker, "SELECT pg_drop_replication_slot('forgotten_' || i) FROM generate_series(1, 5) i")
            .await;
        cluster.until_settled(240).await;
        cluster.assert_even(2).await;
        assert_eq!(cluster.rows().await, 2_000);
    })
    .await;
}
