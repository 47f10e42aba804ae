//! What a user writes: the `DialogCluster` custom resource. Every field has a default at every level, so `spec: {}`
//! is a whole cluster. Validation that the API server runs is in `validation`; nothing is computed here.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{status::DialogClusterStatus, validation};

/// A Citus cluster that holds the dialogs of a social network: one coordinator and any number of workers.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "dialogcluster.dev",
    version = "v1alpha1",
    kind = "DialogCluster",
    plural = "dialogclusters",
    shortname = "dlc",
    category = "all",
    namespaced,
    status = "DialogClusterStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.workers.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Workers",
        type_ = "integer",
        json_path = ".spec.workers.replicas",
        description = "workers asked for"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "workers that answer"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Balanced",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Balanced")].status"#
    ),
    printcolumn(
        name = "Moves",
        type_ = "string",
        json_path = ".status.rebalance.progress",
        description = "moves done of the latest rebalance"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[kube(validation = validation::name_is_short())]
#[kube(validation = validation::name_leaves_room())]
#[serde(rename_all = "camelCase", default)]
#[schemars(default)]
pub struct DialogClusterSpec {
    /// Container image with `sh`, PostgreSQL 15 or later and the citus extension. Absent: the image the cluster runs;
    /// for a new cluster the operator's own default.
    #[schemars(extend("x-kubernetes-validations" = [validation::not_empty("image")]))]
    #[schemars(length(max = 500))]
    pub image: Option<String>,
    /// When the kubelet pulls the image.
    pub image_pull_policy: ImagePullPolicy,
    /// Secrets with credentials for the image's registry.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The coordinator: the node that applications connect to.
    pub coordinator: NodeTemplate,
    /// The workers: the nodes that hold the shards.
    pub workers: WorkersSpec,
    /// The PostgreSQL server on every node.
    pub postgres: PostgresSpec,
    /// The database of the application.
    pub database: DatabaseSpec,
    /// The tables made when the cluster is born.
    pub schema: SchemaSpec,
    /// How shards are moved until their counts are even.
    pub rebalance: RebalanceSpec,
    /// What becomes of volumes that are no longer used.
    pub volumes: VolumesSpec,
    /// `true`: the operator observes and reports, and changes nothing.
    pub paused: bool,
}

/// When the kubelet pulls an image (as in a Pod).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
#[allow(missing_docs)] // Kubernetes' own words
pub enum ImagePullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// What the pod of a node looks like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTemplate {
    /// The node's volume.
    pub storage: StorageSpec,
    /// CPU and memory of the server's container.
    pub resources: ResourceRequirements,
    /// Labels that a Kubernetes node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    pub tolerations: Vec<Toleration>,
    /// Absent: the nodes of a cluster prefer different hosts.
    pub affinity: Option<Affinity>,
    /// How pods spread over zones; a constraint without a `labelSelector` counts the nodes of this cluster.
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority of the pod.
    pub priority_class_name: Option<String>,
    /// Extra annotations of the pod.
    pub pod_annotations: BTreeMap<String, String>,
    /// Extra labels of the pod.
    pub pod_labels: BTreeMap<String, String>,
}

/// The workers: a node template, and how many there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkersSpec {
    /// How many workers there should be. The scale subresource points here.
    #[schemars(range(min = 1, max = 256))]
    pub replicas: i32,
    /// How long the others wait for a worker that is not registered yet, from the creation of its StatefulSet (such as `10m`).
    #[schemars(regex(pattern = r"^([0-9]{1,5}h)?([0-9]{1,6}m)?([0-9]{1,7}s)?$"), length(min = 2))]
    pub join_timeout: String,
    /// The template of each worker.
    #[serde(flatten)]
    pub template: NodeTemplate,
}

impl Default for WorkersSpec {
    fn default() -> Self {
        Self { replicas: 2, join_timeout: "10m".to_owned(), template: NodeTemplate::default() }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [validation::storage_class_is_fixed()]))]
pub struct StorageSpec {
    /// Size of the volume. A volume only grows: a size below what it has is told, and touches nothing.
    #[schemars(extend("x-kubernetes-validations" = [validation::is_positive_quantity()]))]
    #[schemars(schema_with = "quantity_schema")]
    pub size: Quantity,
    /// Storage class; absent: the default class of the Kubernetes cluster. Immutable.
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: Quantity("10Gi".to_owned()), storage_class_name: None }
    }
}

fn quantity_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "maxLength": 40 })
}

