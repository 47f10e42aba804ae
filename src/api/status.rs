//! What the operator answers: `status` of a DialogCluster. Plain data; how it is computed is in `report`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of a cluster as last seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DialogClusterStatus {
    /// `metadata.generation` that this status was computed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// One sentence for people: what happens now and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Ready, Reconciling, Stalled, WalLevelLogical, ConfigurationApplied, WorkersRegistered, SchemaApplied, Balanced.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Workers that exist.
    pub replicas: i32,
    /// Workers that answer.
    pub ready_replicas: i32,
    /// Label selector of the workers' pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Every node: the coordinator first, then workers by ordinal.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub nodes: Vec<NodeStatus>,
    /// The latest rebalance, kept after it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<RebalanceStatus>,
    /// The last value acted on of each annotation that asks for something.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub handled: BTreeMap<String, String>,
}

/// Types of conditions, in the order in which people read them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display, strum::EnumIter, strum::IntoStaticStr,
)]
#[allow(missing_docs)] // crds/ and README tell what each means
pub enum ConditionType {
    Ready,
    Reconciling,
    Stalled,
    WalLevelLogical,
    ConfigurationApplied,
    WorkersRegistered,
    SchemaApplied,
    Balanced,
}

impl DialogClusterStatus {
    /// The condition of a type, when there is one.
    #[must_use]
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        let kind: &str = kind.into();
        self.conditions.iter().find(|condition| condition.type_ == kind)
    }
    /// Whether the condition of a type is `True`.
    #[must_use]
    pub fn is_true(&self, kind: ConditionType) -> bool {
        self.condition(kind).is_some_and(|condition| condition.status == "True")
    }
}

/// One word for people about a whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
#[allow(missing_docs)] // the words are their own explanation
pub enum Phase {
    Pending,
    Provisioning,
    Restarting,
    Joining,
    Rebalancing,
    Draining,
    Removing,
    Ready,
    Paused,
    Blocked,
    Failed,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Name of its StatefulSet.
    pub name: String,
    /// Coordinator or Worker.
    pub role: Role,
    /// Its address in pg_dist_node.
    pub address: String,
    /// `system_identifier` of `pg_control_system()`: who this node is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// `nodeid` of pg_dist_node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i32>,
    /// What the node is doing.
    pub state: NodeState,
    /// `server_version` of PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<String>,
    /// Version of the citus extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub citus_version: Option<String>,
    /// `wal_level` that the server runs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_level: Option<String>,
    /// A changed parameter waits for a restart.
    pub pending_restart: bool,
    /// Its pod differs from what would be made today; taken over at the next restart, never a reason for one.
    pub update_available: bool,
    /// Shards of distributed tables on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<i64>,
    /// Bytes of those shards, looked at every few minutes at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
#[allow(missing_docs)]
pub enum Role {
    #[default]
    Coordinator,
    Worker,
}

/// What a node is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
pub enum NodeState {
    /// Its pod is not there or not scheduled yet.
    #[default]
    Pending,
    /// Its server starts.
    Starting,
    /// It is restarted by the operator.
    Restarting,
    /// It answers and is being registered.
    Joining,
    /// It is registered and serves.
    Active,
    /// Its shards are moved away.
    Draining,
    /// It holds no shards.
    Drained,
    /// It is removed.
    Removing,
    /// It is registered and does not answer.
    Unreachable,
    /// It answers with another system identifier than the one on record, and is never used.
    IdentityMismatch,
}

/// A rebalance job of Citus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RebalanceStatus {
    /// `job_id` of pg_dist_background_job.
    pub job_id: i64,
    /// Rebalance or Drain.
    pub purpose: Purpose,
    /// State of the job in Citus' own words.
    pub state: String,
    /// Moves done of all, such as `9/16`.
    pub progress: String,
    /// Moves by state.
    pub moves: MoveCounts,
    /// Bytes of the moving shards.
    pub bytes: ByteCounts,
    /// When the job started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the job ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When the job would end at the speed so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_finish: Option<Time>,
    /// Message of a failing task, word for word, with the shard and the two nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What a rebalance is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
pub enum Purpose {
    /// To even out shard counts.
    #[default]
    Rebalance,
    /// To empty a worker.
    Drain,
}

/// Moves of a job by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[allow(missing_docs)]
pub struct MoveCounts {
    pub total: i64,
    pub done: i64,
    pub running: i64,
    /// Moves that failed at least once and wait for their next try.
    pub failing: i64,
}

/// Bytes of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[allow(missing_docs)]
pub struct ByteCounts {
    pub total: i64,
    pub done: i64,
}
