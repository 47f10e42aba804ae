//! The condition `Balanced`: whether shards are where Citus' own plan wants them, and why not. Pure.

use std::fmt::Write as _;

use super::{
    ConditionUpdate, Reason, condition_false, condition_true, condition_unknown,
    reconciling::ReconcilingReason, why_no_catalog,
};
use crate::{
    act::Outcome,
    api::{spec::RebalanceMode, status::Purpose, words::several},
    plan::{Plan, View, WaitingOn, by_shard_count::BY_SHARD_COUNT},
    report::job,
    snapshot::{Citus, Observed},
};

/// Shards are where Citus' own plan wants them. Whatever is first, a pause between two jobs is said, and who holds up
/// moves.
#[must_use]
pub fn balanced(view: View, plan: &Plan, outcome: &Outcome) -> ConditionUpdate {
    let mut update = is_balanced(view, plan, outcome);
    let also = |wait: &&WaitingOn| {
        matches!(wait, WaitingOn::RebalancePause { .. } | WaitingOn::HeldUp { moves: true, .. })
    };
    for wait in plan.waits.iter().filter(also).map(ToString::to_string) {
        if !update.message.contains(&wait) {
            let _ = write!(update.message, "; {wait}");
        }
    }
    update
}

fn is_balanced(view: View, plan: &Plan, outcome: &Outcome) -> ConditionUpdate {
    let Some(citus) = view.citus() else {
        return condition_unknown(Reason::CatalogUnknown, why_no_catalog(view));
    };
    let job = view.open_job();
    if let Some(job) = job
        && let Some(error) = job::last_error(view, job)
    {
        return condition_false(Reason::MovesFailing, error);
    }
    let mut failures = outcome.failures();
    // What the generation does not wait for is told here.
    if let Some((step, failure)) =
        failures.find(|(step, _)| ReconcilingReason::of_step(step.effect().concerns).is_none())
    {
        let what = step.to_string();
        return condition_false(
            Reason::Retrying,
            format!("{what} failed and is tried again: {}", failure.message),
        );
    }
    let missing = view.missing_workers();
    if let Some(first) = missing.first() {
        return condition_false(Reason::WorkersMissing, format!("{}: {}", view.name(first.node), first.why));
    }
    if let Some(job) = job {
        return match job::purpose(view, job) {
            Purpose::Rebalance => condition_false(Reason::Rebalancing, job::progress(view, job)),
            Purpose::Drain => condition_false(Reason::Draining, job::progress(view, job)),
        };
    }
    if let Some(update) = draining(view, plan) {
        return update;
    }
    if citus.schema_hash.is_none() {
        return condition_false(Reason::SchemaNotApplied, "there are no tables yet");
    }
    // A restart postpones moves; where there are none, it changes nothing.
    let nothing_to_move = citus.planned_moves.as_ref().and_then(Observed::known).is_some_and(Vec::is_empty);
    if !nothing_to_move
        && let Some(waiting) = plan
            .waits
            .iter()
            .find(|wait| matches!(wait, WaitingOn::RebalancePause { .. } | WaitingOn::Rolling { .. }))
    {
        return condition_false(Reason::RebalanceBackoff, waiting.to_string());
    }
    what_citus_plans(view, citus)
}

/// Workers that are on their way out, or on their way back.
fn draining(view: View, plan: &Plan) -> Option<ConditionUpdate> {
    if let Some((node, row)) = view.draining_workers().first_key_value() {
        let (name, shards) = (view.name(*node), several(view.shards(row), "shard"));
        let drains = plan.waits.iter().any(|wait| matches!(wait, WaitingOn::Draining { .. }));
        return Some(if drains || plan.problems.is_empty() {
            condition_false(Reason::Draining, format!("{name} is to be removed: {shards} left"))
        } else {
            let words =
                format!("{name} is to be removed and stays for now, with {shards}: see condition Stalled");
            condition_false(Reason::DrainRefused, words)
        });
    }
    let (node, _) = view.remaining_workers().into_iter().find(|(_, row)| !row.should_have_shards)?;
    let words = format!("{} is wanted again, and accepts no shards yet", view.name(node));
    Some(condition_false(Reason::Draining, words))
}

/// Balanced is where Citus itself plans no move.
fn what_citus_plans(view: View, citus: &Citus) -> ConditionUpdate {
    match &citus.planned_moves {
        Some(Observed::Known(moves)) if moves.is_empty() => condition_true(Reason::Balanced, counts(view)),
        Some(Observed::Known(moves)) if view.desired.rebalance.mode == RebalanceMode::Off => condition_false(
            Reason::RebalanceOff,
            format!("Citus would move {}, and spec.rebalance.mode is Off", several(moves.len(), "shard")),
        ),
        Some(Observed::Known(moves)) => {
            condition_false(Reason::MovesPlanned, format!("Citus plans {}", several(moves.len(), "move")))
        }
        Some(Observed::Unknown(why)) => condition_unknown(Reason::PlanUnknown, why.to_string()),
        None => condition_unknown(Reason::PlanUnknown, "Citus has not been asked yet"),
    }
}

fn counts(view: View) -> String {
    let citus = view.citus();
    let counts: Vec<String> = view
        .registered_workers()
        .iter()
        .map(|(node, row)| {
            let shards =
                citus.and_then(|citus| citus.groups.get(&row.group_id)).map_or(0, |group| group.shards);
            format!("{node} {shards}")
        })
        .collect();
    if view.desired.rebalance.strategy == BY_SHARD_COUNT {
        format!("shards are at most one apart in each colocation group: {}", counts.join(", "))
    } else {
        format!("shards: {}", counts.join(", "))
    }
}
