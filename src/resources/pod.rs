//! The pod of a node: containers, volumes, probes, and what makes it pass the *restricted* Pod Security Standard.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
        ExecAction, PersistentVolumeClaimVolumeSource, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
        PodSpec, Probe, SeccompProfile, SecretVolumeSource, SecurityContext, TopologySpreadConstraint,
        Volume, VolumeMount, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::{Map, Value, json};

use super::{
    BuildContext,
    diff::canonical_quantity,
    meta::nodes_selector,
    paths::{CONFIG, DATA, NODE_TLS, RUN, SERVER_TLS, START_SCRIPT},
    text_hash,
};
use crate::api::{ClusterId, Desired, Node, names::SecretKind};

/// Port of every server.
pub(super) const PORT: i32 = 5432;
/// Its name in containers and Services.
pub(super) const PORT_NAME: &str = "postgresql";
/// Name of the server's container.
pub const SERVER: &str = "postgres";
/// What the cluster autoscaler reads: names of volumes that keep no pod where it is.
pub(super) const LOCAL_VOLUMES: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// Time for a fast shutdown: a big cache is written out in a checkpoint.
const STOP_SECONDS: i64 = 300;
/// A crash recovery is never killed by impatience: it would start over from the same point. One day.
const START_SECONDS: i32 = 86_400;

/// The mark that the start script sets; asking the server itself would write a FATAL into its log each second of a
/// recovery.
const STARTED: &str = "[ -e /run/dialog/ready ]";
/// Over the socket, without a password, without a session.
const ANSWERS: &str = "for directory in /usr/lib/postgresql/*/bin; do PATH=$PATH:$directory; done; \
                       exec pg_isready -q -h /run/dialog -p 5432 -t 4";

pub(super) fn local_volumes(spec: &PodSpec) -> String {
    let volumes = spec.volumes.iter().flatten().filter(|volume| volume.empty_dir.is_some());
    volumes.map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(",")
}

/// What a pod has in the annotation [`LOCAL_VOLUMES`] when the spec says nothing.
pub(super) fn default_local_volumes(inputs: &BuildContext, node: Node) -> String {
    local_volumes(&pod_spec(inputs, node, ""))
}

pub(super) fn pod_spec(inputs: &BuildContext, node: Node, claim: &str) -> PodSpec {
    let desired = inputs.desired;
    let cluster = &desired.cluster;
    let template = desired.template(node);
    PodSpec {
        containers: vec![server(inputs, node)],
        volumes: Some(volumes(cluster, node, claim)),
        affinity: Some(template.affinity.clone().unwrap_or_else(|| prefer_different_hosts(cluster))),
        topology_spread_constraints: non_empty(
            template
                .topology_spread_constraints
                .iter()
                .map(|constraint| with_default_selector(constraint, cluster))
                .collect(),
        ),
        node_selector: non_empty_map(&template.node_selector),
        tolerations: non_empty(template.tolerations.clone()),
        priority_class_name: template.priority_class_name.clone(),
        termination_grace_period_seconds: Some(STOP_SECONDS),
        ..secure_pod(desired)
    }
}

