//! Services: one a node (its address in pg_dist_node), the governing one of the StatefulSets, and the one for
//! applications.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    BuildContext, Manifest,
    meta::{Component, StringMap, node_selector, owned, render, string_map},
    pod::{PORT, PORT_NAME},
};
use crate::api::{Node, names::keys};

/// How the address of a node gets to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// The name means an address that stays; the hosts' packet filters lead it to the pod of the day.
    Virtual,
    /// The name means the pod's own address.
    #[allow(dead_code)] // the other choice; see NODE_ADDRESS
    Headless,
}

/// The address of a node is a virtual one.
///
/// A headless name keeps the *old* pod's address in DNS caches for up to 30 s after each restart (kubeadm's CoreDNS:
/// `kubernetes { ttl 30 }` and `cache 30`), and a name that was looked up before its pod had an address stays unknown
/// for as long: every restart would be half a minute of `could not connect` for the whole cluster. A virtual address
/// never changes, so a restart needs no DNS at all, and it can lead to a standby later on. It costs one address of the
/// service range a node. `publishNotReadyAddresses` holds for both: Citus connects to a node before it is Ready.
///
/// Changing this for a cluster that exists means deleting its Services: `clusterIP` is immutable.
const NODE_ADDRESS: Address = Address::Virtual;

/// The Service of one node: its name is the node's address in pg_dist_node.
#[must_use]
pub fn node_service(inputs: &BuildContext, node: Node) -> Manifest {
    let cluster = &inputs.desired.cluster;
    let mut spec = spec(node_selector(cluster, node), NODE_ADDRESS);
    spec.publish_not_ready_addresses = Some(true);
    service(inputs, node.object_name(&cluster.name), Component::Node(node), spec)
}

/// The governing Service of all StatefulSets: gives each pod a name of its own. Nothing connects to it.
#[must_use]
pub fn nodes_service(inputs: &BuildContext) -> Manifest {
    let cluster = &inputs.desired.cluster;
    let mut spec = spec(string_map([(keys::CLUSTER, &cluster.name)]), Address::Headless);
    spec.publish_not_ready_addresses = Some(true);
    service(inputs, cluster.nodes_service(), Component::Cluster, spec)
}

/// The Service that applications connect to: the coordinator, when it is Ready.
#[must_use]
pub fn application_service(inputs: &BuildContext) -> Manifest {
    let cluster = &inputs.desired.cluster;
    let spec = spec(node_selector(cluster, Node::Coordinator), Address::Virtual);
    service(inputs, cluster.service(), Component::Cluster, spec)
}

fn spec(selector: StringMap, address: Address) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        cluster_ip: (address == Address::Headless).then(|| "None".to_owned()),
        selector: Some(selector),
        ports: Some(vec![ServicePort {
            name: Some(PORT_NAME.to_owned()),
            port: PORT,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::String(PORT_NAME.to_owned())),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    }
}

fn service(inputs: &BuildContext, name: String, about: Component, spec: ServiceSpec) -> Manifest {
    render(&Service { metadata: owned(inputs, name, about), spec: Some(spec), status: None })
}
