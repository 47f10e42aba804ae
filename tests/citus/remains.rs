//! What is left of members and moves that died, and how it is healed.

use std::time::Duration;

use dialog_operator::{
    citus::{Connection, NodeQuestion, commands, lock_holders, observe_node},
    snapshot::{DistNode, JobState, Leftover, LeftoverKind},
};
use secrecy::SecretString;
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, Signal, run_statements, skipped},
};

use crate::moves::{EVEN, QUICK, catalog, job, with_dialogs};

const NODE: NodeQuestion<'_> = NodeQuestion { database: DATABASE, owner: OWNER, settings: &[] };

/// A worker's row of pg_dist_node.
async fn row(session: &Connection, worker: &Server) -> DistNode {
    let nodes = catalog(session).await.nodes;
    nodes.into_iter().find(|node| node.port == i32::from(worker.port)).expect("a registered worker")
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_activated() {
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    // The second one has no shards: citus_disable_node refuses others.
    let [first, second] = cluster.workers.as_slice() else { panic!("two workers") };
    commands::add_node(&session, "127.0.0.1", second.port).await.unwrap();

    let disable = format!("SELECT citus_disable_node('127.0.0.1', {}, true)", second.port);
    cluster.coordinator.sql(&[&disable]).await.unwrap();
    assert!(!row(&session, second).await.active);
    let id = commands::add_node(&session, "127.0.0.1", second.port).await.unwrap();
    let disabled = row(&session, second).await;
    assert!(!disabled.active && disabled.node_id == id, "adding it again does not heal it: {disabled:?}");
    commands::activate_node(&session, "127.0.0.1", second.port).await.unwrap();
    is_whole(&session, second).await;

    // An old copy of the metadata, none, and inactive by hand: a worker with shards.
    let broken =
        ["metadatasynced = false", "hasmetadata = false, metadatasynced = false", "isactive = false"];
    for flags in broken {
        let update = format!("UPDATE pg_dist_node SET {flags} WHERE nodeport = {}", first.port);
        cluster.coordinator.sql(&[&update]).await.unwrap();
        first.sql(&["DELETE FROM pg_dist_node"]).await.unwrap();
        commands::activate_node(&session, "127.0.0.1", first.port).await.unwrap();
        is_whole(&session, first).await;
        assert_eq!(cluster.coordinator.value("SELECT count(*) FROM dialogs").await, "5000");
    }
    for worker in [first, second] {
        commands::activate_node(&session, "127.0.0.1", worker.port).await.unwrap();
        is_whole(&session, worker).await;
    }
}

/// A copy of the metadata is one of what is active.
#[tokio::test]
async fn metadata_copied_while_a_member_is_inactive_lacks_it() {
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let [first, second] = cluster.workers.as_slice() else { panic!("two workers") };
    let known = async || second.value("SELECT count(*) FROM pg_dist_placement").await;
    let inactive = format!("UPDATE pg_dist_node SET isactive = false WHERE nodeport = {}", first.port);
    cluster.coordinator.sql(&[&inactive]).await.unwrap();
    commands::add_node(&session, "127.0.0.1", second.port).await.unwrap();
    let added = known().await;
    commands::activate_node(&session, "127.0.0.1", first.port).await.unwrap();
    let later = known().await;
    commands::activate_node(&session, "127.0.0.1", second.port).await.unwrap();
    if !skipped(OnlyCitus::PartialCopies) {
        assert_eq!((added.as_str(), later.as_str()), ("0", "0"));
    }
    assert_eq!(known().await, cluster.coordinator.value("SELECT count(*) FROM pg_dist_placement").await);
}

async fn is_whole(session: &Connection, worker: &Server) {
    let listed = row(session, worker).await;
    assert!(listed.active && listed.has_metadata && listed.metadata_synced, "{listed:?}");
    assert!(listed.should_have_shards, "{listed:?}");
    let seen = observe_node(&worker.session(DATABASE).await, &NODE).await.unwrap();
    assert_eq!((seen.group_id, seen.dist_node_rows, seen.missing_tables), (Some(listed.group_id), 3, 0));
}

async fn leftovers(server: &Server) -> Vec<Leftover> {
    observe_node(&server.session(DATABASE).await, &NODE).await.unwrap().leftovers
}

fn leftover(kind: LeftoverKind, name: &str) -> Leftover {
    Leftover { kind, name: name.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dead_moves_leave_is_dropped() {
    let cluster = Cluster::start(2, 1, "").await;
    let [source, target] = cluster.workers.as_slice() else { panic!("two workers") };
    what_no_row_lists_is_dropped_by_name(source, target).await;

    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    commands::add_node(&session, "127.0.0.1", target.port).await.unwrap();
    for crashed in [source, target] {
        a_worker_crashes_in_a_move(&cluster, &session, crashed).await;
    }
}

const PUBLICATION: &str = "citus_shard_move_publication_3_10_7";
const SLOT: &str = "citus_shard_move_slot_3_10_7";
const SUBSCRIPTION: &str = "citus_shard_move_subscription_10_7";
const ROLE: &str = "citus_shard_move_subscription_role_10_7";

/// What a dead move leaves on its source and on its target, and what is somebody else's or in use.
async fn leave_behind(source: &Server, target: &Server) {
    let slot = |name: &str| format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    source
        .sql(&[
            "SET citus.enable_ddl_propagation = off",
            "CREATE TABLE t (a int PRIMARY KEY)",
            "CREATE PUBLICATION mine FOR TABLE t",
            &format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE t"),
            &slot("mine"),
            &slot(SLOT),
            &slot("citus_shard_split_slot_3_10_8"),
        ])
        .await
        .unwrap();
    // One whose publisher is dead, one that works and keeps its slot in use.
    let subscribe = |name: &str, port: u16, slot: &str| {
        format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={port} dbname={DATABASE} user=postgres'
            PUBLICATION mine WITH (connect = false, slot_name = '{slot}')"
        )
    };
    target
        .sql(&[
            "SET citus.enable_ddl_propagation = off",
            "CREATE TABLE t (a int PRIMARY KEY)",
            &subscribe(SUBSCRIPTION, 1, SLOT),
            &subscribe("mine", source.port, "citus_shard_split_slot_3_10_8"),
            &format!("CREATE ROLE {ROLE} SUPERUSER"),
            &format!("ALTER SUBSCRIPTION {SUBSCRIPTION} OWNER TO {ROLE}"),
            &format!("ALTER SUBSCRIPTION {SUBSCRIPTION} ENABLE"),
            "ALTER SUBSCRIPTION mine ENABLE",
        ])
        .await
        .unwrap();
}

async fn what_no_row_lists_is_dropped_by_name(source: &Server, target: &Server) {
    leave_behind(source, target).await;
    let left = [leftover(LeftoverKind::Publication, PUBLICATION), leftover(LeftoverKind::Slot, SLOT)];
    eventually("a slot in use is not left over", Duration::from_secs(30), async || {
        let seen = leftovers(source).await;
        if seen == left { Ok(()) } else { Err(seen) }
    })
    .await;
    let other_left = [leftover(LeftoverKind::Role, ROLE), leftover(LeftoverKind::Subscription, SUBSCRIPTION)];
    assert_eq!(leftovers(target).await, other_left);

    let strangers =
        [LeftoverKind::Slot, LeftoverKind::Publication, LeftoverKind::Subscription, LeftoverKind::Role]
            .map(|kind| leftover(kind, "mine"));
    let in_use = leftover(LeftoverKind::Slot, "citus_shard_split_slot_3_10_8");
    for (server, left) in [(source, left), (target, other_left)] {
        let session = server.session(DATABASE).await;
        let all: Vec<_> = left.into_iter().chain(strangers.clone()).chain([in_use.clone()]).collect();
        for _ in 0..2 {
            commands::drop_leftovers(&session, &all).await.unwrap();
        }
        assert_eq!(leftovers(server).await, []);
    }
    let stays = "SELECT (SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots),
        (SELECT string_agg(pubname, ',') FROM pg_publication)";
    assert_eq!(source.value(stays).await, "citus_shard_split_slot_3_10_8,mine|mine");
    assert_eq!(target.value("SELECT string_agg(subname, ',') FROM pg_subscription").await, "mine");
    target
        .sql(&["SET citus.enable_ddl_propagation = off", "DROP SUBSCRIPTION mine", "DROP TABLE t"])
        .await
        .unwrap();
    source
        .sql(&["SELECT pg_drop_replication_slot('mine')", "DROP PUBLICATION mine", "DROP TABLE t"])
        .await
        .unwrap();
}

/// What remains is listed in pg_dist_cleanup, or has Citus' name for it: both ways together leave nothing.
async fn a_worker_crashes_in_a_move(cluster: &Cluster, session: &Connection, crashed: &Server) {
    let source = &cluster.workers[0];
    let before = cluster.coordinator.value("SELECT count(*) FROM dialogs").await;
    let id = commands::start_rebalance(session, &EVEN).await.unwrap().expect("a job");
    eventually("a move has its slot", Duration::from_mins(1), async || {
        let slots = source.value("SELECT count(*) FROM pg_replication_slots").await;
        if slots == "0" { Err(slots) } else { Ok(()) }
    })
    .await;
    crashed.stop(Signal::Quit).await;
    assert!(commands::stop_rebalance(session, id).await.unwrap());
    job(session, "the job ends", |job| job.id == id && !job.is_open()).await;
    crashed.launch().await;

    // A slot counts as left over only when the source has noticed that its reader is gone; Citus cleans up meanwhile.
    eventually("something is left of a move that died", Duration::from_secs(20), async || {
        let remains = [leftovers(&cluster.workers[0]).await, leftovers(&cluster.workers[1]).await];
        let listed = catalog(session).await.cleanup;
        eprintln!("{} crashed: {remains:?}; listed: {listed:?}", crashed.name);
        if remains.concat().is_empty() && listed.is_empty() { Err(()) } else { Ok(()) }
    })
    .await;
    eventually("everything is gone", Duration::from_mins(1), async || {
        commands::cleanup_orphans(session).await.unwrap();
        let listed = catalog(session).await.cleanup;
        for worker in &cluster.workers {
            let names: Vec<_> = listed.iter().map(|row| row.object_name.as_str()).collect();
            let unlisted: Vec<_> = leftovers(worker)
                .await
                .into_iter()
                .filter(|left| !names.contains(&left.name.as_str()))
                .collect();
            commands::drop_leftovers(&worker.session(DATABASE).await, &unlisted).await.unwrap();
        }
        let left = [leftovers(&cluster.workers[0]).await, leftovers(&cluster.workers[1]).await].concat();
        if left.is_empty() && listed.is_empty() { Ok(()) } else { Err((left, listed)) }
    })
    .await;
    assert_eq!(cluster.coordinator.value("SELECT count(*) FROM dialogs").await, before);
}

/// An open transaction that has read from the old shards keeps Citus from dropping them, without an error: whoever
/// waits for it must be told whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_what_is_to_be_dropped_is_named() {
    let cluster = Cluster::start(2, 2, "citus.defer_shard_delete_interval = '1h'").await;
    let session = cluster.session().await;
    // Few shards: each move tries again to drop what is held, a second for each shard.
    let few = [
        "SET citus.shard_count = 4",
        "CREATE TABLE few (a int PRIMARY KEY)",
        "SELECT create_distributed_table('few', 'a')",
    ];
    commands::create_owner(&session, OWNER, &SecretString::from("x"), DATABASE).await.unwrap();
    cluster.coordinator.sql_as_owner(&few).await.unwrap();
    let leaving = &cluster.workers[1];
    let on_leaving = leaving.session(DATABASE).await;
    let reader = cluster.coordinator.client("postgres").await.unwrap();
    let read = ["BEGIN", "SELECT count(*) FROM few", "SELECT pg_backend_pid()"];
    let pid = run_statements(&reader, &read).await.unwrap().remove(0);

    commands::set_should_have_shards(&session, "127.0.0.1", leaving.port, false).await.unwrap();
    let id = commands::start_drain(&session, &QUICK).await.unwrap().expect("a job");
    job(&session, "the drain ends", |job| job.id == id && job.state == JobState::Finished).await;
    let warnings = commands::cleanup_orphans(&session).await.unwrap();
    assert!(warnings.iter().any(|words| words.contains("failed to clean up")), "{warnings:?}");
    let cleanup = catalog(&session).await.cleanup;
    let objects: Vec<&str> = cleanup.iter().map(|row| row.object_name.as_str()).collect();
    assert_eq!(objects.len(), 2, "the rows stay: {objects:?}");

    let holders = lock_holders(&on_leaving, &objects).await.unwrap();
    let [holder] = holders.as_slice() else { panic!("one holder: {holders:?}") };
    assert!(holder.contains(&format!("on shop-worker-1 holds {} and 1 more", objects[0])), "{holder}");
    assert!(holder.contains("user postgres") && holder.contains("citus_internal"), "{holder}");
    if !skipped(OnlyCitus::GlobalPids) {
        let origin = format!("begun by pid {pid} on 127.0.0.1:{}", cluster.coordinator.port);
        assert!(holder.contains(&origin), "{holder} <> {origin}");
    }
    assert_eq!(lock_holders(&on_leaving, &objects).await.unwrap(), holders, "the words stay the same");
    assert_eq!(
        lock_holders(&on_leaving, &["public.none_1", "no_slot"]).await.unwrap(),
        <[String; 0]>::default()
    );

    // A transaction that is prepared holds its locks without a session.
    let locked = format!("SELECT FROM {}", objects[0]);
    leaving.sql(&["BEGIN", &locked, "PREPARE TRANSACTION 'left by somebody'"]).await.unwrap();
    run_statements(&reader, &["COMMIT"]).await.unwrap();
    eventually("only the prepared transaction holds it", Duration::from_secs(10), async || {
        let holders = lock_holders(&on_leaving, &objects).await.unwrap();
        if holders.len() == 1 && holders[0].contains("the prepared transaction left by somebody") {
            Ok(())
        } else {
            Err(holders)
        }
    })
    .await;
    commands::cleanup_orphans(&session).await.unwrap();
    assert_eq!(catalog(&session).await.cleanup.len(), 1);
    leaving.sql(&["ROLLBACK PREPARED 'left by somebody'"]).await.unwrap();
    commands::cleanup_orphans(&session).await.unwrap();
    assert_eq!(catalog(&session).await.cleanup, []);
}

/// An application may call what it makes as Citus calls its own, as often as it likes.
#[tokio::test]
async fn foreign_objects_with_names_of_moves_are_left_alone() {
    let server = Server::start("shop-worker-0", "").await;
    server.prepare().await;
    let session = server.session(DATABASE).await;
    let many = "DO $$ BEGIN FOR i IN 1..20000 LOOP
        EXECUTE format('CREATE PUBLICATION citus_shard_move_publication_%s_10_%s', i % 9, i); END LOOP; END $$";
    let quiet = "SET citus.enable_ddl_propagation = off";
    let password = SecretString::from("x");
    commands::create_owner(&session, OWNER, &password, DATABASE).await.unwrap();
    server.sql_as_owner(&[quiet, many]).await.unwrap();
    let mine = "DO $$ BEGIN FOR i IN 1..1200 LOOP
        EXECUTE format('CREATE PUBLICATION citus_shard_split_publication_9_10_%s', i); END LOOP; END $$";
    let beside = "CREATE PUBLICATION citus_shard_move_publication_of_mine";
    server.sql(&[quiet, mine, beside]).await.unwrap();

    let seen = observe_node(&session, &NODE).await.unwrap();
    assert_eq!((seen.leftovers.len(), seen.leftovers_in_all), (1000, 1200), "counted, and bounded");
    assert!(seen.leftovers.iter().all(|left| left.name.starts_with("citus_shard_split_publication_9_10_")));
    let theirs = ["citus_shard_move_publication_1_10_1", "citus_shard_move_publication_of_mine"]
        .map(|name| leftover(LeftoverKind::Publication, name));
    commands::drop_leftovers(&session, &theirs).await.unwrap();
    commands::drop_leftovers(&session, &seen.leftovers[..100]).await.unwrap();
    let seen = observe_node(&session, &NODE).await.unwrap();
    assert_eq!((seen.leftovers.len(), seen.leftovers_in_all), (1000, 1100));
    assert_eq!(server.value("SELECT count(*) FROM pg_publication").await, "21101", "no other is dropped");
}
