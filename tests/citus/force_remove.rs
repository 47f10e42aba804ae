//! Workers that are gone for good, and what becomes of the cluster without their data.

use std::time::Duration;

use dialog_operator::citus::{
    Connection, NodeQuestion, SqlErrorKind, commands, commands::ForceRemoved, observe_node,
};
use dialog_operator::snapshot::JobState;
use testkit::{
    eventually,
    postgres::{Cluster, DATABASE, OWNER, OnlyCitus, Server, Signal, run_statements, skipped},
};

use crate::moves::{QUICK, catalog, job, with_dialogs};

const NODE: NodeQuestion<'_> = NodeQuestion { database: DATABASE, owner: OWNER, settings: &[] };

/// Tables of the kinds that Citus knows and the dialogs schema does not have.
const OTHERS: &[&str] = &[
    "CREATE TABLE places (id int PRIMARY KEY)",
    "SELECT create_reference_table('places')",
    "INSERT INTO places VALUES (1)",
    "CREATE SCHEMA shelf",
    "CREATE TABLE shelf.users (id bigserial, place int, note text CHECK (note <> ''), PRIMARY KEY (id))",
    "SELECT create_distributed_table('shelf.users', 'id')",
    "ALTER TABLE shelf.users ADD CONSTRAINT users_place FOREIGN KEY (place) REFERENCES places (id)",
    "ALTER TABLE shelf.users ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY everybody ON shelf.users USING (true)",
    "GRANT SELECT ON shelf.users TO shop",
    "CREATE TABLE orders (user_id bigint, id bigserial, number bigint GENERATED ALWAYS AS IDENTITY, at date,
        PRIMARY KEY (user_id, id, at)) PARTITION BY RANGE (at)",
    "CREATE TABLE orders_25 PARTITION OF orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
    "SELECT create_distributed_table('orders', 'user_id', colocate_with => 'shelf.users')",
    "CREATE TABLE orders_26 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
    "ALTER TABLE orders ADD CONSTRAINT orders_user FOREIGN KEY (user_id) REFERENCES shelf.users (id)",
    "CREATE INDEX orders_at ON orders (at)",
    "INSERT INTO shelf.users (place, note) SELECT 1, 'n' FROM generate_series(1, 1000)",
    "INSERT INTO orders (user_id, at) SELECT id, date '2025-06-01' + (id % 400)::int FROM shelf.users",
];

/// Everything about a shard's table but the numbers in its names: columns, constraints, indexes, triggers, policies.
fn shape(shard: &str) -> String {
    format!(
        "SELECT regexp_replace(concat_ws(E'\\n',
          (SELECT format('%s %s %s %s %s', relkind, relowner::regrole, relacl, relrowsecurity, relreplident)
            FROM pg_class WHERE oid = t.oid),
          (SELECT string_agg(format('%s %s %s %s%s', attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
            pg_get_expr(adbin, adrelid)), ', ' ORDER BY attnum) FROM pg_attribute
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = t.oid AND attnum > 0),
          (SELECT string_agg(conname || ' ' || pg_get_constraintdef(oid), ', ' ORDER BY conname) FROM pg_constraint
            WHERE conrelid = t.oid),
          (SELECT string_agg(pg_get_indexdef(indexrelid), ', ' ORDER BY indexrelid::regclass::text) FROM pg_index
            WHERE indrelid = t.oid),
          (SELECT string_agg(format('%s %s %s', polname, polcmd, pg_get_expr(polqual, polrelid)), ', ') FROM pg_policy WHERE polrelid = t.oid),
          (SELECT string_agg(inhparent::regclass::text, ', ') FROM pg_inherits WHERE inhrelid = t.oid)),
          '_\\d{{6}}', '', 'g')
        FROM (SELECT '{shard}'::regclass AS oid) AS t"
    )
}

/// `shardid`, name and port of each shard.
async fn shards(coordinator: &Server) -> Vec<(String, String, u16)> {
    let all = "SELECT shardid, CASE WHEN n.nspname = 'public' THEN 'public.' ELSE '' END || shard_name(logicalrelid, shardid),
        nodeport FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
        JOIN pg_dist_partition t USING (logicalrelid) JOIN pg_class c ON c.oid = logicalrelid
        JOIN pg_namespace n ON n.oid = relnamespace WHERE partmethod = 'h' OR repmodel = 's' ORDER BY 1";
    let rows = coordinator.sql(&[all]).await.unwrap();
    let parse = |row: &String| {
        let mut columns = row.split('|').map(ToOwned::to_owned);
        let mut next = || columns.next().unwrap();
        (next(), next(), next().parse().unwrap())
    };
    rows.iter().map(parse).collect()
}

