//! What a node that joins makes anew as superuser, and what of it would run code of the application: seen before it
//! joins, and refused.

use dialog_operator::citus::{SqlErrorKind, commands};
use testkit::postgres::{Cluster, DATABASE, OWNER, OnlyCitus, PASSWORD, Server, run_statements, skipped};

use crate::hostile::{planted_immutable, ran_as};

/// What each needs.
const BASE: &[&str] = &[
    "CREATE DOMAIN checked AS text CHECK (evil(VALUE))",
    "CREATE TYPE pair AS (a checked, b int)",
    "CREATE TABLE plain (id bigint PRIMARY KEY, k text)",
    "SELECT create_distributed_table('plain', 'id')",
];
const PARTITIONED: &str = "SELECT create_distributed_table('p', 'id')";
const TABLE: &str = "SELECT create_distributed_table('x', 'id')";

/// What runs the application's code, and what says so.
const WAYS: &[(&str, &[&str])] = &[
    (
        "a bound of a partition of public.p",
        &[
            "CREATE TABLE p (id bigint, k checked) PARTITION BY LIST (k)",
            "CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a')",
            PARTITIONED,
        ],
    ),
    (
        "the partition key of public.p",
        &[
            "CREATE TABLE p (id bigint, k text) PARTITION BY LIST (((k IS NULL) = evil(coalesce('a', 'b'))))",
            "CREATE TABLE p_a PARTITION OF p FOR VALUES IN (true)",
            PARTITIONED,
        ],
    ),
    (
        "CHECK p_a_check of the partition public.p_a",
        &[
            "CREATE TABLE p (id bigint, k text) PARTITION BY LIST (k)",
            "CREATE TABLE p_a PARTITION OF p (CHECK (evil('k'))) FOR VALUES IN ('a')",
            PARTITIONED,
        ],
    ),
    (
        // In place of a function in SQL comes what is in it.
        "CHECK p_a_k_check of the partition public.p_a calls public.through",
        &[
            "CREATE FUNCTION through(text) RETURNS bool LANGUAGE sql
                AS 'SELECT public.evil(''x'') AND $1 IS NOT NULL'",
            "CREATE TABLE p (id bigint, k text) PARTITION BY LIST (k)",
            "CREATE TABLE p_a PARTITION OF p (CHECK (through(k))) FOR VALUES IN ('a')",
            PARTITIONED,
        ],
    ),
    (
        "the aggregate public.most",
        &[
            "CREATE FUNCTION step(pair, text) RETURNS pair LANGUAGE sql IMMUTABLE AS 'SELECT $1'",
            "CREATE AGGREGATE most (text) (SFUNC = step, STYPE = pair, INITCOND = '(x,1)')",
        ],
    ),
    ("a default of public.x", &["CREATE TABLE x (id bigint PRIMARY KEY, k checked[] DEFAULT '{a}')", TABLE]),
    (
        "CHECK x_k_check",
        &["CREATE TABLE x (id bigint PRIMARY KEY, k pair CHECK (k <> '(a,1)'::pair))", TABLE],
    ),
    ("the view or rule of public.x", &["CREATE VIEW x AS SELECT '(a,1)'::pair AS k, id FROM plain"]),
    (
        "the function public.x",
        &["CREATE FUNCTION x(a pair DEFAULT '(a,1)') RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'"],
    ),
    ("an index of public.plain", &["CREATE INDEX ON plain ((CASE WHEN k > 'a' THEN '{a}'::checked[] END))"]),
];

/// What looks like it, and runs nothing.
const HARMLESS: &[&[&str]] = &[
    &["CREATE TABLE x (id bigint PRIMARY KEY, k checked DEFAULT 'a' CHECK (evil(k)))", TABLE],
    &[
        "CREATE FUNCTION fine(text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN true; END'",
        "CREATE TABLE p (id bigint, k text) PARTITION BY LIST (k)",
        "CREATE TABLE p_a PARTITION OF p (CHECK (fine(k) AND length(k) < 9)) FOR VALUES IN ('a')",
        PARTITIONED,
    ],
    &["CREATE FUNCTION x() RETURNS pair LANGUAGE sql AS $$ SELECT '(a,1)'::pair $$"],
];

async fn make(cluster: &Cluster, statements: &[&str]) {
    let evil = planted_immutable("public.evil(text) RETURNS bool", "RETURN true;");
    for statements in [&[evil.as_str()], BASE, statements] {
        cluster.coordinator.sql_as_owner(statements).await.unwrap_or_else(|error| {
            panic!("{statements:?}: {error}");
        });
    }
}

