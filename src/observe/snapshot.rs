//! The [`Snapshot`]: everything the planner may know, as plain serde data. It never holds a secret, so it can be
//! attached to a bug report and fed to `dialog-operator plan`. No code that reads anything lives here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use super::jobs::{
    Job, JobState, Move, Obstacle, ObstacleKind, Obstacles, Pins, PlanUnknown, Task, TaskState,
};
pub use super::{
    application::ApplicationSecret,
    contents::{Contents, Copies, Holdings, LocalTable, Membership, Named, OtherDatabase},
    image_facts::ImageFacts,
    live::{LiveObject, Ownership, Pod, Rewritten, Termination, Waiting, Warning},
    reach::{ConnectionCheck, Login, Reach},
    refusals::Refusals,
};
use crate::api::{DialogClusterStatus, Node};

/// Something that was seen, or why it could not be seen. Never a default in place of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen<T, Why = String> {
    /// What was seen.
    Known(T),
    /// Why it could not be seen, in the words of whoever refused.
    Unknown(Why),
}

impl<T, Why> Seen<T, Why> {
    /// What was seen, if it was.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> Seen<T> {
    /// Why it was not seen, if it was not.
    pub fn unknown(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(why) => Some(why),
        }
    }
}

/// Everything that is, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// When this was seen: the planner's only clock.
    pub now: Timestamp,
    /// How this operator was started.
    pub operator: OperatorFacts,
    /// The children of the cluster, and whatever else has one of their names: by `Kind/name`.
    pub objects: BTreeMap<String, LiveObject>,
    /// Pods of the nodes.
    pub pods: BTreeMap<Node, Pod>,
    /// What Kubernetes' controllers say in events about objects that get no further: by `Kind/name`.
    #[serde(default)]
    pub warnings: BTreeMap<String, Warning>,
    /// What an admission webhook or policy makes of our writes each time: by `Kind/name`.
    #[serde(default)]
    pub rewritten: BTreeMap<String, Rewritten>,
    /// The SQL snapshot of each node that has a pod with an address.
    pub postgres: BTreeMap<Node, Seen<Postgres>>,
    /// What the coordinator's Citus catalog says.
    pub citus: Seen<Citus>,
    /// Connections tried for the workers that are about to be registered.
    pub connections: Vec<ConnectionCheck>,
    /// Sessions that keep what moves left behind on a leaving worker from being dropped, as sentences: by worker.
    #[serde(default)]
    pub holders: BTreeMap<Node, Vec<String>>,
    /// Sessions that hold up a move, or a step that waits for a lock again and again, as sentences: by node. Looked for
    /// only while there is such.
    #[serde(default)]
    pub held_up: BTreeMap<Node, Vec<String>>,
    /// What workers that are to go hold beside what is the cluster's own; looked at when the next step may need it.
    #[serde(default)]
    pub contents: BTreeMap<Node, Seen<Contents>>,
    /// What a server said to values that only it can judge: by `name=value`.
    pub parameter_checks: BTreeMap<String, ParameterCheck>,
    /// The images asked about, by image: what a pod of it said.
    pub images: BTreeMap<String, Seen<ImageFacts>>,
    /// SQL of the schema: the built-in one or the user's ConfigMap.
    pub schema_sql: Seen<SchemaSql>,
    /// What failed lately, and has not succeeded since.
    #[serde(default)]
    pub refusals: Refusals,
    /// How the keys of the application's Secret are, without what is in them; `None` when it is not there.
    #[serde(default)]
    pub application: Option<ApplicationSecret>,
    /// What the last look at new connections found; `None` before the first one, and while not every member answers.
    #[serde(default)]
    pub reach: Option<Reach>,
    /// Servers of ready pods that took longer than a look may, and did not the time before.
    #[serde(default)]
    pub late: BTreeSet<Node>,
    /// The last status written, for transition times and what was handled.
    pub status: DialogClusterStatus,
}

/// How the operator was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorFacts {
    /// The image of a new cluster that asks for none.
    pub default_image: String,
    /// DNS domain of the Kubernetes cluster, `cluster.local` almost everywhere.
    pub cluster_domain: String,
}

/// One node's PostgreSQL, seen over its own database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Postgres {
    /// `system_identifier` of `pg_control_system()`.
    pub system_identifier: String,
    /// `server_version`, such as `15.18`.
    pub version: String,
    /// `server_version_num / 10000`.
    pub major: u32,
    /// `pg_postmaster_start_time()`.
    pub started_at: Timestamp,
    /// `wal_level` it runs with.
    pub wal_level: String,
    /// `current_setting('dialog.config_hash')`: the configuration that is loaded.
    pub config_hash: Option<String>,
    /// `dialog.config_hash` in pg_file_settings: the configuration that the kubelet has brought.
    pub file_config_hash: Option<String>,
    /// `current_setting('dialog.boot_hash')`: the start script and configuration that the server was started with.
    pub boot_hash: Option<String>,
    /// The server runs with its last good configuration, because it did not start with this one.
    pub rejected: Option<RejectedConfiguration>,
    /// Names of settings with `pending_restart`.
    pub pending_restart: BTreeSet<String>,
    /// Values of the settings that the operator or the user sets, as `current_setting()` shows them.
    pub settings: BTreeMap<String, String>,
    /// Entries of postgresql.auto.conf (`ALTER SYSTEM`), which override the configuration file.
    pub auto_conf: BTreeMap<String, String>,
    /// `<provider> <locale>` that the server was initialised with: `libc C`, `builtin C.UTF-8`.
    pub locale: Option<String>,
    /// The application's database exists.
    pub database: bool,
    /// Version of the citus extension in it (`pg_extension.extversion`), when it is there.
    pub extension: Option<String>,
    /// `default_version` of the citus extension that is installed in the image.
    pub available_extension: Option<String>,
    /// `groupid` of pg_dist_local_group; 0 on a coordinator, and on a worker that never was one.
    pub group_id: Option<i32>,
    /// Rows in the node's own copy of pg_dist_node.
    pub known_nodes: i64,
    /// Placements of the node's own group whose tables are not there: an emptied node that looks healthy.
    pub missing_tables: i64,
    /// What moves need only while they run and is there now: a dead move's, unless one runs or pg_dist_cleanup lists it.
    /// The first thousand.
    pub leftovers: Vec<Leftover>,
    /// How many there are.
    pub leftovers_in_all: i64,
    /// What is pinned for the roles that work for the operator is so (`ALTER ROLE postgres SET search_path = pg_catalog`,
    /// no timeouts, ...), and the one that runs jobs is no superuser.
    pub role_pinned: bool,
    /// The application's role may create in its database and in `public`; `None` as long as it does not exist.
    #[serde(default)]
    pub owner_may_create: Option<bool>,
    /// Transactions of Citus that have been prepared here for more than a second, and are neither committed nor undone.
    #[serde(default)]
    pub in_doubt: i64,
    /// Bytes free and in all on the data volume (`citus_local_disk_space_stats()`).
    pub disk: Option<Disk>,
}

