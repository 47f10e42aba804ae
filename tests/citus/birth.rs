//! From bare servers to a cluster with the dialogs schema.

use std::time::Duration;

use dialog_operator::{
    citus::{
        BUILT_IN_SCHEMA, CatalogQuestion, NodeQuestion, SqlError, SqlErrorKind, check_connection, commands,
        observe_citus, observe_node,
    },
    snapshot::Postgres,
};
use secrecy::SecretString;

use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, Signal, run_statements, skipped},
};

const NODE: NodeQuestion<'_> =
    NodeQuestion { database: DATABASE, owner: OWNER, settings: &["wal_level", "no.such_setting"] };
pub const CATALOG: CatalogQuestion<'_> = CatalogQuestion {
    strategy: "by_shard_count",
    owner: OWNER,
    with_plan: true,
    drain_only: false,
    with_sizes: true,
};

async fn seen(server: &Server, database: &str) -> Postgres {
    observe_node(&server.session(database).await, &NODE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_born() {
    let (coordinator, first, second) = tokio::join!(
        Server::start("shop-coordinator", "dialog.config_hash = 'c1'\ndialog.startup_hash = 'b1'"),
        Server::start("shop-worker-0", ""),
        Server::start("shop-worker-1", ""),
    );
    bare_servers_are_prepared(&coordinator).await;
    for worker in [&first, &second] {
        worker.prepare().await;
    }
    nodes_are_registered(&coordinator, &first, &second).await;
    the_owner_can_log_in_and_its_password_is_not_logged(&coordinator, &first).await;
    a_failed_schema_leaves_nothing(&coordinator).await;
    the_dialogs_schema_is_applied(&coordinator, &first).await;
    a_later_worker_gets_what_was_made_before(&coordinator, &second).await;
    reads_write_nothing(&coordinator, &first).await;
}

async fn bare_servers_are_prepared(server: &Server) {
    let bare = seen(server, "postgres").await;
    assert!(!bare.database && !bare.role_pinned, "{bare:?}");
    assert_eq!(
        (bare.extension.as_ref(), bare.group_id, bare.dist_node_rows, bare.disk),
        (None, None, 0, None)
    );
    assert!(bare.available_extension.is_some(), "{bare:?}");
    assert_eq!(bare.major, bare.version.split('.').next().unwrap().parse::<u32>().unwrap());
    assert_eq!((bare.config_hash.as_deref(), bare.startup_hash.as_deref()), (Some("c1"), Some("b1")));
    assert_eq!(bare.settings.get("wal_level").map(String::as_str), Some("logical"));
    assert!(!bare.settings.contains_key("no.such_setting"), "an unknown setting has no value: {bare:?}");

    let over_postgres = server.session("postgres").await;
    for _ in 0..2 {
        commands::bootstrap_server(&over_postgres, DATABASE).await.unwrap();
    }
    let with_database = seen(server, DATABASE).await;
    assert!(with_database.database && with_database.role_pinned, "{with_database:?}");
    assert_eq!((with_database.extension.as_ref(), with_database.group_id), (None, None));
    assert_eq!(
        bare.system_identifier,
        server.value("SELECT system_identifier FROM pg_control_system()").await
    );
    let session = server.session(DATABASE).await;
    let error = observe_citus(&session, &CATALOG).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::NoExtension), "{error}");

    for _ in 0..2 {
        commands::create_extension(&session, bare.available_extension.as_deref()).await.unwrap();
    }
    // The same session as before: it notices by itself that the extension is there now.
    let prepared = observe_node(&session, &NODE).await.unwrap();
    assert_eq!(prepared.extension, bare.available_extension);
    assert_eq!((prepared.group_id, prepared.dist_node_rows, prepared.missing_tables), (Some(0), 0, 0));
    let disk = prepared.disk.expect("space on the volume");
    assert!(0 < disk.free && disk.free <= disk.total, "{disk:?}");
    // Now that the extension is known, all of it comes in one round trip: the same answer.
    let again = observe_node(&session, &NODE).await.unwrap();
    assert_eq!(Postgres { disk: None, ..again }, Postgres { disk: None, ..prepared });
}

