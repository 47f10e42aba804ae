//! Labels, selectors, owner references, and the last step of every builder: from a typed object to [`Manifest`].

use std::collections::BTreeMap;

use k8s_openapi::{
    Metadata, Resource,
    apimachinery::pkg::apis::meta::v1::{
        LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{BuildContext, Manifest, text_hash};
use crate::api::{ClusterId, DialogCluster, FIELD_MANAGER, Node, names::keys};

/// By this label a GitOps tool may know what is its own (Argo CD does, unless told otherwise), and it prunes what is not
/// in its source, unless an owner reference says whose that is. A volume outlives its owner: it never has this label.
const INSTANCE: &str = "app.kubernetes.io/instance";

pub(super) type StringMap = BTreeMap<String, String>;

/// What an object is about.
#[derive(Clone, Copy)]
pub(super) enum Component {
    /// The whole cluster.
    Cluster,
    /// One node.
    Node(Node),
    /// The volume of one node.
    Volume(Node),
    /// Asking an image what is in it.
    Inspection,
}

/// `coordinator` or `worker`: value of the label `role`.
pub(super) fn role(node: Node) -> &'static str {
    match node {
        Node::Coordinator => "coordinator",
        Node::Worker(_) => "worker",
    }
}

pub(super) fn string_map<const N: usize>(pairs: [(&str, &str); N]) -> StringMap {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(super) fn labels(cluster: &ClusterId, about: Component) -> StringMap {
    let mut labels = string_map([
        ("app.kubernetes.io/name", "dialogcluster"),
        (INSTANCE, &cluster.name),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
        ("app.kubernetes.io/part-of", "dialogcluster"),
        (keys::CLUSTER, &cluster.name),
    ]);
    match about {
        Component::Cluster => labels.extend(string_map([("app.kubernetes.io/component", "cluster")])),
        Component::Inspection => {
            labels.extend(string_map([("app.kubernetes.io/component", "image-inspection")]));
        }
        Component::Node(node) | Component::Volume(node) => labels.extend(string_map([
            ("app.kubernetes.io/component", role(node)),
            (keys::ROLE, role(node)),
            (keys::NODE, &node.to_string()),
        ])),
    }
    if matches!(about, Component::Volume(_)) {
        labels.remove(INSTANCE);
    }
    labels
}

/// Selects the pod of one node. Only labels that never change: a selector cannot.
pub(super) fn node_selector(cluster: &ClusterId, node: Node) -> StringMap {
    string_map([(keys::CLUSTER, &cluster.name), (keys::NODE, &node.to_string())])
}

/// Selects the pods of all nodes, and not the pods that ask an image what is in it: these are no part of a budget.
pub(super) fn nodes_selector(cluster: &ClusterId) -> LabelSelector {
    LabelSelector {
        match_labels: Some(string_map([(keys::CLUSTER, &cluster.name)])),
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: keys::NODE.to_owned(),
            operator: "Exists".to_owned(),
            values: None,
        }]),
    }
}

/// The DialogCluster as the owner of an object.
#[must_use]
pub fn owner(cluster: &ClusterId) -> OwnerReference {
    use kube::Resource as _;
    OwnerReference {
        api_version: DialogCluster::api_version(&()).into_owned(),
        kind: DialogCluster::kind(&()).into_owned(),
        name: cluster.name.clone(),
        uid: cluster.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Metadata of an object that the garbage collector removes with the DialogCluster.
pub(super) fn owned(inputs: &BuildContext, name: String, about: Component) -> ObjectMeta {
    ObjectMeta {
        owner_references: Some(vec![owner(&inputs.desired.cluster)]),
        ..unowned(inputs, name, about)
    }
}

/// Metadata of an object that outlives the DialogCluster.
pub(super) fn unowned(inputs: &BuildContext, name: String, about: Component) -> ObjectMeta {
    let cluster = &inputs.desired.cluster;
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(cluster, about)),
        ..ObjectMeta::default()
    }
}

/// The annotation that says who a node is, when that is known.
pub(super) fn identity_annotation(identity: Option<&str>) -> Option<StringMap> {
    identity.map(|identity| string_map([(keys::SYSTEM_IDENTIFIER, identity)]))
}

/// The object as JSON, with the hash of that JSON among its annotations.
pub(super) fn render<K>(object: &K) -> Manifest
where
    K: Serialize + Resource + Metadata<Ty = ObjectMeta>,
{
    // Typed objects have nothing but text keys, so this cannot fail.
    let mut json = serde_json::to_value(object).unwrap_or_default();
    let hash = text_hash::hex(&[&text_hash::canonical(&without_identity(&json))]);
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        annotations[keys::APPLIED_HASH] = json!(hash);
    }
    Manifest {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: object.metadata().name.clone().unwrap_or_default(),
        json,
    }
}

/// The identity is written once, by its own step, and never removed: it is no reason to apply an object again.
fn without_identity(json: &Value) -> Value {
    let mut json = json.clone();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(keys::SYSTEM_IDENTIFIER);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    json
}
