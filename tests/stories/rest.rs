//! A cluster at rest with a writer at work: the operator looks, and writes nothing, neither to Kubernetes nor to a server.

use std::{collections::BTreeMap, time::Duration};

use dialog_operator::api::Node;
use serde_json::json;

use crate::harness::{
    audit::Audit,
    cluster::{Cluster, spec, with},
    operator::user,
    setting, sql, story, wait,
};
use testkit::load::writer::{Pace, Writer};

const NODES: [Node; 3] = [Node::Coordinator, Node::Worker(0), Node::Worker(1)];

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_nothing_is_written_but_the_lease() {
    story("rest", async |story| {
        let time = Duration::from_secs(setting("STORY_REST_SECONDS", 60));
        let operator = story.operator();
        // Autovacuum writes, too; what is left then is the writer and whoever else changes something.
        let still = json!({"postgres": {"parameters": {"autovacuum": "off"}}});
        let cluster = story.settled_cluster("talk", with(spec(2), &still)).await;
        cluster.load(200_000).await;
        until_nothing_moves(&cluster).await;

        let looks = |log: &str| log.matches("controller: reconciled").count();
        let (looked, audit) = (looks(&operator.logged()), Audit::from_now());
        let (before, version, events) =
            (servers(&cluster).await, version(&cluster).await, cluster.events().await);
        let pace = Pace { connections: 2, rows_per_second: 20, ..Pace::default() };
        let writer = Writer::start(&cluster.access().await, &pace, "all");
        wait::throughout("the DialogCluster is not written", time, async || {
            let now = self::version(&cluster).await;
            if now == version {
                Ok(())
            } else {
                Err(format!("{version} became {now}: {:?}", cluster.get().await))
            }
        })
        .await;
        let ledger = writer.stop().await;

        let after = servers(&cluster).await;
        let written = audit.writes(&user(&story.namespace));
        let (leases, others): (Vec<_>, Vec<_>) =
            written.into_iter().partition(|write| write.contains(" leases/"));
        story.figure("seconds at rest", time.as_secs());
        story.figure("looks of the operator", looks(&operator.logged()) - looked);
        story.figure("writes to its Lease", leases.len());
        story.figure("other writes to Kubernetes", others.len());
        assert!(!leases.is_empty(), "the audit log shows this operator at all");
        assert_eq!(others, Vec::<String>::new(), "writes to Kubernetes");
        assert!(looks(&operator.logged()) > looked + 1, "it has looked meanwhile");
        assert_eq!(cluster.events().await, events, "events");

        let mut transactions = 0;
        for node in NODES {
            let ((settings, first), (same, last)) = (&before[&node], &after[&node]);
            assert_eq!(settings, same, "{node}: settings and when they were loaded");
            if node == Node::Coordinator {
                assert_eq!(first, last, "{node} gave out transactions: somebody changed something there");
            }
            transactions += last - first;
        }
        story.figure("rows of the writer", ledger.writes.len());
        story.figure("transactions on all servers that changed something", transactions);
        assert_eq!(ledger.phase("all").words, Vec::<String>::new(), "writes that failed");
        assert_eq!(transactions, i64::try_from(ledger.writes.len()).unwrap(), "all of them are the writer's");
        cluster.assert_kept(&ledger, 200_000).await;
    })
    .await;
}

async fn version(cluster: &Cluster) -> String {
    cluster.get().await.metadata.resource_version.unwrap()
}

/// Of each server: its settings files and when they were loaded, and how many transactions have changed something.
async fn servers(cluster: &Cluster) -> BTreeMap<Node, (String, i64)> {
    let mut servers = BTreeMap::new();
    for node in NODES {
        let admin = cluster.admin(node).await;
        let settings = "SELECT concat_ws(' ', pg_conf_load_time(), pg_postmaster_start_time(),
            (pg_stat_file('postgresql.auto.conf')).modification, (SELECT count(*) FROM pg_prepared_xacts))";
        servers.insert(node, (sql::value(&admin, settings).await, sql::transactions(&admin).await));
    }
    servers
}

/// What a load leaves behind (a first look at sizes, the status that follows) is over.
async fn until_nothing_moves(cluster: &Cluster) {
    cluster.until_settled(60).await;
    // A load commits on several workers at once, and Citus forgets that it did at its next recovery, once a minute.
    let coordinator = cluster.admin(Node::Coordinator).await;
    sql::value::<i32>(&coordinator, "SELECT recover_prepared_transactions()").await;
    let mut last = (servers(cluster).await, version(cluster).await);
    wait::eventually("nothing moves for five looks a second apart", Duration::from_mins(1), async || {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        for _ in 0..6 {
            second.tick().await;
            let now = (servers(cluster).await, version(cluster).await);
            if now != std::mem::replace(&mut last, now.clone()) {
                return Err(format!("{now:?}"));
            }
        }
        Ok(())
    })
    .await;
}