async fn nodes_are_registered(coordinator: &Server, first: &Server, second: &Server) {
    let session = coordinator.session(DATABASE).await;
    for _ in 0..2 {
        commands::set_coordinator_host(&session, "127.0.0.1", coordinator.port).await.unwrap();
    }
    assert_eq!(check_connection(&session, "127.0.0.1", first.port).await, Ok(()));
    let unreachable = check_connection(&session, "127.0.0.1", 1).await.unwrap_err();
    assert!(unreachable.contains("shop-coordinator") && unreachable.contains("127.0.0.1"), "{unreachable}");
    assert!(!unreachable.contains('\n'), "one line: {unreachable:?}");

    let error = commands::add_node(&session, "127.0.0.1", 1).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::RemoteUnreachable), "{error}");
    assert!(error.to_string().contains("failed with the following error"), "Citus' words are kept: {error}");

    let id = commands::add_node(&session, "127.0.0.1", first.port).await.unwrap();
    assert_eq!(
        commands::add_node(&session, "127.0.0.1", first.port).await.unwrap(),
        id,
        "adding is idempotent"
    );
    let citus = observe_citus(&session, &CATALOG).await.unwrap();
    assert_eq!(citus.nodes.len(), 2, "{:?}", citus.nodes);
    assert_eq!((citus.nodes[0].group_id, citus.nodes[0].should_have_shards), (0, false));
    let worker = &citus.nodes[1];
    assert_eq!((worker.node_id, worker.name.as_str(), worker.port), (id, "127.0.0.1", i32::from(first.port)));
    assert!(worker.active && worker.has_metadata && worker.metadata_synced && worker.should_have_shards);

    let seen_by_worker = seen(first, DATABASE).await;
    assert_eq!((seen_by_worker.group_id, seen_by_worker.dist_node_rows), (Some(worker.group_id), 2));
    assert_eq!(seen(second, DATABASE).await.group_id, Some(0), "not a member");
}

async fn the_owner_can_log_in_and_its_password_is_not_logged(coordinator: &Server, first: &Server) {
    // As in a cluster: people log in to the coordinator with a password.
    coordinator.write(
        "pg_hba.conf",
        &format!("host all {OWNER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"),
    );
    let session = coordinator.session(DATABASE).await;
    commands::reload(&session).await.unwrap();
    commands::create_owner(&session, OWNER, &SecretString::from("another"), DATABASE).await.unwrap();
    assert!(coordinator.client(OWNER).await.is_err(), "that is not its password");
    commands::create_owner(&session, OWNER, &SecretString::from("secret-of-the-shop"), DATABASE)
        .await
        .unwrap();
    coordinator.client(OWNER).await.unwrap();
    assert!(coordinator.log().contains("pg_reload_conf"), "statements are logged here");
    assert!(
        first.log().contains("pg_control_system") || first.log().contains("CREATE EXTENSION"),
        "and here"
    );
    assert_eq!(first.value(&format!("SELECT count(*) FROM pg_roles WHERE rolname = '{OWNER}'")).await, "1");
    logs_no_secret(coordinator);
    logs_no_secret(first);
    for uid in ["u1", "u2"] {
        commands::record_owner_secret(&session, DATABASE, uid).await.unwrap();
    }
    // In an order in which one needs the other, and twice.
    for name in ["earthdistance", "hstore", "hstore"] {
        commands::create_extension_of_spec(&session, name).await.unwrap();
    }
    let error = commands::create_extension_of_spec(&session, "no_such").await.unwrap_err();
    assert!(error.cause().is_refusal() && error.to_string().contains("no_such"), "{error}");
    let citus = observe_citus(&session, &CATALOG).await.unwrap();
    assert_eq!((citus.owner_exists, citus.owner_secret.as_deref()), (true, Some("u2")));
    assert!(["cube", "earthdistance", "hstore"].iter().all(|name| citus.extensions.contains(*name)));
    if !skipped(OnlyCitus::LaterGrants) {
        assert_eq!(first.value(EXTENSIONS).await, "3", "they are on the workers");
    }
}

const EXTENSIONS: &str = "SELECT count(*) FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace
    WHERE nspname = 'public' AND extname IN ('cube', 'earthdistance', 'hstore')";

