//! The volume of a node, from outside: the directory on this machine that the local Kubernetes gives to the pod.

use std::path::PathBuf;

use dialog_operator::api::{Node, names::keys};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, ResourceExt, api::ListParams};

use super::cluster::Cluster;

impl Cluster {
    /// The volume claim of a node.
    pub async fn claim(&self, node: Node) -> PersistentVolumeClaim {
        let api: Api<PersistentVolumeClaim> = self.api();
        let labels = format!("{}={},{}={node}", keys::CLUSTER, self.name, keys::NODE);
        let claims = api.list(&ListParams::default().labels(&labels)).await.unwrap().items;
        assert_eq!(
            claims.len(),
            1,
            "claims of {node}: {:?}",
            claims.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        );
        claims.into_iter().next().unwrap()
    }

    /// Where the node's volume is on this machine.
    pub async fn volume(&self, node: Node) -> PathBuf {
        let claim = self.claim(node).await;
        let volume = claim.spec.unwrap().volume_name.expect("a bound claim");
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let source = api.get(&volume).await.unwrap().spec.unwrap().local;
        source.expect("a volume of type local: these stories need the local Kubernetes").path.into()
    }
}
