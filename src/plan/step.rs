//! What a plan is made of: [`Step`]s to do now, [`WaitingOn`]s that say what is waited for (`waiting_on.rs`), [`Problem`]s that a
//! person must solve. Data only: a table test spells them out, a log line prints them, the report reads them.

mod display;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Problem, ResolvedSpec, RestartCause, WaitingOn};
use crate::{
    api::{
        Node,
        names::SecretKind,
        spec::{TransferMode, VolumePolicy},
    },
    resources::Manifest,
    snapshot::{Leftover, Pins},
};

/// What to do now, in this order, stopping at the first failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Plan {
    /// Steps, each with why.
    pub steps: Vec<PlannedStep>,
    /// What is waited for. A wait is a value, not an error.
    pub waits: Vec<WaitingOn>,
    /// What the operator cannot go on with by itself.
    pub problems: Vec<Problem>,
    /// Requests of a person that are done, by annotation: each is acted on once.
    pub handled: BTreeMap<String, String>,
    /// Nodes that somebody else scaled, and who, as far as that is known: they are set back.
    pub scaled: BTreeMap<Node, Option<String>>,
    /// What the spec has come to, of which the steps are made; absent only where nothing was planned.
    #[serde(skip)]
    pub resolved: Option<ResolvedSpec>,
}

/// A step and its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// What to do.
    pub step: Step,
    /// Why, for people.
    pub why: String,
}

/// One thing to do. Each is idempotent: done twice it does no harm. What each disturbs and needs is in `effect.rs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Step {
    /// A write to the API server.
    Kubernetes(KubernetesStep),
    /// Statements on a server.
    Sql(SqlStep),
}

/// A write to the API server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "camelCase")]
pub enum KubernetesStep {
    /// The first write of an object: a create, so that a stranger's object is never taken over.
    Create(Box<Manifest>),
    /// A later write: server-side apply, with the uid known.
    Apply {
        /// The object as it should be.
        object: Box<Manifest>,
        /// `metadata.uid` that it must still have.
        uid: String,
    },
    /// Give an object that an earlier DialogCluster of this name has left behind its new owner.
    Adopt {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// `metadata.uid` that it must still have.
        uid: String,
    },
    /// Make a Secret; what is in it is made by the one who writes it, so that no plan ever holds a secret.
    CreateSecret(SecretKind),
    /// Bring the other keys of the application's Secret up to its password; made by the one who writes it.
    SetConnectionKeys {
        /// `metadata.uid` that the Secret must still have.
        uid: String,
        /// `metadata.resourceVersion` that it must still have: a password changed meanwhile is not overwritten.
        version: String,
    },
    /// Ask a pod of this image what is in it.
    InspectImage {
        /// The image.
        image: String,
    },
    /// Remove the pod that was asked what is in an image.
    DeleteInspectionPod {
        /// Name of the pod.
        pod: String,
    },
    /// Make the kubelet bring a changed ConfigMap at once, by an annotation on the pod.
    RefreshConfiguration {
        /// Which node.
        node: Node,
        /// Its pod's uid.
        pod_uid: String,
        /// Value of the annotation.
        value: String,
    },
    /// Put the labels and annotations of the spec on a running pod, and take those away that are no longer there.
    PatchPod {
        /// Which node.
        node: Node,
        /// Its pod's uid.
        pod_uid: String,
        /// A merge patch of its metadata.
        metadata: serde_json::Value,
    },
    /// Write down who a node is: on its StatefulSet and its volume claim.
    RecordIdentity {
        /// Which node.
        node: Node,
        /// `system_identifier` of `pg_control_system()`.
        system_identifier: String,
        /// Its volume claim.
        claim: String,
    },
    /// Delete the pod, with its uid as precondition; the StatefulSet makes it again.
    RestartNode {
        /// Which node.
        node: Node,
        /// uid of the pod.
        pod_uid: String,
        /// Why, in one word, for events.
        cause: RestartCause,
        /// `<config hash> <time>`: with what the new pod is started.
        start_marker: String,
    },
    /// Marks a worker that holds nothing any more: its volume is never used again. From here there is no way back.
    Decommission {
        /// Which worker.
        node: Node,
        /// Its volume claim, when there is one still.
        claim: Option<String>,
        /// The time in the mark.
        mark: String,
        /// What becomes of the volume.
        reclaim: VolumePolicy,
    },
    /// Delete an object of ours, with its uid as precondition.
    Delete {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// uid.
        uid: String,
    },
}

