//! PersistentVolumeClaims. The operator makes them itself: those of a claim template cannot grow and come back by
//! name, with the data of a worker that was removed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{
    Inputs, Rendered,
    meta::{About, identity_annotation, owned, render, unowned},
    text_hash,
};
use crate::api::{ClusterId, Node, spec::VolumePolicy};

/// The volume of a node: who the node is, and the size that it keeps when it is no longer to grow. Nothing owns it, so
/// that it is kept when the DialogCluster is deleted, unless the user wants otherwise.
#[must_use]
pub fn volume_claim(
    inputs: &Inputs,
    node: Node,
    claim: &str,
    (identity, kept_size): (Option<&str>, Option<&str>),
) -> Rendered {
    let storage = inputs.desired.storage(node);
    let size = kept_size.map_or_else(|| storage.size.clone(), |size| Quantity(size.to_owned()));
    let metadata = match inputs.desired.volumes.when_deleted {
        VolumePolicy::Retain => unowned(inputs, claim.to_owned(), About::Node(node)),
        VolumePolicy::Delete => owned(inputs, claim.to_owned(), About::Node(node)),
    };
    render(&PersistentVolumeClaim {
        metadata: ObjectMeta { annotations: identity_annotation(identity), ..metadata },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size)])),
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
