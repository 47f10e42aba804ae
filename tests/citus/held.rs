//! Who holds up a move, or what waits for a lock, is named: where, which session, whose, since when.

use std::time::Duration;

use dialog_operator::{
    citus::{BlockersQuestion, Connection, blockers, commands},
    snapshot::{Job, JobState},
};
use secrecy::SecretString;
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, run_statements, skipped},
};
use tokio_postgres::Client;

use crate::moves::{EVEN, catalog, job};

/// Two members, and a table with a shard on each but the last one.
async fn with_few(registered: usize) -> (Cluster, Connection) {
    let cluster = Cluster::start(2, registered, "").await;
    let session = cluster.session().await;
    let few = [
        "SET citus.shard_count = 2",
        "CREATE TABLE few (a int PRIMARY KEY)",
        "SELECT create_distributed_table('few', 'a')",
        "INSERT INTO few SELECT generate_series(1, 100)",
    ];
    commands::create_owner(&session, OWNER, &SecretString::from("x"), DATABASE).await.unwrap();
    cluster.coordinator.sql_as_owner(&few).await.unwrap();
    (cluster, session)
}

async fn opened(server: &Server, database: &str, statements: &[&str]) -> (Client, String) {
    let client = server.client_over(database, "postgres").await.unwrap();
    let statements = [&["BEGIN"], statements, &["SELECT pg_backend_pid()"]].concat();
    let pid = run_statements(&client, &statements).await.unwrap().remove(0);
    (client, pid)
}

/// As the operator asks.
async fn named(cluster: &Cluster, server: &Server, job: Option<&Job>) -> Vec<String> {
    let tasks = job.into_iter().flat_map(|job| &job.tasks).filter(|task| task.runs());
    let pids: Vec<i32> = tasks.filter_map(|task| task.pid).collect();
    let citus = catalog(&cluster.session().await).await;
    let coordinator = citus.nodes.iter().find(|row| row.group_id == 0).unwrap().node_id;
    let gpids: Vec<i64> =
        pids.iter().map(|pid| i64::from(coordinator) * 10_000_000_000 + i64::from(*pid)).collect();
    let pids = if server.port == cluster.coordinator.port { pids.as_slice() } else { &[] };
    let nodes = [(coordinator, "shop-coordinator:5432".to_owned())];
    let ask = BlockersQuestion { gpids: &gpids, pids, any: job.is_none(), nodes: &nodes };
    blockers(&server.session(DATABASE).await, &ask).await.unwrap()
}