fn logs_no_secret(server: &Server) {
    let log = server.log();
    let secret =
        log.lines().find(|line| line.contains("secret-of-the-shop") || line.contains("SCRAM-SHA-256$"));
    assert_eq!(secret, None, "the log of {} holds a secret", server.name);
}

async fn a_failed_schema_leaves_nothing(coordinator: &Server) {
    let session = coordinator.session(DATABASE).await;
    let sql = "-- mine\nCREATE TABLE mine (a int PRIMARY KEY);\nSELECT create_distributed_table('mine', 'a');\n\
        SELECT 1,\n  no_such_column;";
    let error = coordinator.apply(sql, "h1").await.unwrap_err();
    let SqlError::Schema { line: 5, .. } = &error else { panic!("line 5 is wrong: {error:?}") };
    assert_eq!(error.sqlstate(), Some("42703"));
    assert!(
        error.to_string().contains("`SELECT 1,`") && error.to_string().contains("no_such_column"),
        "{error}"
    );

    // An error without a position in the text: the statement is named all the same.
    let sql = "CREATE TABLE mine (a int);\nCREATE TABLE mine (a int);";
    let error = coordinator.apply(sql, "h1").await.unwrap_err();
    assert!(matches!(&error, SqlError::Schema { line: 2, .. }), "{error:?}");

    let error = coordinator.apply("CREATE TABLE mine (a int);\nCOMMIT;\nSELECT 1/0", "h1").await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::UnusableSchema), "{error}");
    assert!(error.to_string().contains("line 2, `COMMIT`"), "{error}");

    assert_eq!(coordinator.value("SELECT count(*) FROM pg_tables WHERE tablename = 'mine'").await, "0");
    let citus = observe_citus(&session, &CATALOG).await.unwrap();
    assert_eq!((citus.tables.len(), citus.schema_hash), (0, None));
    let open = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'dialog-operator' AND state LIKE 'idle in transaction%'";
    assert_eq!(coordinator.value(open).await, "0", "a transaction was left open");
}

async fn the_dialogs_schema_is_applied(coordinator: &Server, first: &Server) {
    let session = coordinator.session(DATABASE).await;
    let sql = format!(
        "{BUILT_IN_SCHEMA};
        CREATE TABLE places (id int PRIMARY KEY, name text); SELECT create_reference_table('places');
        CREATE SCHEMA shelf; CREATE TYPE shelf.mood AS ENUM ('good', 'bad');
        CREATE FUNCTION shelf.one() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    );
    coordinator.apply(&sql, "h1").await.unwrap();
    let citus = observe_citus(&session, &CATALOG).await.unwrap();
    assert_eq!(citus.schema_hash.as_deref(), Some("h1"));
    let tables: Vec<_> =
        citus.tables.iter().map(|t| (t.name.as_str(), t.distributed, t.replica_identity)).collect();
    assert_eq!(tables, [("public.dialogs", true, true), ("public.places", false, true)]);
    let worker = citus.nodes[1].group_id;
    assert_eq!(
        (citus.groups[&0].shards, citus.groups[&worker].shards),
        (0, 32),
        "reference tables do not count"
    );
    assert_eq!(seen(first, DATABASE).await.missing_tables, 0);

    let owners = "SELECT DISTINCT owner FROM (
        SELECT relowner::regrole::text AS owner FROM pg_class WHERE relname IN ('dialogs', 'dialogs_from_user', 'places')
        UNION ALL SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'shelf'
        UNION ALL SELECT typowner::regrole::text FROM pg_type WHERE typname IN ('mood', 'dialogs')
        UNION ALL SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'one') AS all_of_them";
    assert_eq!(coordinator.value(owners).await, OWNER);

    let application = coordinator.client(OWNER).await.unwrap();
    let rows = run_statements(
        &application,
        &[
            "INSERT INTO dialogs (from_user, to_user, message)
                SELECT n % 40, n % 50, 'hello' FROM generate_series(1, 1000) AS n",
            "INSERT INTO dialogs (from_user, to_user, message, message_id)
                VALUES (1, 2, 'once', '00000000-0000-4000-8000-000000000001')",
            "INSERT INTO dialogs (from_user, to_user, message, message_id)
                VALUES (1, 2, 'once', '00000000-0000-4000-8000-000000000001')
                ON CONFLICT (to_user, message_id) DO NOTHING",
            "SELECT count(*) FROM dialogs",
        ],
    );
    assert_eq!(rows.await.unwrap(), ["1001"]);
    let own = [
        "CREATE TABLE own (id int PRIMARY KEY)",
        "SELECT create_distributed_table('own', 'id')",
        "INSERT INTO own VALUES (1)",
        "DROP TABLE own",
    ];
    run_statements(&application, &own).await.unwrap();

    // The SQL has run: a second time it is refused, and what is there stays.
    let error = coordinator.apply(BUILT_IN_SCHEMA, "h2").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42P07"), "{error}");
    assert_eq!(observe_citus(&session, &CATALOG).await.unwrap().schema_hash.as_deref(), Some("h1"));
    assert_eq!(coordinator.value("SELECT count(*) FROM dialogs").await, "1001");
}

