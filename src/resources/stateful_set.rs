//! The StatefulSet of one Citus node.

use k8s_openapi::{
    api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{
    BuildContext, Manifest,
    meta::{Component, identity_annotation, node_selector, owned, render, string_map},
    pod_template::pod_template,
};
use crate::api::{Node, names::keys};

/// One node: one pod, which the operator alone restarts (`OnDelete`), on the volume claim `claim`.
#[must_use]
pub fn stateful_set(inputs: &BuildContext, node: Node, claim: &str, identity: Option<&str>) -> Manifest {
    let cluster = &inputs.desired.cluster;
    // What was written: admission may put another into the template.
    let mut annotations = string_map([(keys::IMAGE, inputs.image)]);
    annotations.extend(identity_annotation(identity).unwrap_or_default());
    render(&StatefulSet {
        metadata: ObjectMeta {
            annotations: Some(annotations),
            ..owned(inputs, node.object_name(&cluster.name), Component::Node(node))
        },
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(cluster.nodes_service()),
            selector: LabelSelector {
                match_labels: Some(node_selector(cluster, node)),
                match_expressions: None,
            },
            template: pod_template(inputs, node, claim),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            // A pod that never gets Ready is replaced all the same when its template changes.
            pod_management_policy: Some("Parallel".to_owned()),
            revision_history_limit: Some(2),
            ..StatefulSetSpec::default()
        }),
        status: None,
    })
}
