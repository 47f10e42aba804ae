//! What keeps shards from moving is told before a job starts, with what to type; everything else goes on, and it ends by
//! itself when a person has done it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dialog_operator::api::{DialogCluster, Node};
use k8s_openapi::{api::policy::v1::PodDisruptionBudget, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::json;
use tokio_postgres::Client;

use crate::harness::{
    Story,
    cluster::{Cluster, condition, is, is_stalled, spec, with},
    only_citus, sql, story, wait,
};

/// The message of Stalled, once it has this reason. Everybody serves meanwhile, and hosts may be emptied.
async fn told(story: &Story, cluster: &Cluster, reason: &str, asked: Instant, target: f64) -> String {
    let (at, seen) = cluster.until(reason, 150, |cluster| is_stalled(cluster, reason)).await;
    story.figure_below(&format!("asked for to {reason}"), at - asked, target);
    let message = condition(&seen, "Stalled").unwrap().message.clone();
    story.figure(&format!("what is said of {reason}"), &message);
    assert!(is(&seen, "Ready", "True") && is(&seen, "Reconciling", "False"), "{message}");
    assert_eq!(budget(cluster).await, IntOrString::Int(1), "no move runs, and none may");
    message
}

async fn budget(cluster: &Cluster) -> IntOrString {
    let budget = cluster.api::<PodDisruptionBudget>().get(&cluster.name).await.unwrap();
    budget.spec.unwrap().max_unavailable.unwrap()
}

/// The statement that a message tells people to type.
fn typed<'a>(message: &'a str, from: &str) -> &'a str {
    let at = message.find(from).unwrap_or_else(|| panic!("{from} in {message}"));
    message[at..].split_inclusive(';').next().unwrap()
}

/// Shards of each table by worker.
async fn places(admin: &Client) -> BTreeMap<String, Vec<i64>> {
    let rows = admin
        .query(
            "SELECT t.logicalrelid::text, array_agg(count ORDER BY count DESC) FROM pg_dist_partition t, LATERAL (
               SELECT count(p.shardid) AS count FROM pg_dist_node n LEFT JOIN (pg_dist_shard s JOIN pg_dist_placement p
                 USING (shardid)) ON p.groupid = n.groupid AND s.logicalrelid = t.logicalrelid
               WHERE n.groupid <> 0 GROUP BY n.groupid) AS counts
             WHERE t.partmethod = 'h' GROUP BY 1",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn until_places(admin: &Client, tables: &[&str], expected: &[i64]) {
    wait::eventually(&format!("{tables:?} at {expected:?}"), Duration::from_mins(2), async || {
        let places = places(admin).await;
        if tables.iter().all(|table| places[*table] == expected) {
            Ok(())
        } else {
            Err(format!("{places:?}"))
        }
    })
    .await;
}

async fn settles(story: &Story, cluster: &Cluster, what: &str, workers: u16) -> DialogCluster {
    let mended = Instant::now();
    let (even, seen) = cluster.until_settled_with(workers, 120).await;
    story.figure_below(&format!("{what} to settled"), even - mended, 30.0);
    assert_eq!(condition(&seen, "Stalled").unwrap().reason, "NoProblem");
    seen
}

