//! Members that are not whole, and how they are healed.

use dialog_operator::{
    citus::{NodeQuestion, Session, commands, observe_node},
    observe::snapshot::DistNode,
};

use crate::{
    harness::{Cluster, DATABASE, Server},
    moves::{catalog, with_dialogs},
};

const NODE: NodeQuestion<'_> = NodeQuestion { database: DATABASE, settings: &[] };

/// A worker's row of pg_dist_node.
async fn row(session: &Session, worker: &Server) -> DistNode {
    let nodes = catalog(session).await.nodes;
    nodes.into_iter().find(|node| node.port == i32::from(worker.port)).expect("a registered worker")
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_activated() {
    let cluster = Cluster::start(2, 1, "").await;
    let session = cluster.session().await;
    with_dialogs(&cluster, &session).await;
    // The second one has no shards: citus_disable_node refuses others.
    let [first, second] = cluster.workers.as_slice() else { panic!("two workers") };
    commands::add_node(&session, "127.0.0.1", second.port).await.unwrap();

    let disable = format!("SELECT citus_disable_node('127.0.0.1', {}, true)", second.port);
    cluster.coordinator.sql(&[&disable]).await.unwrap();
    assert!(!row(&session, second).await.active);
    let id = commands::add_node(&session, "127.0.0.1", second.port).await.unwrap();
    let disabled = row(&session, second).await;
    assert!(!disabled.active && disabled.node_id == id, "adding it again does not heal it: {disabled:?}");
    commands::activate_node(&session, "127.0.0.1", second.port).await.unwrap();
    is_whole(&session, second).await;

    // An old copy of the metadata, none, and inactive by hand: a worker with shards.
    let broken =
        ["metadatasynced = false", "hasmetadata = false, metadatasynced = false", "isactive = false"];
    for flags in broken {
        let update = format!("UPDATE pg_dist_node SET {flags} WHERE nodeport = {}", first.port);
        cluster.coordinator.sql(&[&update]).await.unwrap();
        first.sql(&["DELETE FROM pg_dist_node"]).await.unwrap();
        commands::activate_node(&session, "127.0.0.1", first.port).await.unwrap();
        is_whole(&session, first).await;
        assert_eq!(cluster.coordinator.value("SELECT count(*) FROM dialogs").await, "5000");
    }
    for worker in [first, second] {
        commands::activate_node(&session, "127.0.0.1", worker.port).await.unwrap();
        is_whole(&session, worker).await;
    }
}

async fn is_whole(session: &Session, worker: &Server) {
    let listed = row(session, worker).await;
    assert!(listed.active && listed.has_metadata && listed.metadata_synced, "{listed:?}");
    assert!(listed.should_have_shards, "{listed:?}");
    let seen = observe_node(&worker.session(DATABASE).await, &NODE).await.unwrap();
    assert_eq!((seen.group_id, seen.known_nodes, seen.missing_tables), (Some(listed.group_id), 3, 0));
}
