//! States that Citus does not leave by itself, each made by hand, and what the operator does about it.

use std::time::Duration;

use dialog_operator::api::Node;
use serde_json::json;

use crate::{
    harness::{
        Story,
        cluster::{Cluster, condition, is_settled, is_stalled, spec, with},
        sql, story, wait,
    },
    wal_level::put_back_to_replica,
};

/// Waits until a statement on the coordinator answers true.
async fn until_true(cluster: &Cluster, what: &str, statement: &str) {
    let coordinator = cluster.coordinator().await;
    // One of them waits for Citus, which looks at its members' metadata once a minute.
    wait::eventually(what, Duration::from_mins(3), async || {
        if sql::value::<bool>(&coordinator, statement).await { Ok(()) } else { Err(statement) }
    })
    .await;
}

fn count(text: &str, words: &str) -> usize {
    text.matches(words).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn states_that_a_catalog_can_be_in_are_healed() {
    story("states", async |story| {
        let operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(2)).await;
        cluster.load(5_000).await;
        let coordinator = cluster.coordinator().await;

        story.figure("state", "a row of pg_dist_cleanup about a group that no node has, for every shard");
        sql::run(
            &coordinator,
            "INSERT INTO pg_dist_cleanup SELECT nextval('pg_dist_cleanup_recordid_seq'), 0, 1, 'public.dialogs_' || shardid, 77, 0
             FROM pg_dist_shard",
        )
        .await;
        until_true(&cluster, "the rows are forgotten", "SELECT NOT EXISTS (SELECT FROM pg_dist_cleanup)").await;

        story.figure("state", "a worker that is inactive, one whose metadata is not synced");
        sql::run(
            &coordinator,
            "UPDATE pg_dist_node SET isactive = false WHERE nodename LIKE 'talk-worker-0.%';
             UPDATE pg_dist_node SET metadatasynced = false WHERE nodename LIKE 'talk-worker-1.%'",
        )
        .await;
        until_true(&cluster, "both are active and synced", "SELECT bool_and(isactive AND metadatasynced) FROM pg_dist_node").await;

        story.figure("state", "a slot, a publication and a subscription of a dead move");
        let worker = cluster.admin(Node::Worker(0)).await;
        sql::run(&worker, "SELECT pg_create_logical_replication_slot('citus_shard_move_slot_99_10_5', 'pgoutput')").await;
        sql::run(&worker, "SET citus.enable_ddl_propagation = off; CREATE PUBLICATION citus_shard_move_publication_99_10_5").await;
        let other = cluster.admin(Node::Worker(1)).await;
        sql::run(
            &other,
            "SET citus.enable_ddl_propagation = off;
             CREATE SUBSCRIPTION citus_shard_move_subscription_99_10_5 CONNECTION 'host=nowhere.invalid dbname=dialogs'
             PUBLICATION p WITH (connect = false, enabled = false, slot_name = 'citus_shard_move_slot_99_10_5')",
        )
        .await;
        for (node, catalog) in [(&worker, "pg_replication_slots"), (&worker, "pg_publication"), (&other, "pg_subscription")] {
            wait::eventually(catalog, Duration::from_mins(1), async || {
                let left: i64 = sql::value(node, &format!("SELECT count(*) FROM {catalog}")).await;
                if left == 0 { Ok(()) } else { Err(format!("{left} rows of {catalog}")) }
            })
            .await;
        }

        story.figure("state", "a node in pg_dist_node that the spec does not know");
        sql::run(
            &coordinator,
            "INSERT INTO pg_dist_node (nodeid, groupid, nodename, nodeport, isactive, hasmetadata, metadatasynced, shouldhaveshards)
             VALUES (900, 900, 'somebody.else.example', 5432, false, false, false, false)",
        )
        .await;
        cluster
            .until("it is reported", 30, |cluster| {
                condition(cluster, "WorkersRegistered").is_some_and(|one| one.message.contains("somebody.else.example"))
            })
            .await;
        sql::run(&coordinator, "DELETE FROM pg_dist_node WHERE nodeid = 900").await;

        story.figure("state", "a worker under an old address");
        sql::run(&coordinator, "UPDATE pg_dist_node SET nodename = 'old.example' WHERE nodename LIKE 'talk-worker-1.%'").await;
        let (_, seen) = cluster.until("it is told", 60, |cluster| is_stalled(cluster, "AddressMismatch")).await;
        let message = condition(&seen, "Stalled").unwrap().message.clone();
        let statement = &message[message.find("SELECT citus_update_node").expect("the statement to type")..];
        story.figure("what is to be typed", statement);
        sql::run(&coordinator, statement).await;
        cluster.until("settled", 60, is_settled).await;

        // And all that moves shards works.
        cluster.edit(json!({"workers": {"replicas": 3}})).await;
        cluster.until_settled(120).await;
        cluster.assert_even(3).await;
        assert_eq!(cluster.rows().await, 5_000);
        let logged = operator.logged();
        for step in ["DeleteStaleCleanupRecords", "ActivateNode", "DropLeftovers"] {
            assert!(count(&logged, &format!("step=\"{step}\"")) > 0, "{step} was not done by the operator");
        }
    })
    .await;
}

