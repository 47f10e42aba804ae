//! The snapshot read with the questions of the planner and the report: who is this node, is it registered, does it
//! answer. Answers only; what follows from them is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    api::{Desired, Node, names::keys},
    resources,
    snapshot::{Citus, DistNode, LiveObject, Observed, Ownership, Pod, Postgres, Snapshot, TaskState},
};

/// Port of every node's server and Service.
pub const PORT: i32 = 5432;

/// What is wanted and what was seen, together.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What the user wants.
    pub desired: &'a Desired,
    /// What is.
    pub snapshot: &'a Snapshot,
}

/// Who answers under a node's name.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerCheck<'a> {
    /// Nobody: there is no pod, or it is not ready. In Kubernetes' words.
    NotReady(String),
    /// The pod is ready and the server does not answer. In PostgreSQL's words.
    Unreachable(String),
    /// A server that was never part of a cluster: its identity is not recorded yet.
    Unrecorded(&'a Postgres),
    /// The one that is recorded.
    Verified(&'a Postgres),
    /// Somebody else, and why that is known.
    IdentityMismatch(String),
}

impl<'a> View<'a> {
    /// The object with this key (`Kind/name`).
    #[must_use]
    pub fn object(&self, kind: &str, name: &str) -> Option<&'a LiveObject> {
        self.snapshot.objects.get(&format!("{kind}/{name}"))
    }
    /// The object with this key, if it is ours.
    #[must_use]
    pub fn owned(&self, kind: &str, name: &str) -> Option<&'a LiveObject> {
        self.object(kind, name).filter(|object| object.ownership == Ownership::Owned)
    }
    /// Object name of a node.
    #[must_use]
    pub fn name(&self, node: Node) -> String {
        node.object_name(&self.desired.cluster.name)
    }
    /// Address of a node in pg_dist_node.
    #[must_use]
    pub fn address(&self, node: Node) -> String {
        self.desired.cluster.address(node, &self.snapshot.operator.cluster_domain)
    }
    /// The node's StatefulSet.
    #[must_use]
    pub fn stateful_set(&self, node: Node) -> Option<&'a LiveObject> {
        self.owned("StatefulSet", &self.name(node))
    }
    /// The node's pod.
    #[must_use]
    pub fn pod(&self, node: Node) -> Option<&'a Pod> {
        self.snapshot.pods.get(&node)
    }
    /// Volume claims of all nodes: ours, not on their way out; by name.
    pub fn claims(self) -> impl Iterator<Item = (Node, &'a str, &'a LiveObject)> {
        self.snapshot.objects.iter().filter_map(|(key, object)| {
            let name = key.strip_prefix("PersistentVolumeClaim/")?;
            let node = object.label(keys::NODE)?.parse().ok()?;
            (object.ownership == Ownership::Owned && !object.deleting).then_some((node, name, object))
        })
    }
    /// The claim that the node's StatefulSet mounts; before there is one, the claim that is kept for it: one that was
    /// a node's before an unused one. One that was drained is nobody's, but for a worker that was to be removed and
    /// is registered still.
    #[must_use]
    pub fn claim(&self, node: Node) -> Option<&'a str> {
        if let Some(set) = self.stateful_set(node) {
            return set.json.pointer("/spec/template/spec/volumes")?.as_array()?.iter().find_map(|volume| {
                volume.pointer("/persistentVolumeClaim/claimName").and_then(|name| name.as_str())
            });
        }
        let used = |object: &LiveObject| object.annotation(keys::SYSTEM_IDENTIFIER).is_some();
        let drained = |object: &LiveObject| object.label(keys::DECOMMISSIONED).is_some();
        let leaves = self.registration(node).is_some_and(|row| !row.should_have_shards);
        self.claims()
            .filter(|(of, _, object)| *of == node && (leaves || !drained(object)))
            .min_by_key(|(_, name, object)| (drained(object), !used(object), *name))
            .map(|(_, name, _)| name)
    }
    /// The node held nothing any more and is being removed: there is no way back for it.
    #[must_use]
    pub fn is_decommissioned(&self, node: Node) -> bool {
        let marked =
            self.stateful_set(node).is_some_and(|set| set.annotation(keys::DECOMMISSIONED).is_some());
        marked
            || self
                .claim(node)
                .and_then(|claim| self.owned("PersistentVolumeClaim", claim))
                .is_some_and(|claim| claim.label(keys::DECOMMISSIONED).is_some())
    }
    /// Registered workers that are to go: no longer asked for, or retired.
    #[must_use]
    pub fn draining_workers(&self) -> BTreeMap<Node, &'a DistNode> {
        let asked = |node: &Node| self.desired.nodes().any(|asked| asked == *node);
        let mut workers = self.registered_workers();
        workers.retain(|node, _| !asked(node) || self.is_decommissioned(*node));
        workers
    }
    /// Registered workers that are to stay.
    #[must_use]
    pub fn remaining_workers(&self) -> BTreeMap<Node, &'a DistNode> {
        let leaving = self.draining_workers();
        let mut workers = self.registered_workers();
        workers.retain(|node, _| !leaving.contains_key(node));
        workers
    }
    /// Shards of distributed tables on a registered worker.
    #[must_use]
    pub fn shards(&self, row: &DistNode) -> i64 {
        self.citus().and_then(|citus| citus.groups.get(&row.group_id)).map_or(0, |group| group.shards)
    }
    /// Who the node is: what was recorded on its StatefulSet or on its claim.
    #[must_use]
    pub fn identity(&self, node: Node) -> Option<&'a str> {
        let set = self.stateful_set(node).and_then(|set| set.annotation(keys::SYSTEM_IDENTIFIER));
        set.or_else(|| {
            let claim = self.claim(node)?;
            self.owned("PersistentVolumeClaim", claim)?.annotation(keys::SYSTEM_IDENTIFIER)
        })
    }
    /// The volume claim of a node that was one before is gone, or is only there because its pod still mounts it
    /// (Kubernetes: "Storage Object in Use Protection").
    #[must_use]
    pub fn loses_volume(&self, node: Node) -> bool {
        let claim = self.claim(node).and_then(|claim| self.owned("PersistentVolumeClaim", claim));
        self.identity(node).is_some() && claim.is_none_or(|claim| claim.deleting)
    }
    /// The Citus catalog, when it could be read.
    #[must_use]
    pub fn citus(&self) -> Option<&'a Citus> {
        self.snapshot.citus.known()
    }
    /// The node's row of pg_dist_node: by its address, never by a pod's.
    #[must_use]
    pub fn registration(&self, node: Node) -> Option<&'a DistNode> {
        let address = self.address(node);
        self.citus()?.nodes.iter().find(|row| row.name == address && row.port == PORT)
    }
    /// Workers in pg_dist_node that have one of our addresses.
    #[must_use]
    pub fn registered_workers(&self) -> BTreeMap<Node, &'a DistNode> {
        let rows = self.citus().map(|citus| citus.nodes.as_slice()).unwrap_or_default();
        rows.iter()
            .filter_map(|row| Some((self.node_of(row)?, row)))
            .filter(|(node, _)| node.is_worker())
            .collect()
    }
    /// The catalog is that of the recorded coordinator, under the address that we give it.
    #[must_use]
    pub fn is_catalog_ours(&self) -> bool {
        let own = self.address(Node::Coordinator);
        let rows = self.citus().map(|citus| citus.nodes.as_slice()).unwrap_or_default();
        let told = rows.iter().any(|row| row.group_id == 0 && row.name == own && row.port == PORT);
        // By its identity and not by `server`, which asks this.
        told && self.postgres(Node::Coordinator).is_some_and(|coordinator| {
            self.identity(Node::Coordinator) == Some(coordinator.system_identifier.as_str())
        })
    }
    /// The node is verifiably no member: the catalog is that of the recorded coordinator, under the address that we give
    /// it, and knows neither the node's address nor the group that its server says it is. A catalog that knows the
    /// cluster under other names, or that is another one's, proves nothing; nor does one with a row that may be about
    /// this node, as long as its server does not say which group it is.
    #[must_use]
    pub fn is_no_member(&self, node: Node) -> bool {
        let Some(citus) = self.citus().filter(|_| self.is_catalog_ours()) else { return false };
        let may_be_it = |row: &DistNode| match self.postgres(node) {
            Some(postgres) => postgres.group_id == Some(row.group_id),
            None => {
                self.identity(node).is_some() && !self.is_decommissioned(node) && self.node_of(row).is_none()
            }
        };
        self.registration(node).is_none()
            && !citus.nodes.iter().any(|row| row.group_id != 0 && may_be_it(row))
    }
    /// A worker that held nothing any more, or was given up, and is no member: what is left of it makes room.
    #[must_use]
    pub fn is_removed(&self, node: Node) -> bool {
        self.is_decommissioned(node) && self.is_no_member(node)
    }
    /// The node may be a member: it was born, and nothing proves that it is not registered.
    #[must_use]
    pub fn may_be_member(&self, node: Node) -> bool {
        self.identity(node).is_some() && (node == Node::Coordinator || !self.is_no_member(node))
    }
    /// The node that a row of pg_dist_node is about; `None` for one that the spec cannot know.
    #[must_use]
    pub fn node_of(&self, row: &DistNode) -> Option<Node> {
        let (name, _) = row.name.split_once('.')?;
        let node = Node::from_object_name(name, &self.desired.cluster.name)?;
        (self.address(node) == row.name && row.port == PORT).then_some(node)
    }
    /// Every node there is or should be: asked for, with a StatefulSet, or registered.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<Node> {
        let sets = self.snapshot.objects.iter().filter_map(|(key, object)| {
            let name = key.strip_prefix("StatefulSet/").filter(|_| object.ownership == Ownership::Owned)?;
            Node::from_object_name(name, &self.desired.cluster.name)
        });
        self.desired.nodes().chain(sets).chain(self.registered_workers().into_keys()).collect()
    }
    /// What the node's server said, whoever it is.
    #[must_use]
    pub fn postgres(&self, node: Node) -> Option<&'a Postgres> {
        self.snapshot.postgres.get(&node).and_then(Observed::known)
    }
    /// A worker whose server holds metadata of a cluster: it was a member before.
    #[must_use]
    pub fn metadata_holder(&self) -> Option<Node> {
        let mut workers = self.snapshot.postgres.iter().filter(|(node, _)| node.is_worker());
        workers.find(|(_, seen)| seen.known().is_some_and(Postgres::holds_metadata)).map(|(node, _)| *node)
    }
    /// Who answers under the node's name.
    #[must_use]
    pub fn server(&self, node: Node) -> ServerCheck<'a> {
        if self.is_removed(node) {
            return ServerCheck::NotReady("it is being removed".to_owned());
        }
        let Some(pod) = self.pod(node) else { return ServerCheck::NotReady(self.why_no_pod(node)) };
        if pod.deleting {
            return ServerCheck::NotReady(self.why_still_there(pod));
        }
        if !pod.ready {
            return ServerCheck::NotReady(self.why_not_ready(node, pod));
        }
        match self.snapshot.postgres.get(&node) {
            None => ServerCheck::Unreachable(format!("pod {} has no address yet", pod.name)),
            Some(Observed::Unknown(why)) => ServerCheck::Unreachable(why.clone()),
            Some(Observed::Known(postgres)) => self.recorded_identity_mismatch(node, postgres),
        }
    }
    fn recorded_identity_mismatch(&self, node: Node, postgres: &'a Postgres) -> ServerCheck<'a> {
        let found = &postgres.system_identifier;
        let Some(recorded) = self.identity(node) else { return self.unrecorded(node, postgres) };
        if recorded != found {
            return ServerCheck::IdentityMismatch(format!(
                "its server has the system identifier {found}, and {recorded} is recorded for {}: this is not the server whose data the cluster knows",
                self.name(node)
            ));
        }
        if let Some(row) = self.registration(node).filter(|_| node.is_worker())
            && let Some(group) = postgres.group_id
            && group != row.group_id
        {
            return ServerCheck::IdentityMismatch(format!(
                "pg_dist_node knows {} as group {}, and the server says it is group {group}",
                self.name(node),
                row.group_id
            ));
        }
        ServerCheck::Verified(postgres)
    }
    /// A server whose identity is not recorded is new only when nothing says that it was a node before.
    fn unrecorded(&self, node: Node, postgres: &'a Postgres) -> ServerCheck<'a> {
        if self.registration(node).is_some() && node.is_worker() {
            return ServerCheck::IdentityMismatch(format!(
                "{} is in pg_dist_node, and no system identifier is recorded on its StatefulSet or volume claim",
                self.name(node)
            ));
        }
        if node.is_worker() && postgres.holds_metadata() {
            return ServerCheck::IdentityMismatch(format!(
                "{} holds the metadata of a cluster that does not know it",
                self.name(node)
            ));
        }
        ServerCheck::Unrecorded(postgres)
    }
    /// Registered nodes (and the coordinator) that do not answer as who they are, with why.
    #[must_use]
    pub fn unhealthy_members(&self) -> Vec<(Node, String)> {
        let workers = self.registered_workers().into_keys();
        let members = std::iter::once(Node::Coordinator).chain(workers);
        members
            .filter_map(|node| match self.server(node) {
                ServerCheck::Verified(_) => None,
                ServerCheck::Unrecorded(_) if node == Node::Coordinator => None,
                ServerCheck::Unrecorded(_) => Some((node, "its identity is not recorded yet".to_owned())),
                ServerCheck::NotReady(why)
                | ServerCheck::Unreachable(why)
                | ServerCheck::IdentityMismatch(why) => Some((node, why)),
            })
            .collect()
    }
    /// All others that may be members and do not answer as who they are, with why: also those that are registered under
    /// another name, or of which nobody can tell.
    #[must_use]
    pub fn unhealthy_peers(&self, node: Node) -> Vec<(Node, String)> {
        let mut unhealthy = self.unhealthy_members();
        for other in self.nodes().into_iter().filter(|other| self.may_be_member(*other)) {
            if self.registration(other).is_none()
                && other.is_worker()
                && let ServerCheck::NotReady(why)
                | ServerCheck::Unreachable(why)
                | ServerCheck::IdentityMismatch(why) = self.server(other)
            {
                unhealthy.push((other, why));
            }
        }
        unhealthy.retain(|(other, _)| *other != node);
        unhealthy
    }
    /// The open rebalance job, if there is one.
    #[must_use]
    pub fn open_job(&self) -> Option<&'a crate::snapshot::Job> {
        self.citus()?.job.as_ref().filter(|job| job.is_open())
    }
    /// A move runs now or at any moment: a task of the open job runs, or may, and has not failed. What Kubernetes does
    /// to a node has to wait for such a one, too.
    #[must_use]
    pub fn move_may_run(&self) -> bool {
        self.open_job().is_some_and(|job| {
            job.runs() || job.tasks.iter().any(|task| task.state == TaskState::Runnable && !task.is_failing())
        })
    }
    /// A move runs now: a *task* of the open job is running. Tasks that wait for their next try are no move.
    #[must_use]
    pub fn move_runs(&self) -> bool {
        self.open_job().is_some_and(crate::snapshot::Job::runs)
    }
    /// Workers asked for that are not registered, and whether the others still wait for each.
    #[must_use]
    pub fn missing_workers(&self) -> Vec<Missing> {
        let registered = self.registered_workers();
        let registered = |node: &Node| registered.contains_key(node) && !self.is_decommissioned(*node);
        let asked = self.desired.nodes().filter(|node| node.is_worker() && !registered(node));
        asked
            .map(|node| {
                let created = self.created_at(node);
                let deadline = created.and_then(|at| at.checked_add(self.desired.join_timeout).ok());
                // What is refused again and again will not be there in time either.
                let refused = self.snapshot.refusals.lasting().any(|one| one.node == Some(node));
                let late = deadline.is_some_and(|deadline| self.snapshot.now >= deadline);
                Missing {
                    node,
                    timed_out: refused || late && !self.is_to_be_replaced(node),
                    why: self.why_missing(node),
                }
            })
            .collect()
    }
    /// The worker of that name was removed, and its StatefulSet is deleted next: its age says nothing about the new one.
    fn is_to_be_replaced(&self, node: Node) -> bool {
        self.is_removed(node) && self.stateful_set(node).is_some_and(|set| !set.deleting)
    }
    /// When the StatefulSet of a node was made, or what is made before it: it may be what cannot be. A ConfigMap that no
    /// longer allows to initialise the volume is that of an earlier worker.
    fn created_at(&self, node: Node) -> Option<Timestamp> {
        let map =
            || self.owned("ConfigMap", &self.name(node)).filter(|map| resources::may_initialise(&map.json));
        self.stateful_set(node).or_else(map).map(|object| object.created_at)
    }
    fn why_missing(&self, node: Node) -> String {
        if self.is_decommissioned(node) {
            return "the worker of that name is being removed; then a new one takes its place".to_owned();
        }
        // In the words of whoever refused it last: a server that answers and is not registered says nothing of why.
        if let Some(refused) = self.snapshot.refusals.about(node) {
            return refused.failure.message.clone();
        }
        match self.server(node) {
            ServerCheck::NotReady(why)
            | ServerCheck::Unreachable(why)
            | ServerCheck::IdentityMismatch(why) => why,
            ServerCheck::Unrecorded(_) | ServerCheck::Verified(_) => {
                "its server answers and it is not registered yet".to_owned()
            }
        }
    }
}

/// A worker asked for that is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which one.
    pub node: Node,
    /// The others go on without it.
    pub timed_out: bool,
    /// Why it is not registered.
    pub why: String,
}
