//! Names: of a cluster, of its nodes, and of every object made for them. Only text, no Kubernetes types.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Which cluster something belongs to, enough to name every object of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId {
    /// `metadata.namespace` of the DialogCluster.
    pub namespace: String,
    /// `metadata.name` of the DialogCluster.
    pub name: String,
    /// `metadata.uid` of the DialogCluster: tells it from an earlier one of the same name.
    pub uid: String,
}

impl ClusterId {
    /// Name of the Service that applications connect to.
    #[must_use]
    pub fn service(&self) -> String {
        self.name.clone()
    }
    /// Name of the governing headless Service of all StatefulSets.
    #[must_use]
    pub fn nodes_service(&self) -> String {
        format!("{}-nodes", self.name)
    }
    /// Name of a Secret.
    #[must_use]
    pub fn secret(&self, kind: SecretKind) -> String {
        format!("{}-{kind}", self.name)
    }
    /// The address of a node in pg_dist_node: the DNS name of the node's own Service.
    #[must_use]
    pub fn address(&self, node: Node, cluster_domain: &str) -> String {
        format!("{}.{}.svc.{cluster_domain}", node.object_name(&self.name), self.namespace)
    }
    /// The name of a node's pod that the kubelet writes into the pod's own /etc/hosts, with the pod's address.
    #[must_use]
    pub fn pod_address(&self, node: Node, cluster_domain: &str) -> String {
        let (pod, service) = (node.pod_name(&self.name), self.nodes_service());
        format!("{pod}.{service}.{}.svc.{cluster_domain}", self.namespace)
    }
}

/// The Secrets of a cluster; the text form is the suffix of the Secret's name.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumIter,
)]
#[strum(serialize_all = "kebab-case")]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// The two certificate authorities: one signs servers, the other nodes and the operator, and nobody else.
    Ca,
    /// The certificate that every node's server shows.
    Server,
    /// The client certificate with which nodes log in to each other.
    Node,
    /// The client certificate with which the operator (and an administrator) logs in as `postgres`.
    Superuser,
    /// The application's credentials, in the keys people expect (`host port dbname user password uri ...`).
    App,
}

/// One Citus node of the cluster. Ordered: the coordinator first, then workers by ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// The coordinator (group 0 of pg_dist_node).
    Coordinator,
    /// A worker by its ordinal, from 0.
    Worker(u16),
}

impl Node {
    /// Name of the node's StatefulSet, ConfigMap and Service: `<cluster>-coordinator` or `<cluster>-worker-<n>`.
    #[must_use]
    pub fn object_name(self, cluster: &str) -> String {
        format!("{cluster}-{self}")
    }
    /// Name of the node's only pod.
    #[must_use]
    pub fn pod_name(self, cluster: &str) -> String {
        format!("{cluster}-{self}-0")
    }
    /// `true` for a worker.
    #[must_use]
    pub fn is_worker(self) -> bool {
        matches!(self, Self::Worker(_))
    }
    /// The node with this object name, or `None` when the name is not one of this cluster's.
    #[must_use]
    pub fn from_object_name(name: &str, cluster: &str) -> Option<Self> {
        name.strip_prefix(cluster)?.strip_prefix('-')?.parse().ok()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Worker(ordinal) => write!(f, "worker-{ordinal}"),
        }
    }
}

/// The text is not `coordinator` or `worker-<n>`.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' names no node: expected 'coordinator' or 'worker-<n>'")]
pub struct NotANode(String);

impl FromStr for Node {
    type Err = NotANode;
    fn from_str(text: &str) -> Result<Self, NotANode> {
        if text == "coordinator" {
            return Ok(Self::Coordinator);
        }
        let ordinal =
            text.strip_prefix("worker-").filter(|digits| *digits == "0" || !digits.starts_with(['0', '+']));
        ordinal
            .and_then(|digits| digits.parse().ok())
            .map(Self::Worker)
            .ok_or_else(|| NotANode(text.to_owned()))
    }
}

