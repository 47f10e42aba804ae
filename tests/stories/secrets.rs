//! Secrets in people's hands: a password that is changed, a port that is forwarded, a URI in a plain pod, and Secrets
//! that are deleted, with a copy of the authorities and without one.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use dialog_operator::api::{DialogCluster, Node};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use testkit::kubernetes;

use crate::harness::{
    Story,
    cluster::{Cluster, condition, is, is_settled, is_stalled, spec},
    image, sql, story, wait,
};

const LEAVES: [&str; 3] = ["talk-server", "talk-node", "talk-superuser"];

fn secrets(cluster: &Cluster) -> Api<Secret> {
    cluster.api()
}

async fn data(cluster: &Cluster, name: &str) -> BTreeMap<String, ByteString> {
    secrets(cluster).get(name).await.unwrap().data.unwrap()
}

async fn text(cluster: &Cluster, key: &str) -> String {
    String::from_utf8(data(cluster, "talk-app").await[key].0.clone()).unwrap()
}

async fn set_password(cluster: &Cluster, password: &str) {
    let patch = Patch::Merge(json!({"stringData": {"password": password}}));
    secrets(cluster).patch("talk-app", &PatchParams::default(), &patch).await.unwrap();
}

async fn delete(cluster: &Cluster, names: &[&str]) {
    for name in names {
        secrets(cluster).delete(name, &DeleteParams::default()).await.unwrap();
    }
}

async fn until_there(cluster: &Cluster, names: &[&str], seconds: u64) {
    wait::eventually("the Secrets are back", Duration::from_secs(seconds), async || {
        for name in names {
            if secrets(cluster).get_opt(name).await.unwrap().is_none() {
                return Err((*name).to_owned());
            }
        }
        Ok(())
    })
    .await;
}

