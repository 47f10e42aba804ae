//! What the operator sees of the model.

use super::*;

impl World {
    pub fn observe(&mut self) -> Snapshot {
        let objects = self.stale.take().unwrap_or_else(|| self.objects.clone());
        let desired = self.desired();
        let pods = self.pods.iter().map(|(node, pod)| (*node, self.seen_pod(*node, pod))).collect();
        let postgres =
            self.pods.keys().filter_map(|node| Some((*node, self.seen_postgres(*node)?))).collect();
        let citus = self.seen_citus();
        let blocking_sessions =
            self.held.keys().map(|node| (*node, vec!["session 7 of somebody".to_owned()])).collect();
        let mut connections = Vec::new();
        let new = |node: &Node| self.registered(*node).is_none() && *node != Node::Coordinator;
        let asked = |node: &Node| desired.nodes().any(|asked| asked == *node);
        let all: Vec<Node> = self.pods.keys().copied().filter(|node| !new(node) || asked(node)).collect();
        for (from, to) in all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to))) {
            if from == to || !new(&from) && !new(&to) {
                continue;
            }
            let wall = self.walls.contains(&[from, to]) || self.walls.contains(&[to, from]);
            let reached = self.answers(from) && self.answers(to) && !wall;
            let error = (!reached).then(|| "Connection refused".to_owned());
            connections.push(ConnectionCheck { from, to, error });
        }
        let mut seen = Snapshot {
            now: self.now,
            operator: OperatorConfig {
                default_image: "postgres:dev".to_owned(),
                cluster_domain: self.cluster_domain.clone(),
            },
            objects,
            pods,
            warnings: BTreeMap::new(),
            rewritten: self.rewritten.clone(),
            postgres,
            citus,
            connections,
            blocking_sessions,
            blocking_moves: BTreeMap::new(),
            slow_nodes: BTreeSet::new(),
            contents: BTreeMap::new(),
            parameter_checks: self.parameter_checks.clone(),
            images: self.images.clone(),
            schema_sql: Observed::Known(SchemaSql {
                sql: "create table".to_owned(),
                hash: "schema-1".to_owned(),
            }),
            refusals: self.refusals.clone(),
            application: self.objects.contains_key("Secret/dialogs-app").then(|| self.application.clone()),
            reach: self.reach.clone(),
            status: self.cluster.status.clone().unwrap_or_default(),
        };
        let nodes = contents::workers_to_inspect(View { desired: &desired, snapshot: &seen });
        seen.contents = nodes.into_iter().map(|node| (node, self.seen_contents(node))).collect();
        seen
    }

    fn seen_pod(&self, node: Node, pod: &Running) -> Pod {
        let crash = pod.refused.as_ref();
        Pod {
            name: node.pod_name("dialogs"),
            uid: pod.uid.clone(),
            created_at: pod.created_at,
            deleting: false,
            deletion_timestamp: None,
            node_name: Some("local".to_owned()),
            ready: pod.starts_in == 0 && crash.is_none() && !pod.hangs,
            ready_since: Some(pod.started_at),
            address: (!pod.unschedulable).then(|| "10.0.0.1".to_owned()),
            image: pod.image.clone(),
            user_template: Some(pod.template.clone()),
            config_refresh: pod.hurry.clone(),
            annotations: pod.annotations.clone(),
            waiting: crash.map(|_| ReasonMessage {
                reason: "CrashLoopBackOff".to_owned(),
                message: "back-off".to_owned(),
            }),
            last_termination: crash.map(|(exit_code, why)| Termination {
                reason: "Error".to_owned(),
                message: why.clone(),
                exit_code: *exit_code,
            }),
        }
    }

    fn seen_contents(&self, node: Node) -> Observed<Contents> {
        match self.theirs(node) {
            _ if !self.answers(node) => Observed::Unknown("timeout expired".to_owned()),
            None => Observed::Known(Contents::default()),
            Some(Theirs::Table(rows)) => {
                let first = vec![LocalTable { name: "public.notes".to_owned(), rows: Some(rows) }];
                let local = Holdings { tables: 1, rows, first, ..Holdings::default() };
                Observed::Known(Contents { local, ..Contents::default() })
            }
            Some(Theirs::Hidden) => Observed::Unknown("lock timeout".to_owned()),
        }
    }

    fn seen_postgres(&self, node: Node) -> Option<Observed<Postgres>> {
        let pod = &self.pods[&node];
        if pod.starts_in > 0 || pod.refused.is_some() || pod.hangs {
            return None;
        }
        if self.silent.contains_key(&node) {
            return Some(Observed::Unknown("timeout expired".to_owned()));
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
        Some(Observed::Known(Postgres {
            system_identifier: data.system_identifier.clone(),
            version: "15.18".to_owned(),
            major: 15,
            started_at: pod.started_at,
            wal_level: booted.wal_level.clone(),
            config_hash: Some(loaded.hash.clone()),
            file_config_hash: pod.file.as_ref().map(|file| file.hash.clone()),
            startup_hash: Some(booted.startup_hash.clone()),
            rejected: pod.rejected.clone(),
            pending_restart: pending.then(|| "max_connections".to_owned()).into_iter().collect(),
            settings,
            auto_conf: data.auto_conf.clone(),
            locale: Some(data.locale.clone()),
            database: data.database,
            extension: data.extension.then(|| "13.2-1".to_owned()),
            available_extension: Some("13.2-1".to_owned()),
            group_id: data.extension.then_some(data.group_id),
            dist_node_rows: data.known_nodes,
            missing_tables: 0,
            role_pinned: data.role_pinned,
            owner_may_create: self.owner.as_ref().map(|_| data.granted),
            prepared_transactions: 0,
            disk: Some(Disk { free: self.free, total: VOLUME }),
            leftovers: data.leftovers.clone(),
            leftovers_in_all: i64::try_from(data.leftovers.len()).unwrap(),
        }))
    }

    /// What Citus would move: away from where no shard may be, and then (but for a drain) until counts are even.
    pub fn planned(&self, drain_only: bool) -> Vec<Move> {
        self.planned_but(drain_only, &[])
    }

    /// `colocationid` of a shard's table.
    pub fn colocation(&self, shard: i64) -> i32 {
        if self.led.contains(&shard) { 2 } else { 1 }
    }

    /// The same with these groups staying where they are.
    pub fn planned_but(&self, drain_only: bool, pinned: &[i32]) -> Vec<Move> {
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
            let movable = |shard: &i64| !pinned.contains(&self.colocation(*shard));
            let banned = counts
                .iter()
                .find(|(group, shards)| !full(group) && shards.iter().any(movable))
                .map(|(group, _)| *group);
            let most = counts.iter().filter(|(_, shards)| shards.iter().any(movable));
            let most = most.max_by_key(|(group, shards)| (shards.len(), -**group)).map(|(group, _)| *group);
            let from = match (banned, most) {
                (Some(banned), _) => banned,
                (None, Some(most)) if !drain_only && counts[&most].len() > counts[&least].len() + 1 => most,
                _ => return moves,
            };
            let there = counts.get_mut(&from).unwrap();
            let shard = there.remove(there.iter().rposition(movable).unwrap());
            counts.get_mut(&least).unwrap().push(shard);
            moves.push(Move {
                shard,
                table: if self.led.contains(&shard) { "public.led" } else { "public.dialogs" }.to_owned(),
                colocation_id: self.colocation(shard),
                bytes: SHARD,
                from: row(from).node_id,
                to: row(least).node_id,
            });
        }
    }

    fn seen_obstacles(&self) -> Obstacles {
        let mut listed = self.obstacles.clone();
        for obstacle in &mut listed {
            let shards = self.placements.iter().filter(|(shard, _)| {
                !obstacle.reference && self.colocation(**shard) == obstacle.colocation_id
            });
            obstacle.groups = shards.map(|(_, group)| *group).collect::<BTreeSet<_>>().into_iter().collect();
        }
        Obstacles { total: i64::try_from(listed.len()).unwrap(), listed, unlisted: 0 }
    }

    fn seen_citus(&self) -> Observed<Citus> {
        let coordinator = Node::Coordinator;
        if !self.answers(coordinator) {
            return Observed::Unknown("the coordinator does not answer".to_owned());
        }
        if !self.volumes[&self.pods[&coordinator].claim].extension {
            return Observed::Unknown("no extension yet".to_owned());
        }
        let mut groups: BTreeMap<i32, Group> = BTreeMap::new();
        for row in &self.nodes {
            groups.entry(row.group_id).or_default().bytes = Some(0);
        }
        let bytes = |shard: &i64| self.large.get(shard).copied().unwrap_or(SHARD);
        for (shard, group) in &self.placements {
            let group = groups.entry(*group).or_default();
            group.shards += 1;
            group.bytes = Some(group.bytes.unwrap_or_default() + bytes(shard));
        }
        let mut job = self.job.as_ref().map(|model| model.job.clone());
        for transfer in
            job.iter_mut().flat_map(|job| &mut job.tasks).filter_map(|task| task.transfer.as_mut())
        {
            if self.dropped.contains(&transfer.shard) {
                transfer.table.clear();
            }
        }
        let open = job.as_ref().is_some_and(Job::is_open);
        Observed::Known(Citus {
            nodes: self.nodes.clone(),
            groups,
            placements: (!open).then(|| {
                let all = self.placements.iter().map(|(shard, group)| Placement {
                    shard: *shard,
                    colocation: self.colocation(*shard).into(),
                    group_id: *group,
                    bytes: Some(bytes(shard)),
                });
                all.collect()
            }),
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
            cleanup_in_all: self.cleanup.len(),
            planned_moves: (!open).then(|| Observed::Known(self.planned(false))),
            planned_moves_when_pinned: self
                .pins
                .as_ref()
                .filter(|_| !open)
                .map(|pins| Observed::Known(self.planned_but(false, &pins.groups))),
            pins: self.pins.clone(),
            obstacles: self.seen_obstacles(),
            parallel_colocated: true,
            owner_exists: self.owner.is_some(),
            owner_secret: self.owner.clone(),
            extensions: self.extensions.clone(),
            schema_hash: self.schema.clone(),
        })
    }
}
