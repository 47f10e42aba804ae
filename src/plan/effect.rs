//! What each step disturbs, needs and is about. The Lease, what runs beside what, what a failure stops and what is told of a step follow
//! from this table alone: a new step is nothing until it has a row. No step is chosen here.

use super::{KubernetesStep, SqlStep, Step};
use crate::{
    api::{
        Node,
        names::{SecretKind, keys},
    },
    resources::Manifest,
};

/// What a step disturbs, needs and is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect<'a> {
    /// Whom it is done to.
    pub scope: Scope<'a>,
    /// Done by two operators at once, or by one that no longer leads, it could do harm: the Lease is read again first.
    pub disruptive: bool,
    /// What it is about.
    pub concerns: Concern,
    /// What must not have failed before it.
    pub needs: &'static [Prerequisite],
    /// What is missing when it has failed.
    pub provides: &'static [Prerequisite],
}

/// Whom a step is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// One node.
    Node(Node),
    /// Several nodes at once.
    Nodes(Vec<Node>),
    /// Objects of this name that are no node's, or no node's any more.
    Object(&'a str),
    /// All of the cluster.
    Cluster,
}

/// What a step is about, for what is told of it and for what waits until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Kubernetes objects.
    Objects,
    /// The budget for evictions, which follows the moves.
    Evictions,
    /// Something is asked: an image, or a server about a value.
    Question,
    /// Settings of running servers.
    Configuration,
    /// Restarts of nodes.
    Restart,
    /// Servers on their way to being members.
    Preparation,
    /// Who is a member.
    Registration,
    /// The application's role and extensions.
    Application,
    /// The application's tables.
    Schema,
    /// What has to be so before shards are moved.
    MovePreparation,
    /// Jobs that move shards.
    Moves,
    /// Workers that are to have no shards, or some again.
    Draining,
    /// Workers that hold nothing any more.
    Removal,
    /// Workers whose data is given up.
    ForceRemoval,
    /// States that Citus does not leave by itself.
    Repair,
}

/// What one step provides and another one needs: without it the other would be wrong, or dangerous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// Whatever comes before it for the same node or object: every step needs it.
    SameScope,
    /// The budget that protects moves from evictions is there before the first one starts.
    Evictions,
    /// Authorities that nodes trust: a server that is there is taken to trust those that were there before it.
    Authorities,
    /// Certificates are signed with what is in the first Secret; the owner's password is in the last.
    Secrets,
    /// The role gets the password of a Secret whose keys agree with it.
    ConnectionKeys,
    /// Workers know the coordinator by the address that it has told Citus.
    CoordinatorAddress,
    /// Who is registered, moved or removed is known to all: of several that are inactive each gets a copy of the metadata
    /// in its turn, and nothing may change it meanwhile.
    Activation,
    /// The schema may use the role and what is in the extensions.
    Application,
    /// No move starts, and no worker goes, before what is prepared is ended.
    Recovery,
    /// Shards are put only where they may be.
    ShardTargets,
    /// Every move of a shard fails that pg_dist_cleanup has for a group of nobody.
    CleanupRecords,
}

impl Scope<'_> {
    /// The one node that it is, if it is one.
    #[must_use]
    pub fn node(&self) -> Option<Node> {
        match self {
            Self::Node(node) => Some(*node),
            Self::Nodes(_) | Self::Object(_) | Self::Cluster => None,
        }
    }
    fn covers(&self, other: &Scope) -> bool {
        match self {
            Self::Node(node) => other.node() == Some(*node),
            Self::Nodes(nodes) => other.node().is_some_and(|node| nodes.contains(&node)),
            Self::Object(name) => matches!(other, Scope::Object(other) if other == name),
            Self::Cluster => false,
        }
    }
}

