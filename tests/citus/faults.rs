//! Servers that are down, silent, emptied, or not the ones they say they are.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use dialog_operator::{
    api::{ClusterId, Node},
    citus::{
        ClientTls, Connection, ConnectionKey, ConnectionPool, NodeQuestion, SqlError, SqlErrorKind, Target,
        Tls, check_connection, commands, observe_node,
    },
    snapshot::{JobState, Postgres, TaskState},
};
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, Signal, run_statements, skipped},
};

use crate::moves::{EVEN, catalog, job, with_dialogs};

const NODE: NodeQuestion<'_> = NodeQuestion { database: DATABASE, owner: OWNER, settings: &[] };

async fn seen(server: &Server) -> Postgres {
    observe_node(&server.session(DATABASE).await, &NODE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_fail() {
    let cluster = Cluster::start(3, 2, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let [first, second, third] = cluster.workers.as_slice() else { panic!("three workers") };
    a_restarted_worker_is_no_surprise(&session, first, second).await;
    a_registered_worker_that_is_down_blocks_membership(&session, second, third).await;
    what_a_crash_left_prepared_is_recovered(&cluster, &session, first).await;
    a_worker_does_not_end_by_sigterm(&cluster, first).await;
    an_emptied_worker_looks_healthy(&cluster, &session, second).await;
}

/// Citus would keep its connection of the call before, and the first call after a restart would fail with `failure on
/// connection marked as essential`.
async fn a_restarted_worker_is_no_surprise(session: &Connection, restarted: &Server, other: &Server) {
    for _ in 0..2 {
        commands::set_should_have_shards(session, "127.0.0.1", other.port, true).await.unwrap();
        restarted.restart().await;
    }
}

async fn a_registered_worker_that_is_down_blocks_membership(
    session: &Connection,
    down: &Server,
    other: &Server,
) {
    down.stop(Signal::Int).await;
    let error = commands::add_node(session, "127.0.0.1", other.port).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::RemoteUnreachable), "{error}");
    assert!(error.to_string().contains(&down.port.to_string()), "the silent node is named: {error}");
    let error = commands::set_should_have_shards(session, "127.0.0.1", other.port, false).await.unwrap_err();
    assert!(error.refusal().is_some(), "{error}");
    let error = check_connection(session, "127.0.0.1", down.port).await.unwrap_err();
    assert!(error.contains(&down.port.to_string()), "{error}");
    // What the coordinator alone can tell is there all the same.
    let citus = catalog(session).await;
    assert_eq!((citus.nodes.len(), citus.planned_moves.unwrap().known().map(Vec::len)), (3, Some(0)));
    let error = down.target(DATABASE).connect(&Tls::Off).await.unwrap_err();
    assert!(matches!(&error, SqlError::Unreachable { why, .. } if why.contains("refused")), "{error}");
    down.launch().await;
}

/// A transaction prepared on a worker: recovery ends it the way the coordinator's record says, and without a record
/// undoes it.
async fn what_a_crash_left_prepared_is_recovered(cluster: &Cluster, session: &Connection, worker: &Server) {
    if skipped(OnlyCitus::PreparedTransactions) {
        assert_eq!(commands::recover_transactions(session).await.unwrap(), 0);
        return;
    }
    let group = catalog(session)
        .await
        .nodes
        .iter()
        .find(|node| node.port == i32::from(worker.port))
        .unwrap()
        .group_id;
    for (number, kept) in [(1, true), (2, false)] {
        let gid = format!("citus_0_999999_{number}_0");
        if kept {
            let record = format!("INSERT INTO pg_dist_transaction (groupid, gid) VALUES ({group}, '{gid}')");
            cluster.coordinator.sql(&[&record]).await.unwrap();
        }
        let prepared = [
            "BEGIN",
            &format!("CREATE TABLE left_{number} (a int)"),
            &format!("PREPARE TRANSACTION '{gid}'"),
        ];
        worker.sql(&prepared).await.unwrap();
    }
    assert_eq!(commands::recover_transactions(session).await.unwrap(), 2);
    assert_eq!(commands::recover_transactions(session).await.unwrap(), 0);
    assert_eq!(
        worker.value("SELECT string_agg(relname, ',') FROM pg_class WHERE relname LIKE 'left_%'").await,
        "left_1"
    );
    worker.sql(&["DROP TABLE left_1"]).await.unwrap();
}

/// The maintenance connections of the other nodes hold a smart shutdown open.
async fn a_worker_does_not_end_by_sigterm(cluster: &Cluster, worker: &Server) {
    // A connection of the coordinator, kept open by Citus as its maintenance does.
    let holding = cluster.coordinator.client("postgres").await.unwrap();
    holding.simple_query("SELECT count(*) FROM dialogs").await.unwrap();
    worker.signal(Signal::Term);
    let refuses = "it refuses connections";
    eventually(refuses, Duration::from_secs(10), async || {
        let error = worker.target(DATABASE).connect(&Tls::Off).await.err().map(|error| error.to_string());
        if error.as_ref().is_some_and(|error| error.contains("shutting down")) { Ok(()) } else { Err(error) }
    })
    .await;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert!(!worker.has_ended(), "a smart shutdown has come to its end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = Instant::now();
    worker.stop(Signal::Int).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "a fast shutdown took {:?}", asked.elapsed());
    worker.launch().await;
}

async fn an_emptied_worker_looks_healthy(cluster: &Cluster, session: &Connection, worker: &Server) {
    let before = seen(worker).await;
    assert!(
        before.group_id.unwrap() > 0 && before.dist_node_rows == 3 && before.missing_tables == 0,
        "{before:?}"
    );
    worker.wipe().await;
    worker.prepare().await;
    // The copy of a template has the template's identifier: here only the catalog can tell.
    let emptied = seen(worker).await;
    assert_eq!((emptied.group_id, emptied.dist_node_rows, emptied.missing_tables), (Some(0), 0, 0));
    let listed =
        catalog(session).await.nodes.into_iter().find(|node| node.port == i32::from(worker.port)).unwrap();
    assert!(listed.active && listed.metadata_synced, "{listed:?}");
    let again = commands::add_node(session, "127.0.0.1", worker.port).await.unwrap();
    assert_eq!(again, listed.node_id, "adding it again says nothing");
    assert!(
        cluster
            .coordinator
            .sql(&["SELECT count(*) FROM dialogs"])
            .await
            .unwrap_err()
            .contains("does not exist")
    );
    let activate = format!("SELECT citus_activate_node('127.0.0.1', {})", worker.port);
    cluster.coordinator.sql(&[&activate]).await.unwrap();
    let activated = seen(worker).await;
    assert_eq!(activated.group_id, before.group_id, "the trace is gone");
    assert_eq!(activated.missing_tables, 16, "half of the shards");
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_lose_nothing() {
    let cluster = Cluster::start(2, 2, "citus.recover_2pc_interval = -1").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    committed_rows_survive_a_move_after_recovery(&cluster, &session).await;
    a_crash_in_the_middle_of_a_move_is_survived(&cluster, &session).await;
}

/// The trap: a move with `block_writes` between a commit on the coordinator and its COMMIT PREPARED on the worker loses
/// what was committed. So transactions are recovered before each job.
async fn committed_rows_survive_a_move_after_recovery(cluster: &Cluster, session: &Connection) {
    if skipped(OnlyCitus::PreparedTransactions) {
        return;
    }
    half_committed(cluster, session, "recovered first").await;
    let (port, _) = ports(cluster).await;
    let worker = cluster.workers.iter().find(|worker| worker.port == port).unwrap();
    eventually("the prepared transaction is told", Duration::from_secs(20), async || {
        let told = seen(worker).await.prepared_transactions;
        if told == 1 { Ok(()) } else { Err(told) }
    })
    .await;
    assert_eq!(commands::recover_transactions(session).await.unwrap(), 1);
    move_it(cluster).await;
    half_committed(cluster, session, "moved first").await;
    move_it(cluster).await;
    assert_eq!(commands::recover_transactions(session).await.unwrap(), 1);
    let kept = "SELECT string_agg(message, ',') FROM dialogs WHERE to_user = 7 AND from_user = -1";
    assert_eq!(cluster.coordinator.value(kept).await, "recovered first");
}

/// The task is tried again by itself once the worker is back; nobody has to do anything, and no row is lost.
async fn a_crash_in_the_middle_of_a_move_is_survived(cluster: &Cluster, session: &Connection) {
    let leaving = &cluster.workers[1];
    let before = cluster.coordinator.value("SELECT count(*) FROM dialogs").await;
    commands::set_should_have_shards(session, "127.0.0.1", leaving.port, false).await.unwrap();
    let id = commands::start_drain(session, &EVEN).await.unwrap().expect("a job");
    job(session, "a move runs", |job| job.tasks.iter().any(|task| task.state == TaskState::Running)).await;
    leaving.stop(Signal::Quit).await;
    leaving.launch().await;
    job(session, "the job ends", |job| job.id == id && job.state == JobState::Finished).await;
    assert_eq!(cluster.coordinator.value("SELECT count(*) FROM dialogs").await, before);
}

const SHARD: &str = "SELECT get_shard_id_for_distribution_column('dialogs', 7)";

/// The port of the worker that has the shard, and that of the other one.
async fn ports(cluster: &Cluster) -> (u16, u16) {
    let port = format!("SELECT nodeport FROM citus_shards WHERE shardid = ({SHARD})");
    let has = cluster.coordinator.value(&port).await.parse().unwrap();
    let other = cluster.workers.iter().map(|worker| worker.port).find(|port| *port != has).unwrap();
    (has, other)
}

/// One message, committed by the coordinator (its record says so), prepared and not committed on the worker.
async fn half_committed(cluster: &Cluster, session: &Connection, message: &str) {
    let (port, _) = ports(cluster).await;
    let group =
        catalog(session).await.nodes.iter().find(|node| node.port == i32::from(port)).unwrap().group_id;
    let shard = cluster.coordinator.value(SHARD).await;
    let gid = "citus_0_999999_1_0";
    let insert =
        format!("INSERT INTO dialogs_{shard} (from_user, to_user, message) VALUES (-1, 7, '{message}')");
    let worker = cluster.workers.iter().find(|worker| worker.port == port).unwrap();
    worker.sql(&["BEGIN", &insert, &format!("PREPARE TRANSACTION '{gid}'")]).await.unwrap();
    let record = format!("INSERT INTO pg_dist_transaction (groupid, gid) VALUES ({group}, '{gid}')");
    cluster.coordinator.sql(&[&record]).await.unwrap();
}

async fn move_it(cluster: &Cluster) {
    let (from, to) = ports(cluster).await;
    let shard = cluster.coordinator.value(SHARD).await;
    let by_hand = format!(
        "SELECT citus_move_shard_placement({shard}, '127.0.0.1', {from}, '127.0.0.1', {to}, 'block_writes')"
    );
    cluster.coordinator.sql(&[&by_hand]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_does_not_hold_anybody_up() {
    let server = Server::start("shop-worker-0", "").await;
    server.prepare().await;
    a_call_that_nobody_waits_for_is_ended(&server).await;
    let session = server.session(DATABASE).await;
    let other = server.session(DATABASE).await;
    // The process of the session goes silent, and with it whatever is asked of it.
    let pid = server
        .value("SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'dialog-operator' AND datname = 'dialogs'")
        .await;
    assert!(std::process::Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let asked = Instant::now();
    let (one, two) = tokio::join!(observe_node(&session, &NODE), observe_node(&other, &NODE));
    let silent = match (one, two) {
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => error,
        both => panic!("one of two is silent: {both:?}"),
    };
    assert!(matches!(&silent, SqlError::DeadlineExceeded { seconds: 10, .. }), "{silent}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    let broken = if session.is_broken() { &session } else { &other };
    let again = Instant::now();
    assert!(observe_node(broken, &NODE).await.is_err(), "a session that was given up is not used again");
    assert!(again.elapsed() < Duration::from_secs(1), "and says so at once");
    assert!(std::process::Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());

    // The whole server goes silent: it still accepts connections, and says nothing.
    server.signal(Signal::Stop);
    let asked = Instant::now();
    let error = server.target(DATABASE).connect(&Tls::Off).await.unwrap_err();
    assert!(matches!(&error, SqlError::Unreachable { .. }), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    server.signal(Signal::Continue);
    server.session(DATABASE).await;
}

async fn a_call_that_nobody_waits_for_is_ended(server: &Server) {
    let session = server.session("postgres").await;
    let locked = server.client("postgres").await.unwrap();
    locked.simple_query("BEGIN; LOCK pg_db_role_setting IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(500), observe_node(&session, &NODE)).await;
    assert!(waiting.is_err(), "it waits for the lock: {waiting:?}");
    assert!(session.is_broken(), "what it would answer is not for the next one");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("the server stops waiting, too", Duration::from_secs(5), async || {
        let rows = run_statements(&locked, &[waits]).await.unwrap();
        if rows == ["0"] { Ok(()) } else { Err(rows) }
    })
    .await;
}

/// A registration writes on two servers. Whoever asked for it may be killed, or stopped with Citus' locks in its hands,
/// at any moment: the commit must not depend on it.
#[tokio::test(flavor = "multi_thread")]
async fn operator_killed_in_a_registration_leaves_no_half_of_it() {
    let cluster = Cluster::start(2, 1, "").await;
    let (added, target) = (&cluster.workers[1], cluster.coordinator.target(DATABASE));
    let port = added.port;
    let holder = cluster.coordinator.client("postgres").await.unwrap();
    holder.simple_query("BEGIN; LOCK pg_dist_node IN EXCLUSIVE MODE").await.unwrap();

    let operator = tokio::runtime::Runtime::new().unwrap();
    operator.spawn(async move {
        let session = target.connect(&Tls::Off).await.unwrap();
        commands::add_node(&session, "127.0.0.1", port).await
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    eventually("the call waits for its lock", Duration::from_secs(30), async || {
        let rows = run_statements(&holder, &[waits]).await.unwrap();
        if rows == ["0"] { Err(rows) } else { Ok(()) }
    })
    .await;
    let killed = tokio::task::spawn_blocking(move || operator.shutdown_timeout(Duration::from_secs(10)));
    killed.await.unwrap();
    holder.simple_query("COMMIT").await.unwrap();

    let group = format!("SELECT coalesce(max(groupid), 0) FROM pg_dist_node WHERE nodeport = {port}");
    eventually("both servers know of it", Duration::from_secs(30), async || {
        let on_coordinator = cluster.coordinator.value(&group).await;
        let on_worker = added.value("SELECT groupid FROM pg_dist_local_group").await;
        let both = on_coordinator != "0" && on_coordinator == on_worker;
        if both { Ok(()) } else { Err((on_coordinator, on_worker)) }
    })
    .await;
}

fn key(pod_uid: &str) -> ConnectionKey {
    let cluster = ClusterId { namespace: "a".to_owned(), name: "shop".to_owned(), uid: "u".to_owned() };
    ConnectionKey { cluster, node: Node::Coordinator, pod_uid: pod_uid.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_let_go() {
    let server = Server::start("shop-coordinator", "").await;
    let sessions = ConnectionPool::new(3);
    let target = server.target(DATABASE);
    let error = sessions.get(&key("p1"), &target, &Tls::Off).await.unwrap_err();
    assert!(matches!(&error, SqlError::DatabaseMissing { .. }), "{error}");
    assert!(
        error.to_string().contains("shop-coordinator") && error.to_string().contains(DATABASE),
        "{error}"
    );
    let maintenance = sessions.get_or_maintenance(&key("p1"), &target, &Tls::Off).await.unwrap();
    assert_eq!(maintenance.database(), "postgres");
    commands::bootstrap_server(&maintenance, DATABASE).await.unwrap();
    let first = sessions.get_or_maintenance(&key("p1"), &target, &Tls::Off).await.unwrap();
    assert_eq!(first.database(), DATABASE);
    let same = sessions.get(&key("p1"), &target, &Tls::Off).await.unwrap();
    assert!(Arc::ptr_eq(&first, &same), "one connection a node");

    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dialog-operator'
        AND datname = 'dialogs'";
    server.sql(&[end]).await.unwrap();
    eventually("the end is noticed", Duration::from_secs(5), async || {
        if first.is_broken() { Ok(()) } else { Err(()) }
    })
    .await;
    let second = sessions.get(&key("p1"), &target, &Tls::Off).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    observe_node(&second, &NODE).await.unwrap();
    drop((maintenance, first, same, second));

    // The pod was made again: its predecessor's connections go.
    sessions.get(&key("p2"), &target, &Tls::Off).await.unwrap();
    assert_eq!(sessions.len(), 3, "p1 over two databases, p2 over one");
    let strangers = ClusterId { namespace: "b".to_owned(), ..key("p1").cluster };
    sessions.keep_pods(&strangers, &HashSet::new());
    assert_eq!(sessions.len(), 3, "another cluster's");
    sessions.keep_pods(&key("p1").cluster, &HashSet::from(["p2"]));
    assert_eq!(sessions.len(), 1);
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dialog-operator'";
    eventually("connections are closed", Duration::from_secs(5), async || {
        let count = server.value(connections).await;
        if count == "1" { Ok(()) } else { Err(count) }
    })
    .await;
    // Never more than were asked for.
    for pod in ["p3", "p4", "p5", "p6"] {
        sessions.get(&key(pod), &target, &Tls::Off).await.unwrap();
    }
    assert_eq!(sessions.len(), 3);
}

struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

fn authority() -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: rcgen::Issuer::new(params, key) }
}

fn leaf(authority: &Authority, name: &str, names: &[&str]) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    (params.signed_by(&key, &authority.issuer).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_show_their_certificates() {
    const HOST: &str = "shop-coordinator.a.svc.cluster.local";
    let server = Server::start("shop-coordinator", "").await;
    let (servers, clients) = (authority(), authority());
    let (certificate, server_key) = leaf(&servers, "shop", &[HOST]);
    server.write("server.crt", &certificate);
    server.write("server.key", &server_key);
    server.write("root.crt", &clients.pem);
    server.configure(
        "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'root.crt'",
    );
    server.prepare().await;
    server.stop(Signal::Int).await;
    server.launch().await;
    server.write("pg_hba.conf", "hostssl all postgres 127.0.0.1/32 cert\n");
    let plain = server.session("postgres").await;
    commands::reload(&plain).await.unwrap();
    eventually("only certificates let in", Duration::from_secs(10), async || {
        match server.target(DATABASE).connect(&Tls::Off).await {
            Err(SqlError::AuthenticationFailed { words, .. }) => Ok(words),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    let target = Target { host: HOST.to_owned(), ..server.target(DATABASE) };
    let (certificate, key) = leaf(&clients, "postgres", &[]);
    let tls = |ca: &str, certificate: &str, key: &str| {
        Tls::Mutual(ClientTls::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap())
    };
    let right = tls(&servers.pem, &certificate, &key);
    let session = target.connect(&right).await.unwrap();
    assert!(seen_over(&session).await.database);

    let elsewhere = Target { host: "shop-worker-0.a.svc.cluster.local".to_owned(), ..target.clone() };
    let error = elsewhere.connect(&right).await.unwrap_err();
    assert!(matches!(&error, SqlError::Unreachable { why, .. } if why.contains("certificate")), "{error}");
    let error = target.connect(&tls(&clients.pem, &certificate, &key)).await.unwrap_err();
    assert!(
        matches!(&error, SqlError::Unreachable { why, .. } if why.contains("invalid peer certificate")),
        "{error}"
    );
    let (other, other_key) = leaf(&clients, "someone", &[]);
    let error = target.connect(&tls(&servers.pem, &other, &other_key)).await.unwrap_err();
    assert!(matches!(&error, SqlError::AuthenticationFailed { .. }), "{error}");
    let (forged, forged_key) = leaf(&authority(), "postgres", &[]);
    let error = target.connect(&tls(&servers.pem, &forged, &forged_key)).await.unwrap_err();
    assert!(
        matches!(&error, SqlError::Unreachable { .. } | SqlError::AuthenticationFailed { .. }),
        "{error}"
    );
}

async fn seen_over(session: &Connection) -> Postgres {
    observe_node(session, &NODE).await.unwrap()
}
