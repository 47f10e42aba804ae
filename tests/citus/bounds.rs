//! What a look costs is bounded, whatever people or a long life have made on the servers.

use std::time::Instant;

use dialog_operator::citus::{NodeQuestion, commands, observe_node};
use testkit::postgres::{Cluster, DATABASE};

use crate::moves::catalog;

/// Lists that people, or a long life, can make of any length.
#[tokio::test(flavor = "multi_thread")]
async fn long_lists_cost_a_look_little_and_keep_a_row_a_group() {
    let cluster = Cluster::start(1, 1, "").await;
    let session = cluster.session().await;
    let coordinator = &cluster.coordinator;
    let member = coordinator.value("SELECT max(groupid) FROM pg_dist_node").await;
    let many = format!(
        "INSERT INTO pg_dist_cleanup SELECT nextval('pg_dist_cleanup_recordid_seq'), 0,
           CASE WHEN i > 150000 THEN 3 ELSE 1 END, 'public.some_table_' || i,
           CASE WHEN i <= 100000 THEN {member} WHEN i = 100001 OR i > 199999 THEN 0 ELSE 1000 + i END, 1
         FROM generate_series(1, 200000) AS i"
    );
    // Nobody cleans up meanwhile.
    coordinator
        .sql(&["ALTER SYSTEM SET citus.defer_shard_delete_interval = -1", "SELECT pg_reload_conf()"])
        .await
        .unwrap();
    coordinator.sql(&[&many]).await.unwrap();
    let started = Instant::now();
    let citus = catalog(&session).await;
    println!("a look at 200,000 rows: {:?}", started.elapsed());
    assert_eq!((citus.cleanup_in_all, citus.cleanup.len()), (200_000, 1_000 + 2 + 1_000));
    let of = |group: i32| citus.cleanup.iter().filter(move |row| row.group_id == group);
    assert_eq!((of(member.parse().unwrap()).count(), of(0).count()), (1_000, 2));
    let group: i32 = member.parse().unwrap();
    let all = commands::cleanup_of(&session, group).await.unwrap();
    assert_eq!(all.len(), 100_000);
    coordinator.sql(&["DELETE FROM pg_dist_cleanup"]).await.unwrap();

    // Leftovers of ALTER SYSTEM: what is asked about comes first.
    let settings = "SELECT format('my.setting_%s = ''v''', i) FROM generate_series(1, 3000) AS i";
    let mut lines = coordinator.sql(&[settings]).await.unwrap();
    lines.push("work_mem = '9MB'".to_owned());
    coordinator.write("postgresql.auto.conf", &lines.join("\n"));
    let ask = NodeQuestion { database: DATABASE, owner: "shop", settings: &["work_mem"] };
    let seen = observe_node(&session, &ask).await.unwrap();
    assert_eq!((seen.auto_conf.len(), seen.auto_conf["work_mem"].as_str()), (1_000, "9MB"));

    // Words of tasks, which may be the application's: of any length, and no text at all.
    let tasks = [
        "INSERT INTO pg_dist_background_job (job_id, state, job_type, description) VALUES (77, 'failed', 'rebalance', 'd')",
        "INSERT INTO pg_dist_background_task (job_id, task_id, status, command, message, retry_count)
         SELECT 77, 1000 + i, 'error', 'SELECT 1', repeat('wörter ', 500000), 1 FROM generate_series(1, 12) AS i",
    ];
    coordinator.sql(&tasks).await.unwrap();
    let job = catalog(&session).await.job.expect("a job");
    assert_eq!(job.tasks.len(), 12);
    for task in &job.tasks {
        let message = task.message.as_deref().unwrap();
        assert!(message.starts_with("wörter wörter") && message.chars().count() <= 4_000, "{message}");
    }
}
