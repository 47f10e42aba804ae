//! Chaos: workers come and go while faults strike, both drawn from a seed, and a writer writes all the while. After each
//! few draws the cluster has to settle; at the end the table holds what was acknowledged. `make chaos` runs it.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use dialog_operator::api::Node;
use kube::api::DeleteParams;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use testkit::load::ledger::Ledger;

use crate::{
    faults_of_machine::without_api_server,
    faults_of_operators::{holds, lose_lease, take_lease},
    harness::{
        Story,
        cluster::{Cluster, is_settled_with, said, spec, with},
        machine::Fault,
        operator::Operator,
        seconds, setting, story_alone, wait,
    },
};

/// Workers at most.
const MOST: u16 = 5;
/// Rows that are there before it begins.
const ROWS: u64 = 20_000;
/// In this time everything has to be settled, once nothing strikes any more. A server that is killed again and again is
/// started again only after minutes.
const SETTLED: Duration = Duration::from_mins(15);

/// What is drawn. A victim is a number: who it is depends on who is there.
#[derive(Clone, Copy, Debug)]
enum Draw {
    Scale { workers: u16 },
    RollingRestart { max_connections: u16 },
    KillServer { victim: usize },
    DeletePod { victim: usize },
    CutNetwork { victim: usize, time: Duration },
    FillDisk { victim: usize, time: Duration },
    KillOperator { clock: Option<&'static str> },
    StopOperator { time: Duration },
    LoseLease,
    TakeLease,
    StopApiServer { time: Duration },
}

impl Draw {
    fn one(random: &mut StdRng) -> Self {
        // Each draw takes as many numbers from the seed as any other, so that a new kind changes little.
        let (kind, victim) = (random.random_range(0..20), random.random_range(0..60));
        let time = Duration::from_secs(random.random_range(5..=30));
        match kind {
            0..=6 => Self::Scale { workers: 1 + u16::try_from(victim).unwrap() % MOST },
            7 => Self::RollingRestart { max_connections: 300 + u16::try_from(victim).unwrap() },
            8..=10 => Self::KillServer { victim },
            11 => Self::DeletePod { victim },
            12..=13 => Self::CutNetwork { victim, time },
            14 => Self::FillDisk { victim, time },
            15 => Self::KillOperator { clock: None },
            16 => Self::KillOperator { clock: Some(if victim % 2 == 0 { "+1h" } else { "-1h" }) },
            17 => Self::StopOperator { time },
            18 if victim % 2 == 0 => Self::LoseLease,
            18 => Self::TakeLease,
            _ => Self::StopApiServer { time },
        }
    }

    /// Its kind, for the summary.
    fn kind(self) -> &'static str {
        match self {
            Self::Scale { .. } => "scale",
            Self::RollingRestart { .. } => "rolling restart",
            Self::KillServer { .. } => "postmaster killed",
            Self::DeletePod { .. } => "pod deleted",
            Self::CutNetwork { .. } => "network cut",
            Self::FillDisk { .. } => "disk full",
            Self::KillOperator { clock: None } => "operator killed",
            Self::KillOperator { .. } => "operator killed, the next one has another clock",
            Self::StopOperator { .. } => "operator stopped for a while",
            Self::LoseLease => "Lease deleted",
            Self::TakeLease => "Lease taken by somebody else",
            Self::StopApiServer { .. } => "API server stopped",
        }
    }
}

/// What has happened.
#[derive(Default)]
struct Summary {
    draws: BTreeMap<&'static str, usize>,
    settled: Vec<Duration>,
}

impl Summary {
    fn told(&self, ledger: &Ledger, missing: usize, twice: usize) -> String {
        use fmt::Write as _;
        let figures = ledger.phase("all");
        let mut text = "chaos: summary\n".to_owned();
        for (kind, times) in &self.draws {
            let _ = writeln!(text, "  {times:>4} {kind}");
        }
        let longest = self.settled.iter().max().copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "  writes acknowledged {}, missing {missing}, twice {twice}, given up {}; tries that failed {}\n  \
             longest write {}, settled {} times, longest time until settled {}",
            ledger.acknowledged().count(),
            figures.failed_for_good,
            figures.failed_tries,
            seconds(figures.longest),
            self.settled.len(),
            seconds(longest),
        );
        text
    }
}

/// A cluster that is being disturbed.
struct Chaos<'a> {
    story: &'a Story,
    cluster: Cluster,
    operators: Vec<Operator>,
    workers: u16,
    began: Instant,
    summary: Summary,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "disturbs the whole machine for minutes: make chaos"]
