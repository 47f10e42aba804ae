//! The pod template of a node's StatefulSet: its pod, with labels and annotations. What is in the pod is not decided here.

use k8s_openapi::{api::core::v1::PodTemplateSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::json;

use super::{
    BuildContext,
    meta::{Component, labels, string_map},
    pod::{LOCAL_VOLUMES, SERVER, local_volumes, pod_spec, user_template_hash},
    pod_metadata, text_hash,
};
use crate::api::{Node, names::keys};

pub(super) fn pod_template(inputs: &BuildContext, node: Node, claim: &str) -> PodTemplateSpec {
    let template = inputs.desired.template(node);
    let spec = pod_spec(inputs, node, claim);
    let mut pod_labels = template.pod_labels.clone();
    pod_labels.extend(labels(&inputs.desired.cluster, Component::Node(node)));
    // A host's autoscaler moves no pod with such volumes, unless it is told that nothing on them is missed.
    let mut annotations = string_map([(LOCAL_VOLUMES, &local_volumes(&spec))]);
    annotations.extend(template.pod_annotations.clone());
    annotations.extend(string_map([
        (keys::USER_TEMPLATE_HASH, &user_template_hash(inputs, node)),
        (keys::POD_TEMPLATE_HASH, &text_hash::hex(&[&text_hash::canonical(&json!(spec))])),
        (keys::POD_METADATA, &pod_metadata::noted(template)),
        // What `kubectl logs` and `kubectl exec` take when a sidecar was injected.
        ("kubectl.kubernetes.io/default-container", SERVER),
    ]));
    // As `kubectl rollout restart` does it: a pod without it is one from before the request.
    if let Some(requested) = &inputs.desired.restart_requested {
        annotations.insert(keys::RESTART_REQUESTED_AT.to_owned(), requested.clone());
    }
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}