async fn number(server: &Server, statement: &str) -> i64 {
    server.value(statement).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_gone_for_good_is_given_up() {
    let cluster = Cluster::start(3, 3, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    if !skipped(OnlyCitus::OtherTables) {
        cluster.coordinator.sql_as_owner(OTHERS).await.unwrap();
    }
    let [.., gone] = cluster.workers.as_slice() else { panic!("three workers") };
    let lost = [("127.0.0.1", gone.port)];
    who_answers_is_not_given_up(&session, gone).await;

    let before = shards(&cluster.coordinator).await;
    let lost_shards: Vec<_> = before.iter().filter(|(_, _, port)| *port == gone.port).cloned().collect();
    let mut lost_rows = 0;
    for (_, name, _) in lost_shards.iter().filter(|(_, name, _)| name.starts_with("public.dialogs_")) {
        lost_rows += number(gone, &format!("SELECT count(*) FROM {name}")).await;
    }
    let group = catalog(&session).await.nodes.last().unwrap().group_id;
    let row = format!(
        "INSERT INTO pg_dist_cleanup (record_id, operation_id, object_type, object_name, node_group_id, policy_type)
        VALUES (9999, 9999, 1, 'public.gone_102008', {group}, 0)"
    );
    cluster.coordinator.sql(&[&row]).await.unwrap();
    gone.stop(Signal::Quit).await;
    let configuration = gone.lose();
    assert!(cluster.coordinator.sql(&["SELECT count(*) FROM dialogs"]).await.is_err());

    what_is_in_the_way_is_not_dropped(&cluster, &session, &lost_shards).await;
    let given_up = given_up_in_the_end(&cluster, &lost).await;
    if given_up != ForceRemoved::default() {
        let ids: Vec<String> = given_up.shards.iter().map(ToString::to_string).collect();
        assert_eq!(ids, lost_shards.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>());
        assert!(given_up.tables.contains(&"public.dialogs".to_owned()), "{given_up:?}");
        let about = given_up.rows_about.expect("an estimate");
        assert!((lost_rows / 2..lost_rows * 2 + 1000).contains(&about), "about {about}, really {lost_rows}");
    }

    it_is_whole_without(&cluster, &session, 5000 - lost_rows).await;
    they_are_as_they_were(&cluster, &before, gone).await;
    assert_eq!(commands::force_remove(&session, &lost).await.unwrap(), ForceRemoved::default());

    gone.renew(&configuration).await;
    gone.prepare().await;
    commands::add_node(&session, "127.0.0.1", gone.port).await.unwrap();
    let id = commands::start_rebalance(&session, &QUICK).await.unwrap().expect("a job");
    job(&session, "the job ends", |job| job.id == id && job.state == JobState::Finished).await;
    let held: Vec<i64> = catalog(&session).await.groups.values().skip(1).map(|group| group.shards).collect();
    assert!(held.iter().all(|shards| (held[0] - shards).abs() <= 8), "{held:?}");
    assert_eq!(number(&cluster.coordinator, "SELECT count(*) FROM dialogs").await, 5000 - lost_rows + 500);
}

/// Also when it lets nobody in.
async fn who_answers_is_not_given_up(session: &Connection, worker: &Server) {
    let lost = [("127.0.0.1", worker.port)];
    let error = commands::force_remove(session, &lost).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::NodeAnswers), "{error}");
    worker.write("pg_hba.conf", "host postgres postgres 127.0.0.1/32 trust\n");
    worker.restart().await;
    let error = commands::force_remove(session, &lost).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::NodeAnswers), "{error}");
    assert!(error.to_string().contains("no pg_hba.conf entry"), "{error}");
    worker.write("pg_hba.conf", "host all all 127.0.0.1/32 trust\n");
    worker.restart().await;
}

