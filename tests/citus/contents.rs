//! What a worker holds that is not the cluster's own: each kind is seen while it is there and not afterwards, and
//! looking runs nobody's code.

use dialog_operator::{
    citus::{ContentsQuestion, NodeQuestion, Tls, observe_contents, observe_node},
    snapshot::{Contents, LocalTable, OtherDatabase},
};
use testkit::postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, run_statements, skipped};

use crate::moves::{catalog, with_dialogs};

async fn contents(server: &Server) -> Contents {
    without(server, &[]).await
}

/// What is there beside what pg_dist_cleanup lists.
pub async fn without(server: &Server, cleanup: &[&str]) -> Contents {
    let session = server.session(DATABASE).await;
    let (target, ask) = (server.target(DATABASE), ContentsQuestion { cleanup });
    observe_contents(&session, (&target, &Tls::Off), &ask).await.unwrap()
}

async fn in_database(server: &Server, database: &str, statements: &[&str]) -> Vec<String> {
    let client = server.client_over(database, "postgres").await.unwrap();
    run_statements(&client, statements).await.unwrap_or_else(|error| panic!("{statements:?}: {error}"))
}

fn only(seen: &Contents) -> &OtherDatabase {
    let [database] = seen.databases.as_slice() else { panic!("one database: {seen:#?}") };
    database
}

fn rows(name: &str, rows: i64) -> LocalTable {
    LocalTable { name: name.to_owned(), rows: Some(rows) }
}