/// What every pod of the operator has in common.
pub(super) fn secure_pod(desired: &Desired) -> PodSpec {
    PodSpec {
        service_account_name: Some(desired.cluster.name.clone()),
        automount_service_account_token: Some(false),
        // Hundreds of variables named after Services are no use to a server and slow its start.
        enable_service_links: Some(false),
        image_pull_secrets: non_empty(desired.image_pull_secrets.clone()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(desired.uid),
            run_as_group: Some(desired.gid),
            fs_group: Some(desired.gid),
            // Walking through all files of a big volume at each start takes minutes.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

/// What every container of the operator has in common.
pub(super) fn secure_container(desired: &Desired, image: &str, name: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some(desired.image_pull_policy.to_string()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            ..SecurityContext::default()
        }),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        // The start script says why it ends; when it could not, the end of the log does.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn server(inputs: &BuildContext, node: Node) -> Container {
    Container {
        command: Some(vec!["sh".to_owned(), format!("{CONFIG}/{START_SCRIPT}")]),
        ports: Some(vec![ContainerPort {
            name: Some(PORT_NAME.to_owned()),
            container_port: PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(inputs.desired.template(node).resources.clone()),
        // Ready is seen within a second of being so: the kubelet asks the readiness probe at once after this one.
        startup_probe: Some(Probe {
            period_seconds: Some(1),
            failure_threshold: Some(START_SECONDS),
            ..probe(STARTED)
        }),
        readiness_probe: Some(Probe {
            period_seconds: Some(5),
            failure_threshold: Some(3),
            ..probe(ANSWERS)
        }),
        // No liveness probe: a server that is slow under load is not helped by being killed.
        volume_mounts: Some(vec![
            mount("data", DATA),
            mount("run", RUN),
            mount("tmp", "/tmp"),
            mount("shared-memory", "/dev/shm"),
            read_only(mount("config", CONFIG)),
            read_only(mount("server-tls", SERVER_TLS)),
            read_only(mount("node-tls", NODE_TLS)),
        ]),
        ..secure_container(inputs.desired, inputs.image, SERVER)
    }
}

fn probe(script: &str) -> Probe {
    Probe {
        exec: Some(ExecAction { command: Some(["sh", "-c", script].map(str::to_owned).to_vec()) }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn read_only(mount: VolumeMount) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount }
}

fn volumes(cluster: &ClusterId, node: Node, claim: &str) -> Vec<Volume> {
    let volume = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    // Readable by the server's group, which is the pod's fsGroup; libpq and PostgreSQL take a key of root with 0640.
    let secret = |name: &str, kind| Volume {
        secret: Some(SecretVolumeSource {
            secret_name: Some(cluster.secret(kind)),
            default_mode: Some(0o640),
            ..SecretVolumeSource::default()
        }),
        ..volume(name)
    };
    vec![
        Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: None,
            }),
            ..volume("data")
        },
        limited("run", "64Mi"),
        limited("tmp", "1Gi"),
        // The 64 MB that containers get are too little for parallel queries. How much they need nobody knows but who
        // writes them, and a query that gets less fails: the limit is the container's memory, where it has one.
        empty_dir("shared-memory", Some("Memory")),
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: node.object_name(&cluster.name),
                ..ConfigMapVolumeSource::default()
            }),
            ..volume("config")
        },
        secret("server-tls", SecretKind::Server),
        secret("node-tls", SecretKind::Node),
    ]
}

pub(super) fn empty_dir(name: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None }),
        ..Volume::default()
    }
}

/// Next to nothing is written there; a program that fills it costs its pod, and not all pods of the host.
fn limited(name: &str, limit: &str) -> Volume {
    let mut volume = empty_dir(name, None);
    if let Some(source) = &mut volume.empty_dir {
        source.size_limit = Some(Quantity(limit.to_owned()));
    }
    volume
}

/// Losing a host then costs one node, where there are hosts enough; a single host still takes all.
fn prefer_different_hosts(cluster: &ClusterId) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: PodAffinityTerm {
                    label_selector: Some(nodes_selector(cluster)),
                    topology_key: "kubernetes.io/hostname".to_owned(),
                    ..PodAffinityTerm::default()
                },
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// A constraint that does not say what it counts counts the nodes of this cluster.
fn with_default_selector(
    constraint: &TopologySpreadConstraint,
    cluster: &ClusterId,
) -> TopologySpreadConstraint {
    let mut constraint = constraint.clone();
    constraint.label_selector.get_or_insert_with(|| nodes_selector(cluster));
    constraint
}

pub(super) fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

pub(super) fn non_empty_map(map: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then(|| map.clone())
}

/// Hash of what the *user* wrote about a node's pod: a pod that carries another one needs a restart.
///
/// Labels and annotations are changed on running pods (`pod_metadata`). Nothing of the operator's own making is in it, so that an operator upgrade restarts no node; how and with which
/// credentials the image is pulled is no reason to restart a pod that has it; and `1000m` is `1`.
#[must_use]
pub fn user_template_hash(inputs: &BuildContext, node: Node) -> String {
    let template = inputs.desired.template(node);
    let mut written = json!({
        "image": inputs.image,
        "resources": template.resources,
        "nodeSelector": template.node_selector,
        "tolerations": template.tolerations,
        "affinity": template.affinity,
        "topologySpreadConstraints": template.topology_spread_constraints,
        "priorityClassName": template.priority_class_name,
    });
    for amounts in ["requests", "limits"] {
        if let Some(amounts) = written["resources"].get_mut(amounts).and_then(Value::as_object_mut) {
            for amount in amounts.values_mut() {
                *amount = json!(canonical_quantity(amount.as_str().unwrap_or_default()));
            }
        }
    }
    // A field that is added one day, and that nobody uses, changes nothing.
    text_hash::hex(&[&text_hash::canonical(&without_empty(written))])
}

fn without_empty(value: Value) -> Value {
    let Value::Object(fields) = value else { return value };
    let kept: Map<String, Value> = fields
        .into_iter()
        .map(|(key, value)| (key, without_empty(value)))
        .filter(|(_, value)| !is_empty(value))
        .collect();
    Value::Object(kept)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
