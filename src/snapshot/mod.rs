//! The [`Snapshot`]: everything the planner may know, as plain serde data. It never holds a secret, so it can be
//! attached to a bug report and fed to `dialog-operator plan`. No code that reads anything lives here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod citus;
mod connections;
mod contents;
mod failure;
mod image_facts;
mod jobs;
mod kubernetes;
mod live;
mod postgres;
mod refusals;

pub use citus::{Citus, CleanupRow, DistNode, DistTable, Group, Placement};
pub use connections::{ConnectionCheck, Login, Reach};
pub use contents::{Contents, Copies, Holdings, LocalTable, Membership, NamedObjects, OtherDatabase};
pub use failure::{Cause, Failure, FailureReason};
pub use image_facts::ImageFacts;
pub use jobs::{
    Job, JobState, Move, Obstacle, ObstacleKind, Obstacles, PINNING, Pins, PlanUnknown, Task, TaskState,
};
pub use kubernetes::{
    AdmissionChanges, ApplicationSecret, Difference, LiveObject, Ownership, Pod, ReasonMessage, Termination,
    Warning,
};
pub use live::live;
pub use postgres::{Disk, Leftover, LeftoverKind, ParameterCheck, Postgres, RejectedConfiguration};
pub use refusals::{Attempt, Refusals, RepeatedRefusal};

use crate::api::{DialogClusterStatus, Node};

/// Something that was seen, or why it could not be seen. Never a default in place of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Observed<T, Why = String> {
    /// What was seen.
    Known(T),
    /// Why it could not be seen, in the words of whoever refused.
    Unknown(Why),
}

impl<T, Why> Observed<T, Why> {
    /// What was seen, if it was.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T> Observed<T> {
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
    pub operator: OperatorConfig,
    /// The children of the cluster, and whatever else has one of their names: by `Kind/name`.
    pub objects: BTreeMap<String, LiveObject>,
    /// Pods of the nodes.
    pub pods: BTreeMap<Node, Pod>,
    /// What Kubernetes' controllers say in events about objects that get no further: by `Kind/name`.
    #[serde(default)]
    pub warnings: BTreeMap<String, Warning>,
    /// What an admission webhook or policy makes of our writes each time: by `Kind/name`.
    #[serde(default)]
    pub rewritten: BTreeMap<String, AdmissionChanges>,
    /// The SQL snapshot of each node that has a pod with an address.
    pub postgres: BTreeMap<Node, Observed<Postgres>>,
    /// What the coordinator's Citus catalog says.
    pub citus: Observed<Citus>,
    /// Connections tried for the workers that are about to be registered.
    pub connections: Vec<ConnectionCheck>,
    /// Sessions that keep what moves left behind on a leaving worker from being dropped, as sentences: by worker.
    #[serde(default)]
    pub blocking_sessions: BTreeMap<Node, Vec<String>>,
    /// Sessions that hold up a move, or a step that waits for a lock again and again, as sentences: by node. Looked for
    /// only while there is such.
    #[serde(default)]
    pub blocking_moves: BTreeMap<Node, Vec<String>>,
    /// What workers that are to go hold beside what is the cluster's own; looked at when the next step may need it.
    #[serde(default)]
    pub contents: BTreeMap<Node, Observed<Contents>>,
    /// What a server said to values that only it can judge: by `name=value`.
    pub parameter_checks: BTreeMap<String, ParameterCheck>,
    /// The images asked about, by image: what a pod of it said.
    pub images: BTreeMap<String, Observed<ImageFacts>>,
    /// SQL of the schema: the built-in one or the user's ConfigMap.
    pub schema_sql: Observed<SchemaSql>,
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
    pub slow_nodes: BTreeSet<Node>,
    /// The last status written, for transition times and what was handled.
    pub status: DialogClusterStatus,
}

/// How the operator was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorConfig {
    /// The image of a new cluster that asks for none.
    pub default_image: String,
    /// DNS domain of the Kubernetes cluster, `cluster.local` almost everywhere.
    pub cluster_domain: String,
}

/// The schema's SQL and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SchemaSql {
    pub sql: String,
    /// sha256 of the SQL in hex.
    pub hash: String,
}

impl Snapshot {
    /// Nothing was seen.
    #[must_use]
    pub fn empty(operator: &OperatorConfig, now: Timestamp) -> Self {
        let unseen = || "not looked at".to_owned();
        Self {
            now,
            operator: operator.clone(),
            objects: BTreeMap::new(),
            pods: BTreeMap::new(),
            warnings: BTreeMap::new(),
            rewritten: BTreeMap::new(),
            postgres: BTreeMap::new(),
            citus: Observed::Unknown(unseen()),
            connections: Vec::new(),
            blocking_sessions: BTreeMap::new(),
            blocking_moves: BTreeMap::new(),
            slow_nodes: BTreeSet::new(),
            contents: BTreeMap::new(),
            parameter_checks: BTreeMap::new(),
            images: BTreeMap::new(),
            schema_sql: Observed::Unknown(unseen()),
            refusals: Refusals::default(),
            application: None,
            reach: None,
            status: DialogClusterStatus::default(),
        }
    }
}