/// A crash before the commit leaves empty tables: they are no hindrance. Rows are, whosever they are.
async fn what_is_in_the_way_is_not_dropped(
    cluster: &Cluster,
    session: &Connection,
    lost: &[(String, String, u16)],
) {
    let (first, gone) = (&cluster.workers[0], &cluster.workers[2]);
    let (_, name, _) = lost.iter().find(|(_, name, _)| name.starts_with("public.dialogs_")).unwrap();
    let by_hand = "SET citus.enable_manual_changes_to_shards = on";
    let make = format!("CREATE TABLE {name} (a int)");
    first.sql(&[by_hand, &make, &format!("INSERT INTO {name} VALUES (1)")]).await.unwrap();
    let error = commands::force_remove(session, &[("127.0.0.1", gone.port)]).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::DataInTheWay), "{error}");
    assert!(error.to_string().contains(name.as_str()), "{error}");
    assert_eq!(catalog(session).await.nodes.len(), 4, "nothing is given up");
    // Empty, and still not a table of the one whose shard was lost.
    first.sql(&[by_hand, &format!("TRUNCATE {name}")]).await.unwrap();
    let error = commands::force_remove(session, &[("127.0.0.1", gone.port)]).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::DataInTheWay), "{error}");
    first.sql(&[by_hand, &format!("ALTER TABLE {name} OWNER TO {OWNER}")]).await.unwrap();

    // What Citus is about to drop, it would drop after the table was made anew, too.
    let row = format!(
        "INSERT INTO pg_dist_cleanup SELECT 9998, 9998, 1, '{name}', groupid, 0 FROM pg_dist_node WHERE nodeport = {}",
        first.port
    );
    cluster.coordinator.sql(&[&row]).await.unwrap();
    let error = commands::force_remove(session, &[("127.0.0.1", gone.port)]).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::CleanupPending), "{error}");
    cluster.coordinator.sql(&["DELETE FROM pg_dist_cleanup WHERE record_id = 9998"]).await.unwrap();
}

/// The operator is killed in the middle, again and again, each time a little later; in the end it gets through. The
/// try whose commit nobody waited for says nothing of what it gave up.
async fn given_up_in_the_end(cluster: &Cluster, lost: &[(&str, u16)]) -> ForceRemoved {
    for after in [20, 40, 80, 160, 240, 320] {
        let session = cluster.session().await;
        let tried =
            tokio::time::timeout(Duration::from_millis(after), commands::force_remove(&session, lost)).await;
        if let Ok(Ok(done)) = tried {
            return done;
        }
    }
    let session = cluster.session().await;
    // A worker may still be busy with what nobody waits for.
    eventually("it gets through", Duration::from_mins(1), async || {
        commands::force_remove(&session, lost).await.map_err(|error| error.to_string())
    })
    .await
}

async fn it_is_whole_without(cluster: &Cluster, session: &Connection, rows: i64) {
    let coordinator = &cluster.coordinator;
    assert_eq!(number(coordinator, "SELECT count(*) FROM dialogs").await, rows);
    let citus = catalog(session).await;
    assert_eq!((citus.nodes.len(), citus.cleanup), (3, vec![]));
    for worker in &cluster.workers[..2] {
        let seen = observe_node(&worker.session(DATABASE).await, &NODE).await.unwrap();
        assert_eq!((seen.dist_node_rows, seen.missing_tables), (3, 0), "{}", worker.name);
    }
    // The application writes into every shard, and reads them from every node.
    let application = coordinator.client(OWNER).await.unwrap();
    let insert = "INSERT INTO dialogs (from_user, to_user, message)
        SELECT n, n, 'after' FROM generate_series(1, 500) AS n";
    run_statements(&application, &[insert]).await.unwrap();
    let again = run_statements(&application, &["SELECT count(*) FROM dialogs WHERE message = 'after'"]);
    assert_eq!(again.await.unwrap(), ["500"]);
    let empty = "SELECT count(*) FROM pg_dist_shard s WHERE logicalrelid = 'dialogs'::regclass
        AND NOT EXISTS (SELECT FROM generate_series(1, 500) AS n
            WHERE get_shard_id_for_distribution_column('dialogs', n) = s.shardid)";
    assert_eq!(number(coordinator, empty).await, 0, "every shard was written to");
    if !skipped(OnlyCitus::OtherTables) {
        assert_eq!(number(&cluster.workers[0], "SELECT count(*) FROM dialogs").await, rows + 500);
        let others = [
            "INSERT INTO shelf.users (place, note) SELECT 1, 'after' FROM generate_series(1, 500)",
            "INSERT INTO orders (user_id, at) SELECT id, '2026-06-01' FROM shelf.users WHERE note = 'after'",
        ];
        coordinator.sql(&others).await.unwrap();
        let orphan =
            "INSERT INTO orders (user_id, at) SELECT n, '2026-06-01' FROM generate_series(90000, 90100) AS n";
        let error = coordinator.sql(&[orphan]).await.unwrap_err();
        assert!(error.contains("violates foreign key constraint"), "{error}");
        coordinator
            .sql(&["ALTER TABLE orders ADD COLUMN later int", "CREATE INDEX later ON orders (later)"])
            .await
            .unwrap();
    }
}