impl Postgres {
    /// It has a group, or a copy of pg_dist_node: it is, or was, a member of a cluster.
    #[must_use]
    pub fn holds_metadata(&self) -> bool {
        self.group_id.unwrap_or(0) != 0 || self.known_nodes > 0
    }
}

/// Something of a move, by the name that Citus gives to such things. A replication slot only when nobody uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Leftover {
    pub kind: LeftoverKind,
    pub name: String,
}

/// What a move leaves on a node when it dies; in the order in which these can be dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, strum::Display,
)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum LeftoverKind {
    Subscription,
    /// Owner of a subscription.
    Role,
    Publication,
    #[default]
    Slot,
}

/// What a server said to a value that only it can judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ParameterCheck {
    /// It takes it.
    Accepted,
    /// It does not.
    Rejected {
        /// In its words.
        message: String,
        /// That was a while ago: what it named and was not there may be made by now.
        retry_due: bool,
    },
}

/// Space on a volume, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Disk {
    pub free: i64,
    pub total: i64,
}

/// A configuration that a server did not start with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedConfiguration {
    /// Its `dialog.config_hash`.
    pub config_hash: String,
    /// What the server said when it ended.
    pub message: String,
}

/// The schema's SQL and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SchemaSql {
    pub sql: String,
    /// sha256 of the SQL in hex.
    pub hash: String,
}

/// The coordinator's Citus catalog.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Citus {
    /// pg_dist_node.
    pub nodes: Vec<DistNode>,
    /// Placements and sizes by `groupid`.
    pub groups: BTreeMap<i32, Group>,
    /// pg_dist_partition: the first thousand.
    pub tables: Vec<DistTable>,
    /// The newest job of type `rebalance` in pg_dist_background_job.
    pub job: Option<Job>,
    /// Rebalance jobs that ended `failed` since the last that ended `finished`: what was cancelled is no failure.
    pub failed_jobs: u32,
    /// pg_dist_cleanup: the first thousand rows of each member, and of all groups that are no member's.
    pub cleanup: Vec<CleanupRow>,
    /// How many rows it has.
    pub cleanup_in_all: usize,
    /// What Citus would move now (`get_rebalance_table_shards_plan`); empty when nothing. Not asked for while a job is open.
    pub plan: Option<Seen<Vec<Move>, PlanUnknown>>,
    /// The same with the groups that are pinned staying where they are; only while there are such.
    pub pinned_plan: Option<Seen<Vec<Move>, PlanUnknown>>,
    /// Groups that the strategy of the operator's own keeps where they are.
    pub pins: Option<Pins>,
    /// What would keep Citus from moving tables.
    pub obstacles: Obstacles,
    /// `citus_rebalance_start` has the argument `parallel_transfer_colocated_shards`.
    pub parallel_colocated: bool,
    /// The application's role exists.
    pub owner_exists: bool,
    /// Extensions in the application's database.
    pub extensions: BTreeSet<String>,
    /// uid of the Secret whose password the role has (`dialog.owner_secret` of the database).
    pub owner_secret: Option<String>,
    /// Hash of the schema SQL that was applied (`dialog.schema_hash` of the database).
    pub schema_hash: Option<String>,
}

/// A row of pg_dist_node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // columns of pg_dist_node
pub struct DistNode {
    pub node_id: i32,
    pub group_id: i32,
    pub name: String,
    pub port: i32,
    pub active: bool,
    pub has_metadata: bool,
    pub metadata_synced: bool,
    pub should_have_shards: bool,
}

/// What a group holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Placements of distributed tables (reference tables do not count).
    pub shards: i64,
    /// Bytes of them; `None` when not looked at lately.
    pub bytes: Option<i64>,
}

/// A distributed or reference table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DistTable {
    /// Qualified name.
    pub name: String,
    /// Hash-distributed (moves), not a reference or local table.
    pub distributed: bool,
    /// It has a primary key or another replica identity.
    pub replica_identity: bool,
    /// `colocationid`.
    pub colocation_id: i32,
}

/// A row of pg_dist_cleanup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // columns of pg_dist_cleanup
pub struct CleanupRow {
    pub record_id: i64,
    pub group_id: i32,
    pub object_type: i32,
    pub object_name: String,
}
