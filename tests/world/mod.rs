//! A model of Kubernetes, PostgreSQL and Citus, small enough to run a hundred thousand histories: objects, pods that
//! start and end, servers that load configuration, a catalog, jobs that move shards. It obeys steps as the real parts
//! would, and panics when a step does what must never happen. It plans nothing.

use std::collections::{BTreeMap, BTreeSet};

use dialog_operator::{
    api::{Desired, DialogCluster, DialogClusterSpec, Node, names::keys, spec::VolumePolicy},
    observe::{
        Snapshot,
        snapshot::{
            Citus, CleanupRow, ConnectionCheck, Disk, DistNode, DistTable, Group, Job, Leftover, LiveObject,
            Move, OperatorFacts, Ownership, Pod, Postgres, RejectedConfiguration, SchemaSql, Seen, Task,
            Waiting,
        },
    },
    plan::{Plan, Step, View, invariants, plan, view::PORT, wanted},
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
    pub timeouts_off: bool,
    pub auto_conf: BTreeMap<String, String>,
    pub last_good: Option<Config>,
    pub leftovers: Vec<Leftover>,
}

/// What a server is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub hash: String,
    pub boot_hash: String,
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
    /// Ticks until it is ready.
    pub starts_in: u32,
    pub booted: Option<Config>,
    pub loaded: Option<Config>,
    pub file: Option<Config>,
    /// Ticks until the kubelet brings a changed ConfigMap.
    pub file_in: u32,
    pub rejected: Option<RejectedConfiguration>,
    pub refused: Option<String>,
    /// Its server hangs at its start, with what it was started with.
    pub hangs: bool,
    pub started_at: Timestamp,
    pub hurry: Option<String>,
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
    /// Bytes free on every volume.
    pub free: i64,
    /// Volumes that were deleted although nobody drained them, by people: their rows are gone.
    pub lost: BTreeSet<String>,
    pub job: Option<ModelJob>,
    pub failed_jobs: u32,
    pub moves_fail: bool,
    /// uid of the Secret whose password the role has.
    pub owner: Option<String>,
    pub schema: Option<String>,
    pub trials: BTreeMap<String, Option<String>>,
    pub next: u64,
    pub restarts: BTreeMap<Node, u32>,
    pub jobs_started: u32,
    pub cluster_domain: String,
    pub log: Vec<String>,
}

fn time() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

impl World {
    pub fn new(spec: Value) -> Self {
        let mut cluster =
            DialogCluster::new("dialogs", serde_json::from_value::<DialogClusterSpec>(spec).unwrap());
        cluster.metadata.namespace = Some("shop".to_owned());
        cluster.metadata.uid = Some("uid-1".to_owned());
        cluster.metadata.generation = Some(1);
        Self {
            now: time(),
            cluster,
            objects: BTreeMap::new(),
            stale: None,
            volumes: BTreeMap::new(),
            pods: BTreeMap::new(),
            silent: BTreeMap::new(),
            tampered: BTreeSet::new(),
            nodes: Vec::new(),
            placements: BTreeMap::new(),
            rows: BTreeMap::new(),
            cleanup: Vec::new(),
            cleanup_in: 0,
            held: BTreeMap::new(),
            free: PLENTY,
            lost: BTreeSet::new(),
            job: None,
            failed_jobs: 0,
            moves_fail: false,
            owner: None,
            schema: None,
            trials: BTreeMap::new(),
            next: 1,
            restarts: BTreeMap::new(),
            jobs_started: 0,
            cluster_domain: "cluster.local".to_owned(),
            log: Vec::new(),
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
        format!("id-{}", self.next)
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
            ownership: Ownership::Stranger,
            created_at: self.now,
            deleting: false,
            json: json!({"metadata": {"name": name}}),
        };
        self.objects.insert(format!("{kind}/{name}"), live);
    }

    /// The DialogCluster is deleted, everything with an owner reference goes with it, and it is made again.
    pub fn delete_and_make_again(&mut self) {
        self.objects.retain(|key, _| key.starts_with("PersistentVolumeClaim/"));
        self.pods.clear();
        self.cluster.metadata.uid = Some(self.id());
        self.cluster.status = None;
    }

    // === What the operator sees ===

