//! A model of Kubernetes, PostgreSQL and Citus, small enough to run a hundred thousand histories: objects, pods that
//! start and end, servers that load configuration, a catalog, jobs that move shards. It obeys steps as the real parts
//! would, and panics when a step does what must never happen. It plans nothing.

mod apply;
mod observe;
mod time;

use std::collections::{BTreeMap, BTreeSet};

use dialog_operator::{
    act::concurrency,
    api::{
        Desired, DialogCluster, DialogClusterSpec, Node,
        names::{SecretKind, keys},
        spec::VolumePolicy,
    },
    plan::{
        KubernetesStep, Plan, PlannedStep, SqlStep, Step, View, contents, invariants, plan, refusals,
        view::PORT,
    },
    resources::{self, Manifest},
    snapshot::{
        AdmissionChanges, ApplicationSecret, Citus, CleanupRow, ConnectionCheck, Contents, Disk, DistNode,
        DistTable, Failure, Group, Holdings, ImageFacts, Job, JobState, Leftover, LiveObject, LocalTable,
        Move, Observed, Obstacle, Obstacles, OperatorConfig, Ownership, ParameterCheck, Pins, Placement, Pod,
        Postgres, Reach, ReasonMessage, Refusals, RejectedConfiguration, SchemaSql, Snapshot, Task,
        TaskState, Termination,
    },
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub const SHARDS: i64 = 32;
/// Bytes of a shard, of a volume, and free on it when there is room.
pub const SHARD: i64 = 1_000_000;
pub const VOLUME: i64 = 1_000_000_000;
pub const PLENTY: i64 = 800_000_000;

/// What is on a volume.
#[derive(Clone, Debug, Default)]
pub struct Data {
    pub system_identifier: String,
    pub group_id: i32,
    pub known_nodes: i64,
    pub database: bool,
    pub extension: bool,
    pub role_pinned: bool,
    /// The owner has its rights here.
    pub granted: bool,
    pub auto_conf: BTreeMap<String, String>,
    pub last_good: Option<Config>,
    pub leftovers: Vec<Leftover>,
    pub locale: String,
    /// What people keep there that is not the cluster's own.
    pub theirs: Option<Theirs>,
}

/// Something that no catalog of the cluster knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theirs {
    /// A table with so many rows.
    Table(i64),
    /// Nobody can look.
    Hidden,
}

