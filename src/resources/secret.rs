//! The Secrets of a cluster without what is in them: that is made where it is written.

use k8s_openapi::api::core::v1::Secret;

use super::{
    BuildContext, Manifest,
    meta::{Component, owned, render},
};
use crate::api::names::SecretKind;

/// A Secret that holds nothing yet.
#[must_use]
pub fn secret(inputs: &BuildContext, kind: SecretKind) -> Secret {
    let name = inputs.desired.cluster.secret(kind);
    Secret {
        metadata: owned(inputs, name, Component::Cluster),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// Whose a Secret is, and nothing else of it: for one that a person has brought back.
#[must_use]
pub fn owned_secret(inputs: &BuildContext, kind: SecretKind) -> Manifest {
    render(&Secret { type_: None, ..secret(inputs, kind) })
}