/// The new tables are what the lost ones were: as those of other shards of the same table are.
async fn they_are_as_they_were(cluster: &Cluster, before: &[(String, String, u16)], gone: &Server) {
    let after = shards(&cluster.coordinator).await;
    assert_eq!(after.len(), before.len());
    let table = |name: &str| name.rsplit_once('_').unwrap().0.to_owned();
    let worker = |port: u16| cluster.workers.iter().find(|worker| worker.port == port).unwrap();
    let mut compared = 0;
    for ((_, name, was), (_, _, is)) in before.iter().zip(&after) {
        assert_ne!(*is, gone.port, "{name}");
        if *was != gone.port {
            assert_eq!(was, is, "{name}: what was not lost did not move");
            continue;
        }
        let sibling =
            before.iter().find(|(_, other, port)| table(other) == table(name) && *port != gone.port);
        let Some((_, sibling, port)) = sibling else { continue };
        let expected = worker(*port).value(&shape(sibling)).await;
        assert_eq!(worker(*is).value(&shape(name)).await, expected, "{name}, {sibling}");
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
    let counts: Vec<usize> = cluster.workers[..2]
        .iter()
        .map(|worker| {
            let of_dialogs = |(_, name, port): &&(String, String, u16)| {
                *port == worker.port && name.starts_with("public.dialogs_")
            };
            after.iter().filter(of_dialogs).count()
        })
        .collect();
    assert_eq!(counts, [16, 16]);
}

/// As long as another one is registered and silent, no call of Citus gets through: they go together, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn workers_are_given_up_together() {
    let cluster = Cluster::start(3, 3, "").await;
    let session = cluster.session().await;
    let few = [
        "SET citus.shard_count = 6",
        "CREATE TABLE few (a int PRIMARY KEY)",
        "SELECT create_distributed_table('few', 'a')",
    ];
    cluster.coordinator.sql(&few).await.unwrap();
    cluster.coordinator.sql(&["INSERT INTO few SELECT generate_series(1, 600)"]).await.unwrap();
    if !skipped(OnlyCitus::OtherTables) {
        // One on each worker: of two of them nothing is left.
        for table in ["one", "two", "three"] {
            let alone = [
                &format!("CREATE TABLE {table} (a int PRIMARY KEY)"),
                &format!("SELECT create_distributed_table('{table}', NULL, colocate_with => 'none')"),
            ];
            cluster.coordinator.sql(&alone.map(String::as_str)).await.unwrap();
        }
    }
    let gone = &cluster.workers[1..];
    for worker in gone {
        worker.stop(Signal::Quit).await;
    }
    let lost: Vec<_> = gone.iter().map(|worker| ("127.0.0.1", worker.port)).collect();
    let error = commands::force_remove(&session, &lost[..1]).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::RemoteUnreachable), "{error}");
    assert_eq!(catalog(&session).await.nodes.len(), 4);

    let given_up = commands::force_remove(&session, &lost).await.unwrap();
    if skipped(OnlyCitus::OtherTables) {
        assert_eq!((given_up.shards.len(), given_up.tables), (4, vec!["public.few".to_owned()]));
        assert!(
            given_up.rows_about.is_some_and(|rows| (200..600).contains(&rows)),
            "{:?}",
            given_up.rows_about
        );
    } else {
        assert_eq!((given_up.shards.len(), given_up.rows_about), (6, None), "{:?}", given_up.tables);
        cluster
            .coordinator
            .sql(&[
                "INSERT INTO one VALUES (1)",
                "INSERT INTO two VALUES (1)",
                "INSERT INTO three VALUES (1)",
            ])
            .await
            .unwrap();
    }
    assert_eq!(catalog(&session).await.nodes.len(), 2);
    let left = number(&cluster.coordinator, "SELECT count(*) FROM few").await;
    cluster.coordinator.sql(&["INSERT INTO few SELECT generate_series(1001, 1600)"]).await.unwrap();
    assert_eq!(number(&cluster.coordinator, "SELECT count(*) FROM few").await, left + 600);

    let only = &cluster.workers[0];
    only.stop(Signal::Quit).await;
    let error = commands::force_remove(&session, &[("127.0.0.1", only.port)]).await.unwrap_err();
    assert_eq!(error.refusal(), Some(SqlErrorKind::NoSurvivor), "{error}");
}