/// Statements on a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "camelCase")]
pub enum SqlStep {
    /// Make node's server ready to be one of the cluster: settings of the operator's role, database, extension.
    BootstrapNode {
        /// Which node.
        node: Node,
        /// Version of the extension; absent: what the image has (the coordinator itself).
        extension: Option<String>,
    },
    /// Give the application's role on a worker what it may do on the coordinator.
    GrantRights {
        /// Which worker.
        node: Node,
        /// Name of the role.
        owner: String,
    },
    /// `pg_reload_conf()`.
    Reload {
        /// Which node.
        node: Node,
    },
    /// `ALTER SYSTEM RESET` of settings that override the operator's or the user's.
    ResetAlterSystem {
        /// Which node.
        node: Node,
        /// Their names.
        names: Vec<String>,
    },
    /// Ask a server whether it takes a value: `ALTER SYSTEM SET` and at once `RESET`.
    CheckParameter {
        /// Which node.
        node: Node,
        /// Name of the setting.
        name: String,
        /// The value.
        value: String,
    },
    /// `citus_set_coordinator_host`.
    SetCoordinatorHost {
        /// Address of the coordinator's Service.
        address: String,
    },
    /// `citus_add_node`.
    AddNode {
        /// Which worker.
        node: Node,
        /// Address of its Service.
        address: String,
    },
    /// `CREATE EXTENSION` in the application's database.
    CreateExtension {
        /// Its name.
        name: String,
    },
    /// Make the application's role with the password of its Secret.
    CreateOwner {
        /// Name of the role.
        owner: String,
        /// uid and version of the Secret, written down beside the role.
        secret_uid: String,
    },
    /// Run the schema, once, in one transaction, and write its hash beside it.
    ApplySchema {
        /// Hash of the SQL in the snapshot.
        hash: String,
    },
    /// `recover_prepared_transactions()`: before each job, and before a worker is removed.
    RecoverTransactions,
    /// `citus_rebalance_start`.
    StartRebalance {
        /// Only away from workers that should have no shards (`drain_only`).
        drain: bool,
        /// A row of pg_dist_rebalance_strategy.
        strategy: String,
        /// `shard_transfer_mode`.
        transfer_mode: TransferMode,
        /// Pass `parallel_transfer_colocated_shards => true`.
        parallel_colocated: bool,
        /// Moves that Citus planned, for the event.
        moves: usize,
    },
    /// Make the strategy that keeps these groups where they are while all others move; without groups, remove it.
    PinGroups(Pins),
    /// `citus_job_cancel`.
    StopRebalance {
        /// The job it is about.
        job: i64,
    },
    /// `citus_set_node_property(..., 'shouldhaveshards', ...)`: whether shards may be put on a worker.
    SetShouldHaveShards {
        /// Which worker.
        node: Node,
        /// Address of its Service.
        address: String,
        /// Whether they may.
        should: bool,
        /// Shards on it now, for the event.
        shards: i64,
    },
    /// `CALL citus_cleanup_orphaned_resources()`: drops what finished moves left behind.
    CleanUpOrphans,
    /// `citus_remove_node`.
    RemoveNode {
        /// Which worker.
        node: Node,
        /// Address of its Service.
        address: String,
        /// Its volume claim, when that is kept, for the event.
        kept: Option<String>,
    },
    /// Gives up the data of workers that are lost for good, because a person asked for exactly these.
    ForceRemove {
        /// Which workers, and the addresses of their Services.
        workers: Vec<(Node, String)>,
    },
    /// `citus_activate_node`: for a worker that is inactive, or whose metadata is not synced.
    ActivateNode {
        /// Which worker.
        node: Node,
        /// Address of its Service.
        address: String,
    },
    /// Deletes rows of pg_dist_cleanup about a group that no node has: Citus can never act on them.
    DeleteStaleCleanupRecords {
        /// `record_id` of each.
        records: Vec<i64>,
    },
    /// Drops what a dead move left on a node and pg_dist_cleanup does not know.
    DropLeftovers {
        /// Which node.
        node: Node,
        /// Slots, publications and subscriptions.
        leftovers: Vec<Leftover>,
    },
}

impl From<KubernetesStep> for Step {
    fn from(step: KubernetesStep) -> Self {
        Self::Kubernetes(step)
    }
}

impl From<SqlStep> for Step {
    fn from(step: SqlStep) -> Self {
        Self::Sql(step)
    }
}

impl Step {
    /// Name of the kind of step, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kubernetes(step) => step.into(),
            Self::Sql(step) => step.into(),
        }
    }
}

impl PlannedStep {
    /// A step with its reason.
    #[must_use]
    pub fn new(step: impl Into<Step>, why: impl Into<String>) -> Self {
        Self { step: step.into(), why: why.into() }
    }
}

impl Plan {
    /// Adds a step with its reason.
    pub fn step(&mut self, step: impl Into<Step>, why: impl Into<String>) {
        self.steps.push(PlannedStep::new(step, why));
    }
    /// Adds a wait.
    pub fn wait(&mut self, wait: WaitingOn) {
        if !self.waits.contains(&wait) {
            self.waits.push(wait);
        }
    }
    /// Adds a problem.
    pub fn problem(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}