    pub fn observe(&mut self) -> Snapshot {
        let objects = self.stale.take().unwrap_or_else(|| self.objects.clone());
        let desired = self.desired();
        let pods = self.pods.iter().map(|(node, pod)| (*node, self.seen_pod(*node, pod))).collect();
        let postgres =
            self.pods.keys().filter_map(|node| Some((*node, self.seen_postgres(*node)?))).collect();
        let citus = self.seen_citus();
        let holders =
            self.held.keys().map(|node| (*node, vec!["session 7 of somebody".to_owned()])).collect();
        let mut connections = Vec::new();
        let members: Vec<Node> = self
            .pods
            .keys()
            .copied()
            .filter(|node| *node == Node::Coordinator || self.registered(*node).is_some())
            .collect();
        for new in desired.nodes().filter(|node| self.registered(*node).is_none() && self.answers(*node)) {
            for member in &members {
                for (from, to) in [(*member, new), (new, *member)] {
                    let error =
                        (!self.answers(from) || !self.answers(to)).then(|| "Connection refused".to_owned());
                    connections.push(ConnectionCheck { from, to, error });
                }
            }
        }
        Snapshot {
            now: self.now,
            operator: OperatorFacts {
                default_image: "postgres:dev".to_owned(),
                cluster_domain: self.cluster_domain.clone(),
            },
            objects,
            pods,
            postgres,
            citus,
            connections,
            holders,
            trials: self.trials.clone(),
            images: BTreeMap::new(),
            schema_sql: Seen::Known(SchemaSql {
                sql: "create table".to_owned(),
                hash: "schema-1".to_owned(),
            }),
            status: self.cluster.status.clone().unwrap_or_default(),
        }
    }

    fn seen_pod(&self, node: Node, pod: &Running) -> Pod {
        let crash = pod.refused.as_ref();
        Pod {
            name: node.pod_name("dialogs"),
            uid: pod.uid.clone(),
            created_at: pod.created_at,
            deleting: false,
            ends_by: None,
            machine: Some("local".to_owned()),
            ready: pod.starts_in == 0 && crash.is_none() && !pod.hangs,
            ready_since: Some(pod.started_at),
            address: Some("10.0.0.1".to_owned()),
            image: pod.image.clone(),
            user_template: Some(pod.template.clone()),
            hurry: pod.hurry.clone(),
            revision: None,
            waiting: crash
                .map(|_| Waiting { reason: "CrashLoopBackOff".to_owned(), message: "back-off".to_owned() }),
            last_termination: crash.map(|why| Waiting { reason: "Error".to_owned(), message: why.clone() }),
        }
    }

    fn seen_postgres(&self, node: Node) -> Option<Seen<Postgres>> {
        let pod = &self.pods[&node];
        if pod.starts_in > 0 || pod.refused.is_some() || pod.hangs {
            return None;
        }
        if self.silent.contains_key(&node) {
            return Some(Seen::Unknown("timeout expired".to_owned()));
        }
        let (data, loaded, booted) = (&self.volumes[&pod.claim], pod.loaded.as_ref()?, pod.booted.as_ref()?);
        let mut settings: BTreeMap<String, String> = [
            "max_replication_slots",
            "max_wal_senders",
            "max_logical_replication_workers",
            "max_worker_processes",
        ]
        .map(|name| (name.to_owned(), "64".to_owned()))
        .into();
        settings.extend(booted.parameters.clone());
        let pending = loaded.parameters.get("max_connections") != booted.parameters.get("max_connections");
        Some(Seen::Known(Postgres {
            system_identifier: data.system_identifier.clone(),
            version: "15.18".to_owned(),
            major: 15,
            started_at: pod.started_at,
            wal_level: booted.wal_level.clone(),
            config_hash: Some(loaded.hash.clone()),
            file_config_hash: pod.file.as_ref().map(|file| file.hash.clone()),
            boot_hash: Some(booted.boot_hash.clone()),
            rejected: pod.rejected.clone(),
            pending_restart: pending.then(|| "max_connections".to_owned()).into_iter().collect(),
            settings,
            auto_conf: data.auto_conf.clone(),
            database: data.database,
            extension: data.extension.then(|| "13.2-1".to_owned()),
            available_extension: Some("13.2-1".to_owned()),
            group_id: data.extension.then_some(data.group_id),
            known_nodes: data.known_nodes,
            missing_tables: 0,
            timeouts_off: data.timeouts_off,
            disk: Some(Disk { free: self.free, total: VOLUME }),
            leftovers: data.leftovers.clone(),
        }))
    }

