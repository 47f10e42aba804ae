//! Scale-out and scale-in: what Citus plans, starts, reports, and leaves behind.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use dialog_operator::{
    api::spec::TransferMode,
    citus::{
        BUILT_IN_SCHEMA, CatalogQuestion, Connection, NodeQuestion, SqlErrorKind,
        commands::{self, RebalanceOptions},
        observe_citus, observe_node,
    },
    snapshot::{Citus, Job, JobState, Observed, PlanUnknown, Task, TaskState},
};
use secrecy::SecretString;
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Signal, skipped},
    tell,
};

use crate::{birth::CATALOG, contents};

pub const EVEN: RebalanceOptions<'_> = RebalanceOptions {
    strategy: "by_shard_count",
    transfer_mode: TransferMode::Auto,
    parallel_colocated: false,
};
/// Quick, for where it does not matter how.
pub const QUICK: RebalanceOptions<'_> = RebalanceOptions { transfer_mode: TransferMode::BlockWrites, ..EVEN };
/// How long a job may take on a busy machine.
const JOB: Duration = Duration::from_mins(2);

pub async fn catalog(session: &Connection) -> Citus {
    observe_citus(session, &CATALOG).await.unwrap()
}

/// Owner, dialogs schema, and some messages.
pub async fn with_dialogs(cluster: &Cluster, session: &Connection) {
    commands::create_owner(session, OWNER, &SecretString::from("x"), DATABASE).await.unwrap();
    cluster.coordinator.apply(BUILT_IN_SCHEMA, "h").await.unwrap();
    let messages = "INSERT INTO dialogs (from_user, to_user, message)
        SELECT n % 97, n % 101, 'hello ' || n FROM generate_series(1, 5000) AS n";
    cluster.coordinator.sql(&[messages]).await.unwrap();
}

/// Waits until the job is as wanted.
pub async fn job(session: &Connection, what: &str, wanted: impl Fn(&Job) -> bool) -> Job {
    eventually(what, JOB, async || {
        let job = catalog(session).await.job.expect("a job");
        if wanted(&job) { Ok(job) } else { Err(job) }
    })
    .await
}

async fn finished(session: &Connection, id: i64) -> Job {
    job(session, "the job ends", |job| job.id == id && job.state == JobState::Finished).await
}

async fn planned(session: &Connection, ask: CatalogQuestion<'_>) -> usize {
    let citus = observe_citus(session, &ask).await.unwrap();
    match citus.planned_moves {
        Some(Observed::Known(moves)) => moves.len(),
        other => panic!("no plan: {other:?}"),
    }
}

fn shards(citus: &Citus) -> Vec<i64> {
    citus.groups.values().map(|group| group.shards).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_move_out_and_in() {
    // What finished moves leave behind stays until somebody cleans up: the trap of the drain can be looked at.
    let cluster = Cluster::start(2, 1, "citus.defer_shard_delete_interval = '1h'").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let keyless = [
        "CREATE TABLE nopk (a int)",
        "SELECT create_distributed_table('nopk', 'a', colocate_with => 'none')",
    ];
    cluster.coordinator.sql_as_owner(&keyless).await.unwrap();
    let added = commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();

    a_table_without_a_key_is_refused(&cluster, &session).await;
    a_plan_is_citus_own(&session, added).await;
    a_job_is_watched_and_stopped(&session).await;
    a_message_of_any_bytes_is_read(&cluster, &session).await;
    it_evens_out(&cluster, &session).await;
    a_node_is_drained(&cluster, &session).await;
}

async fn a_plan_is_citus_own(session: &Connection, added: i32) {
    let citus = catalog(session).await;
    assert_eq!(shards(&citus), [0, 32, 0]);
    assert!(citus.job.is_none() && citus.failed_jobs == 0, "{citus:?}");
    let Some(Observed::Known(moves)) = &citus.planned_moves else { panic!("{:?}", citus.planned_moves) };
    assert_eq!(moves.len(), 16, "by_shard_count evens out 32 / 0 to 16 / 16");
    for planned in moves {
        assert_eq!((planned.from, planned.to), (citus.nodes[1].node_id, added), "{planned:?}");
        assert!(planned.table == "public.dialogs" && planned.bytes > 0, "{planned:?}");
    }
    // 14 with a million messages, 15 with these few; never an even 16.
    let by_size = planned(session, CatalogQuestion { strategy: "by_disk_size", ..CATALOG }).await;
    assert!((14..16).contains(&by_size), "Citus' default strategy plans {by_size} moves");
    assert_eq!(planned(session, CatalogQuestion { drain_only: true, ..CATALOG }).await, 0);

    let unknown = observe_citus(session, &CatalogQuestion { strategy: "by_luck", ..CATALOG }).await.unwrap();
    let Some(Observed::Unknown(PlanUnknown::StrategyUnknown(why))) = &unknown.planned_moves else {
        panic!("a plan for an unknown strategy: {:?}", unknown.planned_moves)
    };
    assert!(why.contains("strategy") && why.contains("by_luck"), "{why}");
    assert_eq!(unknown.nodes, citus.nodes, "a plan that is refused does not hide the rest");
    let error = commands::start_rebalance(session, &RebalanceOptions { strategy: "by_luck", ..EVEN }).await;
    assert_eq!(error.unwrap_err().refusal(), Some(SqlErrorKind::StrategyUnknown));

    let quiet = CatalogQuestion { with_plan: false, with_sizes: false, ..CATALOG };
    let quiet = observe_citus(session, &quiet).await.unwrap();
    assert!(
        quiet.planned_moves.is_none() && quiet.groups.values().all(|group| group.bytes.is_none()),
        "{quiet:?}"
    );
}

async fn a_table_without_a_key_is_refused(cluster: &Cluster, session: &Connection) {
    let citus = catalog(session).await;
    let table = citus.tables.iter().find(|table| table.name == "public.nopk").unwrap();
    assert!(table.distributed && !table.replica_identity, "{table:?}");
    let error = commands::start_rebalance(session, &EVEN).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::NoReplicaIdentity), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("nopk") && text.contains("force_logical") && text.contains("block_writes"),
        "{text}"
    );
    assert!(catalog(session).await.job.is_none(), "refused before there is a job");
    cluster.coordinator.sql(&["DROP TABLE nopk"]).await.unwrap();
}

