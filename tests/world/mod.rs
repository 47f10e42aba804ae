//! A model of Kubernetes, PostgreSQL and Citus, small enough to run a hundred thousand histories: objects, pods that
//! start and end, servers that load configuration, a catalog, jobs that move shards. It obeys steps as the real parts
//! would, and panics when a step does what must never happen. It plans nothing.

use std::collections::{BTreeMap, BTreeSet};

use dialog_operator::{
    api::{Desired, DialogCluster, DialogClusterSpec, Node, names::keys},
    observe::{
        Snapshot,
        snapshot::{
            Citus, ConnectionCheck, DistNode, DistTable, Group, Job, LiveObject, Move, OperatorFacts,
            Ownership, Pod, Postgres, RejectedConfiguration, SchemaSql, Seen, Task, Waiting,
        },
    },
    plan::{Plan, Step, View, invariants, plan, view::PORT, wanted},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub const SHARDS: i64 = 32;

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
        let mut connections = Vec::new();
        let members: Vec<Node> = desired
            .nodes()
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
            ready: pod.starts_in == 0 && crash.is_none(),
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
        if pod.starts_in > 0 || pod.refused.is_some() {
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
            leftovers: Vec::new(),
            timeouts_off: data.timeouts_off,
            disk: None,
        }))
    }

    pub fn planned(&self) -> Vec<Move> {
        let workers: Vec<&DistNode> = self.nodes.iter().filter(|row| row.group_id > 0).collect();
        let mut counts: BTreeMap<i32, Vec<i64>> =
            workers.iter().map(|row| (row.group_id, Vec::new())).collect();
        for (shard, group) in &self.placements {
            counts.get_mut(group).unwrap().push(*shard);
        }
        let id = |group: i32| workers.iter().find(|row| row.group_id == group).unwrap().node_id;
        let mut moves = Vec::new();
        loop {
            let (Some(most), Some(least)) = (
                counts.iter().max_by_key(|(group, shards)| (shards.len(), -**group)).map(|(group, _)| *group),
                counts.iter().min_by_key(|(group, shards)| (shards.len(), **group)).map(|(group, _)| *group),
            ) else {
                return moves;
            };
            if counts[&most].len() <= counts[&least].len() + 1 {
                return moves;
            }
            let shard = counts.get_mut(&most).unwrap().pop().unwrap();
            counts.get_mut(&least).unwrap().push(shard);
            moves.push(Move {
                shard,
                table: "public.dialogs".to_owned(),
                bytes: 1000,
                from: id(most),
                to: id(least),
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
        for group in self.placements.values() {
            groups.entry(*group).or_default().shards += 1;
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
            cleanup: Vec::new(),
            plan: (!open).then(|| Seen::Known(self.planned())),
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
            done.steps.push(dialog_operator::act::DoneStep { step: planned.step.clone(), result });
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
            Step::RestartNode { node, pod_uid, .. } => return self.restart(*node, pod_uid),
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
            }
            Step::RecoverTransactions => {}
            Step::StartRebalance { .. } => self.start(),
            Step::StopRebalance { job } => self.stop(*job),
            Step::Delete { kind, name, uid } => {
                let key = format!("{kind}/{name}");
                let node = Node::from_object_name(name, "dialogs").unwrap();
                assert!(self.registered(node).is_none(), "{key} is deleted while pg_dist_node knows it");
                assert_ne!(kind, "PersistentVolumeClaim");
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

    fn restart(&mut self, node: Node, uid: &str) -> Result<(), dialog_operator::act::Failure> {
        if self.pods.get(&node).is_none_or(|pod| pod.uid != uid) {
            return Self::fail("the pod is another one");
        }
        let member = node == Node::Coordinator || self.registered(node).is_some();
        if member {
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

    fn start(&mut self) {
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
            .planned()
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
        }
    }

    // === What happens by itself ===

    pub fn tick(&mut self) {
        self.now += SignedDuration::from_secs(1);
        self.silent.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        self.tick_pods();
        self.tick_job();
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
        for task in &mut model.job.tasks {
            let transfer = task.transfer.clone().unwrap();
            let group = |id: i32| self.nodes.iter().find(|row| row.node_id == id).unwrap().group_id;
            let (from, to) = (group(transfer.from), group(transfer.to));
            let fit = [from, to].into_iter().map(|group| self.node_of_group(group)).all(|node| {
                self.answers(node)
                    && self.pods[&node].booted.as_ref().is_some_and(|booted| booted.wal_level == "logical")
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
                }
                "running" => {
                    task.state = "runnable".to_owned();
                    task.retried += 1;
                }
                _ => {}
            }
        }
    }
}