async fn a_later_worker_gets_what_was_made_before(coordinator: &Server, second: &Server) {
    let session = coordinator.session(DATABASE).await;
    commands::add_node(&session, "127.0.0.1", second.port).await.unwrap();
    let role = format!(
        "SELECT rolcanlogin, has_schema_privilege(oid, 'public', 'CREATE') FROM pg_roles WHERE rolname = '{OWNER}'"
    );
    assert_eq!(second.value(&role).await, if skipped(OnlyCitus::LaterGrants) { "t|f" } else { "t|t" });
    assert_eq!(second.value("SELECT count(*) FROM pg_class WHERE relname = 'dialogs'").await, "1");
    assert_eq!(second.value("SELECT count(*) FROM places").await, "0");
    if !skipped(OnlyCitus::LaterGrants) {
        assert_eq!(second.value(EXTENSIONS).await, "3", "extensions come along");
    }
    logs_no_secret(second);
}

/// A write takes a transaction's number. Citus' own processes write as well, now and then: one quiet look is enough.
async fn reads_write_nothing(coordinator: &Server, first: &Server) {
    const NEXT: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())";
    let session = coordinator.session(DATABASE).await;
    let worker = first.session(DATABASE).await;
    eventually("a look during which nothing is written", Duration::from_secs(30), async || {
        let before = (coordinator.value(NEXT).await, first.value(NEXT).await);
        let citus = observe_citus(&session, &CATALOG).await.unwrap();
        assert!(
            citus.planned_moves.as_ref().is_some_and(|plan| plan.known().is_some()),
            "{:?}",
            citus.planned_moves
        );
        assert!(citus.groups.values().all(|group| group.bytes.is_some()), "{:?}", citus.groups);
        observe_node(&session, &NODE).await.unwrap();
        observe_node(&worker, &NODE).await.unwrap();
        assert_eq!(check_connection(&session, "127.0.0.1", first.port).await, Ok(()));
        let after = (coordinator.value(NEXT).await, first.value(NEXT).await);
        if before == after { Ok(()) } else { Err((before, after)) }
    })
    .await;
}

