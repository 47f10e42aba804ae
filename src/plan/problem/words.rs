//! The sentences of problems: what is wrong, where, in whose words, and what to do. The only place that words them, so
//! that they are read and reviewed together. They say nothing that changes from one look to the next.

use std::{collections::BTreeSet, fmt};

use super::{
    DrainRefusal, ForceRemoveRefusal, GrowthRefusal, LastingRefusal, NotOurs, Problem, RefusalKind,
    VersionsDiffer, VolumeLoss, contents,
};
use crate::api::{
    names::keys,
    words::{several, size},
};

/// Names in a sentence; of more only the number is told.
pub(super) const NAMED: usize = 10;

impl fmt::Display for Problem {
    #[allow(clippy::too_many_lines)] // one arm a problem
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidSpec { message } => f.write_str(message),
            Self::ObjectConflict { kind, name } => write!(
                f,
                "{kind} {name} exists and does not belong to this cluster: it is left alone. Remove or rename it, or give the cluster another name."
            ),
            Self::NotAdopted { kind, name, namespace, why } => {
                write!(
                    f,
                    "{kind}/{name} was left behind by an earlier DialogCluster of this name and is not taken over: {why}. "
                )?;
                if kind == "StatefulSet" {
                    write!(
                        f,
                        "Look at it: `kubectl -n {namespace} get statefulset {name} -o yaml`. If its volume claim is the right one: `kubectl -n {namespace} delete statefulset {name}`; it is created again on the same volume, and its pod restarts once."
                    )
                } else {
                    let kind = kind.to_lowercase();
                    write!(
                        f,
                        "If nobody needs it: `kubectl -n {namespace} delete {kind} {name}`; it is created again."
                    )
                }
            }
            Self::AuthorityMissing { secret, trusting, signed, delete_first } => {
                write!(
                    f,
                    "Secret {secret} is gone, and its keys exist nowhere else: {} trust the certificate authorities in it, so it is not created anew. Running nodes serve on, but no pod can start once one of {} is missing, because these can only be made from it. Restore it from a copy. Without a copy, docs/runbook.md describes how to get new authorities, which restarts all nodes at once.",
                    trusting.join(", "),
                    signed.join(", ")
                )?;
                if delete_first.is_empty() {
                    return Ok(());
                }
                let key = keys::NEW_AUTHORITY;
                write!(f, " New ones are requested ({key}): delete {} first.", delete_first.join(", "))
            }
            Self::AuthorityIncomplete { secret, keys } => write!(
                f,
                "Secret {secret} has no {}: no certificate can be signed. Restore it from a copy.",
                keys.join(", ")
            ),
            Self::PasswordNotUsable { secret, why, owner } => write!(
                f,
                "Secret {secret}: {why}. The role {owner} keeps its current password. Write another one."
            ),
            Self::ParameterRejected { name, message } => write!(
                f,
                "spec.postgres.parameters.{name}: {message}. No node was changed or restarted. Correct the value, or remove it."
            ),
            Self::ConfigurationRejected { node, message } => write!(
                f,
                "{node} did not start with spec.postgres.parameters and runs with its last good configuration: {message}. No other node is restarted. Correct the parameters."
            ),
            Self::CapacityTooLow { node, lack } => write!(
                f,
                "{node}: {lack}: no shard is moved. Raise it, or lower spec.rebalance.maxMovesPerNode."
            ),
            Self::ImageNotUsable { image, why, running } => write!(
                f,
                "spec.image: {image} cannot be used: {why}. Nothing was restarted; the nodes keep running {running}. Correct spec.image."
            ),
            Self::ImageNotPulled { pod, image, reason, message } => write!(
                f,
                "pod {pod}: {reason}: {message}. Correct spec.image (now {image}) or spec.imagePullSecrets."
            ),
            Self::UpgradeNotSupported { image, running, differs } => write!(
                f,
                "spec.image: {image} has {differs}. Nothing was restarted; the nodes keep running {running}. Use an image of the same versions."
            ),
            Self::CitusDiffers { node, citus, coordinator } => {
                let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
                write!(
                    f,
                    "{node} has Citus {}, the coordinator {}: it is not registered. Use one image for all nodes.",
                    version(citus),
                    version(coordinator)
                )
            }
            Self::VolumeLost { node, claim, loss } => volume_lost(f, node, claim, loss),
            Self::RegisteredWithoutVolume { node } => write!(
                f,
                "{node} is registered in pg_dist_node, and it has no volume claim left: nothing is initialised in its place. Bring its volume back (labels {}, {}), or restore from a backup, or give up its data: annotation {}={node}/none.",
                keys::CLUSTER,
                keys::NODE,
                keys::FORCE_REMOVE
            ),
            Self::CoordinatorVolumeMissing { claim } => write!(
                f,
                "volume claim {claim} belongs to an earlier cluster of this name, and its coordinator's volume claim is not here: nothing is initialised. Bring the coordinator's volume back, or use another name, or delete the old claims if their data is not needed."
            ),
            Self::CoordinatorMetadataMissing { coordinator, holder } => write!(
                f,
                "{coordinator} knows no nodes, and {holder} holds the metadata of a cluster, possibly the last copy: nothing is registered. Restore the coordinator's volume."
            ),
            Self::SystemIdentifierMismatch { node, why } => write!(
                f,
                "{node}: {why}. It is not registered, activated, or used for moves. Bring the right volume back."
            ),
            Self::TablesMissing { node, placements } => write!(
                f,
                "{node}: the tables of {} are missing: it was emptied and activated again. No shard is moved. Restore its data.",
                several(*placements, "placement")
            ),
            Self::OtherDomain { registered, address } => write!(
                f,
                "pg_dist_node has {registered} and not {address}: nothing is registered. Was the operator started with another --cluster-domain? Start it with the domain of the names in pg_dist_node."
            ),
            Self::GroupUnknown { node, group, claim } => write!(
                f,
                "{node} says that it is group {group} of a cluster, and pg_dist_node has no such group: it was removed by hand, and is not registered a second time. To put a new worker in its place, and keep this volume aside: kubectl label pvc {} {}=by-hand",
                claim.as_deref().unwrap_or("?"),
                keys::DECOMMISSIONED
            ),
            Self::AddressMismatch { node, group, registered, node_id, address, port } => write!(
                f,
                "{node} is group {group}, and pg_dist_node has that group as {registered} instead of {address}: it is not registered a second time. If {registered} is an old address of this server, run on the coordinator: SELECT citus_update_node({node_id}, '{address}', {port});"
            ),
            Self::SchemaFailed { message } => write!(f, "{message}. Correct the SQL; it is then run again."),
            Self::ExtensionFailed { message } => write!(
                f,
                "{message}. Use an image that has it, or remove it from spec.database.extensions; everything but the schema's SQL goes on."
            ),
            Self::Obstacle(obstacle) => obstacle.fmt(f),
            Self::StrategyUnknown { strategy, message } => write!(
                f,
                "spec.rebalance.strategy: {strategy}: {message}. Use a row of pg_dist_rebalance_strategy."
            ),
            Self::ScaleInRefused { workers, staying, registered, why } => write!(
                f,
                "spec.workers.replicas: {staying} of {registered} workers are to remain, and {} cannot be drained: {why}. Nothing was changed; all workers keep serving.",
                workers.join(", ")
            ),
            Self::DrainHalted => f.write_str(
                "spec.rebalance.mode was set to Off in the middle of a drain: the remaining shards stay where they are and are served. Set it to Auto, or set spec.workers.replicas back.",
            ),
            Self::RemovalRefused { node, found } => write!(
                f,
                "{node} is drained and cannot be removed: {}. It stays registered, without shards. {CURE}.",
                contents::found(node, found)
            ),
            Self::DecommissionRefused { node, found } => write!(
                f,
                "{node} was a member, is no longer one, and cannot be decommissioned: {}. {CURE}.",
                contents::found(node, found)
            ),
            Self::ForceRemoveRefused { value, why } => write!(
                f,
                "annotation {} is {value}: {why}. Nothing was given up. Correct or remove the annotation.",
                keys::FORCE_REMOVE
            ),
            Self::WalLevelOverridden { node, wal_level } => write!(
                f,
                "{node} runs wal_level = {wal_level} although it was started by the operator's script: something in its image or StatefulSet overrides it. No shard is moved. Look at the pod's command and environment."
            ),
            Self::NodeCannotStart { node, pod, last } => {
                write!(f, "{node}: its server keeps exiting: {last}. See `kubectl logs {pod}`.")
            }
            Self::MetadataUnknown { node, coordinator, identity } => write!(
                f,
                "{node} was initialised and does not answer, and {coordinator} knows no nodes: {node} may hold the metadata of a cluster, so nothing is registered. Bring it back, or give it up if it is lost for good: annotation {}={node}/{identity}.",
                keys::FORCE_REMOVE
            ),
            Self::PodRefused { node, message } => write!(
                f,
                "{node}: its pod cannot be created: {}. Change what refuses it, or what the spec asks for; Kubernetes then tries again by itself.",
                sentence(message)
            ),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::GrowthRefused(refusal) => refusal.fmt(f),
            Self::GrowthFailed { claim, has, wanted, field, message } => write!(
                f,
                "volume claim {claim} was to grow from {has} to {wanted}: {}. Fix what is named, or set spec.{field}.storage.size back to {has}. Everything else goes on.",
                sentence(message)
            ),
            Self::StorageCannotShrink { field, wanted, larger, largest } => write!(
                f,
                "spec.{field}.storage.size is {wanted}, and these volumes are larger: {}. A volume cannot be made smaller: they stay as they are, and everything else goes on. Set the size to {largest}.",
                first(larger.iter().map(|(claim, has)| format!("{claim} ({has})")))
            ),
            Self::InvariantBroken { rule } => write!(
                f,
                "{rule}. Nothing was done. This is a bug of the operator: please report it with its snapshot."
            ),
        }
    }
}

