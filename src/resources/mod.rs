//! Pure, typed builders of every Kubernetes object that the operator makes, one file a kind. No client here, no
//! decision, and never the content of a Secret.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object as it should be, ready to be created or applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rendered {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// The whole object, with the annotation `dialogcluster.dev/rendered`.
    pub json: Value,
}

impl Rendered {
    /// Key of the object in a snapshot: `Kind/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}