/// What is in a database elsewhere, owned by another role there.
const ELSEWHERE: &[&str] = &[
    "CREATE ROLE elsewhere",
    "CREATE SCHEMA talk AUTHORIZATION elsewhere",
    "CREATE FUNCTION talk.shorten(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT left($1, 10); $$",
    "CREATE TABLE talk.messages(recipient bigint, id bigint GENERATED ALWAYS AS IDENTITY, said text DEFAULT 'a;b',
       mood text CHECK (mood IN ('good', 'bad')), PRIMARY KEY (recipient, id))",
    "CREATE INDEX ON talk.messages (recipient) WHERE mood = 'bad'",
    "CREATE VIEW talk.sad AS SELECT * FROM talk.messages WHERE mood = 'bad'",
    "COMMENT ON TABLE talk.messages IS 'one ''row'' a message; no more'",
    "ALTER TABLE talk.messages OWNER TO elsewhere",
    "GRANT SELECT ON talk.messages TO PUBLIC",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_another_database_is_applied() {
    let cluster = Cluster::start(1, 1, "").await;
    let server = &cluster.coordinator;
    server.sql_alone(&["CREATE DATABASE elsewhere"]).await.unwrap();
    run_statements(&server.client_over("elsewhere", "postgres").await.unwrap(), ELSEWHERE).await.unwrap();
    let session = cluster.session().await;
    let password = SecretString::from("secret-of-the-shop");
    commands::create_owner(&session, OWNER, &password, DATABASE).await.unwrap();

    // Its roles are not here, or are no roles of the application.
    let error = server.apply(&server.dump("elsewhere", &[]), "1").await.unwrap_err();
    assert!(matches!(&error, SqlError::Schema { .. }) && error.cause().is_refusal(), "{error}");
    for words in ["OWNER TO elsewhere", "--no-owner"] {
        assert!(error.to_string().contains(words), "{error}");
    }

    let dump = server.dump("elsewhere", &["--no-owner", "--no-privileges"]);
    let bounded = dump.contains("\\restrict ");
    println!("pg_dump writes \\restrict: {bounded}");
    // A newer pg_dump than the machine's does.
    let dump = if bounded { dump } else { format!("--\n\\restrict xYz09\n{dump}\n\\unrestrict xYz09\n") };
    let sql = format!("{dump}\nSELECT create_distributed_table('talk.messages', 'recipient');\n");
    server.apply(&sql, "1").await.unwrap();
    assert_eq!(server.value("SELECT count(*) FROM pg_dist_placement").await, "32");
    let owner = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'talk'";
    assert_eq!(server.value(owner).await, OWNER);
    server
        .sql_as_owner(&[
            "INSERT INTO talk.messages(recipient, mood) SELECT i, 'bad' FROM generate_series(1, 50) i",
        ])
        .await
        .unwrap();
    assert_eq!(server.sql_as_owner(&["SELECT count(*) FROM talk.sad"]).await.unwrap(), ["50"]);
}

/// Citus says of what a node refuses that it failed, and passes its words on beside that.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_refuses_what_it_is_given_is_told_in_its_words() {
    if skipped(OnlyCitus::LaterGrants) {
        return;
    }
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    // Citus makes roles in the order of their memberships; who granted one may come later.
    let grants = [
        "CREATE ROLE r2",
        "CREATE ROLE ro",
        "CREATE ROLE r1",
        "GRANT ro TO r1 WITH ADMIN OPTION",
        "GRANT ro TO r2 GRANTED BY r1",
    ];
    cluster.coordinator.sql(&grants).await.unwrap();
    let port = cluster.workers[1].port;
    let refused = commands::add_node(&session, "127.0.0.1", port).await.unwrap_err();
    let words = refused.to_string();
    assert!(words.contains("r1\"") && words.contains(&format!("said by 127.0.0.1:{port}")), "{words}");
    assert!(refused.cause().is_refusal(), "it does not pass by itself: {refused:?}");
    // One that is silent is waited for.
    cluster.workers[1].stop(Signal::Quit).await;
    let silent = commands::add_node(&session, "127.0.0.1", port).await.unwrap_err();
    assert!(!silent.cause().is_refusal(), "{silent:?}");
    cluster.workers[1].launch().await;
    cluster.coordinator.sql(&["DROP ROLE r2"]).await.unwrap();
    // An extension that the coordinator has, and that is not in the worker's image.
    let lacking = [
        "SET allow_system_table_mods = on",
        "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
         VALUES (90001, 'nowhere', 10, 'public'::regnamespace, false, '1.0')",
        "INSERT INTO pg_dist_object (classid, objid, objsubid) VALUES ('pg_extension'::regclass, 90001, 0)",
    ];
    cluster.coordinator.sql(&lacking).await.unwrap();
    let refused = commands::add_node(&session, "127.0.0.1", port).await.unwrap_err();
    let words = refused.to_string();
    println!("an extension that is missing: {words}");
    assert!(words.contains("nowhere") && words.contains(&format!("said by 127.0.0.1:{port}")), "{words}");
    assert!(refused.cause().is_refusal(), "it does not pass by itself: {refused:?}");
    let dropped = [
        "SET allow_system_table_mods = on",
        "DELETE FROM pg_dist_object WHERE objid = 90001",
        "DELETE FROM pg_extension WHERE oid = 90001",
    ];
    cluster.coordinator.sql(&dropped).await.unwrap();
    commands::add_node(&session, "127.0.0.1", port).await.unwrap();
}