// As text, so that a Node can be the key of a map in a snapshot.
impl Serialize for Node {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Labels and annotations of the objects the operator makes.
pub mod keys {
    /// Label: name of the DialogCluster. With [`NODE`] the only label in selectors, because selectors never change.
    pub const CLUSTER: &str = "dialogcluster.dev/cluster";
    /// Label: `coordinator` or `worker`.
    pub const ROLE: &str = "dialogcluster.dev/role";
    /// Label: `coordinator` or `worker-<n>`.
    pub const NODE: &str = "dialogcluster.dev/node";
    /// Annotation of a StatefulSet and a volume claim: `system_identifier` of `pg_control_system()`; who this node is.
    pub const SYSTEM_IDENTIFIER: &str = "dialogcluster.dev/system-identifier";
    /// Annotation of the coordinator's volume claim, of StatefulSets and of pods that ask an image: the image as it was
    /// asked for, whatever admission makes of it.
    pub const IMAGE: &str = "dialogcluster.dev/image";
    /// Annotation of the coordinator's volume claim: `postgres=<major> citus=<version>`, what its data was last used by.
    pub const VERSIONS: &str = "dialogcluster.dev/versions";
    /// Annotation of the coordinator's volume claim: `<provider> <locale>`, with which initdb makes every node.
    pub const LOCALE: &str = "dialogcluster.dev/locale";
    /// Annotation of an object: hash of what the operator rendered, so that a removed field is noticed as well.
    pub const APPLIED_HASH: &str = "dialogcluster.dev/applied-hash";
    /// Annotation of a pod template: hash of what the *user* wrote about the pod. A pod with another one needs a restart.
    pub const USER_TEMPLATE_HASH: &str = "dialogcluster.dev/user-template-hash";
    /// Annotation of a pod template: hash of it, but for what is changed on running pods.
    pub const POD_TEMPLATE_HASH: &str = "dialogcluster.dev/pod-template-hash";
    /// Annotation of a pod: names of the labels and annotations of the spec that were put on it, as JSON, so that they go
    /// again with the spec's.
    pub const POD_METADATA: &str = "dialogcluster.dev/pod-metadata";
    /// Annotation of a pod: `<config hash> <time>`; patched to make the kubelet bring a changed ConfigMap at once.
    pub const CONFIG_REFRESH: &str = "dialogcluster.dev/config-refresh";
    /// Annotation of a StatefulSet: `<config hash> <time>` of the last pod that the operator had made. A server that hangs
    /// at its start cannot say what it was started with.
    pub const LAST_STARTED_WITH: &str = "dialogcluster.dev/last-started-with";
    /// Annotation of a node's ConfigMap: the user's parameters in it, as JSON.
    pub const PARAMETERS: &str = "dialogcluster.dev/parameters";
    /// Label of a volume claim, and annotation of a StatefulSet, of a worker that holds nothing any more and is removed:
    /// when that was (`2026-11-22T21-05-00Z`). There is no way back from it: such a volume is never used again as data.
    pub const DECOMMISSIONED: &str = "dialogcluster.dev/decommissioned";
    /// Annotation of such a volume claim: `Retain` or `Delete`, what becomes of it.
    pub const RECLAIM_POLICY: &str = "dialogcluster.dev/reclaim-policy";
    /// Annotation that a person sets on the DialogCluster: `<worker>/<system identifier>`, whose data is given up; several
    /// with commas between them.
    pub const FORCE_REMOVE: &str = "dialogcluster.dev/force-remove";
    /// Annotation that a person sets on the DialogCluster, to any value: the authorities are lost without a copy, and new
    /// ones are wanted. Acted on once for each value.
    pub const NEW_AUTHORITY: &str = "dialogcluster.dev/new-authority";
    /// Annotation that a person sets on the DialogCluster, to any new value: every node is restarted once. And of a pod
    /// template: the value that its pods were made for.
    pub const RESTART_REQUESTED_AT: &str = "dialogcluster.dev/restart-requested-at";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_and_its_name_are_the_same_thing() {
        for node in [Node::Coordinator, Node::Worker(0), Node::Worker(255)] {
            assert_eq!(Node::from_object_name(&node.object_name("shop"), "shop"), Some(node));
            assert_eq!(serde_json::from_value::<Node>(serde_json::to_value(node).unwrap()).unwrap(), node);
        }
    }

    #[test]
    fn names_of_others_are_no_nodes() {
        for name in [
            "shop",
            "shop-nodes",
            "shop-worker-",
            "shop-worker-01",
            "shop-worker-+1",
            "shop2-worker-1",
            "shop-worker-1-0",
        ] {
            assert_eq!(Node::from_object_name(name, "shop"), None, "{name}");
        }
    }

    #[test]
    fn the_coordinator_comes_first() {
        let mut nodes = [Node::Worker(10), Node::Worker(2), Node::Coordinator];
        nodes.sort();
        assert_eq!(nodes, [Node::Coordinator, Node::Worker(2), Node::Worker(10)]);
    }
}
