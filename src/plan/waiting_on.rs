//! What a plan waits for, as data, and the sentence for each.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RestartCause;
use crate::{
    api::{Node, words::several},
    snapshot::JobState,
};

/// What is waited for: the plan's own words for "not yet".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames)]
#[serde(rename_all = "camelCase")]
pub enum WaitingOn {
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
    ConfigurationPending {
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
    Draining {
        /// Which worker.
        node: Node,
        /// Shards still on it.
        shards: i64,
    },
    /// Whether those that stay have room for the shards of those that go is not known.
    SpaceUnknown {
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
        sessions: Vec<String>,
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

impl fmt::Display for WaitingOn {
    #[allow(clippy::too_many_lines)] // one arm a wait
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused { steps: 0 } => write!(f, "paused"),
            Self::Paused { steps } => {
                write!(f, "paused: {} held until spec.paused is false", several(*steps, "change"))
            }
            Self::FormerObjects { object } => {
                write!(f, "waiting for {object} of a deleted cluster of this name to be removed")
            }
            Self::PodNotReady { node, why } => write!(f, "waiting for {node}: {why}"),
            Self::NotAnswering { node, why } => write!(f, "waiting for {node} to answer: {why}"),
            Self::CatalogUnknown { why } => write!(f, "waiting for the coordinator's catalog: {why}"),
            Self::NodeNotPrepared { node } => write!(f, "preparing {node}"),
            Self::ConfigurationPending { node } => {
                write!(f, "waiting for {node} to load the changed configuration")
            }
            Self::Rolling { node, cause, remaining } => {
                write!(f, "restarting {node} ({cause}), {remaining} more to go")
            }
            Self::RestartWaitsForMoves { node, cause } => {
                write!(f, "the restart of {node} ({cause}) waits for running moves to finish")
            }
            Self::MemberInactive { node } => write!(
                f,
                "no worker can be registered while {node} is inactive in pg_dist_node: its metadata would miss that worker's shards"
            ),
            Self::RegisteredNodeSilent { node, why } => {
                write!(f, "no worker can be registered while {node} does not answer: {why}")
            }
            Self::NotConnected { from, to, why } => write!(f, "{from} cannot reach {to} yet: {why}"),
            Self::WorkerMissing { node, why, timed_out: false } => {
                write!(f, "waiting for {node} to join: {why}")
            }
            Self::WorkerMissing { node, why, timed_out: true } => {
                write!(f, "proceeding without {node}, which did not join in time: {why}")
            }
            Self::Draining { node, shards: 0 } => write!(f, "{node} holds no shards and is being removed"),
            Self::Draining { node, shards } => {
                write!(f, "{node} is draining: {} left", several(*shards, "shard"))
            }
            Self::SpaceUnknown { why } => {
                write!(f, "no drain starts until the free space of the remaining workers is known: {why}")
            }
            Self::ContentsUnknown { node, why } => {
                write!(f, "{node} is not removed until it is known what else is stored on it: {why}")
            }
            Self::CleanupBlocked { node, objects, sessions } if sessions.is_empty() => {
                write!(
                    f,
                    "{node} cannot be removed yet: Citus has still to drop {} on it",
                    several(*objects, "orphaned object")
                )
            }
            Self::CleanupBlocked { node, objects, sessions } => write!(
                f,
                "{node} cannot be removed yet: {} on it, locked by {}",
                several(*objects, "orphaned object"),
                sessions.join("; ")
            ),
            Self::HeldUp { sessions, .. } => write!(f, "blocked by {}", sessions.join("; ")),
            Self::JobRunning { job } => write!(f, "rebalance job {job} is running"),
            Self::RebalancePause { state, until } => {
                let until = until.round(jiff::Unit::Second).unwrap_or(*until);
                write!(f, "the last rebalance ended {state}; the next one starts at {until}")
            }
            Self::InspectingImage { image } => write!(f, "inspecting {image}"),
            Self::VolumesGrow { volumes, moves } => volumes_grow(f, volumes, *moves),
            Self::SchemaSource { why } => write!(f, "waiting for the schema: {why}"),
        }
    }
}

fn volumes_grow(f: &mut fmt::Formatter<'_>, volumes: &str, moves: bool) -> fmt::Result {
    let when = if moves { "these volumes grow once no shard is moving" } else { "these volumes are growing" };
    write!(f, "{when}: {volumes}")
}
