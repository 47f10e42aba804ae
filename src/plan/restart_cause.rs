//! Why a node is restarted: of steps and of what waits for one. A value only.

use serde::{Deserialize, Serialize};

/// Why a node is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[allow(missing_docs)]
pub enum RestartCause {
    /// It does not run `wal_level = logical`.
    WalLevel,
    /// A parameter needs a restart.
    Parameters,
    /// The user changed the pod's template (image, resources, scheduling).
    Template,
    /// Somebody has asked for it, by an annotation of the DialogCluster or `kubectl rollout restart`.
    Requested,
    /// It cannot start, and its configuration or template has changed since.
    CrashLoop,
}
