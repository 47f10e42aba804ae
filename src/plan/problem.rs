//! What only a person can solve, as values, and the reasons that `Stalled` has for them. The sentences are in
//! `problem/words.rs` and its neighbours; nothing is decided here.

mod contents;
mod obstacle;
mod reason;
mod words;

pub use reason::{Consequence, ProblemReason};

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::snapshot::{Cause, Contents, ObstacleKind};

/// What the operator cannot go on with by itself. Nodes are named by their StatefulSets, as people know them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the sentences in `words.rs` say what the fields are
pub enum Problem {
    /// A stored spec breaks a rule of today.
    InvalidSpec { message: String },
    /// A stranger has a name of ours.
    ObjectConflict { kind: String, name: String },
    /// An object that an earlier cluster left behind is not this one's.
    NotAdopted { kind: String, name: String, namespace: String, why: NotOurs },
    /// The authorities' Secret is gone. `delete_first` is what keeps new ones from being made that a person asks for.
    AuthorityMissing { secret: String, trusting: Vec<String>, signed: Vec<String>, delete_first: Vec<String> },
    /// The authorities' Secret lacks keys.
    AuthorityIncomplete { secret: String, keys: Vec<String> },
    /// The password of the application's Secret cannot be used.
    PasswordNotUsable { secret: String, why: String, owner: String },
    /// A server does not take a value.
    ParameterRejected { name: String, message: String },
    /// A server did not start with the configuration.
    ConfigurationRejected { node: String, message: String },
    /// A setting is too low for the moves at the same time.
    CapacityTooLow { node: String, lack: Shortage },
    /// What is in an image cannot be used, or could not be found out.
    ImageNotUsable { image: String, why: String, running: String },
    /// The image of a node's pod cannot be pulled.
    ImageNotPulled { pod: String, image: String, reason: String, message: String },
    /// An image has other versions than those that run.
    UpgradeNotSupported { image: String, running: String, differs: VersionsDiffer },
    /// A worker has another version of Citus than the coordinator.
    CitusDiffers { node: String, citus: Option<String>, coordinator: Option<String> },
    /// The data of a node that was one before is gone, or will be.
    VolumeLost { node: String, claim: String, loss: VolumeLoss },
    /// A worker is registered and has no volume left.
    RegisteredWithoutVolume { node: String },
    /// Volumes of workers are here, and not the coordinator's.
    CoordinatorVolumeMissing { claim: String },
    /// The coordinator knows no nodes, and a worker does.
    CoordinatorMetadataMissing { coordinator: String, holder: String },
    /// Another server answers under a node's name.
    SystemIdentifierMismatch { node: String, why: String },
    /// Placements of a worker lack their tables.
    TablesMissing { node: String, placements: i64 },
    /// The cluster's nodes are known under names of another domain.
    OtherDomain { registered: String, address: String },
    /// A server says that it is of a group that is not in pg_dist_node.
    GroupUnknown { node: String, group: i32, claim: Option<String> },
    /// A server's group is registered under another address.
    AddressMismatch { node: String, group: i32, registered: String, node_id: i32, address: String, port: i32 },
    /// The schema's SQL is wrong.
    SchemaFailed { message: String },
    /// An extension of the spec cannot be made.
    ExtensionFailed { message: String },
    /// Something keeps tables from being moved.
    Obstacle(Box<TableObstacle>),
    /// There is no such rebalance strategy.
    StrategyUnknown { strategy: String, message: String },
    /// Workers that are to go cannot be drained.
    ScaleInRefused { workers: Vec<String>, staying: usize, registered: usize, why: DrainRefusal },
    /// Rebalancing was switched off in the middle of a drain.
    DrainHalted,
    /// A drained worker has something of people's on it.
    RemovalRefused { node: String, found: Box<Contents> },
    /// A worker that somebody has removed has something of people's on it.
    DecommissionRefused { node: String, found: Box<Contents> },
    /// The data of a worker is not given up.
    ForceRemoveRefused { value: String, why: ForceRemoveRefusal },
    /// A server runs another `wal_level` than it was started with.
    WalLevelOverridden { node: String, wal_level: String },
    /// A server ends again and again.
    NodeCannotStart { node: String, pod: String, last: String },
    /// A server that may hold the last metadata does not answer, before the first worker is registered.
    MetadataUnknown { node: String, coordinator: String, identity: String },
    /// The pod of a node is refused.
    PodRefused { node: String, message: String },
    /// Something is refused for the same cause again and again.
    Refused(Box<LastingRefusal>),
    /// Volumes are not allowed to grow.
    GrowthRefused(Box<GrowthRefusal>),
    /// A volume was allowed to grow, and does not.
    GrowthFailed { claim: String, has: String, wanted: String, field: StorageField, message: String },
    /// Volumes are larger than the spec says. `larger` has what each has, `largest` the size to write.
    StorageCannotShrink {
        field: StorageField,
        wanted: String,
        larger: Vec<(String, String)>,
        largest: String,
    },
    /// The planner made a plan that breaks a rule.
    InvariantBroken { rule: String },
}

