//! What a plan waits for, as data. Sentences for people are made of it in `report`.

use serde::{Deserialize, Serialize};

use super::RestartCause;
use crate::{api::Node, observe::snapshot::JobState};

/// What is waited for: the plan's own words for "not yet".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames)]
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
    /// A registered worker is inactive: who is registered now would not learn where its shards are.
    MemberInactive {
        /// Which one.
        node: Node,
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
    /// A worker is on its way out.
    Leaving {
        /// Which worker.
        node: Node,
        /// Shards still on it.
        shards: i64,
    },
    /// Whether those that stay have room for the shards of those that go is not known.
    RoomUnknown {
        /// Why.
        why: String,
    },
    /// What is on a leaving worker beside the cluster's own could not be looked at.
    ContentsUnknown {
        /// Which worker.
        node: Node,
        /// Why.
        why: String,
    },
    /// What moves left behind on a leaving worker cannot be dropped yet.
    CleanupBlocked {
        /// Which worker.
        node: Node,
        /// Objects that are left.
        objects: usize,
        /// Sessions that keep them, as sentences.
        holders: Vec<String>,
    },
    /// Sessions of others, or what they have prepared, hold up a move, or a step that waits for a lock.
    HeldUp {
        /// Where.
        node: Node,
        /// It is about moves.
        moves: bool,
        /// Who, as sentences.
        sessions: Vec<String>,
    },
    /// A job runs.
    JobRunning {
        /// `job_id`.
        job: i64,
    },
    /// The last job ended badly and the pause after it is not over.
    RebalancePause {
        /// How it ended.
        state: JobState,
        /// When it is over.
        until: jiff::Timestamp,
    },
    /// An image is being asked what is in it.
    InspectingImage {
        /// The image.
        image: String,
    },
    /// Volumes are not as large as they should be yet.
    VolumesGrow {
        /// Names of some claims, with what each has.
        volumes: String,
        /// They are not asked to grow before no shard is moved.
        moves: bool,
    },
    /// The schema ConfigMap is not there.
    SchemaSource {
        /// Why.
        why: String,
    },
}