async fn a_job_is_watched_and_stopped(session: &Connection) {
    let id = commands::start_rebalance(session, &EVEN).await.unwrap().expect("a job");
    let error = commands::start_rebalance(session, &EVEN).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::RebalanceRunning), "{error}");
    assert!(error.to_string().contains(&format!("already running as job {id}")), "{error}");

    let citus = catalog(session).await;
    assert!(citus.planned_moves.is_none(), "no plan while a job is open: {:?}", citus.planned_moves);
    let seen = citus.job.expect("the job");
    assert!(seen.id == id && seen.is_open(), "{seen:?}");
    let moves: Vec<_> = seen.tasks.iter().filter_map(|task| task.transfer.as_ref()).collect();
    assert_eq!(moves.len(), 16, "{seen:?}");
    let (source, target) = (citus.nodes[1].node_id, citus.nodes[2].node_id);
    for transfer in moves {
        assert_eq!((transfer.from, transfer.to, transfer.table.as_str()), (source, target, "public.dialogs"));
        assert!(transfer.shard > 0 && transfer.bytes > 0, "{transfer:?}");
    }

    assert!(!commands::stop_rebalance(session, id + 1).await.unwrap(), "another job is not stopped");
    assert!(catalog(session).await.job.unwrap().is_open());
    assert!(commands::stop_rebalance(session, id).await.unwrap());
    job(session, "the job is cancelled", |job| job.state == JobState::Cancelled).await;
    assert!(!commands::stop_rebalance(session, id).await.unwrap(), "there is nothing left to stop");
    assert_eq!(catalog(session).await.failed_jobs, 0, "what was cancelled is no failure");
}

/// The trap: Citus keeps what a task says in a buffer of bytes, and stores what is there when the task is ended. The
/// last character here is cut in its middle.
async fn a_message_of_any_bytes_is_read(cluster: &Cluster, session: &Connection) {
    let last = "UPDATE pg_dist_background_task SET message = '\\x4552524f523a20ff207865e2820a'::bytea::text
        WHERE task_id = (SELECT max(task_id) FROM pg_dist_background_task)";
    let store = ["CREATE CAST (bytea AS text) WITHOUT FUNCTION", last, "DROP CAST (bytea AS text)"];
    cluster.coordinator.sql(&store).await.unwrap();
    let job = catalog(session).await.job.expect("the job");
    let said = job.tasks.last().and_then(|task| task.message.as_deref());
    assert_eq!(said, Some("ERROR: \u{fffd} xe\u{fffd}"));
}

async fn it_evens_out(cluster: &Cluster, session: &Connection) {
    let parallel_colocated = catalog(session).await.parallel_colocated;
    let options = RebalanceOptions { parallel_colocated, ..EVEN };
    let id = commands::start_rebalance(session, &options).await.unwrap().expect("a job");
    let done = finished(session, id).await;
    assert!(done.started_at.is_some() && done.finished_at.is_some(), "{done:?}");
    assert!(done.tasks.iter().all(|task| task.state == TaskState::Done && !task.is_failing()), "{done:?}");
    let citus = catalog(session).await;
    assert_eq!((shards(&citus), citus.failed_jobs), (vec![0, 16, 16], 0));
    assert_eq!(planned(session, CATALOG).await, 0);
    assert_eq!(commands::start_rebalance(session, &EVEN).await.unwrap(), None, "there is nothing to move");
    assert_eq!(cluster.coordinator.value("SELECT count(*) FROM dialogs").await, "5000");
    for worker in &cluster.workers {
        let node = NodeQuestion { database: DATABASE, owner: OWNER, settings: &[] };
        let seen = observe_node(&worker.session(DATABASE).await, &node).await.unwrap();
        assert_eq!(seen.missing_tables, 0, "{}: {seen:?}", worker.name);
    }
}