/// What there is to do about what people keep on a worker.
const CURE: &str = "It would be lost with the worker, because a kept volume is never used again: move it elsewhere if you need it, then drop it there; the scale-in goes on by itself within 30 s";

/// Without its full stop.
fn sentence(message: &str) -> &str {
    message.trim_end_matches('.')
}

fn first(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let text = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// What may be deleted to make room under a quota; nothing when there is nothing.
fn no_space(unused_claims: &BTreeSet<String>) -> String {
    if unused_claims.is_empty() {
        return String::new();
    }
    format!(
        "; or free some space: volume claims of drained workers are kept ({}), never used again, and may be deleted if you need nothing on them: {}",
        unused_claims.len(),
        first(unused_claims.iter().cloned())
    )
}

fn volume_lost(f: &mut fmt::Formatter<'_>, node: &str, claim: &str, loss: &VolumeLoss) -> fmt::Result {
    match loss {
        VolumeLoss::Deleting => write!(
            f,
            "{node}: its volume claim {claim} was deleted. The data is there as long as its pod runs, which is not restarted: copy it while you can, or drain the worker by lowering spec.workers.replicas. It is not initialised again."
        ),
        VolumeLoss::Gone => write!(
            f,
            "{node}: its volume claim {claim} is gone, and {node} was initialised before: it is not initialised again. Bring the volume back under that name, or restore the cluster from a backup."
        ),
        VolumeLoss::Empty(said) => write!(
            f,
            "{node}: its volume {claim} is empty, and {node} was initialised before: it is not initialised again. The pod says: {said}. Bring the volume's data back, or restore from a backup."
        ),
    }
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |found: &Option<String>| found.clone().unwrap_or_else(|| "missing".to_owned());
        match self {
            Self::NoCoordinator { coordinator } => {
                write!(f, "there is no volume claim of {coordinator} with a system identifier")
            }
            Self::OtherNode { label } => write!(f, "its label {} is {}", keys::NODE, known(label)),
            Self::OtherServer { recorded, on_volume } => write!(
                f,
                "its system identifier is {}, and that of the node's volume claim is {}",
                known(recorded),
                known(on_volume)
            ),
        }
    }
}

