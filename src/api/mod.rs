//! The contract with users: the spec, the status, their validation, and `Desired`, the only form of the spec
//! that the planner sees. No I/O here, and nothing about how a thing is done.

pub mod desired;
pub mod names;
pub mod spec;
pub mod status;
pub mod validation;
pub(crate) mod words;

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
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON;
    use kube::CustomResourceExt;
    let mut crd = DialogCluster::crd();
    let schemas = crd
        .spec
        .versions
        .iter_mut()
        .filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
    let statuses = schemas.filter_map(|schema| schema.properties.as_mut()?.get_mut("status"));
    for status in statuses {
        // As Flux's own kinds have it: who asks for readiness by generations (kstatus) waits for the first look.
        status.default = Some(JSON(serde_json::json!({ "observedGeneration": -1 })));
    }
    crd
}
