//! The reasons of `Stalled`, which problem has which, and what each means for everything else.

use serde::{Deserialize, Serialize};

use super::{LastingRefusal, Problem, RefusalKind, TableObstacle};
use crate::snapshot::ObstacleKind;

/// Reasons of `Stalled`.
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
    strum::IntoStaticStr,
    strum::EnumIter,
)]
#[allow(missing_docs)] // docs/runbook.md tells what each means and what to type
pub enum ProblemReason {
    InvalidSpec,
    ObjectConflict,
    AuthorityMissing,
    PasswordNotUsable,
    ConfigurationRejected,
    ImageNotUsable,
    UpgradeNotSupported,
    VolumeLost,
    CoordinatorMetadataMissing,
    SystemIdentifierMismatch,
    IncompleteVolumes,
    SchemaFailed,
    ExtensionFailed,
    NoReplicaIdentity,
    UnloggedTable,
    OwnerCannotLogIn,
    OwnerCannotCreate,
    OwnerSettings,
    PartitionOwnerDiffers,
    TableOwnedBySuperuser,
    ReferenceTableRunsCode,
    StrategyUnknown,
    ScaleInRefused,
    ForceRemoveRefused,
    AddressMismatch,
    WalLevelOverridden,
    NodeCannotStart,
    RegistrationRefused,
    RebalanceRefused,
    StatementRefused,
    LoginRefused,
    KubernetesRefused,
    PodRefused,
    StorageCannotGrow,
    StorageCannotShrink,
    InvariantBroken,
}

/// What a problem means for everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consequence {
    /// The data is not served, or not all of it.
    pub not_served: bool,
    /// No shard is moved before it is solved.
    pub nothing_moves: bool,
}

impl ProblemReason {
    /// What it means for everything else.
    #[must_use]
    pub fn consequence(self) -> Consequence {
        let (not_served, nothing_moves) = match self {
            Self::SystemIdentifierMismatch | Self::CoordinatorMetadataMissing => (true, true),
            Self::VolumeLost | Self::IncompleteVolumes => (true, false),
            Self::WalLevelOverridden => (false, true),
            Self::InvalidSpec
            | Self::ObjectConflict
            | Self::AuthorityMissing
            | Self::PasswordNotUsable
            | Self::ConfigurationRejected
            | Self::ImageNotUsable
            | Self::UpgradeNotSupported
            | Self::SchemaFailed
            | Self::ExtensionFailed
            | Self::NoReplicaIdentity
            | Self::UnloggedTable
            | Self::OwnerCannotLogIn
            | Self::OwnerCannotCreate
            | Self::OwnerSettings
            | Self::PartitionOwnerDiffers
            | Self::TableOwnedBySuperuser
            | Self::ReferenceTableRunsCode
            | Self::StrategyUnknown
            | Self::ScaleInRefused
            | Self::ForceRemoveRefused
            | Self::AddressMismatch
            | Self::NodeCannotStart
            | Self::RegistrationRefused
            | Self::RebalanceRefused
            | Self::StatementRefused
            | Self::LoginRefused
            | Self::KubernetesRefused
            | Self::PodRefused
            | Self::StorageCannotGrow
            | Self::StorageCannotShrink
            | Self::InvariantBroken => (false, false),
        };
        Consequence { not_served, nothing_moves }
    }
}