impl Effect<'_> {
    /// The node beside whose steps those of other nodes may be done: the step disturbs nobody else and needs nothing of
    /// another node. A question is one node's and concerns all.
    #[must_use]
    pub fn node_scope(&self) -> Option<Node> {
        self.scope.node().filter(|_| !self.disruptive && self.concerns != Concern::Question)
    }
    /// Whether it stands on something that is missing when the other one has failed before it.
    #[must_use]
    pub fn depends_on(&self, failed: &Effect) -> bool {
        failed.provides.iter().any(|missing| match missing {
            Prerequisite::SameScope => failed.scope.covers(&self.scope),
            Prerequisite::Evictions
            | Prerequisite::Authorities
            | Prerequisite::Secrets
            | Prerequisite::ConnectionKeys
            | Prerequisite::CoordinatorAddress
            | Prerequisite::Activation
            | Prerequisite::Application
            | Prerequisite::Recovery
            | Prerequisite::ShardTargets
            | Prerequisite::CleanupRecords => self.needs.contains(missing),
        })
    }
}

type Prerequisites = &'static [Prerequisite];

/// A step that does no harm when it is done twice at the same time.
fn harmless(scope: Scope, concerns: Concern, needs: Prerequisites, provides: Prerequisites) -> Effect {
    Effect { scope, disruptive: false, concerns, needs, provides }
}

/// A step before which the Lease is read again.
fn disruptive(scope: Scope, concerns: Concern, needs: Prerequisites, provides: Prerequisites) -> Effect {
    Effect { scope, disruptive: true, concerns, needs, provides }
}

/// The node that an object is made for.
fn of_object(object: &Manifest) -> Scope<'_> {
    let labels = object.json.pointer("/metadata/labels");
    let node = labels.and_then(|labels| labels.get(keys::NODE)?.as_str()?.parse().ok());
    node.map_or(Scope::Cluster, Scope::Node)
}

fn is_budget(object: &Manifest) -> bool {
    object.kind == "PodDisruptionBudget"
}

impl Step {
    /// What it disturbs, needs and is about.
    #[must_use]
    pub fn effect(&self) -> Effect<'_> {
        match self {
            Self::Kubernetes(step) => step.effect(),
            Self::Sql(step) => step.effect(),
        }
    }
}

impl KubernetesStep {
    /// What it disturbs, needs and is about.
    #[must_use]
    pub fn effect(&self) -> Effect<'_> {
        use Prerequisite::{
            Activation, Authorities, ConnectionKeys, Evictions, Recovery, SameScope, Secrets,
        };
        match self {
            Self::Create(object) if is_budget(object) => {
                harmless(Scope::Cluster, Concern::Objects, &[], &[Evictions])
            }
            Self::Create(object) if object.kind == "StatefulSet" => {
                harmless(of_object(object), Concern::Objects, &[Authorities], &[SameScope])
            }
            Self::Apply { object, .. } if is_budget(object) => {
                harmless(Scope::Cluster, Concern::Evictions, &[], &[Evictions])
            }
            Self::Create(object) | Self::Apply { object, .. } => {
                harmless(of_object(object), Concern::Objects, &[], &[SameScope])
            }
            Self::Adopt { name, .. } => disruptive(Scope::Object(name), Concern::Objects, &[], &[]),
            Self::CreateSecret(SecretKind::Ca) => {
                harmless(Scope::Cluster, Concern::Objects, &[Secrets], &[Secrets, Authorities])
            }
            Self::CreateSecret(_) => harmless(Scope::Cluster, Concern::Objects, &[Secrets], &[Secrets]),
            Self::SetConnectionKeys { .. } => {
                harmless(Scope::Cluster, Concern::Objects, &[], &[ConnectionKeys])
            }
            // Until they are answered or gone the plan is one without them.
            Self::InspectImage { .. } => harmless(Scope::Cluster, Concern::Question, &[], &[]),
            Self::DeleteInspectionPod { pod } => harmless(Scope::Object(pod), Concern::Question, &[], &[]),
            Self::RefreshConfiguration { node, .. } => {
                harmless(Scope::Node(*node), Concern::Configuration, &[], &[SameScope])
            }
            Self::PatchPod { node, .. } => harmless(Scope::Node(*node), Concern::Objects, &[], &[]),
            Self::RecordIdentity { node, .. } => {
                harmless(Scope::Node(*node), Concern::Preparation, &[], &[SameScope])
            }
            Self::RestartNode { node, .. } => {
                disruptive(Scope::Node(*node), Concern::Restart, &[], &[SameScope])
            }
            // From its mark on there is no way back.
            Self::Decommission { node, .. } => {
                disruptive(Scope::Node(*node), Concern::Removal, &[Recovery, Activation], &[SameScope])
            }
            Self::Delete { name, .. } => disruptive(Scope::Object(name), Concern::Removal, &[], &[SameScope]),
        }
    }
}