/// What a server is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub hash: String,
    pub startup_hash: String,
    pub parameters: BTreeMap<String, String>,
    pub wal_level: String,
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Running {
    pub uid: String,
    pub created_at: Timestamp,
    pub template: String,
    pub image: String,
    pub claim: String,
    /// It asks for more than any machine has.
    pub unschedulable: bool,
    /// Ticks until it is ready.
    pub starts_in: u32,
    pub booted: Option<Config>,
    pub loaded: Option<Config>,
    pub file: Option<Config>,
    /// Ticks until the kubelet brings a changed ConfigMap.
    pub file_in: u32,
    pub rejected: Option<RejectedConfiguration>,
    pub refused: Option<(i32, String)>,
    /// Its server hangs at its start, with what it was started with.
    pub hangs: bool,
    pub started_at: Timestamp,
    pub hurry: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// A rebalance job.
#[derive(Clone, Debug)]
pub struct ModelJob {
    pub job: Job,
    pub parallel: usize,
}

pub struct World {
    pub now: Timestamp,
    pub cluster: DialogCluster,
    pub objects: BTreeMap<String, LiveObject>,
    /// What the caches of the operator still show, if they lag.
    pub stale: Option<BTreeMap<String, LiveObject>>,
    pub volumes: BTreeMap<String, Data>,
    pub pods: BTreeMap<Node, Running>,
    /// Ticks for which a node's server does not answer.
    pub silent: BTreeMap<Node, u32>,
    /// Volume claims that may be.
    pub quota: Option<usize>,
    /// The storage class lets volumes grow.
    pub expands: bool,
    /// A value of max_connections with which no server starts any more.
    pub refused_now: Option<String>,
    /// Nodes that do not reach each other.
    pub walls: Vec<[Node; 2]>,
    /// Nodes whose start script was tampered with: they boot with another wal_level.
    pub tampered: BTreeSet<Node>,
    pub nodes: Vec<DistNode>,
    pub placements: BTreeMap<i64, i32>,
    /// On which volume claim the rows of each shard are: what must never be lost.
    pub rows: BTreeMap<i64, String>,
    /// pg_dist_cleanup, and how many ticks until Citus looks at it.
    pub cleanup: Vec<CleanupRow>,
    pub cleanup_in: u32,
    /// Ticks for which a transaction on a node keeps what moves left there.
    pub held: BTreeMap<Node, u32>,
    /// The locale with which the image makes a server that is told none.
    pub locale: &'static str,
    /// Bytes free on every volume.
    pub free: i64,
    /// Bytes of shards that are no SHARD.
    pub large: BTreeMap<i64, i64>,
    /// Volumes that were deleted although nobody drained them, by people: their rows are gone.
    pub lost: BTreeSet<String>,
    pub job: Option<ModelJob>,
    pub failed_jobs: u32,
    pub moves_fail: bool,
    /// The next stop comes between a task's being marked as running and its pid: it signals nobody.
    pub unheard_stop: bool,
    /// Shards of a table that was dropped.
    pub dropped: BTreeSet<i64>,
    /// Shards of another table, in a colocation group of its own.
    pub led: BTreeSet<i64>,
    /// What is in the way of moves, and what is kept where it is.
    pub obstacles: Vec<Obstacle>,
    pub pins: Option<Pins>,
    /// uid of the Secret whose password the role has.
    pub owner: Option<String>,
    /// Extensions in the application's database.
    pub extensions: BTreeSet<String>,
    pub schema: Option<String>,
    /// How the keys of the application's Secret are.
    pub application: ApplicationSecret,
    /// What the last look at new connections found.
    pub reach: Option<Reach>,
    pub parameter_checks: BTreeMap<String, ParameterCheck>,
    /// What the images that were asked about have in them.
    pub images: BTreeMap<String, Observed<ImageFacts>>,
    pub next: u64,
    pub restarts: BTreeMap<Node, u32>,
    pub jobs_started: u32,
    pub cluster_domain: String,
    /// Where a webhook says that all images are, and what it made of writes.
    pub mirror: Option<&'static str>,
    pub rewritten: BTreeMap<String, AdmissionChanges>,
    /// What is refused, by the beginning of an act's name, and for how many ticks.
    pub refuses: BTreeMap<String, u32>,
    /// What the operator remembers of it.
    pub refusals: Refusals,
    pub log: Vec<String>,
    /// What the last reconcile tried, and what came of it.
    pub tried: Vec<(PlannedStep, Result<(), Failure>)>,
}

fn time() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// As the API server makes them, but told apart by a number.
fn uid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

impl World {
    pub fn new(spec: Value) -> Self {
        let mut cluster =
            DialogCluster::new("dialogs", serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
        cluster.metadata.namespace = Some("shop".to_owned());
        cluster.metadata.uid = Some(uid(1));
        cluster.metadata.generation = Some(1);
        Self {
            now: time(),
            cluster,
            objects: BTreeMap::new(),
            stale: None,
            volumes: BTreeMap::new(),
            pods: BTreeMap::new(),
            silent: BTreeMap::new(),
            quota: None,
            expands: true,
            refused_now: None,
            walls: Vec::new(),
            mirror: None,
            rewritten: BTreeMap::new(),
            tampered: BTreeSet::new(),
            nodes: Vec::new(),
            placements: BTreeMap::new(),
            rows: BTreeMap::new(),
            cleanup: Vec::new(),
            cleanup_in: 0,
            held: BTreeMap::new(),
            locale: "libc C",
            free: PLENTY,
            large: BTreeMap::new(),
            lost: BTreeSet::new(),
            job: None,
            failed_jobs: 0,
            moves_fail: false,
            unheard_stop: false,
            dropped: BTreeSet::new(),
            led: BTreeSet::new(),
            obstacles: Vec::new(),
            pins: None,
            owner: None,
            extensions: BTreeSet::new(),
            schema: None,
            application: ApplicationSecret::default(),
            reach: None,
            parameter_checks: BTreeMap::new(),
            images: BTreeMap::new(),
            next: 1,
            restarts: BTreeMap::new(),
            jobs_started: 0,
            cluster_domain: "cluster.local".to_owned(),
            refuses: BTreeMap::new(),
            refusals: Refusals::default(),
            log: Vec::new(),
            tried: Vec::new(),
        }
    }

    pub fn desired(&self) -> Desired {
        Desired::try_from(&self.cluster).unwrap()
    }

    pub fn edit(&mut self, change: impl FnOnce(&mut DialogClusterSpec)) {
        change(&mut self.cluster.spec);
        *self.cluster.metadata.generation.get_or_insert(1) += 1;
    }

    fn id(&mut self) -> String {
        self.next += 1;
        uid(self.next)
    }

    fn address(node: Node) -> String {
        format!("{}.shop.svc.cluster.local", node.object_name("dialogs"))
    }

    fn registered(&self, node: Node) -> Option<&DistNode> {
        self.nodes.iter().find(|row| row.name == Self::address(node))
    }

    fn node_of_group(&self, group: i32) -> Node {
        let row =
            self.nodes.iter().find(|row| row.group_id == group).expect("a placement on a group that exists");
        Node::from_object_name(row.name.split('.').next().unwrap(), "dialogs").unwrap()
    }

    pub fn answers(&self, node: Node) -> bool {
        !self.silent.contains_key(&node)
            && self.pods.get(&node).is_some_and(|pod| pod.starts_in == 0 && pod.booted.is_some())
    }

    /// Somebody else's object with one of our names.
    pub fn put_stranger(&mut self, kind: &str, name: &str) {
        let live = LiveObject {
            uid: self.id(),
            ownership: Ownership::Foreign,
            created_at: self.now,
            deleting: false,
            scaled_by: None,
            json: json!({"metadata": {"name": name}}),
        };
        self.objects.insert(format!("{kind}/{name}"), live);
    }

    /// The DialogCluster is deleted, everything with an owner reference goes with it, and it is made again.
    pub fn delete_and_make_again(&mut self) {
        self.objects.retain(|key, _| key.starts_with("PersistentVolumeClaim/"));
        // A cache that lags shows the others still, and whose they were.
        for (key, live) in self.stale.iter_mut().flatten() {
            if !key.starts_with("PersistentVolumeClaim/") {
                live.ownership = Ownership::OwnedByDeleted;
            }
        }
        self.pods.clear();
        self.cluster.metadata.uid = Some(self.id());
        self.cluster.status = None;
    }

    /// The DialogCluster is deleted and leaves everything behind, and is made again.
    pub fn orphan_and_make_again(&mut self) {
        self.stale = None;
        for (key, live) in &mut self.objects {
            // Claims are known by their labels; what was a stranger's stays one.
            if !key.starts_with("PersistentVolumeClaim/") && live.ownership == Ownership::Owned {
                live.ownership = Ownership::Left;
            }
        }
        self.cluster.metadata.uid = Some(self.id());
        self.cluster.status = None;
    }

    /// The claim that the pod of a group's node has, or would get.
    fn claim_of_group(&self, group: i32) -> String {
        let node = self.node_of_group(group);
        self.pods.get(&node).expect("a pod of a member that does something").claim.clone()
    }

    fn left_behind(&mut self, shard: i64, group: i32) {
        self.next += 1;
        self.cleanup.push(CleanupRow {
            record_id: self.next as i64,
            group_id: group,
            object_type: 1,
            object_name: format!("public.dialogs_{shard}"),
        });
    }

    /// People put something on a worker, or take it away.
    pub fn put(&mut self, node: Node, theirs: Option<Theirs>) {
        let claim = self.pods.get(&node).map(|pod| pod.claim.clone());
        if let Some(data) = claim.and_then(|claim| self.volumes.get_mut(&claim)) {
            data.theirs = theirs;
        }
    }

    /// What people keep on a node that answers.
    pub fn theirs(&self, node: Node) -> Option<Theirs> {
        let pod = self.pods.get(&node).filter(|_| self.answers(node))?;
        self.volumes.get(&pod.claim)?.theirs
    }

    /// Nothing is ever lost: each shard's rows are on the volume that its node mounts.
    pub fn assert_nothing_is_lost(&self) {
        for (shard, group) in &self.placements {
            let (node, claim) = (self.node_of_group(*group), &self.rows[shard]);
            if self.lost.contains(claim) {
                continue;
            }
            assert!(
                self.volumes.contains_key(claim),
                "shard {shard} was on {claim}, which is gone\n{}",
                self.log.join("\n")
            );
            if let Some(pod) = self.pods.get(&node) {
                assert_eq!(
                    pod.claim,
                    *claim,
                    "shard {shard} of {node} is on another volume\n{}",
                    self.log.join("\n")
                );
            }
        }
    }
}