/// Why an object that was left behind is not taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum NotOurs {
    /// No coordinator was ever born here.
    NoCoordinator { coordinator: String },
    /// It is labelled as another node's.
    OtherNode { label: Option<String> },
    /// It is of another server than the node's volume.
    OtherServer { recorded: Option<String>, on_volume: Option<String> },
}

/// A setting that is less than `spec.rebalance.maxMovesPerNode` needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Shortage {
    pub setting: String,
    pub value: i64,
    pub needed: i64,
}

/// In what the versions of an image differ from those that run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum VersionsDiffer {
    Postgres { image: u32, running: u32 },
    Citus { image: String, running: String },
}

/// What has become of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeLoss {
    /// Its claim is being deleted, and is kept by the pod that runs.
    Deleting,
    /// Its claim is gone.
    Gone,
    /// There is nothing on it, as the start script says.
    Empty(String),
}

/// Something that keeps tables from being moved, and what ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableObstacle {
    /// What it is.
    pub kind: ObstacleKind,
    /// Whose the tables are.
    pub owner: String,
    /// Name of the setting, the schema, the parent, or of what runs code.
    pub what: String,
    /// Value of the setting, or owner of the parent.
    pub value: String,
    /// The application's database.
    pub database: String,
    /// The application's role.
    pub application: String,
    /// The first of the tables.
    pub tables: Vec<String>,
    /// How many others there are.
    pub more: i64,
    /// What does not move because of it.
    pub stays: Unmoved,
}

/// What is not moved because of an obstacle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unmoved {
    /// Nothing moves.
    Everything,
    /// These tables' shards; all others would move, if they could.
    These,
    /// These tables' shards, and all others move.
    TheseAlone,
}

/// Why workers are not drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum DrainRefusal {
    /// `spec.rebalance.mode` is `Off`.
    RebalanceOff,
    /// No worker would stay.
    NoWorkerRemains,
    /// People keep something on them.
    Contents(Vec<(String, Contents)>),
    /// A worker that stays has no room. In bytes: to be moved from all that go, then of the worker that stays what it
    /// would get, what it has room for, what is free on its volume and how large that is.
    NoSpace { node: String, moved: i64, needed: i64, available: i64, free: i64, capacity: i64 },
}

/// Why the data of a worker is not given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum ForceRemoveRefusal {
    /// The annotation names no workers.
    Unreadable { example: String },
    /// It was refused before.
    Spent { node: String },
    /// Another server is recorded for the worker.
    OtherServer { node: String, recorded: String },
    /// pg_dist_node may know the worker by another name.
    MayBeRegistered { node: String },
    /// There is no other worker.
    NoOtherWorker,
    /// It answers.
    Answers { node: String },
    /// Another server answers under its name.
    SystemIdentifierMismatch { node: String, why: String },
}

/// Something that is refused for the same cause again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastingRefusal {
    /// What is refused, and by whom.
    pub kind: RefusalKind,
    /// In the words of whoever refuses.
    pub message: String,
    /// The cause.
    pub cause: Cause,
    /// The first time.
    pub since: Timestamp,
    /// The pod of the server that refuses, or where to look.
    pub pod: String,
    /// The application's database.
    pub database: String,
    /// Volume claims that may be deleted to make room.
    pub unused_claims: BTreeSet<String>,
}

/// What is refused, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum RefusalKind {
    Registration,
    Rebalance,
    Statement,
    Login,
    Kubernetes,
}

/// Volumes whose growth the API server refuses for the same cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrowthRefusal {
    /// Which size of the spec they are to have.
    pub field: StorageField,
    /// That size.
    pub wanted: String,
    /// The claims, with what each asks for.
    pub claims: Vec<(String, String)>,
    /// The size to go back to, where one is right for all.
    pub back_to: Option<String>,
    /// In the API server's words.
    pub message: String,
    /// The cause.
    pub cause: Cause,
    /// The first time.
    pub since: Timestamp,
    /// Volume claims that may be deleted to make room under a quota.
    pub unused_claims: BTreeSet<String>,
}

/// A size in the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
#[allow(missing_docs)]
pub enum StorageField {
    Coordinator,
    Workers,
}