/// The trap: a finished drain leaves rows in pg_dist_cleanup. A removal in spite of them makes them eternal, and the
/// shard can never move again.
async fn a_node_is_drained(cluster: &Cluster, session: &Connection) {
    commands::cleanup_orphans(session).await.unwrap();
    assert_eq!(catalog(session).await.cleanup, []);
    let leaving = &cluster.workers[1];
    let error = commands::remove_node(session, "127.0.0.1", leaving.port).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::OnlyPlacement), "{error}");
    let group = catalog(session).await.nodes[2].group_id;
    drain(session, leaving.port).await;
    let citus = catalog(session).await;
    assert_eq!(citus.groups[&group].shards, 0);
    assert!(!citus.nodes[2].should_have_shards);
    let left: Vec<&str> =
        citus.cleanup.iter().filter(|row| row.group_id == group).map(|row| &*row.object_name).collect();
    assert!(!left.is_empty(), "{:?}", citus.cleanup);
    // What Citus has yet to drop there is nobody's; it is the only thing that tells.
    let seen = contents::without(leaving, &left).await;
    assert!(seen.is_empty(), "{seen:?}");
    assert!(skipped(OnlyCitus::OwnSessions) || contents::without(leaving, &left[1..]).await.local.tables > 0);

    let error = commands::remove_node(session, "127.0.0.1", leaving.port).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::CleanupPending), "{error}");
    assert!(error.to_string().contains("public.dialogs_"), "what is pending is named: {error}");
    assert_eq!(catalog(session).await.nodes.len(), 3, "nothing was removed");

    removed_too_early(cluster, session, group).await;
    drain(session, leaving.port).await;

    // The way that leaves nothing: clean up, look, remove.
    commands::cleanup_orphans(session).await.unwrap();
    assert_eq!(catalog(session).await.cleanup, []);
    for _ in 0..2 {
        commands::remove_node(session, "127.0.0.1", leaving.port).await.unwrap();
    }
    let citus = catalog(session).await;
    assert_eq!((citus.nodes.len(), shards(&citus)), (2, vec![0, 32]));
    assert_eq!(cluster.coordinator.value("SELECT count(*) FROM dialogs").await, "5000");
}

async fn drain(session: &Connection, port: u16) {
    commands::set_should_have_shards(session, "127.0.0.1", port, false).await.unwrap();
    let drain_only = CatalogQuestion { drain_only: true, ..CATALOG };
    assert_eq!(planned(session, drain_only).await, 16);
    let id = commands::start_drain(session, &QUICK).await.unwrap().expect("a job");
    finished(session, id).await;
}

