//! What is in the way of moves is seen before a job starts, each is really in the way, and the groups that it is not
//! about move all the same.

use dialog_operator::{
    api::spec::TransferMode,
    citus::{
        Connection, PINNING,
        commands::{self, RebalanceOptions},
    },
    snapshot::{JobState, Observed, Obstacle, ObstacleKind, Pins},
};
use testkit::postgres::{Cluster, DATABASE, OWNER, OnlyCitus, skipped};

use crate::moves::{EVEN, catalog, job, with_dialogs};

const PINNED: RebalanceOptions<'_> = RebalanceOptions { strategy: PINNING, ..EVEN };

/// A member that has everything, and a second one that is to get its part.
async fn uneven(tables: &[&str]) -> (Cluster, Connection) {
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    cluster.coordinator.sql(tables).await.unwrap();
    commands::add_node(&session, "127.0.0.1", cluster.workers[1].port).await.unwrap();
    (cluster, session)
}

async fn obstacles(session: &Connection) -> Vec<Obstacle> {
    let found = catalog(session).await.obstacles;
    assert_eq!(usize::try_from(found.total).unwrap(), found.listed.len(), "{found:?}");
    found.listed
}

/// Those of one table, by kind.
async fn of(session: &Connection, table: &str) -> Vec<(ObstacleKind, Option<String>, Option<String>)> {
    let all = obstacles(session).await.into_iter().filter(|obstacle| obstacle.table == table);
    all.map(|obstacle| (obstacle.kind, obstacle.what, obstacle.value)).collect()
}

