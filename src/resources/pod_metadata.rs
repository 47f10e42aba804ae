//! Labels and annotations that the spec puts on the pods of nodes: those that are put on running pods, too, and how a
//! pod tells which it got.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    BuildContext,
    meta::StringMap,
    pod::{LOCAL_VOLUMES, default_local_volumes},
    text_hash,
};
use crate::api::{GROUP, Node, names::keys, spec::NodeTemplate};

/// Beginnings of names that Kubernetes, its controllers or this operator own: a template may have them, and what a
/// running pod has of them is left alone.
const OWNED: [&str; 8] = [
    GROUP,
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/managed-by",
    "statefulset.kubernetes.io/",
    "apps.kubernetes.io/",
];
/// Names that they own.
const OWNED_NAMES: [&str; 3] = [
    "controller-revision-hash",
    "kubectl.kubernetes.io/default-container",
    "kubectl.kubernetes.io/restartedAt",
];

/// Annotation [`keys::POD_METADATA`]: what was put on a pod.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct OwnedMetadata {
    labels: Vec<String>,
    annotations: Vec<String>,
    /// Of names and values.
    hash: String,
}

fn ours(map: &BTreeMap<String, String>) -> StringMap {
    let owned =
        |name: &str| OWNED.iter().any(|beginning| name.starts_with(beginning)) || OWNED_NAMES.contains(&name);
    map.iter().filter(|(name, _)| !owned(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn note(labels: &StringMap, annotations: &StringMap) -> OwnedMetadata {
    let names = |map: &StringMap| map.keys().cloned().collect();
    let written = json!({ "labels": labels, "annotations": annotations });
    OwnedMetadata {
        labels: names(labels),
        annotations: names(annotations),
        hash: text_hash::hex(&[&text_hash::canonical(&written)]),
    }
}

fn text(noted: &OwnedMetadata) -> String {
    // Lists of texts are always JSON.
    serde_json::to_string(noted).unwrap_or_default()
}

/// What a pod that is made of this template notes.
pub(super) fn noted(template: &NodeTemplate) -> String {
    text(&note(&ours(&template.pod_labels), &ours(&template.pod_annotations)))
}

/// The merge patch of a pod's metadata after which it has what the spec says; `None` when it notes just that.
#[must_use]
pub fn pod_metadata_patch(inputs: &BuildContext, node: Node, before: Option<&str>) -> Option<Value> {
    let template = inputs.desired.template(node);
    let (labels, annotations) = (ours(&template.pod_labels), ours(&template.pod_annotations));
    let now = note(&labels, &annotations);
    let before: OwnedMetadata =
        before.and_then(|before| serde_json::from_str(before).ok()).unwrap_or_default();
    if before == now {
        return None;
    }
    let patch = |wanted: &StringMap, before: &[String]| -> Map<String, Value> {
        let gone =
            before.iter().filter(|name| !wanted.contains_key(*name)).map(|name| (name.clone(), Value::Null));
        gone.chain(wanted.iter().map(|(name, value)| (name.clone(), json!(value)))).collect()
    };
    let labels = patch(&labels, &before.labels);
    let mut annotations = patch(&annotations, &before.annotations);
    // The one of these that a pod has of ours when the spec says nothing.
    if let Some(gone) = annotations.get_mut(LOCAL_VOLUMES).filter(|value| value.is_null()) {
        *gone = json!(default_local_volumes(inputs, node));
    }
    annotations.insert(keys::POD_METADATA.to_owned(), json!(text(&now)));
    Some(json!({ "labels": labels, "annotations": annotations }))
}
