//! What an application's role can try in order to become superuser: by settings, names and code that somebody with more
//! rights runs. Each function that is planted here says in the server's log as whom it ran.

use std::time::Duration;

use dialog_operator::citus::{BUILT_IN_SCHEMA, NodeQuestion, SqlErrorKind, commands, observe_node};
use dialog_operator::snapshot::JobState;
use secrecy::SecretString;
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, PASSWORD, Server, Signal, skipped},
};

use crate::moves::{EVEN, catalog, job, with_dialogs};

/// A function of the application's that tells as whom it ran.
pub fn planted(head: &str, answer: &str) -> String {
    format!(
        "CREATE FUNCTION {head} LANGUAGE plpgsql VOLATILE AS $$
        BEGIN RAISE LOG 'planted code ran as %', current_user; {answer} END $$"
    )
}

/// The same, of a kind that PostgreSQL evaluates early.
pub fn planted_immutable(head: &str, answer: &str) -> String {
    planted(head, answer).replace("VOLATILE", "IMMUTABLE")
}

pub fn ran_as(server: &Server, role: &str) -> bool {
    // Not the statement that made it, which is logged as well.
    let line = format!("LOG:  planted code ran as {role}");
    server.log().lines().any(|said| said.contains(&line))
}

async fn application(cluster: &Cluster) {
    let session = cluster.session().await;
    commands::create_owner(&session, OWNER, &SecretString::from(PASSWORD), DATABASE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_database_lead_no_superuser_to_planted_code() {
    if skipped(OnlyCitus::OwnSessions) {
        return;
    }
    let cluster = Cluster::start(1, 1, "").await;
    with_dialogs(&cluster, &cluster.session().await).await;
    let edges = "public.dump_local_wait_edges(OUT waiting_pid int4, OUT waiting_node_id int4,
        OUT waiting_transaction_num int8, OUT waiting_transaction_stamp timestamptz, OUT blocking_pid int4,
        OUT blocking_node_id int4, OUT blocking_transaction_num int8, OUT blocking_transaction_stamp timestamptz,
        OUT blocking_transaction_waiting bool) RETURNS SETOF record";
    cluster.coordinator.sql_as_owner(&[&planted(edges, "RETURN;")]).await.unwrap();
    for refused in [
        "ALTER DATABASE dialogs SET search_path = public, pg_catalog",
        "ALTER DATABASE dialogs SET role = 'shop'",
        "ALTER DATABASE dialogs RESET dialog.schema_hash",
        "ALTER DATABASE dialogs SET dialog.schema_hash = 'another'",
        "ALTER DATABASE dialogs RESET ALL",
        "ALTER DATABASE dialogs ALLOW_CONNECTIONS false",
        "ALTER ROLE postgres SET search_path = public",
        "ALTER ROLE dialog_mover SUPERUSER",
        "DROP DATABASE dialogs",
    ] {
        let answer = cluster.coordinator.sql_as_owner(&[refused]).await;
        assert!(answer.is_err(), "{refused}: {answer:?}");
    }
    // A person with the rights to do it, by mistake: the settings of the role still beat those of the database.
    for server in cluster.all() {
        server.sql_alone(&["ALTER DATABASE dialogs SET search_path = public, pg_catalog"]).await.unwrap();
    }
    let worker = &cluster.workers[0];
    worker.restart().await;
    let before = worker.log().matches("dump_local_wait_edges()").count();
    eventually("Citus looks for deadlocks over new connections", Duration::from_mins(1), async || {
        let looks = worker.log().matches("dump_local_wait_edges()").count() - before;
        if looks > 2 { Ok(()) } else { Err(looks) }
    })
    .await;
    for server in cluster.all() {
        assert!(!ran_as(server, "postgres"), "{}", server.name);
        assert_eq!(server.value("SELECT rolsuper FROM pg_roles WHERE rolname = 'shop'").await, "f");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_runs_code_of_a_table_as_no_superuser() {
    if skipped(OnlyCitus::OwnSessions) {
        return;
    }
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let check = planted("public.seen(text) RETURNS bool", "RETURN true;");
    let guarded = "ALTER TABLE dialogs ADD CHECK (public.seen(message))";
    cluster.coordinator.sql_as_owner(&[&check, guarded]).await.unwrap();
    let target = &cluster.workers[1];
    commands::add_node(&session, "127.0.0.1", target.port).await.unwrap();
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    job(&session, "the job ends", |job| job.id == id && job.state == JobState::Finished).await;
    assert!(ran_as(target, "dialog_mover"), "the constraint was not even looked at");
    for server in cluster.all() {
        assert!(!ran_as(server, "postgres"), "{}", server.name);
    }
    let mover = "SELECT rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls FROM pg_roles
        WHERE rolname = 'dialog_mover'";
    assert_eq!(target.value(mover).await, "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_meets_planted_names_as_the_application() {
    let cluster = Cluster::start(1, 1, "").await;
    application(&cluster).await;
    let call = planted("public.create_distributed_table(text, text) RETURNS void", "RETURN;");
    let count = planted("public.count(bigint) RETURNS bigint", "RETURN 1;");
    cluster.coordinator.sql_as_owner(&[&call, &count]).await.unwrap();
    cluster.coordinator.apply(BUILT_IN_SCHEMA, "h").await.unwrap();
    assert!(!ran_as(&cluster.coordinator, "postgres"));
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'dialogs'";
    assert_eq!(cluster.coordinator.value(owner).await, OWNER);
    assert!(catalog(&cluster.session().await).await.tables.iter().any(|table| table.distributed));
}

/// What the SQL sets for itself ends with it: neither a session of the operator's nor one of Citus' is led astray.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_schema_sets_ends_with_it() {
    let cluster = Cluster::start(1, 1, "").await;
    application(&cluster).await;
    let kept = cluster.session().await;
    let sql = "CREATE SCHEMA app; SET search_path TO app, public; SET lock_timeout = '1ms';
        SET default_transaction_read_only = off; SET citus.enable_ddl_propagation = on;
        CREATE TABLE trace (who text, at timestamptz DEFAULT now());
        CREATE TABLE t (id bigint PRIMARY KEY); SELECT create_distributed_table('t', 'id');
        SET default_transaction_read_only = on; SET idle_session_timeout = '1s'";
    cluster.coordinator.apply(sql, "h").await.unwrap();
    let unnest = planted("app.unnest(a text[]) RETURNS SETOF text", "RETURN;");
    cluster.coordinator.sql_as_owner(&[&unnest]).await.unwrap();
    let question = NodeQuestion { database: DATABASE, owner: OWNER, settings: &["work_mem"] };
    for session in [&kept, &cluster.session().await] {
        for _ in 0..3 {
            observe_node(session, &question).await.unwrap();
            assert_eq!(catalog(session).await.schema_hash.as_deref(), Some("h"));
        }
    }
    commands::recover_transactions(&kept).await.unwrap();
    assert!(!ran_as(&cluster.coordinator, "postgres"));
    // A role that the SQL may not take, and one that is nobody's.
    for (hash, refused) in [("1", "SET ROLE postgres"), ("2", "SET SESSION AUTHORIZATION postgres")] {
        let error = cluster.coordinator.apply(refused, hash).await.unwrap_err();
        assert!(error.is_wrong_schema(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_bears_a_lost_shards_name_is_not_read() {
    if skipped(OnlyCitus::OwnSessions) {
        return;
    }
    let cluster = Cluster::start(2, 2, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    let (stays, gone) = (&cluster.workers[0], &cluster.workers[1]);
    let lost =
        "SELECT 'public.' || shard_name(logicalrelid, shardid) FROM pg_dist_shard JOIN pg_dist_placement
        USING (shardid) JOIN pg_dist_node USING (groupid) WHERE nodeport = ";
    let names = cluster.coordinator.sql(&[&format!("{lost}{} ORDER BY 1 LIMIT 3", gone.port)]).await.unwrap();
    gone.stop(Signal::Quit).await;
    let evil = planted("public.evil() RETURNS int", "RETURN 1;");
    let early = planted_immutable("public.early(int) RETURNS int", "RETURN 1;");
    stays.sql(&["SET citus.enable_ddl_propagation = off", &evil, &early]).await.unwrap();
    let off = "SET citus.enable_ddl_propagation = off";
    // The right owner and kind, and with rows: what its index calls is evaluated by whoever plans a query of it.
    let own = [
        &format!("CREATE TABLE {} (a int)", names[1]),
        &format!("INSERT INTO {} VALUES (1)", names[1]),
        &format!("CREATE INDEX ON {} ((a + public.early(1)))", names[1]),
        &format!("ALTER TABLE {} OWNER TO {OWNER}", names[1]),
    ];
    for statement in own {
        stays.sql(&[off, statement]).await.unwrap();
    }
    stays.forget_log();
    let error = commands::force_remove(&session, &[("127.0.0.1", gone.port)]).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::DataInTheWay), "{error}");
    assert!(!ran_as(stays, "postgres"), "the planner looked into the index");
    let manual = "SET citus.enable_manual_changes_to_shards = on";
    stays.sql(&[off, manual, &format!("DROP TABLE {}", names[1])]).await.unwrap();
    for (name, make, drop) in [
        (&names[0], "CREATE VIEW {} AS SELECT 1 AS a WHERE public.evil() = 2", "DROP VIEW {}"),
        (&names[1], "CREATE TABLE {} (a int)", "DROP TABLE {}"),
        (&names[2], "CREATE MATERIALIZED VIEW {} AS SELECT 1 AS a", "DROP MATERIALIZED VIEW {}"),
    ] {
        let (make, drop) = (make.replace("{}", name), drop.replace("{}", name));
        let owned = format!("GRANT CREATE ON SCHEMA public TO {OWNER}");
        stays.sql(&[off, &owned, &make]).await.unwrap();
        if make.contains("VIEW") {
            let kind = if make.contains("MATERIALIZED") { "MATERIALIZED VIEW" } else { "VIEW" };
            stays.sql(&[off, &format!("ALTER {kind} {name} OWNER TO {OWNER}")]).await.unwrap();
        }
        let error = commands::force_remove(&session, &[("127.0.0.1", gone.port)]).await.unwrap_err();
        assert_eq!(error.refusal(), Some(SqlErrorKind::DataInTheWay), "{error}");
        assert!(error.to_string().contains(name.as_str()), "{error}");
        assert!(!ran_as(stays, "postgres"), "{make}");
        stays.sql(&[off, "SET citus.enable_manual_changes_to_shards = on", &drop]).await.unwrap();
    }
}

/// An extension that the spec asks for later, when the application may have made what its script prefers.
#[tokio::test(flavor = "multi_thread")]
async fn the_script_of_an_extension_meets_no_code_of_the_application() {
    let cluster = Cluster::start(1, 1, "").await;
    application(&cluster).await;
    let session = cluster.session().await;
    let owner = async |statements: &[&str]| cluster.coordinator.sql_as_owner(statements).await.unwrap();
    owner(&["CREATE FUNCTION mine(int) RETURNS int LANGUAGE sql AS 'SELECT 1'"]).await;
    for (make, drop, named) in [
        (
            planted("public.lower(varchar) RETURNS text", "RETURN '';"),
            "DROP FUNCTION public.lower(varchar)",
            "the function public.lower",
        ),
        (
            "CREATE OPERATOR public.|| (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int)".to_owned(),
            "DROP OPERATOR public.|| (int, int)",
            "the operator public.||",
        ),
    ] {
        owner(&[&make]).await;
        let error = commands::create_extension_of_spec(&session, "unaccent").await.unwrap_err();
        assert_eq!(error.refusal(), Some(SqlErrorKind::ScriptMeetsCode), "{error}");
        assert!(error.to_string().contains(named), "{error}");
        owner(&[drop]).await;
    }
    for _ in 0..2 {
        commands::create_extension_of_spec(&session, "unaccent").await.unwrap();
    }
    owner(&[&planted("public.lower(varchar) RETURNS text", "RETURN '';")]).await;
    commands::create_extension_of_spec(&session, "unaccent").await.unwrap();
}
