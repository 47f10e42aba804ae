//! PersistentVolumeClaims. The operator makes them itself: those of a claim template cannot grow and come back by
//! name, with the data of a worker that was removed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{
    BuildContext, Manifest,
    meta::{Component, identity_annotation, owned, render, string_map, unowned},
    text_hash,
};
use crate::api::{ClusterId, Node, names::keys, spec::VolumePolicy};

/// What a volume claim says beyond what the spec wants of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClaimRecord<'a> {
    /// Who the node is: the system identifier of the server that was initialised here.
    pub identity: Option<&'a str>,
    /// What it asks for, where that is not what the spec says.
    pub size: Option<&'a str>,
    /// The image that its server runs with, and what is in it.
    pub image: Option<(&'a str, &'a str)>,
    /// The locale that the cluster was born with.
    pub locale: Option<&'a str>,
}

/// The volume of a node. Nothing owns it, so that it is kept when the DialogCluster is deleted, unless the user wants
/// otherwise.
#[must_use]
pub fn volume_claim(inputs: &BuildContext, node: Node, claim: &str, on_volume: ClaimRecord<'_>) -> Manifest {
    let storage = inputs.desired.storage(node);
    let size = on_volume.size.map_or_else(|| storage.size.clone(), |size| Quantity(size.to_owned()));
    let mut annotations = identity_annotation(on_volume.identity);
    if let Some((image, versions)) = on_volume.image {
        annotations
            .get_or_insert_default()
            .extend(string_map([(keys::IMAGE, image), (keys::VERSIONS, versions)]));
    }
    if let Some(locale) = on_volume.locale {
        annotations.get_or_insert_default().extend(string_map([(keys::LOCALE, locale)]));
    }
    let metadata = match inputs.desired.volumes.when_deleted {
        VolumePolicy::Retain => unowned(inputs, claim.to_owned(), Component::Volume(node)),
        VolumePolicy::Delete => owned(inputs, claim.to_owned(), Component::Volume(node)),
    };
    render(&PersistentVolumeClaim {
        metadata: ObjectMeta { annotations, ..metadata },
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
