//! A cluster is born: fast, under the names of the contract, and only those get in who should.

use std::{
    collections::BTreeSet,
    io::Read as _,
    time::{Duration, Instant},
};

use dialog_operator::api::Node;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use serde_json::Value;

use crate::harness::{
    Story,
    cluster::{Cluster, is, spec},
    sql::{self, Shows, words},
    story, wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_born_and_lets_in_who_may() {
    story("birth", async |story| {
        let operator = story.operator();
        operator.until_it_leads().await;
        let applied = Instant::now();
        let cluster = story.cluster("talk", spec(2)).await;
        let (ready, _) = cluster.until("Ready", 60, |cluster| is(cluster, "Ready", "True")).await;
        story.figure_below("apply of coordinator + 2 workers to Ready", ready - applied, 15.0);
        cluster.until_settled(30).await;

        objects_have_their_names(story, &cluster).await;
        a_pod_without_the_standard_is_refused(&cluster).await;
        who_gets_in(&cluster).await;
        a_server_stops_fast(story, &cluster).await;
        cluster.until_settled(60).await;
    })
    .await;
}

async fn objects_have_their_names(story: &Story, cluster: &Cluster) {
    let kinds = "statefulsets,configmaps,services,secrets,poddisruptionbudgets,serviceaccounts,persistentvolumeclaims";
    let listed = story.kubectl(&["get", kinds, "-l", "dialogcluster.dev/cluster=talk", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let uid = cluster.get().await.metadata.uid.unwrap();
    let mut names = BTreeSet::new();
    for object in listed["items"].as_array().unwrap() {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        if kind == "PersistentVolumeClaim" {
            assert!(owners.is_empty(), "{kind} {name} outlives the DialogCluster: {owners:?}");
            let (node, suffix) = name.rsplit_once('-').unwrap();
            assert_eq!(suffix.len(), 5, "{name}");
            names.insert(format!("{kind}/{node}"));
        } else {
            assert_eq!(owners.len(), 1, "{kind} {name}: {owners:?}");
            assert_eq!(owners[0]["uid"], *uid, "{kind} {name}");
            names.insert(format!("{kind}/{name}"));
        }
        let labels = &object["metadata"]["labels"];
        for label in ["app.kubernetes.io/name", "app.kubernetes.io/managed-by"] {
            assert!(labels[label].is_string(), "{kind} {name} has no label {label}");
        }
        // A GitOps tool that tracks by it would prune a volume, which no owner protects.
        let instance = labels["app.kubernetes.io/instance"].is_string();
        assert_eq!(instance, kind != "PersistentVolumeClaim", "{kind} {name}: app.kubernetes.io/instance");
    }
    let mut expected = BTreeSet::new();
    for node in ["talk-coordinator", "talk-worker-0", "talk-worker-1"] {
        for kind in ["StatefulSet", "ConfigMap", "Service", "PersistentVolumeClaim"] {
            expected.insert(format!("{kind}/{node}"));
        }
    }
    for other in ["Service/talk-nodes", "Service/talk", "PodDisruptionBudget/talk", "ServiceAccount/talk"] {
        expected.insert(other.to_owned());
    }
    for secret in ["superuser", "app", "ca", "server", "node"] {
        expected.insert(format!("Secret/talk-{secret}"));
    }
    assert_eq!(names, expected);
    let nodes = cluster.coordinator().await;
    let nodes = nodes.query("SELECT nodename FROM pg_dist_node ORDER BY nodename", &[]).await.unwrap();
    let nodes: Vec<String> = nodes.iter().map(|row| row.get(0)).collect();
    let address = |node: &str| format!("{node}.{}.svc.cluster.local", cluster.namespace);
    assert_eq!(nodes, ["talk-coordinator", "talk-worker-0", "talk-worker-1"].map(address));
}

/// The namespace really has the restricted Pod Security Standard, so the nodes' pods have passed it.
async fn a_pod_without_the_standard_is_refused(cluster: &Cluster) {
    let pod = serde_json::json!({
        "metadata": {"name": "careless"}, "spec": {"containers": [{"name": "one", "image": "localhost/none:1"}]}
    });
    let refused =
        cluster.api::<Pod>().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await;
    let refused = refused.expect_err("a pod without a security context is refused").to_string();
    assert!(refused.contains("PodSecurity") && refused.contains("restricted"), "{refused}");
}

async fn who_gets_in(cluster: &Cluster) {
    let application = cluster.application().await;
    sql::run(
        &application,
        "INSERT INTO dialogs (from_user, to_user, message) SELECT i, 1000 - i, 'hello' FROM generate_series(1, 500) i",
    )
    .await;
    let over = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(sql::value::<bool>(&application, over).await);
    assert_eq!(sql::value::<i64>(&application, "SELECT count(*) FROM dialogs").await, 500);

    let admin = cluster.coordinator().await;
    sql::run(&admin, "CREATE ROLE reader LOGIN PASSWORD 'later'; GRANT SELECT ON dialogs TO reader").await;
    let reader =
        cluster.log_in(Node::Coordinator, "reader", Some("later"), Shows::NoCertificate).await.unwrap();
    let answer =
        sql::value::<i64>(&reader, "SELECT sum(from_user)::bigint FROM dialogs WHERE message = 'hello'")
            .await;
    assert_eq!(answer, 500 * 501 / 2);
    sql::run(&admin, "ALTER ROLE postgres PASSWORD 'known'").await;

    for (node, user, password, shows, expected) in [
        (Node::Coordinator, "reader", "later", Shows::Nothing, "no pg_hba.conf entry"),
        (Node::Coordinator, "reader", "wrong", Shows::NoCertificate, "password authentication failed"),
        (Node::Coordinator, "postgres", "known", Shows::NoCertificate, "valid client certificate"),
        (Node::Coordinator, "postgres", "known", Shows::Nothing, "no pg_hba.conf entry"),
        (Node::Worker(0), "reader", "later", Shows::NoCertificate, "valid client certificate"),
        (Node::Worker(0), "reader", "later", Shows::Nothing, "no pg_hba.conf entry"),
        (Node::Worker(1), "postgres", "known", Shows::NoCertificate, "valid client certificate"),
    ] {
        let refused = cluster.log_in(node, user, Some(password), shows).await;
        let refused = refused.err().unwrap_or_else(|| panic!("{user} got in at {node} and shows {shows:?}"));
        let said = words(&refused);
        assert!(said.contains(expected), "{user} at {node}, shows {shows:?}: {said}");
    }
}

/// A deleted pod is a fast shutdown, not a kill after minutes. Its log is read through a file that was opened before,
/// because the kubelet removes it with the pod.
async fn a_server_stops_fast(story: &Story, cluster: &Cluster) {
    let pod = cluster.pod(Node::Worker(1)).await;
    let (name, uid) = (pod.metadata.name.unwrap(), pod.metadata.uid.unwrap());
    let state = std::env::var("DIALOG_LOCAL_STATE").unwrap_or("/var/lib/dialog-local-kubernetes".to_owned());
    let path = format!("{state}/logs/pods/{}_{name}_{uid}/postgres/0.log", story.namespace);
    let mut log = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut text = String::new();
    let deleted = Timestamp::now();
    cluster.api::<Pod>().delete(&name, &DeleteParams::default()).await.unwrap();
    let line =
        wait::eventually("the server says that it is shut down", Duration::from_secs(20), async || {
            log.read_to_string(&mut text).unwrap();
            let line = text.lines().find(|line| line.contains("database system is shut down"));
            line.map(str::to_owned).ok_or(text.clone())
        })
        .await;
    assert!(text.contains("received fast shutdown request"), "{text}");
    let stopped: Timestamp = line.split(' ').next().unwrap().parse().unwrap();
    let took = Duration::try_from(stopped.duration_since(deleted)).unwrap();
    story.figure_below("a pod deleted to its server shut down", took, 3.0);
    wait::eventually("the pod is made again", Duration::from_mins(1), async || {
        let again = cluster.pods().await.get(&name).and_then(|pod| pod.metadata.uid.clone());
        if again.is_some_and(|again| again != uid) { Ok(()) } else { Err("the old one, or none") }
    })
    .await;
}
