//! `Desired`: the spec after validation, in types that cannot be wrong. The planner sees this and never the spec.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::LocalObjectReference;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::{
    names::{ClusterId, Node, keys},
    spec::{
        ConfigMapKey, DatabaseSpec, DialogCluster, ImagePullPolicy, NodeTemplate, RebalanceMode,
        RebalanceSpec, StorageSpec, TransferMode, VolumesSpec,
    },
    validation,
};

/// What the user wants, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose spec this is.
    pub cluster: ClusterId,
    /// `metadata.generation`.
    pub generation: i64,
    /// The DialogCluster is being deleted: Kubernetes' garbage collector does the rest.
    pub deleting: bool,
    /// Nothing may be changed.
    pub paused: bool,
    /// The image asked for, if one is.
    pub image: Option<String>,
    /// When the kubelet pulls it.
    pub image_pull_policy: ImagePullPolicy,
    /// Credentials of its registry.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Pod and volume of the coordinator.
    pub coordinator: NodeTemplate,
    /// Pod and volume of each worker.
    pub worker: NodeTemplate,
    /// Workers asked for.
    pub workers: u16,
    /// How long the others wait for a worker that never becomes ready.
    pub join_timeout: SignedDuration,
    /// User of the server process.
    pub uid: i64,
    /// Group of the server process.
    pub gid: i64,
    /// The user's parameters.
    pub parameters: BTreeMap<String, String>,
    /// The application's database and role.
    pub database: DatabaseSpec,
    /// Shards of a distributed table.
    pub shard_count: u32,
    /// SQL to run instead of the built-in schema.
    pub schema_source: Option<ConfigMapKey>,
    /// Who starts a rebalance, and how it is done.
    pub rebalance: Rebalance,
    /// What becomes of volumes that are no longer used.
    pub volumes: VolumesSpec,
    /// The worker whose data a person gives up: value of the annotation [`keys::FORCE_REMOVE`], as it was written.
    pub force_remove: Option<String>,
    /// The annotation that asks for new authorities in place of lost ones.
    #[serde(default)]
    pub new_authority: Option<String>,
    /// The annotation that asks for one restart of every node.
    #[serde(default)]
    pub restart_requested: Option<String>,
}

/// How shards are moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebalance {
    /// Who starts one.
    pub mode: RebalanceMode,
    /// A row of pg_dist_rebalance_strategy.
    pub strategy: String,
    /// `shard_transfer_mode`.
    pub transfer_mode: TransferMode,
    /// Moves that any one worker takes part in at the same time.
    pub max_moves_per_node: u16,
}

/// A field of the spec that cannot be followed. The API server refuses most of these at apply; this is the second
/// look, for objects that were stored under an older rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {problem}")]
pub struct Invalid {
    /// Path of the field below `spec`.
    pub field: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

impl Desired {
    /// Every node that should exist, the coordinator first.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        std::iter::once(Node::Coordinator).chain((0..self.workers).map(Node::Worker))
    }
    /// The template of a node.
    #[must_use]
    pub fn template(&self, node: Node) -> &NodeTemplate {
        match node {
            Node::Coordinator => &self.coordinator,
            Node::Worker(_) => &self.worker,
        }
    }
    /// The volume of a node.
    #[must_use]
    pub fn storage(&self, node: Node) -> &StorageSpec {
        &self.template(node).storage
    }
}

fn positive<T: TryFrom<i64>>(field: &str, value: i64) -> Result<T, Invalid> {
    T::try_from(value)
        .ok()
        .filter(|_| value > 0)
        .ok_or_else(|| Invalid { field: field.to_owned(), problem: format!("{value} is out of range") })
}

fn join_timeout(text: &str) -> Result<SignedDuration, Invalid> {
    text.parse().map_err(|error| Invalid {
        field: "workers.joinTimeout".to_owned(),
        problem: format!("'{text}' is no duration such as 10m: {error}"),
    })
}

