//! What an application's role may not do, and what it may: to plant names. Nobody of ours ever meets them, also where a
//! person has led every session to them by mistake.

use std::time::Duration;

use dialog_operator::citus::{
    ContentsQuestion, NodeQuestion, Tls, commands, lock_holders, observe_contents, observe_node,
};
use dialog_operator::snapshot::JobState;
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, skipped},
};

use crate::{
    hostile::{planted, ran_as},
    moves::{QUICK, catalog, job, with_dialogs},
};

const SETTINGS: &[&str] = &[
    "search_path = public",
    "role = 'shop'",
    "session_preload_libraries = 'x'",
    "local_preload_libraries = 'x'",
    "session_replication_role = replica",
    "default_transaction_read_only = on",
    "statement_timeout = 1",
    "lock_timeout = 1",
    "idle_session_timeout = 1",
    "idle_in_transaction_session_timeout = 1",
    "citus.shard_replication_factor = 2",
    "citus.enable_ddl_propagation = off",
];
const WHOSE: &[&str] = &[
    "DATABASE dialogs",
    "ROLE postgres",
    "ROLE dialog_mover",
    "ROLE ALL",
    "ROLE postgres IN DATABASE dialogs",
    "ROLE ALL IN DATABASE dialogs",
    "SYSTEM",
];
const REFUSED: &[&str] = &[
    "ALTER DATABASE dialogs RENAME TO x",
    "ALTER DATABASE dialogs OWNER TO shop",
    "ALTER DATABASE dialogs CONNECTION LIMIT 0",
    "ALTER DATABASE dialogs ALLOW_CONNECTIONS false",
    "GRANT dialog_mover TO shop",
    "GRANT postgres TO shop",
    "GRANT pg_execute_server_program TO shop",
    "CREATE ROLE x",
    "ALTER ROLE shop SUPERUSER",
    "ALTER ROLE shop CREATEROLE",
    "ALTER ROLE shop REPLICATION",
    "ALTER ROLE dialog_mover PASSWORD 'x'",
    "SET ROLE dialog_mover",
    "SET SESSION AUTHORIZATION postgres",
    "CREATE SCHEMA pg_x",
    "CREATE TABLE pg_catalog.x (a int)",
    "CREATE FUNCTION pg_catalog.x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER SCHEMA public OWNER TO shop",
    "DROP SCHEMA public CASCADE",
    "CREATE CAST (int AS text) WITHOUT FUNCTION",
    "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p WITH (connect = false)",
    "SELECT pg_create_physical_replication_slot('a')",
    "COPY dialogs TO PROGRAM 'id'",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "SELECT citus_add_node('a', 1)",
    "SELECT citus_set_node_property('127.0.0.1', 1, 'shouldhaveshards', false)",
    "DELETE FROM pg_dist_node",
    "INSERT INTO pg_dist_cleanup VALUES (1, 1, 1, 'x', 1, 1)",
    "DROP EXTENSION citus CASCADE",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_an_applications_role_may_not_do() {
    let cluster = Cluster::start(1, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    commands::prepare_mover(&session).await.unwrap();
    let settings =
        WHOSE.iter().flat_map(|whose| SETTINGS.iter().map(move |set| format!("ALTER {whose} SET {set}")));
    for statement in settings.chain(REFUSED.iter().map(ToString::to_string)) {
        let answer = cluster.coordinator.sql_as_owner(&[&statement]).await;
        assert!(answer.is_err(), "{statement}: {answer:?}");
    }
    // What a worker is told by way of a query is told as the same role.
    let remote = "SELECT count(*) FROM run_command_on_workers('ALTER ROLE shop SUPERUSER') WHERE success";
    if !skipped(OnlyCitus::OwnSessions) {
        assert_eq!(cluster.coordinator.sql_as_owner(&[remote]).await.unwrap(), ["0"]);
    }
}

/// Functions, operators, types and relations that are named as what Citus and the operator ask for.
async fn plant(server: &Server) {
    let edges = "(OUT waiting_pid int4, OUT waiting_node_id int4, OUT waiting_transaction_num int8,
        OUT waiting_transaction_stamp timestamptz, OUT blocking_pid int4, OUT blocking_node_id int4,
        OUT blocking_transaction_num int8, OUT blocking_transaction_stamp timestamptz,
        OUT blocking_transaction_waiting bool) RETURNS SETOF record";
    for schema in ["app", "shop", "public"] {
        if schema != "public" {
            server.sql_as_owner(&[&format!("CREATE SCHEMA {schema}")]).await.unwrap();
        }
        let mut statements: Vec<String> = [
            ("same(text, text) RETURNS bool", "RETURN true;"),
            ("joined(text, text) RETURNS text", "RETURN '';"),
            ("count() RETURNS bigint", "RETURN 1;"),
            ("unnest(text[]) RETURNS SETOF text", "RETURN;"),
            ("format(text, text) RETURNS text", "RETURN '';"),
            ("to_regclass(text) RETURNS regclass", "RETURN NULL;"),
            ("pg_total_relation_size(text) RETURNS bigint", "RETURN 1;"),
            ("citus_total_relation_size(regclass, bool) RETURNS bigint", "RETURN 1;"),
            ("worker_drop_shell_table(text) RETURNS void", "RETURN;"),
            ("assign_distributed_transaction_id(int, bigint, timestamptz) RETURNS void", "RETURN;"),
            (&format!("dump_local_wait_edges{edges}"), "RETURN;"),
        ]
        .into_iter()
        .map(|(head, answer)| planted(&format!("{schema}.{head}"), answer))
        .collect();
        for (operator, function) in [("=", "same"), ("~~", "same"), ("||", "joined")] {
            statements.push(format!(
                "CREATE OPERATOR {schema}.{operator} (FUNCTION = {schema}.{function}, LEFTARG = text, RIGHTARG = text)"
            ));
        }
        for name in ["text", "int4", "regclass", "oid", "bool"] {
            statements.push(format!("CREATE TYPE {schema}.{name} AS (a pg_catalog.int4)"));
        }
        for name in
            ["pg_dist_node", "pg_dist_placement", "pg_dist_local_group", "pg_class", "pg_prepared_xacts"]
        {
            statements.push(format!("CREATE VIEW {schema}.{name} AS SELECT {schema}.count() AS a"));
        }
        for statement in statements {
            server.sql_as_owner(&[&statement]).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }
}

async fn look_at_everything(cluster: &Cluster, server: &Server) {
    let session = server.session(DATABASE).await;
    let question = NodeQuestion { database: DATABASE, owner: OWNER, settings: &["work_mem"] };
    observe_node(&session, &question).await.unwrap();
    let ask = ContentsQuestion { cleanup: &["public.dialogs"] };
    observe_contents(&session, (&server.target(DATABASE), &Tls::Off), &ask).await.unwrap();
    lock_holders(&session, &["public.dialogs"]).await.unwrap();
    catalog(&cluster.session().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_names_are_met_by_nobody_of_ours() {
    if skipped(OnlyCitus::OwnSessions) {
        return;
    }
    let cluster = Cluster::start(2, 1, "").await;
    with_dialogs(&cluster, &cluster.session().await).await;
    plant(&cluster.coordinator).await;
    let path = "search_path = app, shop, public, pg_catalog";
    // The operator's own sessions have a path of their own, also while the role's pin is gone.
    let by_mistake = format!("ALTER ROLE postgres SET {path}");
    cluster.coordinator.sql_alone(&[&by_mistake]).await.unwrap();
    look_at_everything(&cluster, &cluster.coordinator).await;
    let said = cluster.coordinator.log();
    let by_us = said.lines().find(|line| line.contains("dialog-operator LOG:  planted code ran as postgres"));
    assert_eq!(by_us, None);
    // Citus' sessions have the role's.
    for server in cluster.all() {
        server.prepare().await;
        for whose in ["DATABASE dialogs", "ROLE ALL"] {
            server.sql_alone(&[&format!("ALTER {whose} SET {path}")]).await.unwrap();
        }
        server.restart().await;
        server.forget_log();
    }
    let session = cluster.session().await;
    look_at_everything(&cluster, &cluster.workers[0]).await;
    commands::recover_transactions(&session).await.unwrap();
    commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();
    // The owner's own session meets them: that is the person's mistake, and breaks no more than its own statements.
    cluster.coordinator.sql_alone(&["ALTER ROLE ALL RESET search_path"]).await.unwrap();
    for server in cluster.all() {
        server
            .sql_alone(&[
                "ALTER ROLE ALL RESET search_path",
                "ALTER DATABASE dialogs SET search_path = public",
            ])
            .await
            .unwrap();
    }
    let id = commands::start_rebalance(&session, &QUICK).await.unwrap().expect("a job");
    job(&session, "the job ends", |job| job.id == id && job.state == JobState::Finished).await;
    commands::cleanup_orphans(&session).await.unwrap();
    eventually("Citus has looked for deadlocks", Duration::from_mins(1), async || {
        let looks = cluster.workers[1].log().matches("dump_local_wait_edges()").count();
        if looks > 2 { Ok(()) } else { Err(looks) }
    })
    .await;
    for server in cluster.all() {
        for role in ["postgres", "dialog_mover"] {
            assert!(!ran_as(server, role), "{} as {role}", server.name);
        }
    }
}
