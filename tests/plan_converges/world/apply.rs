//! What the model does when the operator asks for it, and what it must never be asked for.

use dialog_operator::snapshot::{Attempt, Cause, FailureReason};

use super::*;

impl World {
    /// One reconcile: observe, plan, check, act. The operator may be killed after any step.
    pub fn reconcile(&mut self, killed_after: Option<usize>) -> Plan {
        let desired = self.desired();
        let seen = self.observe();
        let decided = plan(&desired, &seen);
        let view = View { desired: &desired, snapshot: &seen };
        invariants::check(view, &decided)
            .unwrap_or_else(|broken| panic!("{broken}\n{}", self.log.join("\n")));
        let acts: Vec<_> = decided.steps.iter().map(|planned| refusals::attempt_of(&planned.step)).collect();
        self.refusals.retain_attempts(&acts, self.now);
        self.tried.clear();
        let mut done = dialog_operator::act::Outcome::default();
        let mut stopped = concurrency::FailureScope::default();
        let put_off = |step: &Step| {
            let put_off = seen.refusals.put_off(&refusals::attempt_of(step), desired.generation, self.now);
            put_off.map(|one| one.failure.clone())
        };
        let steps = concurrency::in_turn(&decided.steps, |step| {
            seen.refusals.of(&refusals::attempt_of(step)).is_some()
        });
        let steps: Vec<_> = steps
            .iter()
            .filter(|planned| {
                !concurrency::prepares_only_postponed(&planned.step, &steps, |step| put_off(step).is_some())
            })
            .map(|planned| (planned.clone(), put_off(&planned.step)))
            .collect();
        for (planned, put_off) in steps.iter().take(killed_after.unwrap_or(usize::MAX)) {
            if stopped.includes(&planned.step) {
                continue;
            }
            let result = match put_off {
                Some(failure) => Err(failure.clone()),
                None => {
                    let result = self.try_to_obey(planned, desired.generation);
                    self.tried.push((planned.clone(), result.clone()));
                    result
                }
            };
            if let Err(failure) = &result {
                stopped.after(&planned.step, failure);
            }
            done.steps.push(dialog_operator::act::StepOutcome {
                step: planned.step.clone(),
                result,
                detail: None,
            });
        }
        if killed_after.is_some() {
            self.refusals = Refusals::default();
        } else {
            self.cluster.status = Some(dialog_operator::report::status(&desired, &seen, &decided, &done));
        }
        decided
    }

    fn try_to_obey(&mut self, planned: &PlannedStep, generation: i64) -> Result<(), Failure> {
        let step = &planned.step;
        self.log.push(format!("{}: {}", step.name(), planned.why));
        let act = refusals::attempt_of(step);
        let refused = self
            .refuses
            .keys()
            .find(|refused| matches!(&act, Attempt::Step(act) if act.starts_with(refused.as_str())));
        let result = match refused {
            Some(refused) => {
                Err(Self::refusal(refused.starts_with("Write"), format!("{refused} is refused")))
            }
            None => self.obey(step),
        };
        match &result {
            Ok(()) => self.refusals.succeeded(&act),
            Err(failure) => {
                self.refusals.failed((&act, step.effect().scope.node()), failure, generation, self.now)
            }
        }
        result
    }

    fn fail(message: &str) -> Result<(), Failure> {
        Err(Failure::new(FailureReason::Postgres, message).for_cause(Cause::Wait))
    }