/// A cluster whose second worker has joined and has no shard yet.
async fn uneven(story: &Story) -> Cluster {
    let off = json!({"rebalance": {"mode": "Off"}});
    let cluster = story.settled_cluster("talk", with(spec(1), &off)).await;
    cluster.load(5_000).await;
    cluster.edit(json!({"workers": {"replicas": 2}})).await;
    cluster
        .until("the second worker has joined", 90, |cluster| {
            condition(cluster, "Balanced").is_some_and(|one| one.reason == "RebalanceOff")
        })
        .await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_started_by_hand_is_adopted() {
    story("by-hand", async |story| {
        let operator = story.operator();
        let cluster = uneven(story).await;
        sql::run(
            &cluster.coordinator().await,
            "SELECT citus_rebalance_start(rebalance_strategy => 'by_shard_count')",
        )
        .await;
        let (_, seen) = cluster.until_settled(120).await;
        cluster.assert_even(2).await;
        let job = seen.status.unwrap().rebalance.expect("the job is reported");
        assert_eq!(job.state, "finished");
        let logged = operator.logged();
        assert_eq!(count(&logged, "step=\"StartRebalance\"") + count(&logged, "step=\"StopRebalance\""), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_lacks_wal_level_is_stopped_and_started_again() {
    story("retries", async |story| {
        let operator = story.operator();
        let cluster = uneven(story).await;
        put_back_to_replica(&cluster, Node::Worker(0)).await;
        let coordinator = cluster.coordinator().await;
        sql::run(&coordinator, "SELECT citus_rebalance_start(rebalance_strategy => 'by_shard_count')").await;
        until_true(
            &cluster,
            "its moves fail",
            "SELECT EXISTS (SELECT FROM pg_dist_background_task WHERE message LIKE '%wal_level%')",
        )
        .await;
        cluster.edit(json!({"paused": false, "rebalance": {"mode": "Auto"}})).await;
        cluster.until_settled(120).await;
        cluster.assert_even(2).await;
        assert_eq!(cluster.rows().await, 5_000);
        let logged = operator.logged();
        assert_eq!(count(&logged, "step=\"StopRebalance\""), 1);
        assert_eq!(count(&logged, "step=\"RestartNode\""), 1);
        let states: String = sql::value(
            &coordinator,
            "SELECT string_agg(state::text, ' ' ORDER BY job_id) FROM pg_dist_background_job",
        )
        .await;
        assert_eq!(states, "cancelled finished");
    })
    .await;
}

/// The trap: a move with `block_writes` between a commit on the coordinator and its COMMIT PREPARED on the worker loses
/// what was committed.
#[tokio::test(flavor = "multi_thread")]
async fn rows_in_doubt_on_a_worker_survive_a_scale_out() {
    story("in-doubt", async |story| {
        let _operator = story.operator();
        let block = json!({"rebalance": {"transferMode": "block_writes"}});
        let cluster = story.settled_cluster("talk", with(spec(1), &block)).await;
        cluster.load(1_000).await;
        let coordinator = cluster.coordinator().await;
        let worker = cluster.admin(Node::Worker(0)).await;
        let shards = coordinator.query("SELECT shardid, (SELECT groupid FROM pg_dist_node WHERE groupid <> 0) FROM pg_dist_shard ORDER BY 1", &[]).await.unwrap();
        // As a crash of the coordinator leaves it: its own commit is there (the records), the workers' are not.
        let in_doubt = async {
            for (number, row) in shards.iter().enumerate() {
                let (shard, group): (i64, i32) = (row.get(0), row.get(1));
                let gid = format!("citus_0_999999_{number}_0");
                let prepare = format!(
                    "BEGIN; INSERT INTO dialogs_{shard} (from_user, to_user, message) SELECT -1, n, 'in doubt'
                     FROM generate_series(1, 10000) n WHERE get_shard_id_for_distribution_column('dialogs', n::bigint) = {shard} LIMIT 100;
                     PREPARE TRANSACTION '{gid}'"
                );
                sql::run(&worker, &prepare).await;
                sql::run(&coordinator, &format!("INSERT INTO pg_dist_transaction (groupid, gid) VALUES ({group}, '{gid}')")).await;
            }
        };
        in_doubt.await;
        let prepared: i64 = sql::value(&worker, "SELECT count(*) FROM pg_prepared_xacts").await;
        story.figure("transactions in doubt when the scale-out is asked for", prepared);
        cluster.edit(json!({"workers": {"replicas": 2}})).await;
        cluster.until_settled(120).await;
        cluster.assert_even(2).await;
        let kept: i64 = sql::value(&coordinator, "SELECT count(*) FROM dialogs WHERE from_user = -1").await;
        story.figure("of 3,200 rows that were in doubt there are now", kept);
        assert_eq!(kept, 3_200);
    })
    .await;
}
