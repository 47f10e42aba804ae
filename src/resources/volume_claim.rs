//! PersistentVolumeClaims. The operator makes them itself: those of a claim template cannot grow and come back by
//! name, with the data of a worker that was removed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Inputs, Rendered,
    meta::{About, identity_annotation, render, unowned},
    text_hash,
};
use crate::api::{ClusterId, Node};

/// The volume of a node. Nothing owns it: volumes are kept when the DialogCluster is deleted.
#[must_use]
pub fn volume_claim(inputs: &Inputs, node: Node, claim: &str, identity: Option<&str>) -> Rendered {
    let storage = inputs.desired.storage(node);
    render(&PersistentVolumeClaim {
        metadata: ObjectMeta {
            annotations: identity_annotation(identity),
            ..unowned(inputs, claim.to_owned(), About::Node(node))
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), storage.size.clone())])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

/// Name of a new volume claim of a node: `<node>-<5 characters>`.
///
/// It follows from the cluster, the node and the claims the node has already: an operator whose cache is behind comes
/// to the same name as before, and its create conflicts instead of making a second volume. Names of other nodes'
/// claims in `existing` make no difference, nor does their order.
#[must_use]
pub fn claim_name(cluster: &ClusterId, node: Node, existing: &[&str]) -> String {
    let object = node.object_name(&cluster.name);
    let of_node: BTreeSet<&str> = existing
        .iter()
        .copied()
        .filter(|name| name.strip_prefix(&object).is_some_and(|rest| rest.starts_with('-')))
        .collect();
    let mut parts = vec![cluster.uid.as_str(), object.as_str()];
    parts.extend(&of_node);
    loop {
        let name = format!("{object}-{}", text_hash::suffix(&parts));
        if !of_node.contains(name.as_str()) {
            return name;
        }
        // Five characters can meet again, though hardly ever: the next name is as well defined.
        parts.push("again");
    }
}