/// The application's everything goes, and the worker is as if it had never joined.
async fn unmake(cluster: &Cluster, worker: &Server) {
    let remove = format!(
        "SELECT citus_remove_node('127.0.0.1', {0}) FROM pg_dist_node WHERE nodeport = {0}",
        worker.port
    );
    cluster.coordinator.sql(&[&remove]).await.unwrap();
    cluster
        .coordinator
        .sql(&["DROP OWNED BY shop CASCADE", "DROP FUNCTION IF EXISTS evil CASCADE"])
        .await
        .unwrap();
    application(cluster).await;
    let alone = "SET citus.enable_ddl_propagation = off";
    let drop =
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'shop') THEN DROP OWNED BY shop CASCADE;
        END IF; END $$";
    worker.sql(&[alone, drop, "DROP FUNCTION IF EXISTS evil CASCADE"]).await.unwrap();
}

async fn application(cluster: &Cluster) {
    let session = cluster.session().await;
    commands::create_owner(&session, OWNER, &secrecy::SecretString::from(PASSWORD), DATABASE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_runs_no_code_of_the_application() {
    if skipped(OnlyCitus::OwnSessions) {
        return;
    }
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    application(&cluster).await;
    let worker = &cluster.workers[1];
    for (place, statements) in WAYS {
        make(&cluster, statements).await;
        let error = commands::add_node(&session, "127.0.0.1", worker.port).await.unwrap_err();
        assert_eq!(error.refusal(), Some(SqlErrorKind::JoiningRunsCode), "{error}");
        assert!(error.to_string().contains(place), "{place}: {error}");
        assert!(!ran_as(worker, "postgres"), "{place}");
        // It is no guess: without the look Citus does run it.
        let client = cluster.coordinator.client("postgres").await.unwrap();
        run_statements(&client, &[&format!("SELECT citus_add_node('127.0.0.1', {})", worker.port)])
            .await
            .unwrap();
        assert!(ran_as(worker, "postgres"), "{place} runs nothing");
        unmake(&cluster, worker).await;
        worker.forget_log();
    }
    for statements in HARMLESS {
        make(&cluster, statements).await;
        commands::add_node(&session, "127.0.0.1", worker.port).await.unwrap();
        assert!(!ran_as(worker, "postgres"), "{statements:?}");
        unmake(&cluster, worker).await;
    }
    // A member that is told everything anew, and one that is given up; and what a superuser answers for may run.
    make(&cluster, WAYS[5].1).await;
    let first = &cluster.workers[0];
    let refused = commands::activate_node(&session, "127.0.0.1", first.port).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(SqlErrorKind::JoiningRunsCode), "{refused}");
    cluster.coordinator.sql(&["ALTER FUNCTION evil OWNER TO postgres"]).await.unwrap();
    commands::add_node(&session, "127.0.0.1", worker.port).await.unwrap();
    first.stop(testkit::postgres::Signal::Quit).await;
    cluster
        .coordinator
        .sql(&["SET citus.enable_ddl_propagation = off", "ALTER FUNCTION evil OWNER TO shop"])
        .await
        .unwrap();
    let refused = commands::force_remove(&session, &[("127.0.0.1", first.port)]).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(SqlErrorKind::JoiningRunsCode), "{refused}");
    cluster
        .coordinator
        .sql(&["SET citus.enable_ddl_propagation = off", "ALTER FUNCTION evil OWNER TO postgres"])
        .await
        .unwrap();
    commands::force_remove(&session, &[("127.0.0.1", first.port)]).await.unwrap();
}

/// The code of one owner of a table runs with the rights of all of them.
#[tokio::test(flavor = "multi_thread")]
async fn no_job_has_the_rights_of_who_owns_the_server() {
    let cluster = Cluster::start(1, 1, "").await;
    let session = cluster.session().await;
    application(&cluster).await;
    let table = [
        "CREATE ROLE clerk LOGIN",
        "GRANT CREATE ON SCHEMA public TO clerk",
        "CREATE TABLE ledger (id bigint PRIMARY KEY)",
        "SELECT create_distributed_table('ledger', 'id')",
        "ALTER TABLE ledger OWNER TO clerk",
    ];
    cluster.coordinator.sql(&table).await.unwrap();
    commands::prepare_mover(&session).await.unwrap();
    for role in ["pg_execute_server_program", "pg_write_server_files", "pg_read_server_files", "postgres"] {
        cluster.coordinator.sql(&[&format!("GRANT {role} TO clerk")]).await.unwrap();
        let error = commands::prepare_mover(&session).await.unwrap_err();
        assert_eq!(error.refusal(), Some(SqlErrorKind::SuperuserWouldMove), "{error}");
        assert!(error.to_string().contains(role), "{error}");
        cluster.coordinator.sql(&[&format!("REVOKE {role} FROM clerk")]).await.unwrap();
    }
    commands::prepare_mover(&session).await.unwrap();
}
