//! Pure, typed builders of every Kubernetes object that the operator makes, one file a kind. No client here, no
//! decision, and never the content of a Secret.

mod config_map;
mod configuration;
mod diff;
mod inspection_pod;
mod meta;
mod paths;
mod pod;
mod pod_disruption_budget;
mod pod_metadata;
mod pod_template;
mod secret;
mod service;
mod service_account;
mod stateful_set;
mod text_hash;
mod volume_claim;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{api::Desired, snapshot::OperatorConfig};

pub use config_map::{InitdbPermission, StartFailure, config_map, may_initialise, parameters_of};
pub use configuration::{MAX_MOVES, config_hash, settings, startup_hash};
pub use diff::{differences, first_difference, is_larger};
pub use inspection_pod::{INSPECTION, inspection_pod, inspection_pod_name};
pub use meta::owner;
pub use pod::{SERVER, user_template_hash};
pub use pod_disruption_budget::{Evictions, pod_disruption_budget};
pub use pod_metadata::pod_metadata_patch;
pub use secret::{owned_secret, secret};
pub use service::{application_service, node_service, nodes_service};
pub use service_account::service_account;
pub use stateful_set::stateful_set;
pub use volume_claim::{ClaimRecord, claim_name, volume_claim};

/// What every builder looks at.
#[derive(Clone, Copy, Debug)]
pub struct BuildContext<'a> {
    /// The checked spec.
    pub desired: &'a Desired,
    /// How the operator was started.
    pub operator: &'a OperatorConfig,
    /// The image of the nodes, resolved: the spec's, or the one the cluster runs, or the operator's default.
    pub image: &'a str,
}

/// An object as it should be, ready to be created or applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.name`.
    pub name: String,
    /// The whole object, with the annotation `dialogcluster.dev/applied-hash`.
    pub json: Value,
}

impl Manifest {
    /// Key of the object in a snapshot: `Kind/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests;
