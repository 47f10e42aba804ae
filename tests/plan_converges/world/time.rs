//! What happens by itself: pods start, servers load, moves go on, Citus cleans up.

use super::*;

impl World {
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
        self.refuses.retain(|_, left| {
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

    pub(super) fn clean_up(&mut self) {
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
                    template: template["metadata"]["annotations"][keys::USER_TEMPLATE_HASH]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                    image: template["spec"]["containers"][0]["image"].as_str().unwrap().to_owned(),
                    claim: claim.to_owned(),
                    unschedulable: template["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "100",
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
                    annotations: texts(&template["metadata"]["annotations"]),
                };
                self.pods.insert(node, pod);
            }
        }
    }

    fn config(&self, node: Node) -> Option<(Config, bool)> {
        let live = self.objects.get(&format!("ConfigMap/{}", node.object_name("dialogs")))?;
        let conf = live.json["data"]["postgresql.conf"].as_str()?;
        let config_hash = conf.rsplit("dialog.config_hash = '").next()?.split('\'').next()?.to_owned();
        let startup_hash = live.json["data"]["boot-hash"].as_str()?.trim().to_owned();
        let parameters = dialog_operator::resources::parameters_of(&live.json)?;
        let tampered = self.tampered.contains(&node);
        let wal_level = if tampered { "replica" } else { "logical" }.to_owned();
        let startup_hash = if tampered { "tampered".to_owned() } else { startup_hash };
        Some((
            Config { hash: config_hash, startup_hash, parameters, wal_level },
            dialog_operator::resources::may_initialise(&live.json),
        ))
    }

    fn tick_pod(&mut self, node: Node) {
        let Some((config, may_initialise)) = self.config(node) else { return };
        let now = self.now;
        self.next += 1;
        let fresh = format!("{}", 7_400_000_000_000_000_000 + self.next);
        let pod = self.pods.get_mut(&node).unwrap();
        // The kubelet starts no container whose Secrets are not there.
        let mounted = |name: &str| self.objects.contains_key(&format!("Secret/dialogs-{name}"));
        if pod.unschedulable || pod.booted.is_none() && !(mounted("server") && mounted("node")) {
            return;
        }
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
                let empty = resources::StartFailure::VolumeEmpty as i32;
                pod.refused = Some((empty, "the volume is empty".to_owned()));
                return;
            }
            let told = self.objects[&format!("ConfigMap/{}", node.object_name("dialogs"))].json["data"]
                ["initialise"]
                .as_str();
            let locale =
                told.and_then(|told| told.strip_prefix("allowed ")).unwrap_or(self.locale).to_owned();
            let data = Data { system_identifier: fresh, locale, ..Data::default() };
            self.volumes.insert(pod.claim.clone(), data);
        }
        pod.refused = None;
        pod.hangs |= config.parameters.get("max_connections").is_some_and(|value| value == "2000000");
        if pod.hangs {
            return;
        }
        let data = self.volumes.get_mut(&pod.claim).unwrap();
        let refused = self.refused_now.as_deref();
        let bad = |config: &Config| {
            let value = config.parameters.get("max_connections").map(String::as_str);
            value.is_some() && (value == Some("1000000") || value == refused)
        };
        let bad_now = bad(&config);
        let boots = match (data.last_good.as_ref().filter(|config| !bad(config)), bad_now) {
            (_, false) => config,
            (Some(last_good), true) => {
                pod.rejected = Some(RejectedConfiguration {
                    config_hash: config.hash,
                    message: "FATAL: could not map shared memory".to_owned(),
                });
                last_good.clone()
            }
            (None, true) => {
                pod.refused = Some((1, "FATAL: could not map shared memory".to_owned()));
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
            if !model.job.has_ended() && model.job.tasks.iter().all(|task| task.state == TaskState::Done) {
                model.job.state = JobState::Finished;
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
                && !self.dropped.contains(&transfer.shard)
                && [from, to].into_iter().map(|group| self.node_of_group(group)).all(|node| {
                    self.answers(node)
                        && self.pods[&node]
                            .booted
                            .as_ref()
                            .is_some_and(|booted| booted.wal_level == "logical")
                });
            match task.state {
                TaskState::Runnable
                    if running < model.parallel && (task.retried == 0 || self.now.as_second() % 5 == 0) =>
                {
                    if fit && !self.moves_fail {
                        task.state = TaskState::Running;
                        running += 1;
                    } else {
                        task.retried += 1;
                        let words = if self.dropped.contains(&transfer.shard) {
                            "ERROR: could not find valid entry for shard"
                        } else {
                            "ERROR: logical decoding requires wal_level >= logical"
                        };
                        task.message = Some(words.to_owned());
                    }
                }
                TaskState::Running if fit => {
                    task.state = TaskState::Done;
                    assert_eq!(
                        self.placements.insert(transfer.shard, to),
                        Some(from),
                        "a shard moves from where it is"
                    );
                    moved.push((transfer.shard, from, to));
                }
                TaskState::Running => {
                    task.state = TaskState::Runnable;
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

fn texts(map: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(map.clone()).unwrap()
}
