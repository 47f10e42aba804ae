//! The contract with users: the spec, the status, their validation, and `Desired`, the only form of the spec
//! that the planner sees. No I/O here, and nothing about how a thing is done.

pub mod desired;
pub mod names;
pub mod spec;
pub mod status;
pub mod validation;

pub use desired::{Desired, Invalid};
pub use names::{ClusterId, Node};
pub use spec::{DialogCluster, DialogClusterSpec};
pub use status::DialogClusterStatus;

/// API group of every custom resource, label and annotation of this project.
pub const GROUP: &str = "dialogcluster.dev";
/// Field manager of every server-side apply, as shown by `kubectl get --show-managed-fields`.
pub const FIELD_MANAGER: &str = "dialog-operator";

/// The CustomResourceDefinition, as `dialog-operator crd` prints it and `crds/` keeps it.
#[must_use]
pub fn crd() -> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition {
    use kube::CustomResourceExt;
    DialogCluster::crd()
}
