//! The sentence for each step: what it does, in the -ing form.

use std::fmt;

use super::{KubernetesStep, SqlStep, Step};
use crate::api::words::several;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes(step) => step.fmt(f),
            Self::Sql(step) => step.fmt(f),
        }
    }
}

impl fmt::Display for KubernetesStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(object) => write!(f, "creating {}", object.key()),
            Self::Apply { object, .. } => write!(f, "applying {}", object.key()),
            Self::CreateSecret(kind) => write!(f, "creating the Secret for {kind}"),
            Self::SetConnectionKeys { .. } => {
                f.write_str("updating the connection keys of the application's Secret")
            }
            Self::InspectImage { image } => write!(f, "inspecting {image}"),
            Self::Adopt { kind, name, .. } => write!(f, "taking over {kind}/{name}"),
            Self::DeleteInspectionPod { pod } => write!(f, "removing pod {pod}"),
            Self::RefreshConfiguration { node, .. } => write!(f, "refreshing the ConfigMap of {node}"),
            Self::PatchPod { node, .. } => write!(f, "labelling the pod of {node}"),
            Self::RecordIdentity { node, .. } => write!(f, "recording the system identifier of {node}"),
            Self::RestartNode { node, cause, .. } => write!(f, "restarting {node} ({cause})"),
            Self::Decommission { node, .. } => write!(f, "decommissioning the volume of {node}"),
            Self::Delete { kind, name, .. } => write!(f, "deleting {kind} {name}"),
        }
    }
}

impl fmt::Display for SqlStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootstrapNode { node, .. } => write!(f, "preparing {node}"),
            Self::GrantRights { node, owner } => write!(f, "granting {owner} its rights on {node}"),
            Self::Reload { node } => write!(f, "reloading {node}"),
            Self::ResetAlterSystem { node, names } => write!(f, "resetting {} on {node}", names.join(", ")),
            Self::CheckParameter { node, name, .. } => write!(f, "checking {name} on {node}"),
            Self::SetCoordinatorHost { address } => {
                write!(f, "setting the coordinator's host to {address}")
            }
            Self::AddNode { node, .. } => write!(f, "registering {node}"),
            Self::CreateExtension { name } => write!(f, "creating extension {name}"),
            Self::CreateOwner { owner, .. } => write!(f, "creating role {owner}"),
            Self::ApplySchema { .. } => f.write_str("applying the schema"),
            Self::SetShouldHaveShards { node, should: true, .. } => {
                write!(f, "allowing shards on {node} again")
            }
            Self::SetShouldHaveShards { node, should: false, .. } => {
                write!(f, "allowing no new shards on {node}")
            }
            Self::CleanUpOrphans => f.write_str("dropping orphaned objects"),
            Self::RemoveNode { node, .. } => write!(f, "removing {node}"),
            Self::ForceRemove { workers } => {
                let names: Vec<String> = workers.iter().map(|(node, _)| node.to_string()).collect();
                write!(f, "force-removing {}", names.join(", "))
            }
            Self::ActivateNode { node, .. } => write!(f, "activating {node}"),
            Self::DeleteStaleCleanupRecords { records } => {
                write!(f, "deleting {} of pg_dist_cleanup", several(records.len(), "stale row"))
            }
            Self::DropLeftovers { node, leftovers } => {
                write!(f, "dropping {} of moves on {node}", several(leftovers.len(), "leftover"))
            }
            Self::RecoverTransactions => f.write_str("recovering prepared transactions"),
            Self::StartRebalance { drain: true, moves, .. } => {
                write!(f, "starting a drain of {}", several(*moves, "shard"))
            }
            Self::StartRebalance { moves, .. } => {
                write!(f, "starting a rebalance of {}", several(*moves, "move"))
            }
            Self::PinGroups(pins) if pins.groups.is_empty() => f.write_str("unpinning all colocation groups"),
            Self::PinGroups(pins) => {
                write!(f, "pinning {}", several(pins.groups.len(), "colocation group"))
            }
            Self::StopRebalance { job } => write!(f, "stopping rebalance job {job}"),
        }
    }
}