impl Problem {
    /// Its reason.
    #[must_use]
    pub fn reason(&self) -> ProblemReason {
        match self {
            Self::InvalidSpec { .. } => ProblemReason::InvalidSpec,
            Self::ObjectConflict { .. } | Self::NotAdopted { .. } => ProblemReason::ObjectConflict,
            Self::AuthorityMissing { .. } | Self::AuthorityIncomplete { .. } => {
                ProblemReason::AuthorityMissing
            }
            Self::PasswordNotUsable { .. } => ProblemReason::PasswordNotUsable,
            Self::ParameterRejected { .. }
            | Self::ConfigurationRejected { .. }
            | Self::CapacityTooLow { .. } => ProblemReason::ConfigurationRejected,
            Self::ImageNotUsable { .. } | Self::ImageNotPulled { .. } => ProblemReason::ImageNotUsable,
            Self::UpgradeNotSupported { .. } | Self::CitusDiffers { .. } => {
                ProblemReason::UpgradeNotSupported
            }
            Self::VolumeLost { .. } => ProblemReason::VolumeLost,
            Self::RegisteredWithoutVolume { .. } | Self::CoordinatorVolumeMissing { .. } => {
                ProblemReason::IncompleteVolumes
            }
            Self::CoordinatorMetadataMissing { .. } => ProblemReason::CoordinatorMetadataMissing,
            Self::SystemIdentifierMismatch { .. }
            | Self::TablesMissing { .. }
            | Self::OtherDomain { .. }
            | Self::GroupUnknown { .. } => ProblemReason::SystemIdentifierMismatch,
            Self::AddressMismatch { .. } => ProblemReason::AddressMismatch,
            Self::SchemaFailed { .. } => ProblemReason::SchemaFailed,
            Self::ExtensionFailed { .. } => ProblemReason::ExtensionFailed,
            Self::Obstacle(obstacle) => obstacle.reason(),
            Self::StrategyUnknown { .. } => ProblemReason::StrategyUnknown,
            Self::ScaleInRefused { .. }
            | Self::DrainHalted
            | Self::RemovalRefused { .. }
            | Self::DecommissionRefused { .. } => ProblemReason::ScaleInRefused,
            Self::ForceRemoveRefused { .. } => ProblemReason::ForceRemoveRefused,
            Self::WalLevelOverridden { .. } => ProblemReason::WalLevelOverridden,
            Self::NodeCannotStart { .. } | Self::MetadataUnknown { .. } => ProblemReason::NodeCannotStart,
            Self::PodRefused { .. } => ProblemReason::PodRefused,
            Self::Refused(refusal) => refusal.reason(),
            Self::GrowthRefused(_) | Self::GrowthFailed { .. } => ProblemReason::StorageCannotGrow,
            Self::StorageCannotShrink { .. } => ProblemReason::StorageCannotShrink,
            Self::InvariantBroken { .. } => ProblemReason::InvariantBroken,
        }
    }
}

impl TableObstacle {
    fn reason(&self) -> ProblemReason {
        match self.kind {
            ObstacleKind::NoReplicaIdentity => ProblemReason::NoReplicaIdentity,
            ObstacleKind::Unlogged => ProblemReason::UnloggedTable,
            ObstacleKind::OwnedBySuperuser => ProblemReason::TableOwnedBySuperuser,
            ObstacleKind::OwnerCannotLogIn | ObstacleKind::OwnerHasNoConnections => {
                ProblemReason::OwnerCannotLogIn
            }
            ObstacleKind::OwnerCannotCreate => ProblemReason::OwnerCannotCreate,
            ObstacleKind::PartitionOfAnother => ProblemReason::PartitionOwnerDiffers,
            ObstacleKind::SettingOfRole
            | ObstacleKind::SettingOfRoleInDatabase
            | ObstacleKind::SettingOfDatabase
            | ObstacleKind::SettingOfAll => ProblemReason::OwnerSettings,
            ObstacleKind::ReferenceTableRunsCode => ProblemReason::ReferenceTableRunsCode,
        }
    }
}

impl LastingRefusal {
    fn reason(&self) -> ProblemReason {
        match self.kind {
            RefusalKind::Registration => ProblemReason::RegistrationRefused,
            RefusalKind::Rebalance => ProblemReason::RebalanceRefused,
            RefusalKind::Statement => ProblemReason::StatementRefused,
            RefusalKind::Login => ProblemReason::LoginRefused,
            RefusalKind::Kubernetes => ProblemReason::KubernetesRefused,
        }
    }
}
