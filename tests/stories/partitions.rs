//! Two years of days, a partition each: some 23,000 placements. Slower than anything else, but everything ends, and
//! Ready is true all the while. `make partitions` tells it.

use std::{sync::Arc, time::Duration};

use dialog_operator::api::Node;
use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;

use crate::harness::{
    cluster::{Cluster, condition, said, spec, with},
    seconds, setting, sql, story, wait,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour or more: make partitions"]
async fn two_years_of_daily_partitions_move_out_and_in() {
    story("partitions", async |story| {
        let days = setting("STORY_DAYS", 730);
        let _operator = story.operator();
        let larger = json!({
            "coordinator": {"storage": {"size": "4Gi"}}, "workers": {"storage": {"size": "4Gi"}},
            "volumes": {"whenScaled": "Delete"},
        });
        let cluster = Arc::new(story.settled_cluster("talk", with(spec(2), &larger)).await);
        let application = cluster.application().await;
        sql::run(
            &application,
            "CREATE TABLE days(id bigint, at timestamptz NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             SELECT create_distributed_table('days', 'id', colocate_with => 'none')",
        )
        .await;
        // A month in each transaction: it locks every shard of every partition that it makes.
        let began = std::time::Instant::now();
        for first in (0..days).step_by(30) {
            let last = days.min(first + 30);
            sql::run(
                &application,
                &format!(
                    "SELECT create_time_partitions('days', '1 day', timestamptz '2026-01-01' + {last} * interval '1 day', timestamptz '2026-01-01' + {first} * interval '1 day')"
                ),
            )
            .await;
        }
        story.figure("partitions made", seconds(began.elapsed()));
        sql::run(
            &application,
            &format!(
                "INSERT INTO days SELECT i, timestamptz '2026-01-01 12:00' + (i % {days}) * interval '1 day', 'x'
                 FROM generate_series(1, 20000) i"
            ),
        )
        .await;
        let admin = cluster.coordinator().await;
        let placements: i64 = sql::value(&admin, "SELECT count(*) FROM pg_dist_placement").await;
        story.figure("placements", placements);

        let flaps = tokio::spawn(not_ready(Arc::clone(&cluster)));
        let writer = cluster.writer().await;
        for workers in [3, 2] {
            let edited = std::time::Instant::now();
            cluster.scale(workers).await;
            let (settled, seen) = cluster.until_settled_with(workers, 1800).await;
            story.figure(&format!("to {workers} workers"), seconds(settled - edited));
            story.figure("the last job", format!("{:?}", seen.status.unwrap().rebalance));
            let rows: i64 = sql::value(&cluster.coordinator().await, "SELECT count(*) FROM days").await;
            assert_eq!(rows, 20_000);
        }
        let ledger = writer.stop().await;
        story.figure("longest write", seconds(ledger.phase("all").longest));
        cluster.assert_kept(&ledger, 0).await;
        flaps.abort();
        if let Ok(said) = flaps.await {
            panic!("Ready was not true: {said}");
        }
        // Nothing is left of it on any node, the one that went and came among them.
        wait::eventually("nothing is left behind", Duration::from_mins(5), async || {
            let admin = cluster.admin(Node::Coordinator).await;
            let rows: i64 = sql::value(&admin, "SELECT count(*) FROM pg_dist_cleanup").await;
            if rows == 0 { Ok(()) } else { Err(format!("{rows} rows of pg_dist_cleanup")) }
        })
        .await;
    })
    .await;
}

/// Ends when Ready is seen to be anything but true.
async fn not_ready(cluster: Arc<Cluster>) -> String {
    let name = format!("metadata.name={}", cluster.name);
    let mut seen =
        std::pin::pin!(watcher(cluster.api(), watcher::Config::default().fields(&name)).applied_objects());
    while let Some(one) = seen.next().await {
        let Ok(one) = one else { continue };
        if condition(&one, "Ready").is_some_and(|ready| ready.status != "True") {
            return said(&one);
        }
    }
    "the watch ended".to_owned()
}