    /// What Citus would move: away from where no shard may be, and then (but for a drain) until counts are even.
    pub fn planned(&self, drain_only: bool) -> Vec<Move> {
        let workers: Vec<&DistNode> = self.nodes.iter().filter(|row| row.group_id > 0).collect();
        let mut counts: BTreeMap<i32, Vec<i64>> =
            workers.iter().map(|row| (row.group_id, Vec::new())).collect();
        for (shard, group) in &self.placements {
            counts.get_mut(group).expect("a placement on a member").push(*shard);
        }
        let row = |group: i32| *workers.iter().find(|row| row.group_id == group).unwrap();
        let mut moves = Vec::new();
        loop {
            let full = |group: &i32| row(*group).should_have_shards;
            let least = counts.iter().filter(|(group, _)| full(group));
            let Some(least) =
                least.min_by_key(|(group, shards)| (shards.len(), **group)).map(|(group, _)| *group)
            else {
                return moves;
            };
            let banned = counts
                .iter()
                .find(|(group, shards)| !full(group) && !shards.is_empty())
                .map(|(group, _)| *group);
            let most =
                counts.iter().max_by_key(|(group, shards)| (shards.len(), -**group)).map(|(group, _)| *group);
            let from = match (banned, most) {
                (Some(banned), _) => banned,
                (None, Some(most)) if !drain_only && counts[&most].len() > counts[&least].len() + 1 => most,
                _ => return moves,
            };
            let shard = counts.get_mut(&from).unwrap().pop().unwrap();
            counts.get_mut(&least).unwrap().push(shard);
            moves.push(Move {
                shard,
                table: "public.dialogs".to_owned(),
                bytes: SHARD,
                from: row(from).node_id,
                to: row(least).node_id,
            });
        }
    }

    fn seen_citus(&self) -> Seen<Citus> {
        let coordinator = Node::Coordinator;
        if !self.answers(coordinator) {
            return Seen::Unknown("the coordinator does not answer".to_owned());
        }
        if !self.volumes[&self.pods[&coordinator].claim].extension {
            return Seen::Unknown("no extension yet".to_owned());
        }
        let mut groups: BTreeMap<i32, Group> = BTreeMap::new();
        for row in &self.nodes {
            groups.entry(row.group_id).or_default().bytes = Some(0);
        }
        for group in self.placements.values() {
            let group = groups.entry(*group).or_default();
            group.shards += 1;
            group.bytes = Some(group.shards * SHARD);
        }
        let job = self.job.as_ref().map(|model| model.job.clone());
        let open = job.as_ref().is_some_and(Job::is_open);
        Seen::Known(Citus {
            nodes: self.nodes.clone(),
            groups,
            tables: self
                .schema
                .iter()
                .map(|_| DistTable {
                    name: "public.dialogs".to_owned(),
                    distributed: true,
                    replica_identity: true,
                    colocation_id: 1,
                })
                .collect(),
            job,
            failed_jobs: self.failed_jobs,
            cleanup: self.cleanup.clone(),
            plan: (!open).then(|| Seen::Known(self.planned(false))),
            parallel_colocated: true,
            owner_exists: self.owner.is_some(),
            owner_secret: self.owner.clone(),
            schema_hash: self.schema.clone(),
        })
    }

    // === What the operator does ===

    /// One reconcile: observe, plan, check, act. The operator may be killed after any step.
    pub fn reconcile(&mut self, killed_after: Option<usize>) -> Plan {
        let desired = self.desired();
        let seen = self.observe();
        let decided = plan(&desired, &seen);
        let view = View { desired: &desired, seen: &seen };
        let wanted = wanted(view, &mut Plan::default());
        invariants::check(view, &wanted, &decided)
            .unwrap_or_else(|broken| panic!("{broken}\n{}", self.log.join("\n")));
        let mut done = dialog_operator::act::Done::default();
        for planned in decided.steps.iter().take(killed_after.unwrap_or(usize::MAX)) {
            self.log.push(format!("{}: {}", planned.step.name(), planned.why));
            let result = self.obey(&planned.step);
            let failed = result.is_err();
            done.steps.push(dialog_operator::act::DoneStep {
                step: planned.step.clone(),
                result,
                said: None,
            });
            if failed {
                break;
            }
        }
        if killed_after.is_none() {
            self.cluster.status = Some(dialog_operator::report::status(&desired, &seen, &decided, &done));
        }
        decided
    }

    fn fail(message: &str) -> Result<(), dialog_operator::act::Failure> {
        Err(dialog_operator::act::Failure {
            reason: dialog_operator::act::FailureReason::Postgres,
            message: message.to_owned(),
        })
    }

    fn data(&mut self, node: Node) -> Option<&mut Data> {
        let claim = self.pods.get(&node).filter(|_| self.answers(node))?.claim.clone();
        self.volumes.get_mut(&claim)
    }

    fn everybody_answers(&self) -> bool {
        self.nodes.iter().all(|row| {
            self.answers(Node::from_object_name(row.name.split('.').next().unwrap(), "dialogs").unwrap())
        })
    }

