//! The ServiceAccount of the pods: a name, and no rights.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{
    BuildContext, Manifest,
    meta::{Component, owned, render},
};

/// The account the pods run under. It has no rights and its token is mounted nowhere.
#[must_use]
pub fn service_account(inputs: &BuildContext) -> Manifest {
    render(&ServiceAccount {
        metadata: owned(inputs, inputs.desired.cluster.name.clone(), Component::Cluster),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}