async fn workers_come_and_go_whatever_strikes() {
    story_alone("chaos", async |story| {
        let time = Duration::from_secs(setting("CHAOS_SECONDS", 600));
        let seed = setting("CHAOS_SEED", u64::from(rand::random::<u32>()));
        println!("chaos: SECONDS={} SEED={seed}", time.as_secs());
        let mut random = StdRng::seed_from_u64(seed);
        let operators = vec![story.operator(), story.operator()];
        let more = json!({
            "workers": {"storage": {"size": "512Mi", "storageClassName": "small"}},
            "volumes": {"whenScaled": "Delete"},
        });
        let cluster = story.settled_cluster("talk", with(spec(2), &more)).await;
        cluster.load(ROWS).await;
        let writer = cluster.patient_writer().await;
        let (began, summary) = (Instant::now(), Summary::default());
        let mut chaos = Chaos { story, cluster, operators, workers: 2, began, summary };
        while began.elapsed() < time {
            for _ in 0..random.random_range(3..=7) {
                let draw = Draw::one(&mut random);
                let pause = Duration::from_millis(random.random_range(0..15_000));
                if began.elapsed() < time {
                    chaos.strike(draw).await;
                    // The time in which it does its work, alone.
                    tokio::time::sleep(pause).await;
                }
            }
            chaos.settle().await;
        }
        let cluster = &chaos.cluster;
        let ledger = writer.stop().await;
        let differences = ledger.compare(&cluster.coordinator().await, ROWS).await.unwrap();
        println!("{}", chaos.summary.told(&ledger, differences.missing.len(), differences.duplicated.len()));
        cluster.assert_kept(&ledger, ROWS).await;
    })
    .await;
}

impl Chaos<'_> {
    fn tell(&self, what: impl fmt::Display) {
        println!("chaos: {:>7}: {what}", seconds(self.began.elapsed()));
    }

    /// Nothing strikes any more: everything gets as it should be.
    async fn settle(&mut self) {
        let since = Instant::now();
        self.tell("nothing strikes until it is settled");
        wait::eventually("all is as it should be", SETTLED, async || {
            // A status may be older than what struck last; a server that is away is not.
            for node in nodes(self.workers) {
                self.cluster.log_in_as_admin(node).await.map_err(|error| format!("{node}: {error}"))?;
            }
            let seen = self.cluster.get().await;
            if is_settled_with(&seen, self.workers.into()) { Ok(()) } else { Err(said(&seen)) }
        })
        .await;
        let took = since.elapsed();
        self.summary.settled.push(took);
        self.tell(format!("settled with {} workers after {}", self.workers, seconds(took)));
        self.cluster.assert_even(self.workers.into()).await;
        self.cluster.assert_nothing_is_left_behind(self.workers).await;
    }

    async fn strike(&mut self, draw: Draw) {
        *self.summary.draws.entry(draw.kind()).or_default() += 1;
        self.tell(format!("{draw:?}"));
        let cluster = &self.cluster;
        match draw {
            Draw::Scale { workers } => {
                cluster.scale(workers).await;
                self.workers = workers;
            }
            Draw::RollingRestart { max_connections } => {
                let parameters = json!({"max_connections": max_connections.to_string()});
                cluster.edit(json!({"postgres": {"parameters": parameters}})).await;
            }
            Draw::KillServer { victim } => {
                let node = self.victim(victim, Node::Coordinator).await;
                let killed = cluster.kill_postmaster(node).await;
                self.tell(format!("{node}: {killed:?}"));
            }
            Draw::DeletePod { victim } => {
                let node = self.victim(victim, Node::Coordinator).await;
                let pods = cluster.api::<k8s_openapi::api::core::v1::Pod>();
                let deleted = pods.delete(&node.pod_name(&cluster.name), &DeleteParams::default()).await;
                self.tell(format!("{node}: {:?}", deleted.map(|_| ())));
            }
            Draw::CutNetwork { victim, time } => {
                let node = self.victim(victim, Node::Coordinator).await;
                self.lasting(cluster.cut(node).await, node, time).await;
            }
            Draw::FillDisk { victim, time } => {
                let node = self.victim(victim, Node::Worker(0)).await;
                self.lasting(cluster.fill(node).await, node, time).await;
            }
            Draw::StopApiServer { time } => without_api_server(time).await,
            Draw::LoseLease => lose_lease(cluster).await,
            Draw::TakeLease => take_lease(cluster).await,
            Draw::StopOperator { time } => {
                let process = self.operators[self.leader().await].process();
                let stopped = Fault::stop_process("the operator is stopped", process);
                tokio::time::sleep(time).await;
                drop(stopped);
            }
            Draw::KillOperator { clock } => {
                let leader = self.leader().await;
                self.operators.remove(leader).kill();
                let next = clock.map_or_else(|| self.story.operator(), |shift| self.story.operator_at(shift));
                self.operators.push(next);
            }
        }
    }

    /// The fault's length.
    async fn lasting(&self, fault: Option<Fault>, node: Node, time: Duration) {
        let struck = if fault.is_some() { "" } else { "nobody there" };
        self.tell(format!("{node} {struck}"));
        if fault.is_some() {
            tokio::time::sleep(time).await;
        }
    }

    /// One of the nodes that have a pod, from the first one on.
    async fn victim(&self, number: usize, first: Node) -> Node {
        let pods = self.cluster.pods().await;
        let nodes = std::iter::once(Node::Coordinator).chain((0..10).map(Node::Worker));
        let there =
            nodes.filter(|node| *node >= first && pods.contains_key(&node.pod_name(&self.cluster.name)));
        let there: Vec<_> = there.collect();
        there.get(number % there.len().max(1)).copied().unwrap_or(first)
    }

    /// The operator that leads, or any.
    async fn leader(&self) -> usize {
        for (number, operator) in self.operators.iter().enumerate() {
            if holds(&self.cluster, operator).await {
                return number;
            }
        }
        0
    }
}

fn nodes(workers: u16) -> impl Iterator<Item = Node> {
    std::iter::once(Node::Coordinator).chain((0..workers).map(Node::Worker))
}