fn parameters(given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Invalid> {
    let problem = |problem: String| Invalid { field: "postgres.parameters".to_owned(), problem };
    for (name, value) in given {
        if !validation::is_parameter_name(name) {
            return Err(problem(format!(
                "'{name}' is no parameter name: names are written in lower case (a-z, 0-9, _ and .)"
            )));
        }
        if validation::is_owned(name) {
            return Err(problem(format!("the operator owns {name}: remove it")));
        }
        if value.contains(['\n', '\r', '\0']) {
            return Err(problem(format!("the value of {name} is more than one line")));
        }
    }
    Ok(given.clone())
}

fn rebalance(spec: &RebalanceSpec) -> Result<Rebalance, Invalid> {
    Ok(Rebalance {
        mode: spec.mode,
        strategy: spec.strategy.clone(),
        transfer_mode: spec.transfer_mode,
        max_moves_per_node: positive("rebalance.maxMovesPerNode", spec.max_moves_per_node.into())?,
    })
}

impl TryFrom<&DialogCluster> for Desired {
    type Error = Invalid;
    fn try_from(cluster: &DialogCluster) -> Result<Self, Invalid> {
        let spec = &cluster.spec;
        Ok(Self {
            cluster: ClusterId {
                namespace: cluster.namespace().unwrap_or_default(),
                name: cluster.name_any(),
                uid: cluster.uid().unwrap_or_default(),
            },
            generation: cluster.metadata.generation.unwrap_or_default(),
            deleting: cluster.metadata.deletion_timestamp.is_some(),
            paused: spec.paused,
            image: spec.image.clone(),
            image_pull_policy: spec.image_pull_policy,
            image_pull_secrets: spec.image_pull_secrets.clone(),
            coordinator: spec.coordinator.clone(),
            worker: spec.workers.template.clone(),
            workers: positive("workers.replicas", spec.workers.replicas.into())?,
            join_timeout: join_timeout(&spec.workers.join_timeout)?,
            uid: positive("postgres.uid", spec.postgres.uid)?,
            gid: positive("postgres.gid", spec.postgres.gid)?,
            parameters: parameters(&spec.postgres.parameters)?,
            database: spec.database.clone(),
            shard_count: positive("schema.shardCount", spec.schema.shard_count.into())?,
            schema_source: spec.schema.config_map_ref.clone(),
            rebalance: rebalance(&spec.rebalance)?,
            volumes: spec.volumes.clone(),
            force_remove: cluster.annotations().get(keys::FORCE_REMOVE).cloned(),
            new_authority: cluster.annotations().get(keys::NEW_AUTHORITY).cloned(),
            restart_requested: cluster.annotations().get(keys::RESTART_REQUESTED_AT).cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::DialogClusterSpec;

    fn cluster(spec: serde_json::Value) -> DialogCluster {
        DialogCluster::new("shop", serde_json::from_value::<DialogClusterSpec>(spec).unwrap())
    }

    #[test]
    fn an_empty_spec_is_a_whole_cluster() {
        let desired = Desired::try_from(&cluster(serde_json::json!({}))).unwrap();
        assert_eq!(desired.workers, 2);
        assert_eq!(desired.join_timeout, SignedDuration::from_mins(10));
        assert_eq!(desired.rebalance.strategy, "by_shard_count");
        assert_eq!(desired.rebalance.max_moves_per_node, 4);
        assert_eq!(desired.storage(Node::Worker(1)).size.0, "10Gi");
        assert_eq!(desired.nodes().count(), 3);
    }

    #[test]
    fn owned_parameters_are_refused_by_name() {
        for name in [
            "wal_level",
            "ssl_cert_file",
            "include_dir",
            "archive_mode",
            "citus.node_conninfo",
            "WAL_LEVEL",
            "work mem",
        ] {
            let error =
                Desired::try_from(&cluster(serde_json::json!({"postgres": {"parameters": {name: "x"}}})))
                    .unwrap_err();
            assert_eq!(error.field, "postgres.parameters");
            assert!(error.problem.contains(name), "{error}");
        }
    }

    #[test]
    fn a_value_cannot_add_a_line_to_the_configuration() {
        let spec = serde_json::json!({"postgres": {"parameters": {"work_mem": "4MB\nfsync = off"}}});
        assert!(Desired::try_from(&cluster(spec)).is_err());
    }
}