    fn refusal(by_api_server: bool, words: String) -> Failure {
        if by_api_server {
            Failure::new(FailureReason::Kubernetes, words).for_cause(Cause::Api("Forbidden".to_owned()))
        } else {
            Failure::new(FailureReason::Postgres, words).for_cause(Cause::Sqlstate("42501".to_owned()))
        }
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

    fn obey(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Kubernetes(KubernetesStep::Create(object)) => {
                if self.objects.contains_key(&object.key()) {
                    return Ok(());
                }
                let claims = self.objects.keys().filter(|key| key.starts_with("PersistentVolumeClaim/"));
                if object.kind == "PersistentVolumeClaim"
                    && self.quota.is_some_and(|quota| claims.count() >= quota)
                {
                    let words = "is forbidden: exceeded quota: volumes, requested: persistentvolumeclaims=1";
                    return Err(Self::refusal(
                        true,
                        format!("persistentvolumeclaims {} {words}", object.name),
                    ));
                }
                self.admit(object);
            }
            Step::Kubernetes(KubernetesStep::Apply { object, uid }) => {
                if self.objects.get(&object.key()).is_none_or(|live| live.uid != *uid) {
                    return Self::fail("conflict");
                }
                if object.kind == "PersistentVolumeClaim" {
                    self.resize(object)?;
                }
                self.admit(object);
            }
            Step::Kubernetes(KubernetesStep::Adopt { kind, name, uid }) => {
                // Of the version that was seen.
                let live = self.objects.get_mut(&format!("{kind}/{name}"));
                let Some(live) = live.filter(|live| live.uid == *uid && live.ownership == Ownership::Left)
                else {
                    return Self::fail("conflict");
                };
                live.ownership = Ownership::Owned;
            }
            Step::Kubernetes(KubernetesStep::CreateSecret(kind)) => {
                let (name, ca) = (format!("dialogs-{kind}"), "Secret/dialogs-ca");
                // A create: what a cache that lags does not show is left as it is.
                if self.objects.contains_key(&format!("Secret/{name}")) {
                    return Ok(());
                }
                let signed = ["server", "node", "superuser"].map(|kind| format!("Secret/dialogs-{kind}"));
                assert!(
                    *kind != SecretKind::Ca || !signed.iter().any(|name| self.objects.contains_key(name)),
                    "new authorities beside certificates of others"
                );
                assert!(*kind == SecretKind::Ca || self.objects.contains_key(ca), "signed by nobody");
                let labels = json!({keys::CLUSTER: "dialogs"});
                let metadata = json!({"name": name, "labels": labels});
                self.store(&format!("Secret/{name}"), json!({"metadata": metadata}));
            }
            Step::Kubernetes(KubernetesStep::SetConnectionKeys { .. }) => {
                assert_eq!(self.application.unusable, None, "keys of a password that is none");
                self.application.stale.clear();
                let version = self.id();
                self.objects.get_mut("Secret/dialogs-app").expect("it is there").json["metadata"]["resourceVersion"] =
                    json!(version);
                self.application.version = version;
            }
            Step::Kubernetes(KubernetesStep::RefreshConfiguration { node, value, .. }) => {
                if let Some(pod) = self.pods.get_mut(node) {
                    pod.hurry = Some(value.clone());
                    pod.file_in = 1;
                }
            }
            Step::Kubernetes(KubernetesStep::PatchPod { node, pod_uid, metadata }) => {
                let Some(pod) = self.pods.get_mut(node).filter(|pod| pod.uid == *pod_uid) else {
                    return Self::fail("conflict");
                };
                for (key, value) in metadata["annotations"].as_object().unwrap() {
                    match value.as_str() {
                        Some(value) => drop(pod.annotations.insert(key.clone(), value.to_owned())),
                        None => drop(pod.annotations.remove(key)),
                    }
                }
            }
            Step::Sql(SqlStep::BootstrapNode { node, .. }) => {
                let Some(data) = self.data(*node) else { return Self::fail("no answer") };
                data.database = true;
                data.extension = true;
                data.role_pinned = true;
            }
            Step::Sql(SqlStep::GrantRights { node, .. }) => {
                let Some(data) = self.data(*node) else { return Self::fail("no answer") };
                data.granted = true;
            }
            Step::Kubernetes(KubernetesStep::RecordIdentity { node, system_identifier, claim }) => {
                self.record(*node, system_identifier, claim)
            }
            Step::Sql(SqlStep::Reload { node }) => {
                if let Some(pod) = self.pods.get_mut(node) {
                    pod.loaded.clone_from(&pod.file);
                }
            }
            Step::Sql(SqlStep::ResetAlterSystem { node, .. }) => {
                if let Some(data) = self.data(*node) {
                    data.auto_conf.clear();
                }
            }
            Step::Sql(SqlStep::CheckParameter { name, value, .. }) => {
                let check = if value == "garbage" {
                    let message = format!("invalid value for parameter \"{name}\": \"garbage\"");
                    ParameterCheck::Rejected { message, retry_due: false }
                } else {
                    ParameterCheck::Accepted
                };
                self.parameter_checks.insert(format!("{name}={value}"), check);
            }
            Step::Kubernetes(KubernetesStep::RestartNode { node, pod_uid, start_marker: booted, .. }) => {
                return self.restart(*node, pod_uid, booted);
            }
            Step::Sql(SqlStep::SetCoordinatorHost { address }) => {
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
            Step::Sql(SqlStep::AddNode { node, address }) => return self.add(*node, address),
            Step::Sql(SqlStep::CreateExtension { name }) => {
                self.extensions.insert(name.clone());
            }
            Step::Sql(SqlStep::CreateOwner { secret_uid, .. }) => {
                self.owner = Some(secret_uid.clone());
                // Rights on a database reach the members of the day.
                for node in self.pods.keys().copied().collect::<Vec<_>>() {
                    if node == Node::Coordinator || self.registered(node).is_some() {
                        self.data(node).into_iter().for_each(|data| data.granted = true);
                    }
                }
                self.reach = None;
            }
            Step::Sql(SqlStep::ApplySchema { hash }) => {
                assert!(self.schema.is_none(), "the schema is run once");
                // A worker may have been restarted a step before.
                if !self.everybody_answers() {
                    return Self::fail("connection to the remote node failed");
                }
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
            Step::Sql(SqlStep::RecoverTransactions) => {}
            Step::Sql(SqlStep::StartRebalance { drain, strategy, .. }) => self.start(*drain, strategy),
            Step::Sql(SqlStep::SetShouldHaveShards { address, should, .. }) => {
                let open = self.job.as_ref().is_some_and(|model| model.job.is_open());
                assert!(!open, "shouldhaveshards changes under a job");
                if !self.everybody_answers() {
                    return Self::fail("connection to the remote node failed");
                }
                let node = Node::from_object_name(address.split('.').next().unwrap(), "dialogs").unwrap();
                assert!(
                    *should || self.theirs(node).is_none(),
                    "{node} is drained with something of people's"
                );
                let row = self.nodes.iter_mut().find(|row| row.name == *address);
                row.expect("a member").should_have_shards = *should;
            }
            Step::Sql(SqlStep::CleanUpOrphans) => self.clean_up(),
            Step::Kubernetes(KubernetesStep::Decommission { node, claim, mark, reclaim }) => {
                self.retire(*node, claim.as_deref(), (mark, *reclaim))
            }
            Step::Sql(SqlStep::RemoveNode { node, .. }) => return self.remove(*node),
            Step::Sql(SqlStep::ForceRemove { workers }) => self.force_remove(workers),
            Step::Sql(SqlStep::ActivateNode { node, .. }) => {
                if !self.everybody_answers() {
                    return Self::fail("connection to the remote node failed");
                }
                let address = Self::address(*node);
                let row = self.nodes.iter_mut().find(|row| row.name == address).expect("a member");
                (row.active, row.has_metadata, row.metadata_synced) = (true, true, true);
            }
            Step::Sql(SqlStep::DeleteStaleCleanupRecords { records }) => {
                let groups: BTreeSet<i32> = self.nodes.iter().map(|row| row.group_id).collect();
                for row in self.cleanup.iter().filter(|row| records.contains(&row.record_id)) {
                    assert!(!groups.contains(&row.group_id), "cleanup of a member is forgotten");
                }
                self.cleanup.retain(|row| !records.contains(&row.record_id));
            }
            Step::Sql(SqlStep::DropLeftovers { node, leftovers }) => {
                if let Some(data) = self.data(*node) {
                    data.leftovers.retain(|left| !leftovers.contains(left));
                }
            }
            Step::Sql(SqlStep::PinGroups(pins)) => {
                self.pins = Some(pins.clone()).filter(|pins| !pins.groups.is_empty())
            }
            Step::Sql(SqlStep::StopRebalance { job }) => self.stop(*job),
            Step::Kubernetes(KubernetesStep::Delete { kind, name, uid }) => {
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
            Step::Kubernetes(KubernetesStep::InspectImage { image }) => {
                let facts = ImageFacts { postgres_major: 15, citus: "13.2-1".to_owned() };
                self.images.insert(image.clone(), Observed::Known(facts));
            }
            Step::Kubernetes(KubernetesStep::DeleteInspectionPod { .. }) => {
                unreachable!("the model makes no pod that asks an image")
            }
        }
        Ok(())
    }

    /// What a webhook makes of a write, and what the operator sees of that in the answer.
    /// As the API server has it: no volume shrinks, and only some grow.
    fn resize(&self, object: &Manifest) -> Result<(), Failure> {
        let size =
            |json: &Value| json["spec"]["resources"]["requests"]["storage"].as_str().unwrap().to_owned();
        let (name, asked) = (&object.name, size(&object.json));
        let before = size(&self.objects[&object.key()].json);
        // Asked for by a cache that lags: of what is seen as it is, no step does.
        if resources::is_larger(&before, &asked) {
            let message = format!("{name}: Forbidden: field can not be less than status.capacity ({before})");
            return Err(Self::refusal(true, message));
        }
        if asked == before || self.expands {
            return Ok(());
        }
        Err(Self::refusal(
            true,
            format!("{name} is forbidden: the storageclass that provisions the pvc must support resize"),
        ))
    }

    fn admit(&mut self, object: &Manifest) {
        let mut json = object.json.clone();
        if let (Some(mirror), "StatefulSet") = (self.mirror, object.kind.as_str()) {
            let image = &mut json["spec"]["template"]["spec"]["containers"][0]["image"];
            *image = format!("{mirror}/{}", image.as_str().unwrap()).into();
        }
        let differences = resources::differences(object, &json);
        self.rewritten.insert(object.key(), AdmissionChanges { differences });
        self.store(&object.key(), json);
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
            LiveObject {
                uid,
                ownership: Ownership::Owned,
                created_at,
                deleting: false,
                scaled_by: None,
                json,
            },
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

    fn restart(&mut self, node: Node, uid: &str, note: &str) -> Result<(), Failure> {
        if self.pods.get(&node).is_none_or(|pod| pod.uid != uid) {
            return Self::fail("the pod is another one");
        }
        let claim = &self.objects[&format!("PersistentVolumeClaim/{}", self.pods[&node].claim)];
        assert!(!claim.deleting, "{node} is restarted, and its volume goes with its pod");
        let member = node == Node::Coordinator || self.registered(node).is_some();
        // One that never got ready is not taken down.
        let up = self.pods[&node].booted.is_some();
        if member && up {
            let running = self
                .job
                .iter()
                .flat_map(|model| &model.job.tasks)
                .any(|task| task.state == TaskState::Running);
            assert!(!running, "{node} is restarted while a move runs");
            for row in self.nodes.clone() {
                let other = Node::from_object_name(row.name.split('.').next().unwrap(), "dialogs").unwrap();
                let down = self.pods.get(&other).is_none_or(|pod| pod.starts_in > 0);
                assert!(other == node || !down, "{node} is restarted while {other} is down");
            }
        }
        *self.restarts.entry(node).or_default() += 1;
        let set = self.objects.get_mut(&format!("StatefulSet/{}", node.object_name("dialogs"))).unwrap();
        set.json["metadata"]["annotations"][keys::LAST_STARTED_WITH] = json!(note);
        self.pods.remove(&node);
        Ok(())
    }

    fn add(&mut self, node: Node, address: &str) -> Result<(), Failure> {
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

    fn retire(&mut self, node: Node, claim: Option<&str>, (mark, reclaim): (&str, VolumePolicy)) {
        if let Some(row) = self.registered(node) {
            let full = self.placements.values().any(|group| *group == row.group_id);
            assert!(!full, "{node} is retired with shards on it");
        }
        assert!(self.theirs(node).is_none(), "{node} is retired with something of people's");
        if let Some(claim) = claim
            && let Some(live) = self.objects.get_mut(&format!("PersistentVolumeClaim/{claim}"))
            && live.label(keys::DECOMMISSIONED).is_none()
        {
            live.json["metadata"]["labels"][keys::DECOMMISSIONED] = json!(mark);
            live.json["metadata"]["annotations"][keys::RECLAIM_POLICY] = json!(reclaim.to_string());
        }
        if let Some(live) = self.objects.get_mut(&format!("StatefulSet/{}", node.object_name("dialogs"))) {
            live.json["metadata"]["annotations"][keys::DECOMMISSIONED] = json!(mark);
        }
    }

    fn remove(&mut self, node: Node) -> Result<(), Failure> {
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
        assert!(self.theirs(node).is_none(), "{node} is removed with something of people's");
        self.nodes.retain(|other| other.node_id != row.node_id);
        Ok(())
    }

    /// What only a person may ask for.
    fn force_remove(&mut self, workers: &[(Node, String)]) {
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

    fn delete_volume(&mut self, name: &str, uid: &str) -> Result<(), Failure> {
        let key = format!("PersistentVolumeClaim/{name}");
        let Some(live) = self.objects.get(&key).filter(|live| live.uid == uid) else {
            return Self::fail("conflict");
        };
        assert!(live.label(keys::DECOMMISSIONED).is_some(), "{name} is deleted and was not drained");
        assert_eq!(
            live.annotation(keys::RECLAIM_POLICY),
            Some("Delete"),
            "{name} is deleted and was to be kept"
        );
        assert!(!self.rows.values().any(|claim| claim == name), "{name} is deleted with rows on it");
        let theirs = self.volumes.get(name).and_then(|data| data.theirs);
        assert!(theirs.is_none(), "{name} is deleted with something of people's");
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
            self.start(false, "by_shard_count");
        }
    }

    fn start(&mut self, drain: bool, strategy: &str) {
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
        let pinned = if strategy == "by_shard_count" {
            Vec::new()
        } else {
            self.pins.clone().expect("a strategy that is there").groups
        };
        let moves = self.planned_but(drain, &pinned);
        assert!(!moves.is_empty(), "a job without a move is started");
        for obstacle in &self.obstacles {
            let meets = |one: &Move| obstacle.reference || one.colocation_id == obstacle.colocation_id;
            assert!(!moves.iter().any(meets), "a job that meets {obstacle:?} is started");
        }
        let tasks = moves
            .into_iter()
            .enumerate()
            .map(|(number, transfer)| Task {
                id: number as i64,
                state: TaskState::Runnable,
                transfer: Some(transfer),
                retried: 0,
                message: None,
                pid: None,
            })
            .collect();
        let job = Job { id, state: JobState::Running, started_at: Some(self.now), tasks, ..Job::default() };
        self.job = Some(ModelJob { job, parallel: 4 });
        self.jobs_started += 1;
    }

    /// A table is dropped, and its shards with it.
    pub fn drop_shards(&mut self, shards: &[i64]) {
        for shard in shards {
            self.placements.remove(shard);
            self.rows.remove(shard);
            self.dropped.insert(*shard);
        }
    }

    fn stop(&mut self, id: i64) {
        if let Some(model) = self.job.as_mut().filter(|model| model.job.id == id && model.job.is_open()) {
            model.job.state = JobState::Cancelled;
            model.job.finished_at = Some(self.now);
            let unheard = std::mem::take(&mut self.unheard_stop);
            // A move that is cancelled leaves its half made copy on the target.
            let mut halves = Vec::new();
            let stopped = |task: &&mut Task| {
                task.state != TaskState::Done && !(unheard && task.state == TaskState::Running)
            };
            for task in model.job.tasks.iter_mut().filter(stopped) {
                if task.state == TaskState::Running {
                    halves.extend(task.transfer.clone());
                }
                task.state = TaskState::Cancelled;
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
}
