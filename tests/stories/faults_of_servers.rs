//! A server is killed, or its pod is deleted, in the middle of everything that the operator does, with a writer at work.

use std::time::{Duration, Instant};

use dialog_operator::api::Node;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{
    busy::Busy,
    cluster::{Cluster, is, spec},
    held::Held,
    sql, story, wait,
};

/// What happens to a server.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed(Node),
    PodDeleted(Node),
}
use Fault::{Killed, PodDeleted};

impl Fault {
    async fn strike(self, cluster: &Cluster) {
        match self {
            Killed(node) => {
                wait::eventually("a server to kill", Duration::from_mins(1), async || {
                    cluster.kill_postmaster(node).await.ok_or("it does not run")
                })
                .await;
            }
            PodDeleted(node) => {
                let pods = cluster.api::<Pod>();
                pods.delete(&node.pod_name(&cluster.name), &DeleteParams::default()).await.unwrap();
            }
        }
    }
}

/// The fault strikes while somebody waits for the transaction, which then ends.
async fn strikes_meanwhile(cluster: &Busy<'_>, held: Held, fault: Fault, workers: u16) {
    held.until_waited_for().await;
    let struck = Instant::now();
    fault.strike(cluster).await;
    drop(held);
    cluster.settles(&format!("{fault:?}"), struck, workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_move() {
    story("struck-move", async |story| {
        let _operator = story.operator();
        let cluster = story.busy_cluster(spec(1)).await;
        for (fault, workers) in [
            (Killed(Node::Worker(0)), 2),
            (Killed(Node::Coordinator), 3),
            (PodDeleted(Node::Worker(3)), 4),
            (PodDeleted(Node::Worker(0)), 5),
        ] {
            let held = cluster.hold_moves_from(Node::Worker(0)).await;
            cluster.scale(workers).await;
            strikes_meanwhile(&cluster, held, fault, workers).await;
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_drain() {
    story("struck-drain", async |story| {
        let _operator = story.operator();
        let cluster = story.busy_cluster(spec(4)).await;
        for (fault, workers) in
            [(Killed(Node::Worker(3)), 3), (Killed(Node::Coordinator), 2), (Killed(Node::Worker(0)), 1)]
        {
            let held = cluster.hold_moves_from(Node::Worker(workers)).await;
            cluster.scale(workers).await;
            strikes_meanwhile(&cluster, held, fault, workers).await;
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_registration() {
    story("struck-registration", async |story| {
        let _operator = story.operator();
        let cluster = story.busy_cluster(spec(1)).await;
        for (fault, workers) in
            [(Killed(Node::Worker(1)), 2), (Killed(Node::Coordinator), 3), (Killed(Node::Worker(0)), 4)]
        {
            let held = cluster.hold_registrations().await;
            cluster.scale(workers).await;
            strikes_meanwhile(&cluster, held, fault, workers).await;
        }
        cluster.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_rolling_restart() {
    story("struck-restart", async |story| {
        let _operator = story.operator();
        let cluster = story.busy_cluster(spec(3)).await;
        // How many nodes have been restarted when it strikes: the second victim is the last in the order.
        for (fault, restarted, connections) in [
            (Killed(Node::Worker(2)), 1, "301"),
            (Killed(Node::Coordinator), 1, "302"),
            (Killed(Node::Worker(0)), 2, "303"),
        ] {
            let before = cluster.pod_uids().await;
            cluster.edit(json!({"postgres": {"parameters": {"max_connections": connections}}})).await;
            wait::eventually("the restart is under way", Duration::from_mins(2), async || {
                let now = cluster.pod_uids().await;
                let new =
                    now.iter().filter(|(pod, life)| before.get(*pod).is_some_and(|old| old.0 != life.0));
                let new: Vec<_> = new.map(|(pod, _)| pod.clone()).collect();
                if new.len() >= restarted { Ok(()) } else { Err(format!("{new:?}")) }
            })
            .await;
            let struck = Instant::now();
            fault.strike(&cluster).await;
            assert!(
                !is(&cluster.get().await, "ConfigurationApplied", "True"),
                "it was over before the fault"
            );
            cluster.settles(&format!("{fault:?}"), struck, 3).await;
            for node in [Node::Coordinator, Node::Worker(0), Node::Worker(1), Node::Worker(2)] {
                let admin = cluster.admin(node).await;
                let now: String = sql::value(&admin, "SELECT current_setting('max_connections')").await;
                assert_eq!(now, connections, "{node}");
            }
        }
        cluster.end().await;
    })
    .await;
}