fn table(name: &str, owner: &str) -> [String; 3] {
    [
        format!("CREATE TABLE {name} (id bigint PRIMARY KEY)"),
        format!("SELECT create_distributed_table('{name}', 'id', colocate_with => 'none', shard_count => 2)"),
        format!("ALTER TABLE {name} OWNER TO {owner}"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn obstacles_are_seen_with_their_causes() {
    let owned = table("led", "app_owner");
    let mut tables: Vec<&str> =
        vec!["CREATE ROLE app_owner NOLOGIN", "GRANT CREATE ON SCHEMA public TO app_owner"];
    tables.extend(owned.iter().map(String::as_str));
    let (cluster, session) = uneven(&tables).await;
    let sql = async |statements: &[&str]| cluster.coordinator.sql(statements).await.unwrap();
    assert_eq!(of(&session, "public.led").await, [(ObstacleKind::OwnerCannotLogIn, None, None)]);
    let listed = obstacles(&session).await;
    assert_eq!((listed.len(), listed[0].owner.as_str()), (1, "app_owner"), "{listed:?}");
    assert_eq!(listed[0].groups, [catalog(&session).await.nodes[1].group_id], "where its shards are");

    sql(&["ALTER ROLE app_owner LOGIN CONNECTION LIMIT 0"]).await;
    assert_eq!(of(&session, "public.led").await, [(ObstacleKind::OwnerHasNoConnections, None, None)]);
    sql(&["ALTER ROLE app_owner CONNECTION LIMIT -1", "REVOKE CREATE ON SCHEMA public FROM app_owner"]).await;
    let create = Some("public".to_owned());
    assert_eq!(of(&session, "public.led").await, [(ObstacleKind::OwnerCannotCreate, create, None)]);
    sql(&["GRANT CREATE ON SCHEMA public TO app_owner"]).await;

    for (set, reset, kind) in [
        ("ALTER ROLE app_owner SET", "ALTER ROLE app_owner RESET", ObstacleKind::SettingOfRole),
        (
            "ALTER ROLE app_owner IN DATABASE dialogs SET",
            "ALTER ROLE app_owner IN DATABASE dialogs RESET",
            ObstacleKind::SettingOfRoleInDatabase,
        ),
        ("ALTER DATABASE dialogs SET", "ALTER DATABASE dialogs RESET", ObstacleKind::SettingOfDatabase),
    ] {
        assert_eq!(DATABASE, "dialogs");
        for (name, value) in [("statement_timeout", "100s"), ("default_transaction_read_only", "on")] {
            // Over another database: a session of one that is read-only could not reset it on all nodes.
            let set = format!("{set} {name} = '{value}'");
            cluster.coordinator.sql_alone(&[&set]).await.unwrap();
            let expected = [(kind, Some(name.to_owned()), Some(value.to_owned()))];
            assert_eq!(of(&session, "public.led").await, expected);
            cluster.coordinator.sql_alone(&[&format!("{reset} {name}")]).await.unwrap();
        }
    }
    // The role's own setting beats the database's, and one that says off is none.
    let beaten = [
        "ALTER DATABASE dialogs SET statement_timeout = '1min'",
        "ALTER ROLE app_owner SET statement_timeout = 0",
    ];
    sql(&beaten).await;
    assert_eq!(of(&session, "public.led").await, []);
    sql(&["ALTER DATABASE dialogs RESET statement_timeout", "ALTER TABLE led OWNER TO postgres"]).await;
    assert_eq!(of(&session, "public.led").await, [(ObstacleKind::OwnedBySuperuser, None, None)]);
    sql(&["DROP TABLE led"]).await;
    assert_eq!(obstacles(&session).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_copied_are_seen() {
    let cache = "CREATE UNLOGGED TABLE cache (id bigint PRIMARY KEY, v text)";
    let tables = [
        cache,
        "SELECT create_distributed_table('cache', 'id', colocate_with => 'none', shard_count => 2)",
        "CREATE TABLE countries (code text, name text)",
        "SELECT create_reference_table('countries')",
    ];
    let (cluster, session) = uneven(&tables).await;
    cluster.coordinator.sql(&[&format!("ALTER TABLE cache OWNER TO {OWNER}")]).await.unwrap();
    cluster.coordinator.sql(&[&format!("ALTER TABLE countries OWNER TO {OWNER}")]).await.unwrap();
    assert_eq!(of(&session, "public.cache").await, [(ObstacleKind::Unlogged, None, None)]);
    let listed = obstacles(&session).await;
    let countries = listed.iter().find(|obstacle| obstacle.table == "public.countries").unwrap();
    assert_eq!((countries.kind, countries.reference), (ObstacleKind::NoReplicaIdentity, true));
    if skipped(OnlyCitus::Obstacles) {
        return;
    }
    // Without it being known: Citus refuses the whole job, whatever else would move.
    let refused = commands::start_rebalance(&session, &EVEN).await.unwrap_err().to_string();
    assert!(refused.contains("countries"), "{refused}");
    let key = "ALTER TABLE countries ADD PRIMARY KEY (code)";
    cluster.coordinator.sql(&[key]).await.unwrap();
    let id = commands::start_rebalance(&session, &EVEN).await.unwrap().expect("a job");
    let failing = job(&session, "a move of the unlogged table fails", |job| {
        let words = job.tasks.iter().filter_map(|task| task.message.as_deref());
        words.into_iter().any(|words| words.contains("cannot add relation"))
    })
    .await;
    assert!(failing.is_open(), "{failing:?}");
    assert!(commands::stop_rebalance(&session, id).await.unwrap());
    job(&session, "the job ends", |job| !job.is_open()).await;
    // Both cures: with writes blocked it moves as it is, and a logged one moves.
    let blocking = RebalanceOptions { transfer_mode: TransferMode::BlockWrites, ..EVEN };
    let id = commands::start_rebalance(&session, &blocking).await.unwrap().expect("a job");
    job(&session, "it moves", |job| job.id == id && job.state == JobState::Finished).await;
    cluster.coordinator.sql(&["ALTER TABLE cache SET LOGGED"]).await.unwrap();
    assert_eq!(obstacles(&session).await, []);
}

/// Places of code in a reference table, and what makes them.
const CODE: &[(&str, &[&str])] = &[
    ("CHECK", &["CREATE TABLE r (id bigint PRIMARY KEY, v text CHECK (seen(v)))"]),
    (
        "domain",
        &["CREATE DOMAIN d AS text CHECK (seen(VALUE))", "CREATE TABLE r (id bigint PRIMARY KEY, v d)"],
    ),
    ("domain", &["CREATE TYPE pair AS (one d, two int)", "CREATE TABLE r (id bigint PRIMARY KEY, v pair[])"]),
    (
        "generated column",
        &[
            "ALTER FUNCTION seen IMMUTABLE",
            "CREATE TABLE r (id bigint PRIMARY KEY, v text, g boolean GENERATED ALWAYS AS (seen(v)) STORED)",
        ],
    ),
    ("index", &["CREATE TABLE r (id bigint PRIMARY KEY, v text)", "CREATE INDEX ON r (seen(v))"]),
    // PostgreSQL's own, which runs any SQL.
    (
        "CHECK",
        &[
            "CREATE TABLE r (id bigint PRIMARY KEY, v text CHECK (query_to_xml(v, true, true, '') IS NOT NULL))",
        ],
    ),
    // Not volatile, and runs what is in a view.
    (
        "CHECK",
        &[
            "CREATE VIEW w AS SELECT seen('x') AS s",
            "CREATE TABLE r (id bigint PRIMARY KEY, v text CHECK (table_to_xml('w', true, true, v) IS NOT NULL))",
        ],
    ),
    // Values that an expression makes.
    ("domain", &["CREATE TABLE r (id bigint PRIMARY KEY, v text CHECK (v::d[] IS NOT NULL))"]),
    (
        "domain",
        &[
            "CREATE DOMAIN e AS text CHECK ((VALUE::text)::pair IS NOT NULL)",
            "CREATE TABLE r (id bigint PRIMARY KEY, v e)",
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn code_in_reference_tables_is_seen() {
    if skipped(OnlyCitus::Obstacles) {
        return;
    }
    let function = "CREATE FUNCTION seen(text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END'";
    let (cluster, session) = uneven(&[function]).await;
    let sql = async |statements: &[&str]| cluster.coordinator.sql(statements).await;
    for (place, statements) in CODE {
        sql(statements).await.unwrap();
        sql(&["SELECT create_reference_table('r')", &format!("ALTER TABLE r OWNER TO {OWNER}")])
            .await
            .unwrap();
        // A node that lacks it: a copy is made before anything moves.
        sql(&["DELETE FROM pg_dist_placement WHERE shardid = (SELECT shardid FROM pg_dist_shard WHERE
            logicalrelid = 'r'::regclass) AND groupid = (SELECT max(groupid) FROM pg_dist_node)"])
        .await
        .unwrap();
        let found = of(&session, "public.r").await;
        let [(ObstacleKind::ReferenceTableRunsCode, Some(what), None)] = found.as_slice() else {
            panic!("{place}: {found:?}")
        };
        assert!(what.starts_with(place), "{what}");
        sql(&["ALTER TABLE r OWNER TO postgres"]).await.unwrap();
        assert_eq!(of(&session, "public.r").await, [], "a superuser's code may run");
        sql(&["DROP TABLE r"]).await.unwrap();
    }
    // What every table has is none.
    let plain = "CREATE TABLE r (id bigint PRIMARY KEY, v text CHECK (length(v) < 9), w int[] DEFAULT '{1}',
        g text GENERATED ALWAYS AS (lower(v)) STORED, at timestamptz DEFAULT now())";
    sql(&[plain, "CREATE INDEX ON r (lower(v))", "SELECT create_reference_table('r')"]).await.unwrap();
    sql(&[&format!("ALTER TABLE r OWNER TO {OWNER}")]).await.unwrap();
    sql(&["DELETE FROM pg_dist_placement WHERE shardid = (SELECT shardid FROM pg_dist_shard WHERE
        logicalrelid = 'r'::regclass) AND groupid = (SELECT max(groupid) FROM pg_dist_node)"])
    .await
    .unwrap();
    assert_eq!(of(&session, "public.r").await, []);
}

/// The finding: `citus_rebalance_start` takes all groups or none, and a strategy whose function allows a shard only
/// where it is keeps its group there; Citus then looks at the keys of what moves alone, and drains the others.
#[tokio::test(flavor = "multi_thread")]
async fn groups_that_cannot_move_stay_while_others_move() {
    let (cluster, session) = uneven(&[
        "CREATE TABLE bare (t text)",
        "SELECT create_distributed_table('bare', 't', colocate_with => 'none', shard_count => 4)",
    ])
    .await;
    let owner = format!("ALTER TABLE bare OWNER TO {OWNER}");
    cluster.coordinator.sql(&[&owner]).await.unwrap();
    let citus = catalog(&session).await;
    let group = citus.tables.iter().find(|table| table.name == "public.bare").unwrap().colocation_id;
    let Some(Observed::Known(moves)) = &citus.planned_moves else { panic!("{:?}", citus.planned_moves) };
    assert!(moves.iter().any(|planned| planned.colocation_id == group), "{moves:?}");
    let error = commands::start_rebalance(&session, &EVEN).await.unwrap_err();
    assert!(error.to_string().contains("bare"), "all or none: {error}");
    if skipped(OnlyCitus::Obstacles) {
        return;
    }
    let pins = Pins { base: "by_shard_count".to_owned(), groups: vec![group] };
    for _ in 0..2 {
        commands::pin_groups(&session, &pins).await.unwrap();
    }
    let citus = catalog(&session).await;
    assert_eq!(citus.pins.as_ref(), Some(&pins));
    let Some(Observed::Known(pinned)) = &citus.planned_moves_when_pinned else {
        panic!("{:?}", citus.planned_moves_when_pinned)
    };
    assert_eq!(pinned.len(), 16, "{pinned:?}");
    let places = "SELECT string_agg(DISTINCT nodeport::text, ',') FROM citus_shards WHERE table_name = 'bare'::regclass";
    let before = cluster.coordinator.value(places).await;
    let id = commands::start_rebalance(&session, &PINNED).await.unwrap().expect("a job");
    job(&session, "the others move", |job| job.id == id && job.state == JobState::Finished).await;
    assert_eq!(cluster.coordinator.value(places).await, before);

    // A drain as well: what can go goes, and the rest is served where it is.
    let (first, second) = (cluster.workers[0].port, &cluster.workers[1]);
    commands::set_should_have_shards(&session, "127.0.0.1", first, false).await.unwrap();
    let id = commands::start_drain(&session, &PINNED).await.unwrap().expect("a job");
    job(&session, "the drain ends", |job| job.id == id && job.state == JobState::Finished).await;
    let citus = catalog(&session).await;
    let shards: Vec<i64> = citus.groups.values().map(|group| group.shards).collect();
    assert_eq!(shards, [0, 4, 32], "{:?}", citus.groups);
    assert_eq!(commands::start_drain(&session, &PINNED).await.unwrap(), None, "nothing is left to move");

    // Nothing of it is on the workers, and nothing stays when nobody is blocked.
    let there = "SELECT count(*) FROM pg_namespace WHERE nspname = 'dialog_operator'";
    assert_eq!(second.value(there).await, "0");
    commands::pin_groups(&session, &Pins { groups: Vec::new(), ..pins.clone() }).await.unwrap();
    assert_eq!(cluster.coordinator.value(there).await, "0");
    let citus = catalog(&session).await;
    assert!(citus.pins.is_none() && citus.planned_moves_when_pinned.is_none(), "{citus:?}");

    // A schema of that name that is an application's is left alone: Citus would call what is in it.
    let planted = format!("CREATE SCHEMA dialog_operator AUTHORIZATION {OWNER}");
    cluster.coordinator.sql(&[&planted]).await.unwrap();
    let refused = commands::pin_groups(&session, &pins).await.unwrap_err().to_string();
    assert!(refused.contains("the schema dialog_operator is not the operator's"), "{refused}");
    assert!(catalog(&session).await.pins.is_none());
}

/// A tenant's table has one shard, which moves: it is no reference table, and only what it is about waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_tenants_are_no_reference_tables() {
    if skipped(OnlyCitus::OtherTables) {
        return;
    }
    let tenant = [
        "SET citus.enable_schema_based_sharding = on",
        "CREATE SCHEMA tenant_a",
        "CREATE TABLE tenant_a.log (t text)",
        "RESET citus.enable_schema_based_sharding",
    ];
    let owner = format!("ALTER TABLE tenant_a.log OWNER TO {OWNER}");
    let (cluster, session) = uneven(&tenant).await;
    let superusers = of(&session, "tenant_a.log").await;
    assert!(superusers.contains(&(ObstacleKind::OwnedBySuperuser, None, None)), "{superusers:?}");
    cluster.coordinator.sql(&[&format!("GRANT CREATE ON SCHEMA tenant_a TO {OWNER}"), &owner]).await.unwrap();
    let listed = obstacles(&session).await;
    let [obstacle] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((obstacle.kind, obstacle.reference), (ObstacleKind::NoReplicaIdentity, false));
    let groups = &catalog(&session).await.nodes;
    assert_eq!(obstacle.groups, [groups[1].group_id], "where its shard is");
}

/// Any number of partitions of one group hides no other group, and is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_many_tables_hides_no_other() {
    if skipped(OnlyCitus::Obstacles) {
        return;
    }
    let (cluster, session) = uneven(&[
        "SET citus.shard_count = 1",
        "CREATE TABLE a (id bigint, at int) PARTITION BY RANGE (at)",
        "SELECT create_distributed_table('a', 'id', colocate_with => 'none')",
        "DO $$ BEGIN FOR i IN 1..120 LOOP
            EXECUTE format('CREATE TABLE a_%s PARTITION OF a FOR VALUES FROM (%s) TO (%s)', i, i, i + 1);
            END LOOP; END $$",
        "CREATE TABLE z (t text)",
        "SELECT create_distributed_table('z', 't', colocate_with => 'none')",
    ])
    .await;
    let found = catalog(&session).await.obstacles;
    let keys: Vec<&Obstacle> =
        found.listed.iter().filter(|obstacle| obstacle.kind == ObstacleKind::NoReplicaIdentity).collect();
    let more: i64 = keys.iter().map(|obstacle| obstacle.more).sum();
    assert_eq!((keys.len(), more, found.unlisted), (100, 21, 0), "{found:?}");
    assert!(keys.iter().any(|obstacle| obstacle.table == "public.z"), "{keys:?}");
    drop(cluster);
}
