//! The two acts: what is typed, and what is waited for. What came of it is judged in `report`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use dialog_operator::api::status::Phase;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client as Kube,
    api::{Patch, PatchParams},
};
use testkit::load::writer::Writer;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::{
    catalog::{self, Job},
    screen::Screen,
    watch::{View, Watch},
};

/// How long anything may take on a slow machine.
const PATIENCE: Duration = Duration::from_mins(10);
/// What is applied at the start, and edited for the first act.
const SAMPLE: &str = include_str!("../../../../infrastructure/samples/one-worker.yaml");

/// The times of the writer that are looked at apart.
#[derive(Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub enum Time {
    /// One worker, nothing happens.
    Quiet,
    /// The worker is restarted by hand, with the wrong wal_level.
    PutBack,
    /// First act, until its moves begin: a restart by the operator, and a worker that joins.
    Restart,
    /// First act: 16 shards move.
    FirstMoves,
    /// Second act, until its moves begin: a worker joins.
    Join,
    /// Second act: shards move.
    SecondMoves,
    /// Between and after the acts.
    Rest,
}

/// Shards by worker.
pub type Shards = Vec<(String, i64)>;

/// What happened in an act.
pub struct Act {
    /// Workers at its end.
    pub workers: usize,
    /// Shards at its end.
    pub shards: Shards,
    /// Pods that were there before and are others now.
    pub restarted: Vec<String>,
    /// When what happened.
    pub times: Times,
}

/// When what happened in an act.
pub struct Times {
    /// The one edit was accepted.
    pub applied: Timestamp,
    /// The worker that had the wrong wal_level is ready again.
    pub repaired: Option<Timestamp>,
    /// The last new pod is ready.
    pub pods_ready: Timestamp,
    /// Citus knows all workers.
    pub joined: Timestamp,
    /// There is a job.
    pub job: Timestamp,
    /// Its first move began, by Citus' clock.
    pub started: Timestamp,
    /// It ended, by Citus' clock.
    pub ended: Timestamp,
    /// The DialogCluster says Balanced=True.
    pub balanced: Timestamp,
}

/// All that an act needs.
pub struct Stage<'a> {
    /// The way to Kubernetes.
    pub kube: &'a Kube,
    /// A connection as the application's role.
    pub client: &'a Client,
    /// The writer that keeps going.
    pub writer: &'a Writer,
    /// The cluster's namespace.
    pub namespace: &'a str,
    /// The cluster's name.
    pub name: &'a str,
    /// What is seen.
    pub watch: Watch,
    /// What is shown.
    pub screen: Screen,
}