/// The PostgreSQL server of every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PostgresSpec {
    /// User of the server process in the image. Immutable: it owns the files.
    #[schemars(extend("x-kubernetes-validations" = [validation::immutable("postgres.uid")]))]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub uid: i64,
    /// Group of the server process in the image. Immutable: it owns the files.
    #[schemars(extend("x-kubernetes-validations" = [validation::immutable("postgres.gid")]))]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub gid: i64,
    /// Settings of postgresql.conf for every node. Those that the operator owns are refused. Timeouts (`statement_timeout`,
    /// `lock_timeout`, `transaction_timeout`, `idle_session_timeout`, `idle_in_transaction_session_timeout`) apply where
    /// clients log in, at the coordinator: on workers they would end the moves of shards. What is listed in
    /// `output_plugin_libraries` is added to `pgoutput, test_decoding, citus`, where the server knows that setting.
    #[schemars(extend("x-kubernetes-validations" = validation::parameters()))]
    #[schemars(schema_with = "parameters_schema")]
    pub parameters: BTreeMap<String, String>,
}

impl Default for PostgresSpec {
    fn default() -> Self {
        Self { uid: 999, gid: 999, parameters: BTreeMap::new() }
    }
}

fn parameters_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 200,
        "additionalProperties": { "type": "string", "maxLength": 1000, "pattern": validation::ONE_LINE }
    })
}

/// The application's database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatabaseSpec {
    /// Name of the database. Immutable.
    #[schemars(extend("x-kubernetes-validations" = [validation::immutable("database.name"), validation::database_name_is_free()]))]
    #[schemars(regex(pattern = "^[a-z_][a-z0-9_]*$"), length(min = 1, max = 63))]
    pub name: String,
    /// The application's role; its credentials are in the Secret `<name>-app`. Immutable until renaming exists.
    #[schemars(extend("x-kubernetes-validations" = [validation::immutable("database.owner"), validation::owner_is_free()]))]
    #[schemars(regex(pattern = "^[a-z_][a-z0-9_]*$"), length(min = 1, max = 63))]
    pub owner: String,
    /// Extensions that the superuser makes in the database, before the schema's SQL is run: that runs as `owner`, and
    /// most extensions need a superuser. The image must have them. One that is taken from the list stays.
    #[schemars(extend("x-kubernetes-validations" = [validation::extensions_are_free()], "x-kubernetes-list-type" = "set"))]
    #[schemars(schema_with = "extensions_schema")]
    pub extensions: Vec<String>,
}

fn extensions_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 50,
        "items": { "type": "string", "maxLength": 63, "pattern": "^[a-z_][a-z0-9_-]*$" }
    })
}

impl Default for DatabaseSpec {
    fn default() -> Self {
        Self { name: "dialogs".to_owned(), owner: "dialogs".to_owned(), extensions: Vec::new() }
    }
}

/// The tables made at birth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SchemaSpec {
    /// Shards of a distributed table. Immutable.
    #[schemars(extend("x-kubernetes-validations" = [validation::immutable("schema.shardCount")]))]
    #[schemars(range(min = 1, max = 64_000))]
    pub shard_count: i32,
    /// SQL to run instead of the built-in dialogs schema: once, in one transaction, as the superuser.
    pub config_map_ref: Option<ConfigMapKey>,
}

impl Default for SchemaSpec {
    fn default() -> Self {
        Self { shard_count: 32, config_map_ref: None }
    }
}

/// A key of a ConfigMap in the cluster's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How shards are moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RebalanceSpec {
    /// `Auto`: a rebalance is started when Citus' own plan is not empty. `Off`: never.
    pub mode: RebalanceMode,
    /// A row of pg_dist_rebalance_strategy.
    #[schemars(length(min = 1, max = 63))]
    pub strategy: String,
    /// How Citus copies a shard.
    pub transfer_mode: TransferMode,
    /// Moves that any one worker takes part in at the same time, as source or as target; 1 is one at a time. With more
    /// workers more moves run at once: half as many times this number as there are workers, and never more than 32.
    #[schemars(range(min = 1, max = 32))]
    pub max_moves_per_node: i32,
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        Self {
            mode: RebalanceMode::Auto,
            strategy: "by_shard_count".to_owned(),
            transfer_mode: TransferMode::Auto,
            max_moves_per_node: 4,
        }
    }
}

/// What becomes of volumes that are no longer used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumesSpec {
    /// The volume of a worker that was drained and removed. A kept one carries the label `dialogcluster.dev/decommissioned` and
    /// is never used again.
    pub when_scaled: VolumePolicy,
    /// All volumes, when the DialogCluster is deleted.
    pub when_deleted: VolumePolicy,
}

/// Whether a volume is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
pub enum VolumePolicy {
    /// It is kept.
    #[default]
    Retain,
    /// It is deleted, and its data with it.
    Delete,
}

/// Who starts a rebalance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
pub enum RebalanceMode {
    /// The operator, when Citus plans a move.
    #[default]
    Auto,
    /// Nobody but a person.
    Off,
}

/// `shard_transfer_mode` of Citus, in Citus' own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TransferMode {
    /// Logical replication; refuses a table without primary key or replica identity.
    #[default]
    Auto,
    /// Logical replication also without a replica identity: updates and deletes fail meanwhile.
    ForceLogical,
    /// Writes to the moving shard wait.
    BlockWrites,
}