/// A query of all shards, in a session of its own.
async fn asks(cluster: &Cluster) -> Result<i64, String> {
    let access = cluster.access().await;
    let client = access.connect().await.map_err(|error| format!("{error:#}"))?;
    let row = client.query_one("SELECT count(*) FROM dialogs", &[]).await;
    row.map(|row| row.get(0)).map_err(|error| sql::words(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_ports_and_uris_work_as_people_expect() {
    story("credentials", async |story| {
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(2)).await;
        let pod_uids = cluster.pod_uids().await;
        assert_eq!(forwarded(story, &text(&cluster, "password").await), "dialogs");

        for password in ["Neu12345", "it's a+b c/@:%&?=#ä\"\\"] {
            let changed = Instant::now();
            set_password(&cluster, password).await;
            wait::eventually("the new password is taken", Duration::from_secs(30), async || {
                asks(&cluster).await
            })
            .await;
            story.figure_below("a changed password to the first login", changed.elapsed(), 30.0);
            assert_eq!(forwarded(story, password), "dialogs");
        }
        for (name, key) in [("plain", "uri"), ("verified", "uri-verify-full")] {
            assert_eq!(in_a_pod(&cluster, name, key).await, "dialogs", "{key}");
        }

        set_password(&cluster, "").await;
        let (_, seen) = cluster
            .until("an empty password is told", 60, |cluster| is_stalled(cluster, "PasswordNotUsable"))
            .await;
        let message = &condition(&seen, "Stalled").unwrap().message;
        assert!(message.contains("talk-app") && message.contains("'password'"), "{message}");
        set_password(&cluster, "Neu54321").await;
        cluster.until_settled(60).await;

        // By SQL, and not in the Secret.
        let admin = cluster.coordinator().await;
        sql::run(&admin, "ALTER ROLE dialogs PASSWORD 'elsewhere'").await;
        let changed = Instant::now();
        assert!(asks(&cluster).await.is_err());
        wait::eventually("the Secret's password is back", Duration::from_mins(3), async || {
            asks(&cluster).await
        })
        .await;
        story.figure("a password changed by SQL to the Secret's again", changed.elapsed().as_secs());
        cluster.until_settled(60).await;
        assert_eq!(cluster.pod_uids().await, pod_uids, "nothing was restarted");
    })
    .await;
}

/// Who a person is through `kubectl port-forward`, with TLS and a password.
fn forwarded(story: &Story, password: &str) -> String {
    let mut forward = kubernetes::tool("kubectl")
        .args(["--namespace", &story.namespace, "port-forward", "svc/talk", ":5432"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    // Forwarding from 127.0.0.1:40001 -> 5432
    let port = line.split(" ->").next().unwrap().rsplit(':').next().unwrap().to_owned();
    let asked = Command::new("psql")
        .args(["-XAtqw", "-c", "SELECT current_user"])
        .arg(format!("host=127.0.0.1 port={port} dbname=dialogs user=dialogs sslmode=require"))
        .env("PGPASSWORD", password)
        .output()
        .unwrap();
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert!(asked.status.success(), "{line}{}", String::from_utf8_lossy(&asked.stderr));
    String::from_utf8(asked.stdout).unwrap().trim().to_owned()
}

/// Who a pod is that has a key of the Secret in its environment and the root where the README mounts it.
async fn in_a_pod(cluster: &Cluster, name: &str, key: &str) -> String {
    let script = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); psql \"$URI\" -XAtqwc 'SELECT current_user' \
                  >/dev/termination-log 2>&1";
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999,
                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "client", "image": image(), "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "env": [{"name": "URI", "valueFrom": {"secretKeyRef": {"name": "talk-app", "key": key}}}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "app", "mountPath": "/etc/talk-app", "readOnly": true}],
            }],
            "volumes": [{"name": "app", "secret": {"secretName": "talk-app"}}],
        }
    });
    let api: Api<Pod> = cluster.api();
    api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    wait::eventually("the pod has asked", Duration::from_mins(1), async || {
        let status = api.get(name).await.unwrap().status.unwrap_or_default();
        let ended = status
            .container_statuses
            .iter()
            .flatten()
            .find_map(|one| one.state.as_ref()?.terminated.as_ref()?.message.clone());
        ended.map(|said| said.trim().to_owned()).ok_or(format!("{status:?}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_secrets_come_back_and_authorities_are_awaited() {
    story("secrets", async |story| {
        let _operator = story.operator();
        let cluster = story.settled_cluster("talk", spec(2)).await;
        cluster.load(1000).await;
        let pod_uids = cluster.pod_uids().await;

        delete(&cluster, &LEAVES).await;
        until_there(&cluster, &LEAVES, 30).await;
        serves(&cluster, 150).await;

        let copy = secrets(&cluster).get("talk-ca").await.unwrap();
        delete(&cluster, &["talk-ca"]).await;
        delete(&cluster, &LEAVES).await;
        let (_, seen) = cluster
            .until("the authorities are missed", 60, |cluster| is_stalled(cluster, "AuthorityMissing"))
            .await;
        let message = &condition(&seen, "Stalled").unwrap().message;
        story.figure("what is said of lost authorities", message);
        assert!(message.contains("talk-ca"), "{message}");
        wait::throughout(
            "nothing is made anew, and running nodes serve",
            Duration::from_secs(40),
            async || {
                let there = secrets(&cluster).list(&ListParams::default()).await.unwrap();
                let there: Vec<String> = there.iter().map(ResourceExt::name_any).collect();
                assert!(
                    !there.iter().any(|name| name == "talk-ca" || LEAVES.contains(&name.as_str())),
                    "{there:?}"
                );
                asks(&cluster).await.map(drop)
            },
        )
        .await;

        // As somebody makes it from files: without labels, without an owner.
        let restored = Instant::now();
        let bare = json!({"metadata": {"name": "talk-ca"}, "data": copy.data});
        let bare = serde_json::from_value(bare).unwrap();
        secrets(&cluster).create(&PostParams::default(), &bare).await.unwrap();
        until_there(&cluster, &LEAVES, 60).await;
        cluster.until("all is well again", 120, is_settled).await;
        story.figure_below("authorities restored to all well", restored.elapsed(), 120.0);
        serves(&cluster, 60).await;
        assert_eq!(cluster.pod_uids().await, pod_uids, "nothing was restarted");

        without_a_copy(story, &cluster).await;
    })
    .await;
}

/// For longer than certificates of before, sessions of before, and files of before live on.
async fn serves(cluster: &Cluster, seconds: u64) {
    wait::throughout("every query of a new session succeeds", Duration::from_secs(seconds), async || {
        let rows = asks(cluster).await?;
        let seen = cluster.get().await;
        if rows == 1000 && is(&seen, "Ready", "True") { Ok(()) } else { Err(format!("{rows} {seen:?}")) }
    })
    .await;
}

/// As the runbook has it.
async fn without_a_copy(story: &Story, cluster: &Cluster) {
    delete(cluster, &["talk-ca"]).await;
    delete(cluster, &LEAVES).await;
    let begun = Instant::now();
    let annotation = json!({"metadata": {"annotations": {"dialogcluster.dev/new-authority": "story"}}});
    let api: Api<DialogCluster> = cluster.api();
    api.patch("talk", &PatchParams::default(), &Patch::Merge(annotation)).await.unwrap();
    until_there(cluster, &[&LEAVES[..], &["talk-ca"]].concat(), 60).await;
    let pods: Api<Pod> = cluster.api();
    for name in cluster.pods().await.keys() {
        pods.delete(name, &DeleteParams::default()).await.unwrap();
    }
    wait::eventually(
        "all rows are there under new authorities",
        Duration::from_mins(3),
        async || match asks(cluster).await? {
            1000 if is(&cluster.get().await, "Ready", "True") => Ok(()),
            rows => Err(format!("{rows} rows")),
        },
    )
    .await;
    story.figure("new authorities without a copy to all well", begun.elapsed().as_secs());
    cluster.until_settled(90).await;
    assert!(cluster.admin(Node::Worker(1)).await.simple_query("SELECT 1").await.is_ok());
}