impl Stage<'_> {
    fn node(&self, worker: usize) -> String {
        format!("{}-worker-{worker}", self.name)
    }
    fn pod(&self, worker: usize) -> String {
        format!("{}-0", self.node(worker))
    }
    fn resource(&self) -> String {
        // The full name: another API group may have the short one as well.
        format!("dialogclusters.dialogcluster.dev/{}", self.name)
    }

    async fn until<T>(&mut self, what: &str, found: impl Fn(&View) -> Option<T>) -> anyhow::Result<T> {
        self.watch.until(&mut self.screen, what, PATIENCE, found).await
    }

    async fn kubectl(&mut self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<()> {
        let mut all = arguments.to_vec();
        all.extend(["--namespace", self.namespace]);
        self.screen.kubectl(&all, input).await
    }

    /// Lets the writer finish what it has begun, and store some rows while nothing happens.
    pub async fn rest(&mut self, rows: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        let (enough, deadline) = (self.writer.acknowledged() + rows, began + PATIENCE);
        let mut clock = tokio::time::interval(Duration::from_millis(100));
        while self.writer.acknowledged() < enough || !self.writer.settled(began) {
            ensure!(
                Instant::now() < deadline,
                "the writer stores too little: {} rows so far",
                self.writer.acknowledged()
            );
            clock.tick().await;
        }
        Ok(())
    }

    /// Pauses the cluster and puts worker 0 back to `wal_level = replica`, for real: as somebody may have found it.
    pub async fn put_back(&mut self) -> anyhow::Result<()> {
        let (node, pod, resource) = (self.node(0), self.pod(0), self.resource());
        self.writer.mark(&Time::PutBack.to_string());
        self.kubectl(&["patch", &resource, "--type=merge", r#"--patch={"spec":{"paused":true}}"#], None)
            .await?;
        self.until("the pause", |view| (view.status.phase == Some(Phase::Paused)).then_some(())).await?;
        self.screen.say(&format!("(wal_level=replica into the start script in ConfigMap {node})"));
        self.change_start_script(&node).await?;
        let old = self.watch.now().pods.get(&pod).map(|pod| pod.uid.clone()).unwrap_or_default();
        self.kubectl(&["delete", "pod", &pod], None).await?;
        self.until("the worker with the wrong wal_level", |view| {
            view.ready_again(&pod, &old)?;
            let running = view.status.nodes.iter().find(|seen| seen.name == node)?;
            (running.wal_level.as_deref() == Some("replica")).then_some(())
        })
        .await?;
        self.screen.say(&format!("{node} runs wal_level = replica: no shard can leave it"));
        Ok(())
    }

    async fn change_start_script(&self, node: &str) -> anyhow::Result<()> {
        let (right, wrong) = ("wal_level=logical", "wal_level=replica");
        let maps: Api<ConfigMap> = Api::namespaced(self.kube.clone(), self.namespace);
        let map = maps.get(node).await.with_context(|| format!("cannot read ConfigMap {node}"))?;
        let script = map.data.and_then(|mut data| data.remove("start.sh")).unwrap_or_default();
        ensure!(script.contains(right), "the start script in ConfigMap {node} does not say {right}");
        let data = BTreeMap::from([
            ("start.sh", script.replace(right, wrong)),
            ("boot-hash", "written-by-hand".to_owned()),
        ]);
        let patch = Patch::Merge(serde_json::json!({ "data": data }));
        maps.patch(node, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("cannot change ConfigMap {node}"))?;
        Ok(())
    }

    /// First act: in one apply unpaused and scaled from one worker to two.
    pub async fn first(&mut self) -> anyhow::Result<Act> {
        let edited = edited_sample()?;
        let before = self.watch.now();
        let (pod, resource) = (self.pod(0), self.resource());
        let old = before.pods.get(&pod).map(|pod| pod.uid.clone()).unwrap_or_default();
        self.writer.mark(&Time::Restart.to_string());
        self.screen.say(&format!("the sample, edited: paused: false, replicas: 2 (one apply of {resource})"));
        self.kubectl(&["apply", "--filename=-"], Some(&edited)).await?;
        let applied = Timestamp::now();
        let repaired = self.until("the repaired worker", |view| view.ready_again(&pod, &old)).await?;
        let mut act = self.grow(&before, 2, applied, Time::FirstMoves).await?;
        act.times.repaired = Some(repaired);
        Ok(act)
    }

    /// Second act: scaled through the scale subresource from two workers to three.
    pub async fn second(&mut self) -> anyhow::Result<Act> {
        let before = self.watch.now();
        let resource = self.resource();
        self.writer.mark(&Time::Join.to_string());
        self.kubectl(&["scale", &resource, "--replicas=3"], None).await?;
        self.grow(&before, 3, Timestamp::now(), Time::SecondMoves).await
    }

    /// From the edit to Balanced.
    async fn grow(
        &mut self,
        before: &View,
        workers: usize,
        applied: Timestamp,
        moving: Time,
    ) -> anyhow::Result<Act> {
        let last_job = before.catalog.job.as_ref().map_or(0, |job| job.id);
        let new_pods: Vec<String> = (workers - 1..workers).map(|worker| self.pod(worker)).collect();
        let pods_ready = self
            .until("the new pod", |view| {
                let ready = new_pods.iter().map(|pod| view.pods.get(pod)?.ready);
                ready.collect::<Option<Vec<_>>>()?.into_iter().max()
            })
            .await?;
        let joined = self
            .until("the new worker to join", |view| {
                (usize::try_from(view.catalog.workers) == Ok(workers)).then_some(view.catalog.workers_since)
            })
            .await?;
        let new_job = |view: &View| view.catalog.job.clone().filter(|job| job.id > last_job);
        let job = self.until("the rebalance", new_job).await?;
        self.writer.mark(&moving.to_string());
        let ended = self.until("the end of the rebalance", |view| new_job(view)?.finished).await?;
        let generation = self.generation().await?;
        let balanced = self
            .until("Balanced=True", |view| {
                let done = view.is_true("Balanced", generation) && view.is_true("Ready", generation);
                done.then(Timestamp::now)
            })
            .await?;
        self.writer.mark(&Time::Rest.to_string());
        let view = self.watch.now();
        let Job { seen, started, .. } = new_job(&view).unwrap_or(job);
        let other = |name: &str| view.pods.get(name).map(|pod| &pod.uid);
        let restarted = before.pods.iter().filter(|(name, pod)| other(name) != Some(&pod.uid));
        Ok(Act {
            workers,
            shards: catalog::shards(self.client).await?,
            restarted: restarted.map(|(name, _)| name.clone()).collect(),
            times: Times {
                applied,
                repaired: None,
                pods_ready,
                joined,
                job: seen.min(started.unwrap_or(seen)),
                started: started.unwrap_or(seen),
                ended,
                balanced,
            },
        })
    }

    /// The spec's generation now.
    async fn generation(&self) -> anyhow::Result<i64> {
        let clusters: Api<dialog_operator::api::DialogCluster> =
            Api::namespaced(self.kube.clone(), self.namespace);
        let cluster = clusters.get(self.name).await.context("cannot read the DialogCluster")?;
        Ok(cluster.metadata.generation.unwrap_or_default())
    }
}

/// The sample with two workers, and not paused.
fn edited_sample() -> anyhow::Result<String> {
    let edit = |text: &str, from: &str, to: &str| {
        ensure!(text.matches(from).count() == 1, "the sample should say {from:?} once");
        Ok(text.replace(from, to))
    };
    let more = edit(SAMPLE, "\n    replicas: 1\n", "\n    replicas: 2\n")?;
    edit(&more, "\nspec:\n", "\nspec:\n  paused: false\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sample_can_be_edited() {
        let edited = super::edited_sample().unwrap();
        assert!(edited.contains("\nspec:\n  paused: false\n"), "{edited}");
        assert!(edited.contains("\n  workers:\n    replicas: 2\n"), "{edited}");
    }
}
