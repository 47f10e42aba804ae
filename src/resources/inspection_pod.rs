//! The pod that asks an image what is in it, before anything restarts with that image.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, Container, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{
    BuildContext, Manifest,
    meta::{Component, owned, render, string_map},
    pod::{empty_dir, mount, non_empty, non_empty_map, secure_container, secure_pod},
    text_hash,
};
use crate::api::{ClusterId, names::keys};

/// Writes `postgres=<major> citus=<default version>` to the termination log.
const SCRIPT: &str = include_str!("inspect.sh");

/// Name of the container that asks.
pub const INSPECTION: &str = "inspect";

/// Name of the pod that asks `image`: `<cluster>-image-<5 characters>`.
#[must_use]
pub fn inspection_pod_name(cluster: &ClusterId, image: &str) -> String {
    format!("{}-image-{}", cluster.name, text_hash::suffix(&[image]))
}

/// A pod of `image` that ends with `postgres=<major> citus=<default version>` as its termination message, or fails
/// with what is missing in the image. It runs where the coordinator may run: an image is made for a kind of host.
#[must_use]
pub fn inspection_pod(inputs: &BuildContext, image: &str) -> Manifest {
    let desired = inputs.desired;
    let template = &desired.coordinator;
    // Where every pod must name its resources; initdb needs next to nothing. A quota on limits wants those as well:
    // the coordinator's, which it must have there.
    let requests = [("cpu", "10m"), ("memory", "64Mi")]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    let mut limits = template.resources.limits.clone();
    if let Some(limits) = &mut limits {
        limits.retain(|name, _| name == "cpu" || name == "memory");
    }
    let name = inspection_pod_name(&desired.cluster, image);
    let metadata = owned(inputs, name, Component::Inspection);
    let mut labels = template.pod_labels.clone();
    labels.extend(metadata.labels.clone().unwrap_or_default());
    // Admission may put another image into the container.
    let mut annotations = template.pod_annotations.clone();
    annotations.extend(string_map([(keys::IMAGE, image)]));
    render(&Pod {
        metadata: ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..metadata },
        spec: Some(PodSpec {
            containers: vec![Container {
                command: Some(["sh", "-c", SCRIPT].map(str::to_owned).to_vec()),
                resources: Some(ResourceRequirements {
                    requests: Some(BTreeMap::from(requests)),
                    limits,
                    ..ResourceRequirements::default()
                }),
                volume_mounts: Some(vec![mount("tmp", "/tmp")]),
                ..secure_container(desired, image, INSPECTION)
            }],
            volumes: Some(vec![empty_dir("tmp", None)]),
            node_selector: non_empty_map(&template.node_selector),
            tolerations: non_empty(template.tolerations.clone()),
            // Of the other affinities it is no part: they are about the nodes of the cluster.
            affinity: template
                .affinity
                .as_ref()
                .and_then(|affinity| affinity.node_affinity.clone())
                .map(|node_affinity| Affinity { node_affinity: Some(node_affinity), ..Affinity::default() }),
            priority_class_name: template.priority_class_name.clone(),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(1),
            ..secure_pod(desired)
        }),
        status: None,
    })
}
