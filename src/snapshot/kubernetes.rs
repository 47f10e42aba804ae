//! The Kubernetes part of a snapshot, as data: objects and whose they are, pods, and what was said about them. No code
//! that reads anything lives here.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest value shown in a message, in characters.
const MAX_SHOWN: usize = 60;

/// Whose an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ownership {
    /// Ours: its owner reference (or, for volume claims, its labels) names this DialogCluster.
    Owned,
    /// It belonged to a deleted DialogCluster of the same name: the garbage collector will remove it.
    OwnedByDeleted,
    /// Such a one was deleted without what it owned: it is ours by its labels and by what is written on it, and nobody's.
    Left,
    /// A stranger's. It is never touched.
    Foreign,
}

/// A Kubernetes object with one of our names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveObject {
    /// `metadata.uid`, the precondition of every later write.
    pub uid: String,
    /// Whose it is.
    pub ownership: Ownership,
    /// `metadata.creationTimestamp`.
    pub created_at: Timestamp,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// Of a StatefulSet: who wrote its number of replicas last, if not we.
    #[serde(default)]
    pub scaled_by: Option<String>,
    /// The object as JSON without managedFields; of a Secret only metadata and the names of its keys.
    pub json: Value,
}

impl LiveObject {
    /// An annotation's value.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.json.get("metadata")?.get("annotations")?.get(key)?.as_str()
    }
    /// A label's value.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.json.get("metadata")?.get("labels")?.get(key)?.as_str()
    }
}

/// The pod of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`: precondition of its deletion.
    pub uid: String,
    /// `metadata.creationTimestamp`.
    pub created_at: Timestamp,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// `metadata.deletionTimestamp`: when it was to have ended, its grace included.
    #[serde(default)]
    pub deletion_timestamp: Option<Timestamp>,
    /// `spec.nodeName`: the machine that it is on.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Condition Ready.
    pub ready: bool,
    /// When Ready became what it is.
    pub ready_since: Option<Timestamp>,
    /// `status.podIP`.
    pub address: Option<String>,
    /// Image of the server's container in its spec.
    pub image: String,
    /// Annotation `dialogcluster.dev/user-template-hash`.
    pub user_template: Option<String>,
    /// Annotation `dialogcluster.dev/config-refresh`.
    pub config_refresh: Option<String>,
    /// Annotations of the operator and of kubectl.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Why it is not running, in the kubelet's or the scheduler's words: `ImagePullBackOff: Back-off pulling ...`.
    pub waiting: Option<ReasonMessage>,
    /// The last end of the server's container.
    pub last_termination: Option<Termination>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// In Kubernetes' word.
    pub reason: String,
    /// What the start script wrote to the termination log.
    pub message: String,
    /// Its exit code: [`crate::resources::StartFailure`] says which are the start script's own.
    pub exit_code: i32,
}

/// A reason and a message of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ReasonMessage {
    pub reason: String,
    pub message: String,
}

/// What an event says about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// `FailedCreate`, say.
    pub reason: String,
    /// Its words.
    pub message: String,
    /// How often it was said.
    pub times: i32,
    /// When for the first time.
    pub first: Timestamp,
    /// When for the last time.
    pub last: Timestamp,
}

impl Warning {
    /// The same was refused three times over at least a minute.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.times >= 3 && self.last.duration_since(self.first).as_secs() >= 60
    }
}

/// In what the answer to our last write of an object differed from what was written: admission changes it, and would
/// again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionChanges {
    /// With both values: another value since is somebody's.
    pub differences: Vec<Difference>,
}

/// A value that is not what it should be. In words: `spec.replicas: 2 -> 1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where.
    pub path: String,
    /// What is there.
    pub live: Option<Value>,
    /// What should be.
    pub want: Option<Value>,
}

impl Difference {
    /// At `path`, what is there and what should be.
    #[must_use]
    pub(crate) fn new(path: &str, live: Option<&Value>, want: Option<&Value>) -> Self {
        Self { path: path.to_owned(), live: live.cloned(), want: want.cloned() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: {} -> {}", self.path, shown(self.live.as_ref()), shown(self.want.as_ref()))
    }
}

/// What is known of the application's Secret, and may be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationSecret {
    /// `metadata.resourceVersion` of what was looked at.
    pub version: String,
    /// Why the password cannot be used: which key, and what is wrong, without what is in it.
    pub unusable: Option<String>,
    /// Keys that do not say what the password, the names and the authorities come to.
    pub stale: Vec<String>,
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "nothing".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}
