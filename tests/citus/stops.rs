//! Stopping: a job that has ended and a move of it that runs all the same, and moves of a table that is gone.

use std::time::Duration;

use dialog_operator::{
    citus::{CatalogQuestion, commands, observe_citus},
    snapshot::{Job, Task, TaskState},
};
use testkit::{
    eventually,
    postgres::{Cluster, OnlyCitus, skipped},
};

use crate::{
    birth::CATALOG,
    moves::{EVEN, catalog, job, with_dialogs},
};

/// A worker whose shards wait to be moved to a second one: the moves can begin, and cannot end.
async fn held() -> (Cluster, dialog_operator::citus::Connection, tokio_postgres::Client) {
    let one = "citus.max_background_task_executors_per_node = 1";
    let cluster = Cluster::start(2, 1, one).await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();
    // A transaction with an id, in another database: no replication slot is ready before it ends.
    let holder = cluster.workers[0].client_over("postgres", "postgres").await.unwrap();
    holder.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    (cluster, session, holder)
}

/// The trap: Citus' monitor marks a task as running in one transaction and writes its pid in the next. A stop in
/// between finds no pid, signals nobody, and ends the job; the monitor then writes `running` over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_signals_nobody_is_made_again() {
    let (cluster, session, _holder) = held().await;
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    job(&session, "a move runs", |job| job.tasks.iter().any(|task| task.state == TaskState::Running)).await;
    eventually("it has a pid", Duration::from_secs(20), async || {
        let pids = cluster
            .coordinator
            .value("SELECT count(pid) FROM pg_dist_background_task WHERE status = 'running'")
            .await;
        if pids == "0" { Err(pids) } else { Ok(()) }
    })
    .await;
    // What such a stop leaves, in one statement, for the monitor never rests.
    let unheard = "WITH tasks AS (UPDATE pg_dist_background_task SET status = 'cancelled'
          WHERE status IN ('blocked', 'runnable'))
        UPDATE pg_dist_background_job SET state = 'cancelled'";
    cluster.coordinator.sql(&[unheard]).await.unwrap();
    let citus = catalog(&session).await;
    let seen = citus.job.expect("the job");
    assert!(seen.has_ended() && seen.runs() && seen.is_open() && seen.can_be_stopped(), "{seen:?}");
    assert!(citus.planned_moves.is_none(), "nothing is planned under a move: {:?}", citus.planned_moves);
    assert!(cluster.coordinator.sql(&["SELECT citus_rebalance_stop()"]).await.is_err(), "Citus knows no job");

    assert!(commands::stop_rebalance(&session, id).await.unwrap());
    let ended = job(&session, "the move ends", |job| !job.is_open()).await;
    assert!(!ended.tasks.iter().any(Task::runs), "{ended:?}");
    assert!(!commands::stop_rebalance(&session, id).await.unwrap(), "there is nothing left to stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_of_a_dropped_table_are_known() {
    let (cluster, session, holder) = held().await;
    let other = [
        "CREATE TABLE led (id bigint PRIMARY KEY)",
        "ALTER TABLE led OWNER TO shop",
        "SET citus.shard_count = 8",
        "SELECT create_distributed_table('led', 'id', colocate_with => 'none')",
    ];
    commands::set_should_have_shards(&session, "127.0.0.1", cluster.workers[1].port, false).await.unwrap();
    cluster.coordinator.sql(&other).await.unwrap();
    commands::set_should_have_shards(&session, "127.0.0.1", cluster.workers[1].port, true).await.unwrap();
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    let begun = job(&session, "moves run", Job::runs).await;
    assert_eq!(begun.lost_shard(), None, "{begun:?}");
    // Those of it that run keep it from being dropped: only what waits can lose its table.
    let waiting = |task: &Task| task.transfer.as_ref().is_some_and(|one| one.table == "public.led");
    assert!(begun.tasks.iter().any(waiting), "{begun:?}");
    drop(holder);
    eventually("it is dropped", Duration::from_mins(1), async || {
        cluster.coordinator.sql(&["DROP TABLE led"]).await
    })
    .await;
    let seen = observe_citus(&session, &CatalogQuestion { with_sizes: false, ..CATALOG }).await.unwrap();
    let lost = seen.job.as_ref().and_then(Job::lost_shard);
    assert!(lost.is_some(), "{:?}", seen.job);
    commands::stop_rebalance(&session, id).await.unwrap();
    job(&session, "the job ends", |job| !job.is_open()).await;
    let planned = catalog(&session).await.planned_moves;
    let moves = planned.as_ref().and_then(|plan| plan.known()).expect("a plan");
    assert!(moves.iter().all(|planned| planned.table == "public.dialogs"), "{moves:?}");
}

/// What a server leaves that ends while a move is being cancelled.
const BEING_CANCELLED: &str =
    "WITH one AS (UPDATE pg_dist_background_task SET status = 'cancelling', pid = 2147483647
      WHERE task_id = (SELECT max(task_id) FROM pg_dist_background_task))
    UPDATE pg_dist_background_job SET state = 'cancelling', finished_at = NULL";

/// A trap: nobody ends it. The monitor starts for tasks that are to run, and when it starts it looks at running ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_a_crash_interrupted_is_made_again() {
    if skipped(OnlyCitus::TaskMonitor) {
        return;
    }
    let (cluster, session, _holder) = held().await;
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    job(&session, "a move runs", Job::runs).await;
    assert!(commands::stop_rebalance(&session, id).await.unwrap());
    job(&session, "the job ends", |job| !job.is_open()).await;
    cluster.coordinator.restart().await;
    cluster.coordinator.sql(&[BEING_CANCELLED]).await.unwrap();
    let session = cluster.session().await;
    let seen = job(&session, "it is abandoned", |job| job.abandoned).await;
    assert!(seen.is_open() && seen.can_be_stopped(), "{seen:?}");
    // Citus looks once in citus.background_task_queue_interval, 1 s here.
    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        assert!(catalog(&session).await.job.expect("the job").abandoned, "Citus ends it by itself");
    }
    assert!(commands::stop_rebalance(&session, id).await.unwrap());
    let ended = job(&session, "the job ends", |job| !job.is_open()).await;
    assert!(ended.has_ended(), "{ended:?}");
}

/// A trap: the second of two calls marks a task as cancelled whose process runs still; to the monitor its end is then a
/// failure, after which it is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_being_cancelled_is_not_cancelled_again() {
    if skipped(OnlyCitus::TaskMonitor) {
        return;
    }
    let (cluster, session, _holder) = held().await;
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    job(&session, "a move runs", Job::runs).await;
    cluster.coordinator.sql(&[BEING_CANCELLED]).await.unwrap();
    let seen = catalog(&session).await.job.expect("the job");
    assert!(!seen.abandoned && !seen.can_be_stopped(), "its monitor runs: {seen:?}");
    assert!(!commands::stop_rebalance(&session, id).await.unwrap(), "nothing is done meanwhile");
    let ended =
        "UPDATE pg_dist_background_task SET status = 'cancelled', pid = NULL WHERE status = 'cancelling'";
    cluster.coordinator.sql(&[ended]).await.unwrap();
    assert!(commands::stop_rebalance(&session, id).await.unwrap());
    job(&session, "the job ends", |job| !job.is_open()).await;
}