async fn until_named(cluster: &Cluster, server: &Server, words: &[&str]) {
    eventually(&format!("{words:?}"), Duration::from_secs(40), async || {
        let job = catalog(&cluster.session().await).await.job.filter(Job::is_open);
        let names = named(cluster, server, job.as_ref()).await;
        let found = names.first().is_some_and(|first| words.iter().all(|words| first.contains(words)));
        if found { Ok(()) } else { Err((names, job)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_up_a_move_is_named() {
    if skipped(OnlyCitus::GlobalPids) {
        return;
    }
    let (cluster, session) = with_few(1).await;
    commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();
    let (first, second) = (&cluster.workers[0], &cluster.workers[1]);
    // What has taken no transaction id, and what slots keep, is in nobody's way.
    let (_reader, _) =
        opened(first, DATABASE, &["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1"]).await;
    first.sql(&["SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')"]).await.unwrap();
    // Also over another database.
    let (writer, pid) = opened(first, "postgres", &["SELECT pg_current_xact_id()"]).await;
    first
        .sql_alone(&["BEGIN", "SELECT pg_current_xact_id()", "PREPARE TRANSACTION 'left by somebody'"])
        .await
        .unwrap();
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    let who = format!("pid {pid} on shop-worker-0, user postgres, database postgres");
    until_named(&cluster, first, &[&who, "in a transaction since 2"]).await;
    for other in [&cluster.coordinator, second] {
        let job = catalog(&session).await.job;
        assert_eq!(named(&cluster, other, job.as_ref()).await, <[String; 0]>::default(), "{}", other.name);
    }
    drop(writer);
    let prepared =
        "the prepared transaction left by somebody on shop-worker-0, user postgres, database postgres";
    until_named(&cluster, first, &[prepared, "since 2"]).await;
    first.sql_alone(&["ROLLBACK PREPARED 'left by somebody'"]).await.unwrap();
    job(&session, "the move is made", |job| job.id == id && job.state == JobState::Finished).await;
    first.sql(&["SELECT pg_drop_replication_slot('theirs')"]).await.unwrap();

    // A client of the coordinator writes on the worker through a session of Citus, which is where it is in the way.
    commands::set_should_have_shards(&session, "127.0.0.1", first.port, false).await.unwrap();
    let insert = "INSERT INTO few SELECT generate_series(101, 200)";
    let (writer, pid) = opened(&cluster.coordinator, DATABASE, &[insert]).await;
    let id = commands::start_drain(&session, &EVEN).await.unwrap().expect("a job");
    until_named(&cluster, first, &[&format!("begun by pid {pid} on shop-coordinator:5432")]).await;
    run_statements(&writer, &["COMMIT"]).await.unwrap();
    job(&session, "the drain is made", |job| job.id == id && job.state == JobState::Finished).await;

    // A lock on the shard itself.
    commands::set_should_have_shards(&session, "127.0.0.1", first.port, true).await.unwrap();
    let shards = "SELECT format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', string_agg(shard_name('few', shardid), ', '))
        FROM pg_dist_shard WHERE logicalrelid = 'few'::regclass";
    let lock = cluster.coordinator.value(shards).await;
    let (holder, pid) =
        opened(second, DATABASE, &["SET LOCAL citus.enable_manual_changes_to_shards = on", &lock]).await;
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    until_named(&cluster, second, &[&format!("pid {pid} on shop-worker-1"), "database dialogs"]).await;
    drop(holder);
    job(&session, "the move is made", |job| job.id == id && job.state == JobState::Finished).await;
    assert_eq!(cluster.coordinator.value("SELECT count(*) FROM few").await, "200");
}

/// Whatever waited has given up, and is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_lock_that_a_step_needs_is_named() {
    let (cluster, session) = with_few(1).await;
    let coordinator = &cluster.coordinator;
    assert_eq!(named(&cluster, coordinator, None).await, <[String; 0]>::default());
    for table in ["few", "pg_dist_node"] {
        let lock = format!("LOCK TABLE {table} IN EXCLUSIVE MODE");
        let (holder, pid) = opened(coordinator, DATABASE, &[&lock]).await;
        if table == "pg_dist_node" {
            let refused =
                commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap_err();
            assert!(refused.is_lock_timeout(), "{refused}");
        }
        let who = format!("pid {pid} on shop-coordinator holds ");
        until_named(&cluster, coordinator, &[&who, table, "user postgres, database dialogs", "since 2"])
            .await;
        drop(holder);
        eventually("it is gone", Duration::from_secs(10), async || {
            let names = named(&cluster, coordinator, None).await;
            if names.is_empty() { Ok(()) } else { Err(names) }
        })
        .await;
    }
    // Readers and writers are none, and who holds the catalog itself can be named.
    let (writer, _) = opened(coordinator, DATABASE, &["INSERT INTO few VALUES (1000)"]).await;
    drop(writer);
    let (holder, pid) =
        opened(coordinator, DATABASE, &["LOCK TABLE pg_dist_placement IN ACCESS EXCLUSIVE MODE"]).await;
    let ask = BlockersQuestion { any: true, ..BlockersQuestion::default() };
    let own = coordinator.session(DATABASE).await;
    let names = eventually("it is named", Duration::from_secs(20), async || {
        let names = blockers(&own, &ask).await.unwrap();
        if names.is_empty() { Err(names) } else { Ok(names) }
    })
    .await;
    let [name] = names.as_slice() else { panic!("{names:?}") };
    assert!(name.contains(&format!("pid {pid} on shop-coordinator holds pg_dist_placement")), "{name}");
    drop(holder);
}