impl fmt::Display for super::Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, value, needed } = self;
        write!(f, "{setting} = {value} is less than the {needed} that spec.rebalance.maxMovesPerNode needs")
    }
}

impl fmt::Display for VersionsDiffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { image, running } => {
                write!(f, "PostgreSQL {image}, and the cluster's data is of PostgreSQL {running}")
            }
            Self::Citus { image, running } => {
                write!(f, "Citus {image}, and the cluster runs Citus {running}")
            }
        }
    }
}

impl fmt::Display for DrainRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RebalanceOff => f.write_str(
                "spec.rebalance.mode is Off, and a drain moves shards; set it to Auto, or set spec.workers.replicas back",
            ),
            Self::NoWorkerRemains => f.write_str("no worker would remain to take their shards"),
            Self::Contents(all) => {
                let all: Vec<String> = all.iter().map(|(node, found)| contents::found(node, found)).collect();
                write!(f, "{}. {CURE}, or set spec.workers.replicas back", all.join(". "))
            }
            Self::NoSpace { node, moved, needed, available, free, capacity } => write!(
                f,
                "{} must be moved; {node} needs about {} for its share, with a quarter more for work, and has space for {} ({} free of {}, {} % of which Citus keeps free). Grow spec.workers.storage.size, or set spec.workers.replicas back",
                size(*moved),
                size(*needed),
                size(*available),
                size(*free),
                size(*capacity),
                crate::plan::scale_in::KEPT_FREE_PERCENT
            ),
        }
    }
}

