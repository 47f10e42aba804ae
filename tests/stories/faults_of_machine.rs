//! What happens to machines: the API server is away, a network is cut, a disk is full; with a writer at work.

use std::time::{Duration, Instant};

use dialog_operator::api::Node;
use serde_json::json;

use crate::harness::{
    cluster::{spec, with},
    machine::{Fault, api_server},
    setting, story, story_alone, wait,
};

/// How long a network is cut: longer than it takes all who talk through it to give up.
const CUT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_cut() {
    story("cut", async |story| {
        let _operator = story.operator();
        let cluster = story.busy_cluster(spec(2)).await;
        // The source of moves, the target of moves, the coordinator in a drain, the one that is drained.
        for (source, victim, workers) in [
            (Node::Worker(0), Node::Worker(0), 3),
            (Node::Worker(0), Node::Worker(3), 4),
            (Node::Worker(3), Node::Coordinator, 3),
            (Node::Worker(2), Node::Worker(2), 2),
        ] {
            let held = cluster.hold_moves_from(source).await;
            cluster.scale(workers).await;
            held.until_waited_for().await;
            let cut = cluster.cut(victim).await.expect("a pod with a network");
            // A server that is cut off does not hear this, as it hears of no other session that ends meanwhile.
            drop(held);
            tokio::time::sleep(CUT).await;
            drop(cut);
            let what = format!("{victim} cut off for {} s", CUT.as_secs());
            cluster.settles(&what, Instant::now(), workers).await;
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_full() {
    story("full", async |story| {
        let _operator = story.operator();
        let small = json!({"workers": {"storage": {"size": "512Mi", "storageClassName": "small"}}});
        let cluster = story.busy_cluster(with(spec(2), &small)).await;
        for (what, victim, workers) in
            [("at rest", Node::Worker(1), 2), ("source", Node::Worker(0), 3), ("drained", Node::Worker(2), 2)]
        {
            let failed = cluster.writer.so_far().failed_tries.len();
            let full = cluster.fill(victim).await.expect("a pod with a volume");
            wait::eventually("writes fail", Duration::from_mins(3), async || {
                let tries = cluster.writer.so_far().failed_tries;
                if tries.len() > failed { Ok(()) } else { Err(format!("{} tries", tries.len())) }
            })
            .await;
            let words = cluster.writer.so_far().failed_tries[failed].words.clone();
            story.figure(&format!("{victim} full, {what}: what a writer is told"), words);
            cluster.scale(workers).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            story.figure(
                "what is said of it",
                cluster.get().await.status.unwrap().message.unwrap_or_default(),
            );
            drop(full);
            cluster.settles(&format!("a full disk, {what}"), Instant::now(), workers).await;
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_is_away() {
    story_alone("api-away", async |story| {
        let away = Duration::from_secs(setting("STORY_API_AWAY_SECONDS", 20));
        let _operator = story.operator();
        let cluster = story.busy_cluster(spec(2)).await;
        for (source, workers) in [(0, 4), (3, 2)] {
            let held = cluster.hold_moves_from(Node::Worker(source)).await;
            cluster.scale(workers).await;
            held.until_waited_for().await;
            without_api_server(away).await;
            drop(held);
            cluster.settles("the API server away", Instant::now(), workers).await;
        }
        assert_eq!(cluster.end().await, Vec::<String>::new(), "no server needs it: no write fails");
    })
    .await;
}

/// Stops the API server for so long, and waits until it answers again.
pub async fn without_api_server(away: Duration) {
    let stopped = Fault::stop_process("the API server is stopped", api_server());
    tokio::time::sleep(away).await;
    drop(stopped);
    wait::eventually("the API server answers", Duration::from_mins(1), async || {
        testkit::kubernetes::client().await.apiserver_version().await
    })
    .await;
}