impl SqlStep {
    /// What it disturbs, needs and is about.
    #[must_use]
    pub fn effect(&self) -> Effect<'_> {
        use Prerequisite::{
            Activation, Application, CleanupRecords, ConnectionKeys, CoordinatorAddress, Evictions, Recovery,
            SameScope, Secrets, ShardTargets,
        };
        match self {
            Self::BootstrapNode { node, .. } => {
                harmless(Scope::Node(*node), Concern::Preparation, &[], &[SameScope])
            }
            Self::GrantRights { node, .. } => harmless(Scope::Node(*node), Concern::Preparation, &[], &[]),
            Self::Reload { node } | Self::ResetAlterSystem { node, .. } => {
                harmless(Scope::Node(*node), Concern::Configuration, &[], &[SameScope])
            }
            Self::CheckParameter { node, .. } => harmless(Scope::Node(*node), Concern::Question, &[], &[]),
            Self::SetCoordinatorHost { .. } => {
                disruptive(Scope::Cluster, Concern::Preparation, &[], &[CoordinatorAddress])
            }
            Self::AddNode { node, .. } => disruptive(
                Scope::Node(*node),
                Concern::Registration,
                &[CoordinatorAddress, Activation],
                &[SameScope],
            ),
            Self::CreateExtension { .. } => {
                harmless(Scope::Cluster, Concern::Application, &[], &[Application])
            }
            Self::CreateOwner { .. } => {
                harmless(Scope::Cluster, Concern::Application, &[Secrets, ConnectionKeys], &[Application])
            }
            // Nothing else in a plan needs the tables.
            Self::ApplySchema { .. } => disruptive(Scope::Cluster, Concern::Schema, &[Application], &[]),
            Self::RecoverTransactions => harmless(Scope::Cluster, Concern::MovePreparation, &[], &[Recovery]),
            Self::PinGroups(_) => disruptive(Scope::Cluster, Concern::MovePreparation, &[], &[]),
            Self::StartRebalance { .. } => disruptive(
                Scope::Cluster,
                Concern::Moves,
                &[Evictions, Recovery, Activation, ShardTargets, CleanupRecords],
                &[],
            ),
            // Nothing is planned beside a job that cannot be stopped.
            Self::StopRebalance { .. } => disruptive(Scope::Cluster, Concern::Moves, &[], &[]),
            Self::SetShouldHaveShards { node, .. } => {
                disruptive(Scope::Node(*node), Concern::Draining, &[Activation], &[SameScope, ShardTargets])
            }
            Self::CleanUpOrphans => disruptive(Scope::Cluster, Concern::Removal, &[], &[]),
            Self::RemoveNode { node, .. } => {
                disruptive(Scope::Node(*node), Concern::Removal, &[Recovery, Activation], &[SameScope])
            }
            Self::ForceRemove { workers } => {
                let nodes = workers.iter().map(|(node, _)| *node).collect();
                disruptive(Scope::Nodes(nodes), Concern::ForceRemoval, &[], &[SameScope])
            }
            Self::ActivateNode { node, .. } => {
                disruptive(Scope::Node(*node), Concern::Repair, &[Activation], &[Activation])
            }
            Self::DeleteStaleCleanupRecords { .. } => {
                disruptive(Scope::Cluster, Concern::Repair, &[], &[CleanupRecords])
            }
            Self::DropLeftovers { node, .. } => disruptive(Scope::Node(*node), Concern::Repair, &[], &[]),
        }
    }
}