async fn removed_too_early(cluster: &Cluster, session: &Connection, group: i32) {
    let port = cluster.workers[1].port;
    let by_hand = format!("SELECT citus_remove_node('127.0.0.1', {port})");
    cluster.coordinator.sql(&[&by_hand]).await.unwrap();
    commands::add_node(session, "127.0.0.1", port).await.unwrap();
    let _ = commands::cleanup_orphans(session).await;
    let left = catalog(session).await;
    assert!(left.nodes.iter().all(|node| node.group_id != group), "{:?}", left.nodes);
    assert!(left.cleanup.iter().any(|row| row.group_id == group), "the rows are eternal: {:?}", left.cleanup);
    let id = commands::start_rebalance(session, &QUICK).await.unwrap().expect("a job");
    let failing = job(session, "a task fails", |job| job.tasks.iter().any(Task::is_failing)).await;
    assert!(failing.is_open(), "a failing move does not fail its job: {failing:?}");
    let message = failing.tasks.iter().find_map(|task| task.message.as_deref().filter(|_| task.is_failing()));
    let message = message.expect("Citus' words");
    assert!(message.contains("leftover from the previous move could not be cleaned up"), "{message}");
    // Only deleting the rows lets it go on, and then it finishes by itself.
    let records: Vec<i64> = left.cleanup.iter().map(|row| row.record_id).collect();
    let eternal = left.cleanup.iter().filter(|row| row.group_id == group).count();
    assert_eq!(
        commands::delete_stale_cleanup_records(session, &records).await.unwrap(),
        u64::try_from(eternal).unwrap()
    );
    assert_eq!(commands::delete_stale_cleanup_records(session, &records).await.unwrap(), 0);
    finished(session, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_cannot_be_made_are_retried() {
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    let source = &cluster.workers[0];
    source.configure("wal_level = replica");
    source.restart().await;
    with_dialogs(&cluster, &session).await;
    commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();

    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    let failing = job(&session, "a task fails", |job| job.tasks.iter().any(Task::is_failing)).await;
    let task = failing.tasks.iter().find(|task| task.is_failing()).unwrap();
    assert_eq!(failing.state, JobState::Running, "it goes on for ever: {failing:?}");
    assert!(
        task.message.as_ref().unwrap().replace('"', "").contains("requires wal_level >= logical"),
        "{task:?}"
    );
    assert!(commands::stop_rebalance(&session, id).await.unwrap());
    job(&session, "the job is cancelled", |job| !job.is_open()).await;

    // A statement_timeout in postgresql.conf breaks every move; without it for the role, they go on.
    source.configure("wal_level = logical\nstatement_timeout = 1ms");
    source.stop(Signal::Int).await;
    source.launch().await;
    assert_eq!(source.value("SHOW statement_timeout").await, "0", "the role is exempt since the preparation");
    source.sql_alone(&["ALTER ROLE postgres RESET statement_timeout"]).await.unwrap();
    assert_eq!(
        source.sql(&["SELECT pg_sleep(1)"]).await.unwrap_err(),
        "canceling statement due to statement timeout"
    );
    // The operator's own session says for itself what holds.
    let own = source.session(DATABASE).await;
    let node =
        NodeQuestion { database: DATABASE, owner: OWNER, settings: &["statement_timeout", "work_mem"] };
    let seen = observe_node(&own, &node).await.unwrap();
    assert!(!seen.role_pinned, "{seen:?}");
    assert_eq!(seen.settings["statement_timeout"], "1ms", "as the file has it, not as this session does");
    let broken = if skipped(OnlyCitus::StatementTimeout) {
        None
    } else {
        let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
        let failing = job(&session, "a task fails", |job| job.tasks.iter().any(Task::is_failing)).await;
        assert!(failing.is_open(), "{failing:?}");
        Some(id)
    };
    commands::bootstrap_server(&source.session("postgres").await, DATABASE).await.unwrap();
    assert!(observe_node(&own, &node).await.unwrap().role_pinned);
    if let Some(id) = broken {
        job(&session, "the job ends", |job| job.id == id && job.state == JobState::Finished).await;
    }
}

/// How many moves ran at once, at most and on average, from two workers to four with at most two for each node, and for
/// how long.
async fn moves_at_once(executors: u16) -> (usize, f64, Duration) {
    let settings = format!(
        "citus.max_background_task_executors = {executors}\ncitus.max_background_task_executors_per_node = 2"
    );
    let cluster = Cluster::start(4, 2, &settings).await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    for worker in &cluster.workers[2..] {
        commands::add_node(&session, "127.0.0.1", worker.port).await.unwrap();
    }
    let began = Instant::now();
    let parallel_colocated = catalog(&session).await.parallel_colocated;
    let options = RebalanceOptions { parallel_colocated, ..EVEN };
    let id = commands::start_rebalance(&session, &options).await.unwrap().expect("a job");
    let seen = Mutex::new(Vec::new());
    job(&session, "the job ends", |job| {
        let runs = job.tasks.iter().filter(|task| task.state == TaskState::Running).count();
        seen.lock().unwrap().push(u8::try_from(runs).unwrap());
        job.id == id && job.state == JobState::Finished
    })
    .await;
    let seen = seen.into_inner().unwrap();
    let sum: f64 = seen.iter().copied().map(f64::from).sum();
    let looks = f64::from(u32::try_from(seen.len()).unwrap());
    (seen.into_iter().max().unwrap().into(), sum / looks, began.elapsed())
}

/// A trap: a task that finds the limit of all executors reached has been counted against its nodes by then, and that is
/// never taken back. So the limit for each node is the one that is to bind.
#[tokio::test(flavor = "multi_thread")]
async fn moves_at_once_are_bounded_by_node() {
    let (most, average, took) = moves_at_once(32).await;
    assert_eq!(most, 4, "two for each of two pairs of nodes");
    tell(&format!("moves at once: at most {most}, {average:.1} on average, {took:.1?}"));
}

/// Not a test: what the limit of all executors costs. Run it by hand with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_limit_of_all_executors_that_binds() {
    for executors in [4, 32, 3] {
        let (most, average, took) = moves_at_once(executors).await;
        tell(&format!("{executors} executors: at most {most} at once, {average:.1} on average, {took:.1?}"));
    }
}