    fn obey(&mut self, step: &Step) -> Result<(), dialog_operator::act::Failure> {
        match step {
            Step::Create(object) => {
                if self.objects.contains_key(&object.key()) {
                    return Ok(());
                }
                self.store(&object.key(), object.json.clone());
            }
            Step::Apply { object, uid } => {
                if self.objects.get(&object.key()).is_none_or(|live| live.uid != *uid) {
                    return Self::fail("conflict");
                }
                self.store(&object.key(), object.json.clone());
            }
            Step::CreateSecret(kind) => {
                let name = format!("dialogs-{kind}");
                self.store(&format!("Secret/{name}"), json!({"metadata": {"name": name}}));
            }
            Step::HurryConfiguration { node, value, .. } => {
                if let Some(pod) = self.pods.get_mut(node) {
                    pod.hurry = Some(value.clone());
                    pod.file_in = 1;
                }
            }
            Step::PrepareNode { node, .. } => {
                let Some(data) = self.data(*node) else { return Self::fail("no answer") };
                data.database = true;
                data.extension = true;
                data.timeouts_off = true;
            }
            Step::RecordIdentity { node, system_identifier, claim } => {
                self.record(*node, system_identifier, claim)
            }
            Step::Reload { node } => {
                if let Some(pod) = self.pods.get_mut(node) {
                    pod.loaded.clone_from(&pod.file);
                }
            }
            Step::ResetAlterSystem { node, .. } => {
                if let Some(data) = self.data(*node) {
                    data.auto_conf.clear();
                }
            }
            Step::TryParameter { name, value, .. } => {
                let refused = (value == "garbage")
                    .then(|| format!("invalid value for parameter \"{name}\": \"garbage\""));
                self.trials.insert(format!("{name}={value}"), refused);
            }
            Step::RestartNode { node, pod_uid, booted, .. } => return self.restart(*node, pod_uid, booted),
            Step::SetCoordinatorHost { address } => {
                if self.nodes.is_empty() {
                    self.nodes.push(DistNode {
                        node_id: 1,
                        name: address.clone(),
                        port: PORT,
                        active: true,
                        metadata_synced: true,
                        ..DistNode::default()
                    });
                }
            }
            Step::AddNode { node, address } => return self.add(*node, address),
            Step::CreateOwner { secret_uid, .. } => self.owner = Some(secret_uid.clone()),
            Step::ApplySchema { hash } => {
                assert!(self.schema.is_none(), "the schema is run once");
                self.schema = Some(hash.clone());
                let groups: Vec<i32> =
                    self.nodes.iter().filter(|row| row.group_id > 0).map(|row| row.group_id).collect();
                self.placements = (0..SHARDS)
                    .map(|shard| (102_008 + shard, groups[shard as usize % groups.len()]))
                    .collect();
                let placements = self.placements.clone();
                self.rows = placements
                    .into_iter()
                    .map(|(shard, group)| (shard, self.claim_of_group(group)))
                    .collect();
            }
            Step::RecoverTransactions => {}
            Step::StartRebalance { drain, .. } => self.start(*drain),
            Step::SetShouldHaveShards { address, should, .. } => {
                let open = self.job.as_ref().is_some_and(|model| model.job.is_open());
                assert!(!open, "shouldhaveshards changes under a job");
                if !self.everybody_answers() {
                    return Self::fail("connection to the remote node failed");
                }
                let row = self.nodes.iter_mut().find(|row| row.name == *address);
                row.expect("a member").should_have_shards = *should;
            }
            Step::CleanUp => self.clean_up(),
            Step::Retire { node, claim, mark, reclaim } => {
                self.retire(*node, claim.as_deref(), (mark, *reclaim))
            }
            Step::RemoveNode { node, .. } => return self.remove(*node),
            Step::GiveUp { workers } => self.give_up(workers),
            Step::ActivateNode { node, .. } => {
                if !self.everybody_answers() {
                    return Self::fail("connection to the remote node failed");
                }
                let address = Self::address(*node);
                let row = self.nodes.iter_mut().find(|row| row.name == address).expect("a member");
                (row.active, row.has_metadata, row.metadata_synced) = (true, true, true);
            }
            Step::ForgetCleanup { records } => {
                let groups: BTreeSet<i32> = self.nodes.iter().map(|row| row.group_id).collect();
                for row in self.cleanup.iter().filter(|row| records.contains(&row.record_id)) {
                    assert!(!groups.contains(&row.group_id), "cleanup of a member is forgotten");
                }
                self.cleanup.retain(|row| !records.contains(&row.record_id));
            }
            Step::DropLeftovers { node, leftovers } => {
                if let Some(data) = self.data(*node) {
                    data.leftovers.retain(|left| !leftovers.contains(left));
                }
            }
            Step::StopRebalance { job } => self.stop(*job),
            Step::Delete { kind, name, uid } => {
                let key = format!("{kind}/{name}");
                if kind == "PersistentVolumeClaim" {
                    return self.delete_volume(name, uid);
                }
                let node = Node::from_object_name(name, "dialogs").unwrap();
                assert!(self.registered(node).is_none(), "{key} is deleted while pg_dist_node knows it");
                if self.objects.get(&key).is_some_and(|live| live.uid == *uid) {
                    self.objects.remove(&key);
                    if kind == "StatefulSet" {
                        self.pods.remove(&node);
                    }
                }
            }
            Step::InspectImage { .. } | Step::ForgetInspection { .. } => {
                unreachable!("the model changes no image")
            }
        }
        Ok(())
    }

