//! What only a person can solve, and the reasons that `Stalled` has for it. Nothing is decided here.

use serde::{Deserialize, Serialize};

/// What the operator cannot go on with by itself: reason and message of `Stalled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Why, in one word.
    pub reason: ProblemReason,
    /// What was wrong, where, and what to do.
    pub message: String,
}

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
    NameTaken,
    AuthorityMissing,
    PasswordNotUsable,
    ConfigurationRejected,
    ImageNotUsable,
    UpgradeNotSupported,
    VolumeLost,
    CoordinatorEmptied,
    ForeignServer,
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
    OldAddress,
    RestartDidNotHelp,
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

impl Problem {
    /// A stranger has a name of ours.
    #[must_use]
    pub fn name_taken(kind: &str, name: &str) -> Self {
        Self {
            reason: ProblemReason::NameTaken,
            message: format!(
                "{kind} {name} exists and is not this cluster's: it is left alone. Remove or rename it, or give the cluster another name."
            ),
        }
    }
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
            Self::ForeignServer | Self::CoordinatorEmptied => (true, true),
            Self::VolumeLost | Self::IncompleteVolumes => (true, false),
            Self::RestartDidNotHelp => (false, true),
            Self::InvalidSpec
            | Self::NameTaken
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
            | Self::OldAddress
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