async fn jobs(admin: &Client) -> i64 {
    sql::value(admin, "SELECT count(*) FROM pg_dist_background_job").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_shards_from_moving_is_told_and_the_rest_goes_on() {
    if only_citus("strategies of one's own, by which groups are kept where they are") {
        return;
    }
    story("obstacles", async |story| {
        let operator = story.operator();
        let few = json!({"schema": {"shardCount": 8}});
        let cluster = story.settled_cluster("talk", with(spec(1), &few)).await;
        cluster.load(2_000).await;
        let (admin, application) = (cluster.coordinator().await, cluster.application().await);

        story.figure("obstacle", "a reference table without a key");
        sql::run(&application, "CREATE TABLE countries (code text, name text)").await;
        sql::run(&application, "SELECT create_reference_table('countries')").await;
        let asked = Instant::now();
        cluster.scale(2).await;
        let message = told(story, &cluster, "NoReplicaIdentity", asked, 30.0).await;
        assert!(message.contains("public.countries") && message.contains("ADD PRIMARY KEY"), "{message}");
        assert!(is(&cluster.get().await, "WorkersRegistered", "True"), "the worker has joined all the same");
        assert_eq!(jobs(&admin).await, 0);
        sql::run(&application, "ALTER TABLE countries ADD PRIMARY KEY (code)").await;
        settles(story, &cluster, "key", 2).await;

        story.figure("obstacle", "a superuser's table, an unlogged one, one of a role that may not log in, beside others");
        sql::run(&admin, "CREATE TABLE x (id bigint PRIMARY KEY)").await;
        sql::run(&admin, "SELECT create_distributed_table('x', 'id', colocate_with => 'none', shard_count => 5)").await;
        for table in ["led", "one", "two", "three"] {
            sql::run(&application, &format!("CREATE TABLE {table} (id bigint PRIMARY KEY)")).await;
            sql::run(
                &application,
                &format!("SELECT create_distributed_table('{table}', 'id', colocate_with => 'none', shard_count => 5)"),
            )
            .await;
        }
        sql::run(&admin, "CREATE ROLE app_owner NOLOGIN").await;
        sql::run(&admin, "ALTER TABLE led OWNER TO app_owner").await;
        sql::run(&application, "CREATE UNLOGGED TABLE cache (id bigint PRIMARY KEY, v text)").await;
        sql::run(&application, "SELECT create_distributed_table('cache', 'id', colocate_with => 'dialogs')").await;
        cluster.until_settled_with(2, 60).await;
        let before = jobs(&admin).await;
        let asked = Instant::now();
        cluster.scale(3).await;
        let message = told(story, &cluster, "TableOwnedBySuperuser", asked, 30.0).await;
        assert!(message.contains("public.x") && !message.contains("public.one"), "{message}");
        assert_eq!(jobs(&admin).await, before, "it is known before a job starts");
        sql::run(&admin, typed(&message, "ALTER TABLE public.x OWNER TO")).await;
        let mended = Instant::now();
        until_places(&admin, &["x", "one", "two", "three"], &[2, 2, 1]).await;
        story.figure_below("owner to the others even", mended.elapsed(), 30.0);
        // What cannot move did not, and is told with both cures.
        let message = told(story, &cluster, "UnloggedTable", mended, 30.0).await;
        for words in ["public.led", "app_owner", "public.cache", "SET LOGGED", "block_writes", "all others move"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        let places = places(&admin).await;
        assert_eq!([&places["led"], &places["dialogs"], &places["cache"]], [&vec![3, 2, 0], &vec![4, 4, 0], &vec![4, 4, 0]]);
        let mended = Instant::now();
        sql::run(&application, "ALTER TABLE cache SET LOGGED").await;
        until_places(&admin, &["dialogs", "cache"], &[3, 3, 2]).await;
        story.figure_below("SET LOGGED to its group even", mended.elapsed(), 30.0);
        for statement in ["ALTER ROLE app_owner LOGIN", "GRANT CREATE ON SCHEMA public TO app_owner"] {
            sql::run(&admin, typed(&message, statement)).await;
        }
        let seen = settles(story, &cluster, "LOGIN", 3).await;
        let balanced = condition(&seen, "Balanced").unwrap();
        assert!(balanced.message.contains("at most one apart in each colocation group"), "{}", balanced.message);
        story.figure("what is said of five groups of five shards", &balanced.message);

        story.figure("no obstacle", "a tenant's table without a key on a worker that stays");
        let stalls = cluster.events().await.iter().filter(|event| event.starts_with("NoReplicaIdentity:")).count();
        sql::run(&admin, "SET citus.enable_schema_based_sharding = on; CREATE SCHEMA tenant_a AUTHORIZATION dialogs").await;
        sql::run(&admin, "CREATE TABLE tenant_a.log (t text)").await;
        sql::run(&admin, "ALTER TABLE tenant_a.log OWNER TO dialogs").await;
        sql::run(&admin, "INSERT INTO tenant_a.log VALUES ('kept')").await;
        let place = "SELECT split_part(nodename, '.', 1) FROM citus_shards WHERE table_name = 'tenant_a.log'::regclass";
        if sql::value::<String>(&admin, place).await != "talk-worker-0" {
            let to = "SELECT citus_schema_move('tenant_a', nodename, nodeport, 'block_writes') FROM pg_dist_node
                WHERE nodename LIKE 'talk-worker-0.%'";
            sql::run(&admin, to).await;
        }
        cluster.scale(2).await;
        settles(story, &cluster, "scale-in", 2).await;
        assert_eq!(sql::value::<String>(&admin, place).await, "talk-worker-0");
        assert_eq!(sql::value::<i64>(&admin, "SELECT count(*) FROM tenant_a.log").await, 1);
        cluster.assert_events("NoReplicaIdentity", stalls).await;

        story.figure("obstacle", "a role that was granted on, with which Citus registers no worker");
        for statement in [
            "CREATE ROLE r2",
            "CREATE ROLE ro",
            "CREATE ROLE r1",
            "GRANT ro TO r1 WITH ADMIN OPTION",
            "GRANT ro TO r2 GRANTED BY r1",
        ] {
            sql::run(&admin, statement).await;
        }
        let asked = Instant::now();
        cluster.scale(3).await;
        let (at, seen) = cluster
            .until("Citus' words", 60, |cluster| {
                condition(cluster, "WorkersRegistered").is_some_and(|one| one.message.contains("r1"))
            })
            .await;
        story.figure_below("asked for to Citus' words", at - asked, 60.0);
        story.figure("what Citus says", &condition(&seen, "WorkersRegistered").unwrap().message);
        let message = told(story, &cluster, "RegistrationRefused", asked, 120.0).await;
        assert!(message.contains("r1"), "{message}");
        // Nobody else waits for that worker.
        cluster.edit(json!({"postgres": {"parameters": {"work_mem": "9MB"}}})).await;
        let worker = cluster.admin(Node::Worker(0)).await;
        wait::eventually("a changed setting is taken", Duration::from_mins(2), async || {
            let now: String = sql::value(&worker, "SELECT current_setting('work_mem')").await;
            if now == "9MB" { Ok(()) } else { Err(now) }
        })
        .await;

        story.figure("obstacle", "a table that is dropped while its moves wait");
        // A new session: the one of before keeps a session to the worker of that name that was removed.
        let admin = cluster.coordinator().await;
        let held = cluster.hold_moves_from(Node::Worker(0)).await;
        sql::run(&admin, "DROP ROLE r2").await;
        held.until_waited_for().await;
        let first: i64 = sql::value(&admin, "SELECT max(job_id) FROM pg_dist_background_job").await;
        let waiting = "SELECT min(logicalrelid::text) FROM (
            SELECT s.logicalrelid FROM pg_dist_background_task k
            JOIN pg_dist_shard s ON s.shardid = substring(command FROM 'placement\\((\\d+)')::bigint
            WHERE status NOT IN ('done', 'cancelled') AND s.logicalrelid <> 'dialogs'::regclass
            GROUP BY 1 HAVING NOT bool_or(status = 'running')) AS waiting";
        let table: String = wait::eventually("moves of a table wait", Duration::from_mins(1), async || {
            sql::value::<Option<String>>(&admin, waiting).await.ok_or("each runs")
        })
        .await;
        sql::run(&admin, &format!("DROP TABLE {table}")).await;
        let dropped = Instant::now();
        let again = format!("SELECT count(*) FROM pg_dist_background_job WHERE job_id > {first}");
        wait::eventually("the job is stopped, and the rest planned anew", Duration::from_mins(1), async || {
            if sql::value::<i64>(&admin, &again).await > 0 { Ok(()) } else { Err("the same job") }
        })
        .await;
        story.figure_below(&format!("{table} dropped to a new job"), dropped.elapsed(), 30.0);
        drop(held);
        settles(story, &cluster, "the way free", 3).await;
        cluster.assert_nothing_is_left_behind(3).await;
        assert_eq!(cluster.rows().await, 2_000);
        let refused = operator.logged().matches("InvariantBroken").count();
        assert_eq!(refused, 0);
    })
    .await;
}

/// The process of a session, which has a transaction open from now on.
async fn opened(client: &Client, statement: &str) -> i32 {
    sql::run(client, &format!("BEGIN; {statement}")).await;
    sql::value(client, "SELECT pg_backend_pid()").await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_up_moves_is_named() {
    if only_citus("the names of its sessions, by which those who wait are known") {
        return;
    }
    story("held-up", async |story| {
        let _operator = story.operator();
        let few = json!({"schema": {"shardCount": 8}});
        let cluster = story.settled_cluster("talk", with(spec(1), &few)).await;
        cluster.load(2_000).await;
        let elsewhere = cluster.admin_over("postgres", Node::Worker(0)).await;
        let coordinator = cluster.coordinator().await;
        for (client, statement, who, (kind, workers)) in [
            (
                elsewhere,
                "SELECT pg_current_xact_id()",
                "on talk-worker-0, user postgres, database postgres",
                ("Balanced", 2),
            ),
            (
                coordinator,
                "LOCK TABLE dialogs IN ACCESS EXCLUSIVE MODE",
                "on talk-coordinator holds public.dialogs, user postgres, database dialogs",
                ("Reconciling", 3),
            ),
        ] {
            let pid = opened(&client, statement).await;
            let asked = Instant::now();
            cluster.scale(workers).await;
            let who = format!("blocked by pid {pid} {who}, application_name story, in a transaction since 2");
            let (told, seen) = cluster
                .until(&who, 120, |cluster| {
                    condition(cluster, kind).is_some_and(|one| one.message.contains(&who))
                })
                .await;
            story.figure_below("asked for to the session named", told - asked, 60.0);
            story.figure("what is said of it", &condition(&seen, kind).unwrap().message);
            assert!(is(&seen, "Ready", "True") && !is(&seen, "Stalled", "True"), "it is waited for");
            drop(client);
            settles(story, &cluster, "session ended", workers).await;
        }
        assert_eq!(cluster.rows().await, 2_000);
    })
    .await;
}
