//! The sentence for each step: what it does, in the -ing form.

use std::fmt;

use super::{KubernetesStep, SqlStep, Step};

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
                f.write_str("bringing the application's Secret up to its password")
            }
            Self::InspectImage { image } => write!(f, "asking {image} what is in it"),
            Self::Adopt { kind, name, .. } => write!(f, "taking over {kind}/{name}"),
            Self::DeleteInspectionPod { pod } => write!(f, "removing pod {pod}"),
            Self::RefreshConfiguration { node, .. } => write!(f, "hurrying the configuration of {node}"),
            Self::PatchPod { node, .. } => write!(f, "labelling the pod of {node}"),
            Self::RecordIdentity { node, .. } => write!(f, "recording who {node} is"),
            Self::RestartNode { node, cause, .. } => write!(f, "restarting {node} ({cause})"),
            Self::Decommission { node, .. } => write!(f, "putting the volume of {node} aside"),
            Self::Delete { kind, name, .. } => write!(f, "deleting {kind} {name}"),
        }
    }
}

impl fmt::Display for SqlStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootstrapNode { node, .. } => write!(f, "preparing {node}"),
            Self::GrantRights { node, owner } => write!(f, "giving {owner} its rights on {node}"),
            Self::Reload { node } => write!(f, "reloading {node}"),
            Self::ResetAlterSystem { node, names } => write!(f, "resetting {} on {node}", names.join(", ")),
            Self::CheckParameter { node, name, .. } => write!(f, "trying {name} on {node}"),
            Self::SetCoordinatorHost { address } => {
                write!(f, "telling Citus the coordinator's address {address}")
            }
            Self::AddNode { node, .. } => write!(f, "registering {node}"),
            Self::CreateExtension { name } => write!(f, "making the extension {name}"),
            Self::CreateOwner { owner, .. } => write!(f, "making the role {owner}"),
            Self::ApplySchema { .. } => f.write_str("applying the schema"),
            Self::SetShouldHaveShards { node, should: true, .. } => write!(f, "giving {node} shards again"),
            Self::SetShouldHaveShards { node, should: false, .. } => {
                write!(f, "putting no shards on {node} any more")
            }
            Self::CleanUpOrphans => f.write_str("dropping what moves left behind"),
            Self::RemoveNode { node, .. } => write!(f, "removing {node}"),
            Self::ForceRemove { workers } => {
                let names: Vec<String> = workers.iter().map(|(node, _)| node.to_string()).collect();
                write!(f, "giving up the data of {}", names.join(", "))
            }
            Self::ActivateNode { node, .. } => write!(f, "activating {node}"),
            Self::DeleteStaleCleanupRecords { records } => {
                write!(f, "forgetting {} rows of pg_dist_cleanup", records.len())
            }
            Self::DropLeftovers { node, leftovers } => {
                write!(f, "dropping {} leftovers of moves on {node}", leftovers.len())
            }
            Self::RecoverTransactions => f.write_str("recovering prepared transactions"),
            Self::StartRebalance { drain: true, moves, .. } => {
                write!(f, "starting a drain of {moves} shards")
            }
            Self::StartRebalance { moves, .. } => write!(f, "starting a rebalance of {moves} moves"),
            Self::PinGroups(pins) if pins.groups.is_empty() => f.write_str("letting all groups move again"),
            Self::PinGroups(pins) => {
                write!(f, "keeping {} colocation groups where they are", pins.groups.len())
            }
            Self::StopRebalance { job } => write!(f, "stopping rebalance job {job}"),
        }
    }
}