impl fmt::Display for ForceRemoveRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { example } => write!(
                f,
                "it names no workers: write <worker>/<system identifier>, such as {example}/7436000000000000000, separated by commas"
            ),
            Self::Spent { node } => write!(
                f,
                "it was refused when it was set, and is not tried again. If {node} is lost now, remove the annotation and set it again"
            ),
            Self::OtherServer { node, recorded } => write!(
                f,
                "the system identifier recorded for {node} is {recorded}: the worker that is meant no longer exists"
            ),
            Self::MayBeRegistered { node } => write!(
                f,
                "pg_dist_node has workers under names that are not this cluster's, and {node} may be one of them"
            ),
            Self::NoOtherWorker => {
                f.write_str("no other worker is there to put the shards on: restore a volume from a backup")
            }
            Self::Answers { node } => {
                write!(
                    f,
                    "{node} answers, so none of its data is lost: lower spec.workers.replicas to drain it"
                )
            }
            Self::SystemIdentifierMismatch { node, why } => write!(
                f,
                "a server answers under the name {node}, and {why}. Stop that one first: kubectl scale statefulset {node} --replicas=0"
            ),
        }
    }
}

/// It says nothing that changes from one try to the next.
impl fmt::Display for LastingRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, database, .. } = self;
        let cure = match self.kind {
            RefusalKind::Kubernetes => format!(
                "Raise the quota, or correct the policy, the webhook or the right that it names{}",
                no_space(&self.unused_claims)
            ),
            RefusalKind::Login => format!(
                "Look at the server's log (`kubectl logs {pod}`), and undo what was changed: a setting of the role postgres or of the database, pg_hba.conf, or the certificates in the Secrets"
            ),
            RefusalKind::Registration | RefusalKind::Rebalance | RefusalKind::Statement => {
                format!("Fix what it names (`kubectl exec -it {pod} -- psql {database}`)")
            }
        };
        write!(
            f,
            "{} ({}, repeatedly since {}). {cure}. It keeps being retried, and everything that does not depend on it goes on.",
            sentence(&self.message),
            self.cause,
            self.since.strftime("%H:%M:%SZ")
        )
    }
}

impl fmt::Display for GrowthRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let back = self.back_to.as_ref().map_or_else(
            || "Let".to_owned(),
            |size| format!("Set spec.{}.storage.size back to {size}, or let", self.field),
        );
        write!(
            f,
            "these volumes are to have {} and cannot grow: {}: {} ({}, repeatedly since {}). {back} the storage class grow its volumes (allowVolumeExpansion), or raise the quota that is named{}. It keeps being retried, and everything else goes on; a new worker's volume is as large as these.",
            self.wanted,
            first(self.claims.iter().map(|(claim, asked)| format!("{claim} ({asked})"))),
            sentence(&self.message),
            self.cause,
            self.since.strftime("%H:%M:%SZ"),
            no_space(&self.unused_claims)
        )
    }
}
