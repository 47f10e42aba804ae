//! The condition `Reconciling` and its reasons: what of the generation is not there yet. Pure.
//!
//! The reasons are a contract with users, so they are few and say what goes on, not which step is next: steps and waits
//! may come and go, and each has one of these.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{ConditionUpdate, condition_false, condition_true};
use crate::{
    act::Outcome,
    api::words::several,
    plan::{Concern, Plan, WaitingOn},
};

/// So many waits of one kind are spelled out.
const OF_EACH_KIND: usize = 3;

/// Reasons of `Reconciling`; docs/reference.md has them for people.
#[derive(Clone, Copy, strum::IntoStaticStr)]
pub(super) enum ReconcilingReason {
    /// False: the generation is fully reconciled.
    UpToDate,
    /// False: manual action is required, see `Stalled`.
    Stalled,
    /// `spec.paused`; True while changes wait for its end.
    Paused,
    /// A step failed and is tried again.
    Retrying,
    /// Objects of Kubernetes are created or changed, or volumes grow.
    ApplyingObjects,
    /// A pod is not ready, or its server does not answer.
    WaitingForPods,
    /// An image or a parameter is checked before it is used.
    Validating,
    /// A changed configuration is on its way to running servers.
    ApplyingConfiguration,
    /// Nodes are restarted one by one.
    RollingRestart,
    /// Workers get ready to join, and are registered.
    RegisteringWorkers,
    /// The role, the extensions and the tables of the application are created.
    ApplyingSchema,
    /// Shards leave workers that are to go.
    DrainingWorkers,
    /// Workers without shards are removed.
    RemovingWorkers,
    /// A person gave up the data of a worker.
    ForceRemoving,
    /// A state is ended that Citus does not leave by itself.
    Repairing,
    /// Sessions of others hold a lock that a step needs.
    Blocked,
}

impl ReconcilingReason {
    /// What a step says by being next; moves are told by `Balanced` alone, and never keep the generation from being there.
    pub(super) fn of_step(concern: Concern) -> Option<Self> {
        match concern {
            Concern::Evictions | Concern::MovePreparation | Concern::Moves => None,
            Concern::Objects => Some(Self::ApplyingObjects),
            Concern::Question => Some(Self::Validating),
            Concern::Configuration => Some(Self::ApplyingConfiguration),
            Concern::Restart => Some(Self::RollingRestart),
            Concern::Preparation | Concern::Registration => Some(Self::RegisteringWorkers),
            Concern::Application | Concern::Schema => Some(Self::ApplyingSchema),
            Concern::Draining => Some(Self::DrainingWorkers),
            Concern::Removal => Some(Self::RemovingWorkers),
            Concern::ForceRemoval => Some(Self::ForceRemoving),
            Concern::Repair => Some(Self::Repairing),
        }
    }

    /// What is waited for before everything of the generation is there. Moves are told by `Balanced`; what a pause says is
    /// said already.
    fn of_wait(wait: &WaitingOn) -> Option<Self> {
        match wait {
            WaitingOn::JobRunning { .. }
            | WaitingOn::RebalancePause { .. }
            | WaitingOn::Paused { .. }
            | WaitingOn::HeldUp { moves: true, .. } => None,
            WaitingOn::HeldUp { moves: false, .. } => Some(Self::Blocked),
            WaitingOn::FormerObjects { .. } | WaitingOn::VolumesGrow { .. } => Some(Self::ApplyingObjects),
            WaitingOn::PodNotReady { .. }
            | WaitingOn::NotAnswering { .. }
            | WaitingOn::CatalogUnknown { .. } => Some(Self::WaitingForPods),
            WaitingOn::ConfigurationPending { .. } => Some(Self::ApplyingConfiguration),
            WaitingOn::Rolling { .. } | WaitingOn::RestartWaitsForMoves { .. } => Some(Self::RollingRestart),
            WaitingOn::NodeNotPrepared { .. }
            | WaitingOn::MemberInactive { .. }
            | WaitingOn::RegisteredNodeSilent { .. }
            | WaitingOn::NotConnected { .. }
            | WaitingOn::WorkerMissing { .. } => Some(Self::RegisteringWorkers),
            WaitingOn::Draining { shards: 0, .. } | WaitingOn::CleanupBlocked { .. } => {
                Some(Self::RemovingWorkers)
            }
            WaitingOn::Draining { .. }
            | WaitingOn::SpaceUnknown { .. }
            | WaitingOn::ContentsUnknown { .. } => Some(Self::DrainingWorkers),
            WaitingOn::InspectingImage { .. } => Some(Self::Validating),
            WaitingOn::SchemaSource { .. } => Some(Self::ApplyingSchema),
        }
    }
}

/// Something of the observed generation is not there yet. Whatever is first, all that is waited for is said.
#[must_use]
pub fn reconciling(plan: &Plan, outcome: &Outcome) -> ConditionUpdate {
    let mut update = reconciles(plan, outcome);
    let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for wait in plan.waits.iter().filter(|wait| ReconcilingReason::of_wait(wait).is_some()) {
        others.entry(wait.into()).or_default().push(wait.to_string());
    }
    for alike in others.into_values() {
        for wait in alike.iter().take(OF_EACH_KIND) {
            if !update.message.contains(wait) {
                let _ = write!(update.message, "; {wait}");
            }
        }
        if alike.len() > OF_EACH_KIND {
            let _ = write!(update.message, " (and {} more like this)", alike.len() - OF_EACH_KIND);
        }
    }
    update
}

fn reconciles(plan: &Plan, outcome: &Outcome) -> ConditionUpdate {
    use ReconcilingReason as Reason;
    if !plan.problems.is_empty() {
        return condition_false(Reason::Stalled, "manual action is required: see condition Stalled");
    }
    if let Some(WaitingOn::Paused { steps }) = plan.waits.first() {
        return if *steps > 0 {
            condition_true(
                Reason::Paused,
                format!("{} held until spec.paused is false", several(*steps, "change")),
            )
        } else {
            condition_false(Reason::Paused, "no changes are pending")
        };
    }
    let mut failures = outcome.failures();
    if let Some((step, failure)) =
        failures.find(|(step, _)| Reason::of_step(step.effect().concerns).is_some())
    {
        return condition_true(
            Reason::Retrying,
            format!("{step} failed and is tried again: {}", failure.message),
        );
    }
    let step = plan.steps.iter().find_map(|planned| {
        Some((Reason::of_step(planned.step.effect().concerns)?, format!("{}: {}", planned.step, planned.why)))
    });
    let wait = || plan.waits.iter().find_map(|wait| Some((Reason::of_wait(wait)?, wait.to_string())));
    match step.or_else(wait) {
        Some((reason, message)) => condition_true(reason, message),
        None => condition_false(Reason::UpToDate, "the generation is fully reconciled"),
    }
}