    fn store(&mut self, key: &str, mut json: Value) {
        let generation = self.next;
        if key.starts_with("StatefulSet/") {
            json["metadata"]["generation"] = json!(generation);
            json["status"] = json!({"observedGeneration": generation});
        }
        let before = self.objects.get(key).map(|live| (live.uid.clone(), live.created_at));
        let (uid, created_at) = before.unwrap_or_else(|| (self.id(), self.now));
        self.objects.insert(
            key.to_owned(),
            LiveObject { uid, ownership: Ownership::Ours, created_at, deleting: false, json },
        );
        if let Some(node) =
            key.strip_prefix("ConfigMap/").and_then(|name| Node::from_object_name(name, "dialogs"))
            && let Some(pod) = self.pods.get_mut(&node)
        {
            pod.file_in = 10;
        }
    }

    fn record(&mut self, node: Node, identity: &str, claim: &str) {
        for key in
            [format!("PersistentVolumeClaim/{claim}"), format!("StatefulSet/{}", node.object_name("dialogs"))]
        {
            if let Some(live) = self.objects.get_mut(&key) {
                live.json["metadata"]["annotations"][keys::SYSTEM_IDENTIFIER] = json!(identity);
            }
        }
    }

    fn restart(&mut self, node: Node, uid: &str, note: &str) -> Result<(), dialog_operator::act::Failure> {
        if self.pods.get(&node).is_none_or(|pod| pod.uid != uid) {
            return Self::fail("the pod is another one");
        }
        let member = node == Node::Coordinator || self.registered(node).is_some();
        // One that never got ready is not taken down.
        let up = self.pods[&node].booted.is_some();
        if member && up {
            let running =
                self.job.iter().flat_map(|model| &model.job.tasks).any(|task| task.state == "running");
            assert!(!running, "{node} is restarted while a move runs");
            for row in self.nodes.clone() {
                let other = Node::from_object_name(row.name.split('.').next().unwrap(), "dialogs").unwrap();
                let down = self.pods.get(&other).is_none_or(|pod| pod.starts_in > 0);
                assert!(other == node || !down, "{node} is restarted while {other} is down");
            }
        }
        *self.restarts.entry(node).or_default() += 1;
        let set = self.objects.get_mut(&format!("StatefulSet/{}", node.object_name("dialogs"))).unwrap();
        set.json["metadata"]["annotations"][keys::BOOTED] = json!(note);
        self.pods.remove(&node);
        Ok(())
    }

    fn add(&mut self, node: Node, address: &str) -> Result<(), dialog_operator::act::Failure> {
        if self.registered(node).is_some() {
            return Ok(());
        }
        if !self.everybody_answers() || !self.answers(node) {
            return Self::fail("connection to the remote node failed");
        }
        let id = 1 + self.nodes.iter().map(|row| row.node_id).max().unwrap_or(0);
        let row = DistNode {
            node_id: id,
            group_id: id,
            name: address.to_owned(),
            port: PORT,
            active: true,
            has_metadata: true,
            metadata_synced: true,
            should_have_shards: true,
        };
        self.nodes.push(row);
        let known = i64::try_from(self.nodes.len()).unwrap();
        let data = self.data(node).unwrap();
        data.group_id = id;
        data.known_nodes = known;
        Ok(())
    }