/// Tables of all kinds that Citus knows, and what it keeps for them.
const OURS: &[&str] = &[
    "CREATE TABLE places (id int PRIMARY KEY)",
    "SELECT create_reference_table('places')",
    "INSERT INTO places VALUES (1)",
];
const OURS_IN_CITUS: &[&str] = &[
    "CREATE SCHEMA shelf",
    "CREATE TABLE shelf.users (id bigserial PRIMARY KEY, number bigint GENERATED ALWAYS AS IDENTITY, note text)",
    "SELECT create_distributed_table('shelf.users', 'id')",
    "INSERT INTO shelf.users (note) SELECT 'n' FROM generate_series(1, 100)",
    "CREATE TABLE orders (user_id bigint, at date, PRIMARY KEY (user_id, at)) PARTITION BY RANGE (at)",
    "CREATE TABLE orders_25 PARTITION OF orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
    "SELECT create_distributed_table('orders', 'user_id', colocate_with => 'shelf.users')",
    "CREATE SEQUENCE numbers",
    "CREATE TABLE counted (id bigint PRIMARY KEY DEFAULT nextval('numbers'))",
    "SELECT create_distributed_table('counted', 'id')",
    "CREATE TABLE kept_here (id int PRIMARY KEY)",
    "SELECT citus_add_local_table_to_metadata('kept_here')",
    "SET citus.enable_schema_based_sharding = on",
    "CREATE SCHEMA tenant",
    "CREATE TABLE tenant.log (t text)",
    "CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM orders",
    "CREATE VIEW newest AS SELECT * FROM orders",
    "CREATE PUBLICATION everything FOR TABLE counted",
    "CREATE TABLE only_on_the_coordinator (id int)",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_clusters_own_is_nothing() {
    let cluster = Cluster::start(2, 2, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    cluster.coordinator.sql(OURS).await.unwrap();
    if !skipped(OnlyCitus::OtherTables) {
        cluster.coordinator.sql(OURS_IN_CITUS).await.unwrap();
    }
    // Of a session, of an extension, of the system.
    let worker = &cluster.workers[1];
    let client = worker.client("postgres").await.unwrap();
    run_statements(&client, &["CREATE TEMPORARY TABLE mine (id int)", "INSERT INTO mine VALUES (1)"])
        .await
        .unwrap();
    for seen in [contents(&cluster.workers[0]).await, contents(worker).await] {
        assert!(seen.is_empty(), "{seen:#?}");
    }
}

/// A parameter of the spec that writes `"public"."dialogs"` where everybody else reads `public.dialogs`.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_read_alike_however_the_server_quotes() {
    let cluster = Cluster::start(1, 1, "quote_all_identifiers = on").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let worker = &cluster.workers[0];
    let ask = NodeQuestion { database: DATABASE, owner: OWNER, settings: &[] };
    let seen = observe_node(&worker.session(DATABASE).await, &ask).await.unwrap();
    assert_eq!(seen.missing_tables, 0);
    assert!(contents(worker).await.is_empty());
    let tables = catalog(&session).await.tables;
    assert_eq!(tables.iter().map(|table| &*table.name).collect::<Vec<_>>(), ["public.dialogs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn local_tables_of_our_database_are_seen() {
    let cluster = Cluster::start(1, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let worker = &cluster.workers[0];
    worker
        .sql(&[
            "SET citus.enable_ddl_propagation = off",
            "CREATE SCHEMA mine",
            "CREATE TABLE mine.notes (t text)",
            "INSERT INTO mine.notes SELECT 'n' FROM generate_series(1, 30)",
            "CREATE UNLOGGED TABLE dialogs_log (t text)",
            "CREATE TABLE public.\"dialogs_102008x\" (id int) PARTITION BY RANGE (id)",
            "CREATE SEQUENCE numbers",
            "CREATE MATERIALIZED VIEW mine.seven AS SELECT 7 AS number FROM generate_series(1, 7)",
            "SELECT lo_create(0)",
            "CREATE PUBLICATION theirs FOR TABLE mine.notes",
        ])
        .await
        .unwrap();
    let seen = contents(worker).await;
    let local = &seen.local;
    assert_eq!((local.tables, local.rows, local.uncounted, local.large_objects), (4, 37, 0, 1), "{local:?}");
    assert_eq!(local.first[..2], [rows("mine.notes", 30), rows("mine.seven", 7)]);
    assert_eq!(local.sequences.first, ["public.numbers"]);
    assert_eq!((seen.publications.count, seen.publications.first[0].as_str()), (1, "theirs"));
    // What Citus will drop itself is not a person's.
    let seen = without(worker, &["mine.notes", "public.dialogs_log"]).await;
    assert_eq!((seen.local.tables, seen.local.rows), (2, 7), "{seen:?}");
    worker
        .sql(&[
            "SET citus.enable_ddl_propagation = off",
            "DROP SCHEMA mine CASCADE",
            "DROP TABLE dialogs_log, \"dialogs_102008x\"",
            "DROP SEQUENCE numbers",
            "DROP PUBLICATION theirs",
            "SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
        ])
        .await
        .unwrap();
    let seen = contents(worker).await;
    assert!(seen.is_empty(), "{seen:#?}");
}

/// Names, places and databases that look like the cluster's own, or like nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_the_clusters_own_is_seen() {
    let cluster = Cluster::start(2, 2, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let [first, worker] = cluster.workers.as_slice() else { panic!("two workers") };
    let elsewhere = "SELECT shard_name(logicalrelid, shardid) FROM pg_dist_shard JOIN pg_dist_placement
        USING (shardid) JOIN pg_dist_node USING (groupid) WHERE nodeport = ";
    let shard = cluster.coordinator.sql(&[&format!("{elsewhere}{} ORDER BY 1 LIMIT 1", first.port)]).await;
    let shard = shard.unwrap().remove(0);
    let (off, manual) =
        ("SET citus.enable_ddl_propagation = off", "SET citus.enable_manual_changes_to_shards = on");
    for name in [&format!("public.{shard}"), "information_schema.mine"] {
        let make =
            [off, &format!("CREATE TABLE {name} (t text)"), &format!("INSERT INTO {name} VALUES ('n')")];
        worker.sql(&make).await.unwrap();
        assert_eq!(contents(worker).await.local.first, [rows(name, 1)]);
        worker.sql(&[off, manual, &format!("DROP TABLE {name}")]).await.unwrap();
    }
    worker.sql_alone(&["CREATE DATABASE plain"]).await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('citus_shard_move_slot_1_2_3', 'pgoutput')";
    in_database(worker, "plain", &[slot]).await;
    worker.sql(&["SELECT pg_create_physical_replication_slot('citus_shard_move_slot_1_2_4')"]).await.unwrap();
    let seen = contents(worker).await.slots;
    let first = ["citus_shard_move_slot_1_2_3 of database plain", "citus_shard_move_slot_1_2_4"];
    assert_eq!((seen.count, seen.first.iter().map(String::as_str).collect()), (2, Vec::from(first)));
    worker.sql(&["SELECT pg_drop_replication_slot('citus_shard_move_slot_1_2_4')"]).await.unwrap();
    let drop = "SELECT pg_drop_replication_slot('citus_shard_move_slot_1_2_3')";
    in_database(worker, "plain", &[drop, "CREATE TABLE \"t\n\u{1b}[31m\" (id int)"]).await;
    worker
        .sql_alone(&[
            "CREATE DATABASE \"we\"\"ird\n'; DROP\" TEMPLATE plain",
            "ALTER DATABASE \"we\"\"ird\n'; DROP\" CONNECTION LIMIT 0",
            "DROP DATABASE plain",
            "ALTER DATABASE template0 ALLOW_CONNECTIONS true",
        ])
        .await
        .unwrap();
    let seen = contents(worker).await;
    let found = only(&seen);
    assert_eq!((found.name.as_str(), found.holds.tables, &found.closed), ("we\"ird '; DROP", 1, &None));
    assert_eq!(found.holds.first[0].name, "public.\"t [31m\"");
    in_database(worker, "template0", &["CREATE TABLE here (id int)"]).await;
    let seen = contents(worker).await;
    assert!(
        seen.databases.iter().any(|found| found.name == "template0" && found.holds.tables == 1),
        "{seen:?}"
    );
}

/// A database beside ours, with Citus on all nodes and a table of 8 shards.
async fn analytics(cluster: &Cluster) {
    let servers: Vec<&Server> = cluster.all().collect();
    for server in &servers {
        server.sql_alone(&["CREATE DATABASE analytics"]).await.unwrap();
        in_database(server, "analytics", &["CREATE EXTENSION citus"]).await;
    }
    let host = |server: &Server| format!("'127.0.0.1', {}", server.port);
    let mut statements = vec![format!("SELECT citus_set_coordinator_host({})", host(servers[0]))];
    statements.extend(servers[1..].iter().map(|worker| format!("SELECT citus_add_node({})", host(worker))));
    statements.extend(
        [
            "SET citus.shard_count = 8",
            "CREATE TABLE events (id bigint PRIMARY KEY)",
            "SELECT create_distributed_table('events', 'id')",
            "INSERT INTO events SELECT generate_series(1, 1000)",
        ]
        .map(ToOwned::to_owned),
    );
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    in_database(servers[0], "analytics", &statements).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_databases_are_seen() {
    let cluster = Cluster::start(2, 2, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let worker = &cluster.workers[1];
    worker.sql_alone(&["CREATE DATABASE plain", "CREATE DATABASE closed"]).await.unwrap();
    assert!(contents(worker).await.is_empty(), "databases without anything in them");
    worker.sql_alone(&["ALTER DATABASE closed ALLOW_CONNECTIONS false"]).await.unwrap();
    let seen = contents(worker).await;
    assert_eq!(only(&seen).name, "closed");
    assert!(only(&seen).closed.as_ref().is_some_and(|why| why.contains("datallowconn")), "{seen:?}");
    worker
        .sql_alone(&["ALTER DATABASE closed ALLOW_CONNECTIONS true", "DROP DATABASE closed"])
        .await
        .unwrap();
    for database in ["plain", "postgres", "template1"] {
        let make =
            ["CREATE TABLE notes (t text)", "INSERT INTO notes SELECT 'n' FROM generate_series(1, 12)"];
        in_database(worker, database, &make).await;
        let seen = contents(worker).await;
        let found = only(&seen);
        assert_eq!((found.name.as_str(), &found.closed, &found.member), (database, &None, &None));
        assert_eq!(found.holds.first, [rows("public.notes", 12)]);
        in_database(worker, database, &["DROP TABLE notes"]).await;
        assert!(contents(worker).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_citus_cluster_on_the_same_servers_is_seen() {
    let cluster = Cluster::start(2, 2, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    analytics(&cluster).await;
    let mut all = 0;
    for worker in &cluster.workers {
        let seen = contents(worker).await;
        let member = only(&seen).member.clone().expect("a member of a cluster");
        assert_eq!((member.nodes, member.shards, only(&seen).holds.tables), (3, 4, 0), "{seen:#?}");
        all += member.rows;
    }
    assert_eq!(all, 1000);
    // Drained and removed there as well, and dropped: nothing keeps it from going.
    let worker = &cluster.workers[1];
    worker.sql_alone(&["DROP DATABASE analytics WITH (FORCE)"]).await.unwrap();
    assert!(contents(worker).await.is_empty());
}
