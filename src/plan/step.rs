//! What a plan is made of: [`Step`]s to do now, [`Hold`]s that say what is waited for, [`Problem`]s that a person
//! must solve. Data only: a table test spells them out, a log line prints them, the report reads them.

use serde::{Deserialize, Serialize};

use crate::{
    api::{Node, names::SecretKind, spec::TransferMode},
    resources::Rendered,
};

/// What to do now, in this order, stopping at the first failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Plan {
    /// Steps, each with why.
    pub steps: Vec<Planned>,
    /// What is waited for. A wait is a value, not an error.
    pub holds: Vec<Hold>,
    /// What the operator cannot go on with by itself.
    pub problems: Vec<Problem>,
}

/// A step and its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// What to do.
    pub step: Step,
    /// Why, for people.
    pub why: String,
}

/// One thing to do. Each is idempotent: done twice it does no harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The first write of an object: a create, so that a stranger's object is never taken over.
    Create(Box<Rendered>),
    /// A later write: server-side apply, with the uid known.
    Apply {
        /// The object as it should be.
        object: Box<Rendered>,
        /// `metadata.uid` that it must still have.
        uid: String,
    },
    /// Make a Secret; what is in it is made by the one who writes it, so that no plan ever holds a secret.
    CreateSecret(SecretKind),
    /// Ask a pod of this image what is in it.
    InspectImage {
        /// The image.
        image: String,
    },
    /// Remove the pod that was asked what is in an image.
    ForgetInspection {
        /// Name of the pod.
        pod: String,
    },
    /// Make the kubelet bring a changed ConfigMap at once, by an annotation on the pod.
    HurryConfiguration {
        /// Which node.
        node: Node,
        /// Its pod's uid.
        pod_uid: String,
        /// Value of the annotation.
        value: String,
    },
    /// Make node's server ready to be one of the cluster: timeouts of the operator's role, database, extension.
    PrepareNode {
        /// Which node.
        node: Node,
        /// Version of the extension; absent: what the image has (the coordinator itself).
        extension: Option<String>,
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
    TryParameter {
        /// Which node.
        node: Node,
        /// Name of the setting.
        name: String,
        /// The value.
        value: String,
    },
    /// Delete the pod, with its uid as precondition; the StatefulSet makes it again.
    RestartNode {
        /// Which node.
        node: Node,
        /// uid of the pod.
        pod_uid: String,
        /// Why, in one word, for events.
        cause: RestartCause,
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
    /// Make the application's role with the password of its Secret.
    CreateOwner {
        /// Name of the role.
        owner: String,
        /// uid of the Secret, written down beside the role.
        secret_uid: String,
    },
    /// Run the schema, once, in one transaction, and write its hash beside it.
    ApplySchema {
        /// Hash of the SQL in the snapshot.
        hash: String,
    },
    /// `recover_prepared_transactions()`: before each job.
    RecoverTransactions,
    /// `citus_rebalance_start`.
    StartRebalance {
        /// A row of pg_dist_rebalance_strategy.
        strategy: String,
        /// `shard_transfer_mode`.
        transfer_mode: TransferMode,
        /// Pass `parallel_transfer_colocated_shards => true`.
        parallel_colocated: bool,
        /// Moves that Citus planned, for the event.
        moves: usize,
    },
    /// `citus_rebalance_stop`.
    StopRebalance {
        /// The job it is about.
        job: i64,
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

impl Step {
    /// Name of the kind of step, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.into()
    }
    /// Whether the Lease has to be read again before this step.
    #[must_use]
    pub fn is_disruptive(&self) -> bool {
        matches!(
            self,
            Self::RestartNode { .. }
                | Self::SetCoordinatorHost { .. }
                | Self::AddNode { .. }
                | Self::StartRebalance { .. }
                | Self::StopRebalance { .. }
                | Self::ApplySchema { .. }
                | Self::Delete { .. }
        )
    }
}

/// Why a node is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[allow(missing_docs)]
pub enum RestartCause {
    /// It does not run `wal_level = logical`.
    WalLevel,
    /// A parameter needs a restart.
    Parameters,
    /// The user changed the pod's template (image, resources, scheduling).
    Template,
    /// It cannot start, and its configuration or template has changed since.
    CrashLoop,
}

/// What is waited for: the plan's own words for "not yet".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "camelCase")]
pub enum Hold {
    /// `spec.paused`: what would be done is not.
    Paused {
        /// Steps that wait.
        steps: usize,
    },
    /// Objects of a deleted cluster of the same name are still being removed.
    FormerObjects {
        /// `Kind/name` of one.
        object: String,
    },
    /// A pod is not ready.
    PodNotReady {
        /// Which node.
        node: Node,
        /// In Kubernetes' words.
        why: String,
    },
    /// A server does not answer.
    NotAnswering {
        /// Which node.
        node: Node,
        /// In PostgreSQL's words.
        why: String,
    },
    /// The coordinator's Citus catalog could not be read.
    CatalogUnknown {
        /// Why.
        why: String,
    },
    /// A server is up and not yet prepared, recorded or configured.
    NodeNotPrepared {
        /// Which node.
        node: Node,
    },
    /// The kubelet has not brought a changed ConfigMap yet, or it is not loaded.
    ConfigurationOnItsWay {
        /// Which node.
        node: Node,
    },
    /// Nodes restart one by one; this one now.
    Rolling {
        /// Which node.
        node: Node,
        /// Why.
        cause: RestartCause,
        /// Nodes still to come after it.
        remaining: usize,
    },
    /// A restart waits for running moves to end.
    RestartWaitsForMoves {
        /// Which node is due.
        node: Node,
        /// Why.
        cause: RestartCause,
    },
    /// A registered node is silent, so no membership call can succeed.
    RegisteredNodeSilent {
        /// Which node.
        node: Node,
        /// Why.
        why: String,
    },
    /// Two nodes cannot reach each other.
    NotConnected {
        /// From.
        from: Node,
        /// To.
        to: Node,
        /// In Citus' words.
        why: String,
    },
    /// Workers asked for are not registered; the rest goes on without them after the join timeout.
    WorkerMissing {
        /// Which worker.
        node: Node,
        /// Why, in Kubernetes' or PostgreSQL's words.
        why: String,
        /// The join timeout has passed.
        timed_out: bool,
    },
    /// A job runs.
    JobRunning {
        /// `job_id`.
        job: i64,
    },
    /// The last job ended badly and the pause after it is not over.
    RebalancePause {
        /// How it ended.
        state: String,
        /// Seconds still to wait.
        seconds: i64,
    },
    /// An image is being asked what is in it.
    InspectingImage {
        /// The image.
        image: String,
    },
    /// The schema ConfigMap is not there.
    SchemaSource {
        /// Why.
        why: String,
    },
}

/// What the operator cannot go on with by itself: reason and message of `Stalled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Why, in one word.
    pub reason: ProblemReason,
    /// What was wrong, where, and what to do.
    pub message: String,
}

/// Reasons of `Stalled`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::IntoStaticStr,
    strum::EnumIter,
)]
#[allow(missing_docs)] // docs/runbook.md tells what each means and what to type
pub enum ProblemReason {
    InvalidSpec,
    NameTaken,
    ConfigurationRejected,
    ImageNotUsable,
    UpgradeNotSupported,
    VolumeLost,
    CoordinatorEmptied,
    ForeignServer,
    IncompleteVolumes,
    SchemaFailed,
    NoReplicaIdentity,
    StrategyUnknown,
    ScaleInRefused,
    RestartDidNotHelp,
    NodeCannotStart,
    InvariantBroken,
}

impl Plan {
    /// Adds a step with its reason.
    pub fn step(&mut self, step: Step, why: impl Into<String>) {
        self.steps.push(Planned { step, why: why.into() });
    }
    /// Adds a wait.
    pub fn hold(&mut self, hold: Hold) {
        if !self.holds.contains(&hold) {
            self.holds.push(hold);
        }
    }
    /// Adds a problem.
    pub fn problem(&mut self, reason: ProblemReason, message: impl Into<String>) {
        let problem = Problem { reason, message: message.into() };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}