    /// The claim that the pod of a group's node has, or would get.
    fn claim_of_group(&self, group: i32) -> String {
        let node = self.node_of_group(group);
        self.pods.get(&node).expect("a pod of a member that does something").claim.clone()
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

    fn clean_up(&mut self) {
        let groups: BTreeMap<i32, Node> = self
            .nodes
            .iter()
            .map(|row| {
                (
                    row.group_id,
                    Node::from_object_name(row.name.split('.').next().unwrap(), "dialogs").unwrap(),
                )
            })
            .collect();
        let stays = |row: &CleanupRow| {
            groups.get(&row.group_id).is_none_or(|node| self.held.contains_key(node) || !self.answers(*node))
        };
        let left: Vec<CleanupRow> = self.cleanup.iter().filter(|row| stays(row)).cloned().collect();
        self.cleanup = left;
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

    fn retire(&mut self, node: Node, claim: Option<&str>, (mark, reclaim): (&str, VolumePolicy)) {
        if let Some(row) = self.registered(node) {
            let full = self.placements.values().any(|group| *group == row.group_id);
            assert!(!full, "{node} is retired with shards on it");
        }
        if let Some(claim) = claim
            && let Some(live) = self.objects.get_mut(&format!("PersistentVolumeClaim/{claim}"))
            && live.label(keys::DRAINED).is_none()
        {
            live.json["metadata"]["labels"][keys::DRAINED] = json!(mark);
            live.json["metadata"]["annotations"][keys::RECLAIM] = json!(reclaim.to_string());
        }
        if let Some(live) = self.objects.get_mut(&format!("StatefulSet/{}", node.object_name("dialogs"))) {
            live.json["metadata"]["annotations"][keys::DRAINED] = json!(mark);
        }
    }

    fn remove(&mut self, node: Node) -> Result<(), dialog_operator::act::Failure> {
        let Some(row) = self.registered(node).cloned() else { return Ok(()) };
        if !self.everybody_answers() {
            return Self::fail("connection to the remote node failed");
        }
        let open = self.job.as_ref().is_some_and(|model| model.job.is_open());
        assert!(!open, "{node} is removed under a job");
        assert!(
            !self.placements.values().any(|group| *group == row.group_id),
            "{node} is removed with shards on it"
        );
        assert!(
            !self.cleanup.iter().any(|left| left.group_id == row.group_id),
            "{node} is removed before its cleanup"
        );
        self.nodes.retain(|other| other.node_id != row.node_id);
        Ok(())
    }

    /// What only a person may ask for.
    fn give_up(&mut self, workers: &[(Node, String)]) {
        let asked = self.cluster.metadata.annotations.as_ref().and_then(|all| all.get(keys::FORCE_REMOVE));
        let asked: BTreeSet<&str> = asked.expect("a person asked").split(',').collect();
        let mut groups = BTreeSet::new();
        for (node, _) in workers {
            assert!(!self.answers(*node), "the data of {node} is given up while it answers");
            let set = self.objects.get(&format!("StatefulSet/{}", node.object_name("dialogs")));
            let identity = set.and_then(|set| set.annotation(keys::SYSTEM_IDENTIFIER)).unwrap_or("none");
            assert!(
                asked.contains(format!("{node}/{identity}").as_str()),
                "{node} is given up, and was not named"
            );
            groups.extend(self.registered(*node).map(|row| row.group_id));
        }
        self.nodes.retain(|row| !groups.contains(&row.group_id));
        self.cleanup.retain(|left| !groups.contains(&left.group_id));
        let stay: Vec<i32> =
            self.nodes.iter().filter(|row| row.group_id > 0).map(|row| row.group_id).collect();
        assert!(!stay.is_empty(), "somebody stays");
        let lost = self.placements.iter().filter(|(_, group)| groups.contains(group));
        let lost: Vec<i64> = lost.map(|(shard, _)| *shard).collect();
        for (number, shard) in lost.into_iter().enumerate() {
            let group = stay[number % stay.len()];
            self.placements.insert(shard, group);
            self.rows.insert(shard, self.claim_of_group(group));
        }
    }

    fn delete_volume(&mut self, name: &str, uid: &str) -> Result<(), dialog_operator::act::Failure> {
        let key = format!("PersistentVolumeClaim/{name}");
        let Some(live) = self.objects.get(&key).filter(|live| live.uid == uid) else {
            return Self::fail("conflict");
        };
        assert!(live.label(keys::DRAINED).is_some(), "{name} is deleted and was not drained");
        assert_eq!(live.annotation(keys::RECLAIM), Some("Delete"), "{name} is deleted and was to be kept");
        assert!(!self.rows.values().any(|claim| claim == name), "{name} is deleted with rows on it");
        self.objects.remove(&key);
        self.volumes.remove(name);
        Ok(())
    }

    pub fn start_by_hand(&mut self) {
        let wal_level =
            |pod: &Running| pod.booted.as_ref().is_some_and(|booted| booted.wal_level == "logical");
        let fit = self.everybody_answers() && self.pods.values().all(wal_level);
        let open = self.job.as_ref().is_some_and(|model| model.job.is_open());
        if self.schema.is_some() && fit && !open && !self.planned(false).is_empty() {
            self.start(false);
        }
    }

    fn start(&mut self, drain: bool) {
        assert!(self.job.as_ref().is_none_or(|model| !model.job.is_open()), "a second job is started");
        for row in &self.nodes {
            let node = Node::from_object_name(row.name.split('.').next().unwrap(), "dialogs").unwrap();
            let wal_level = self
                .pods
                .get(&node)
                .and_then(|pod| pod.booted.as_ref())
                .map(|booted| booted.wal_level.as_str());
            assert_eq!(wal_level, Some("logical"), "a move is started while {node} runs another wal_level");
        }
        let id = 1 + self.job.as_ref().map_or(0, |model| model.job.id);
        let tasks = self
            .planned(drain)
            .into_iter()
            .enumerate()
            .map(|(number, transfer)| Task {
                id: number as i64,
                state: "runnable".to_owned(),
                transfer: Some(transfer),
                retried: 0,
                message: None,
            })
            .collect();
        let job =
            Job { id, state: "running".to_owned(), started_at: Some(self.now), tasks, ..Job::default() };
        self.job = Some(ModelJob { job, parallel: 4 });
        self.jobs_started += 1;
    }

    fn stop(&mut self, id: i64) {
        if let Some(model) = self.job.as_mut().filter(|model| model.job.id == id && model.job.is_open()) {
            model.job.state = "cancelled".to_owned();
            model.job.finished_at = Some(self.now);
            self.failed_jobs += 1;
            // A move that is cancelled leaves its half made copy on the target.
            let mut halves = Vec::new();
            for task in model.job.tasks.iter_mut().filter(|task| task.state != "done") {
                if task.state == "running" {
                    halves.extend(task.transfer.clone());
                }
                task.state = "cancelled".to_owned();
            }
            for half in halves {
                if let Some(group) =
                    self.nodes.iter().find(|row| row.node_id == half.to).map(|row| row.group_id)
                {
                    self.left_behind(half.shard, group);
                }
            }
        }
    }

    // === What happens by itself ===

    pub fn tick(&mut self) {
        self.now += SignedDuration::from_secs(1);
        self.silent.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        self.held.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        self.cleanup_in = self.cleanup_in.checked_sub(1).unwrap_or(15);
        if self.cleanup_in == 0 && self.answers(Node::Coordinator) {
            self.clean_up();
        }
        self.tick_pods();
        self.tick_job();
        self.assert_nothing_is_lost();
    }

    fn tick_pods(&mut self) {
        let sets: Vec<(Node, Value)> = self
            .objects
            .iter()
            .filter_map(|(key, live)| {
                Some((
                    Node::from_object_name(key.strip_prefix("StatefulSet/")?, "dialogs")?,
                    live.json.clone(),
                ))
            })
            .collect();
        for (node, set) in sets {
            if self.pods.contains_key(&node) {
                self.tick_pod(node);
            } else {
                let template = &set["spec"]["template"];
                let volumes = template["spec"]["volumes"].as_array().unwrap();
                let claim = volumes
                    .iter()
                    .find_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
                    .unwrap();
                let pod = Running {
                    uid: self.id(),
                    created_at: self.now,
                    template: template["metadata"]["annotations"][keys::USER_TEMPLATE]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                    image: template["spec"]["containers"][0]["image"].as_str().unwrap().to_owned(),
                    claim: claim.to_owned(),
                    starts_in: 3,
                    booted: None,
                    loaded: None,
                    file: None,
                    file_in: 0,
                    rejected: None,
                    refused: None,
                    hangs: false,
                    started_at: self.now,
                    hurry: None,
                };
                self.pods.insert(node, pod);
            }
        }
    }

    fn config(&self, node: Node) -> Option<(Config, bool)> {
        let live = self.objects.get(&format!("ConfigMap/{}", node.object_name("dialogs")))?;
        let conf = live.json["data"]["postgresql.conf"].as_str()?;
        let config_hash = conf.rsplit("dialog.config_hash = '").next()?.split('\'').next()?.to_owned();
        let boot_hash = live.json["data"]["boot-hash"].as_str()?.trim().to_owned();
        let parameters = dialog_operator::resources::parameters_of(&live.json)?;
        let tampered = self.tampered.contains(&node);
        let wal_level = if tampered { "replica" } else { "logical" }.to_owned();
        let boot_hash = if tampered { "tampered".to_owned() } else { boot_hash };
        Some((
            Config { hash: config_hash, boot_hash, parameters, wal_level },
            dialog_operator::resources::may_initialise(&live.json),
        ))
    }

    fn tick_pod(&mut self, node: Node) {
        let Some((config, may_initialise)) = self.config(node) else { return };
        let now = self.now;
        let fresh = self.id();
        let pod = self.pods.get_mut(&node).unwrap();
        if pod.booted.is_some() {
            pod.file_in = pod.file_in.saturating_sub(1);
            if pod.file_in == 0 && pod.rejected.is_none() {
                pod.file = Some(config);
            }
            return;
        }
        // The kubelet starts a container that ended again, with the ConfigMap of then.
        pod.starts_in =
            if pod.refused.is_some() && pod.starts_in == 0 { 5 } else { pod.starts_in.saturating_sub(1) };
        if pod.starts_in > 0 {
            return;
        }
        if !self.volumes.contains_key(&pod.claim) {
            if !may_initialise {
                pod.refused = Some(format!("{}: refused", dialog_operator::resources::VOLUME_EMPTY));
                return;
            }
            self.volumes.insert(pod.claim.clone(), Data { system_identifier: fresh, ..Data::default() });
        }
        pod.refused = None;
        pod.hangs |= config.parameters.get("max_connections").is_some_and(|value| value == "2000000");
        if pod.hangs {
            return;
        }
        let data = self.volumes.get_mut(&pod.claim).unwrap();
        let bad = config.parameters.get("max_connections").is_some_and(|value| value == "1000000");
        let boots = match (&data.last_good, bad) {
            (_, false) => config,
            (Some(last_good), true) => {
                pod.rejected = Some(RejectedConfiguration {
                    config_hash: config.hash,
                    message: "FATAL: could not map shared memory".to_owned(),
                });
                last_good.clone()
            }
            (None, true) => {
                pod.refused = Some("FATAL: could not map shared memory".to_owned());
                return;
            }
        };
        data.last_good = Some(boots.clone());
        pod.loaded = Some(boots.clone());
        pod.file = Some(boots.clone());
        pod.booted = Some(boots);
        pod.started_at = now;
        // The tampering is in the ConfigMap, and ours is applied over it.
        self.tampered.remove(&node);
    }

    fn tick_job(&mut self) {
        let Some(mut model) = self.job.take() else { return };
        if model.job.is_open() {
            if self.answers(Node::Coordinator) {
                self.tick_tasks(&mut model);
            }
            if model.job.tasks.iter().all(|task| task.state == "done") {
                model.job.state = "finished".to_owned();
                model.job.finished_at = Some(self.now);
                self.failed_jobs = 0;
            }
        }
        self.job = Some(model);
    }

    fn tick_tasks(&mut self, model: &mut ModelJob) {
        let mut running = 0;
        let mut moved = Vec::new();
        for task in &mut model.job.tasks {
            let transfer = task.transfer.clone().unwrap();
            let group = |id: i32| self.nodes.iter().find(|row| row.node_id == id).unwrap().group_id;
            let (from, to) = (group(transfer.from), group(transfer.to));
            let groups: BTreeSet<i32> = self.nodes.iter().map(|row| row.group_id).collect();
            let orphan = format!("public.dialogs_{}", transfer.shard);
            let orphaned =
                self.cleanup.iter().any(|row| row.object_name == orphan && !groups.contains(&row.group_id));
            let fit = !orphaned
                && [from, to].into_iter().map(|group| self.node_of_group(group)).all(|node| {
                    self.answers(node)
                        && self.pods[&node]
                            .booted
                            .as_ref()
                            .is_some_and(|booted| booted.wal_level == "logical")
                });
            match task.state.as_str() {
                "runnable"
                    if running < model.parallel && (task.retried == 0 || self.now.as_second() % 5 == 0) =>
                {
                    if fit && !self.moves_fail {
                        task.state = "running".to_owned();
                        running += 1;
                    } else {
                        task.retried += 1;
                        task.message =
                            Some("ERROR: logical decoding requires wal_level >= logical".to_owned());
                    }
                }
                "running" if fit => {
                    task.state = "done".to_owned();
                    assert_eq!(
                        self.placements.insert(transfer.shard, to),
                        Some(from),
                        "a shard moves from where it is"
                    );
                    moved.push((transfer.shard, from, to));
                }
                "running" => {
                    task.state = "runnable".to_owned();
                    task.retried += 1;
                }
                _ => {}
            }
        }
        for (shard, from, to) in moved {
            self.rows.insert(shard, self.claim_of_group(to));
            self.left_behind(shard, from);
        }
    }
}
