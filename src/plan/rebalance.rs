//! When shards are moved: one job for all new workers together, started only when Citus itself plans a move and every
//! node that takes part is fit for it. A running job is adopted, whoever started it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    Findings, Gate, Plan, PlannedStep, Problem, ResolvedSpec, ServerCheck, SqlStep, Step, View, WaitingOn,
    effect::Concern,
    preflight::{self, PreflightOutcome, Strategy},
    refusals, rolling_restart, settings,
};
use crate::{
    api::{Node, spec::RebalanceMode, words::several},
    snapshot::{Job, JobState, Move, Observed, PINNING, PlanUnknown},
};

/// The first pause after a job that ended badly; it doubles with each further one.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(15);
/// The longest pause between jobs.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(30);

/// Starts a rebalance when there is something to move and nothing in the way.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    let Some(citus) = view.citus() else { return };
    if let Some(job) = view.open_job() {
        plan.wait(WaitingOn::JobRunning { job: job.id });
        let stops =
            plan.steps.iter().any(|planned| matches!(planned.step, Step::Sql(SqlStep::StopRebalance { .. })));
        if let Some(shard) = job.lost_shard().filter(|_| !stops && job.can_be_stopped()) {
            let why = format!(
                "job {} waits to move shard {shard}, which no longer exists: its table was dropped or distributed anew. What is left to move is planned again",
                job.id
            );
            plan.step(SqlStep::StopRebalance { job: job.id }, why);
        } else if !stops && job.has_ended() && job.can_be_stopped() {
            let why = format!(
                "job {} is {}, and a move of it runs that nobody was told to stop",
                job.id, job.state
            );
            plan.step(SqlStep::StopRebalance { job: job.id }, why);
        } else if !stops && job.abandoned {
            let why = format!(
                "job {} was being cancelled when the coordinator's server ended, and Citus does not go on with that",
                job.id
            );
            plan.step(SqlStep::StopRebalance { job: job.id }, why);
        }
        recover_prepared_transactions(view, plan);
        return;
    }
    // Workers that go are emptied first, by `scale_in`.
    let aside = !view.draining_workers().is_empty()
        || view.remaining_workers().values().any(|row| !row.should_have_shards);
    if view.desired.rebalance.mode == RebalanceMode::Off || citus.schema_hash.is_none() || aside {
        return;
    }
    let Some(moves) = plan.pass(known(view, citus.planned_moves.as_ref())) else { return };
    let (leave, findings) = if moves.is_empty() {
        (PreflightOutcome::All, Findings::default())
    } else {
        preflight::preflight(view, moves)
    };
    plan.add(findings);
    preflight::unpin(view, &leave, plan);
    let Some(moves) = plan.pass(movable(view, &leave)).filter(|moves| !moves.is_empty()) else { return };
    let why = format!("Citus plans {} by {}", several(moves.len(), "move"), view.desired.rebalance.strategy);
    start(view, wanted, JobPurpose::Even { moves }, &leave, &why, plan);
}

/// What of the moves that Citus plans can be made now, by which strategy it may ever be. Of a strategy that is not yet
/// as it has to be there is no plan, and so nothing to be made.
fn movable<'a>(view: View<'a>, leave: &PreflightOutcome) -> Gate<&'a [Move]> {
    let strategy = preflight::strategy(view, leave)?;
    let planned = view.citus().and_then(|citus| match strategy {
        Strategy::OfTheSpec => citus.planned_moves.as_ref(),
        Strategy::Pinning => citus.planned_moves_when_pinned.as_ref(),
    });
    known(view, planned)
}

/// The moves that Citus plans, when it was asked and has answered.
fn known<'a>(view: View, planned: Option<&'a Observed<Vec<Move>, PlanUnknown>>) -> Gate<&'a [Move]> {
    match planned {
        Some(Observed::Known(moves)) => Ok(moves),
        Some(Observed::Unknown(why)) => Err(unplannable(view, why)),
        None => Err(Findings::default()),
    }
}

/// A node that went and came back in the middle of a job may hold what is committed and only prepared there: a move
/// with `block_writes` would leave it behind, any other waits for it. Citus itself looks once a minute.
fn recover_prepared_transactions(view: View, plan: &mut Plan) {
    let in_doubt =
        |node: &Node| view.postgres(*node).is_some_and(|postgres| postgres.prepared_transactions > 0);
    if let Some(node) = view.registered_workers().into_keys().find(in_doubt)
        && view.unhealthy_members().is_empty()
    {
        let why = format!(
            "transactions are prepared on {} for more than a second, and moves are under way",
            view.name(node)
        );
        plan.step(SqlStep::RecoverTransactions, why);
    }
}

/// What a job is for.
#[derive(Clone, Copy)]
pub enum JobPurpose<'a> {
    /// To even out: the moves that Citus plans.
    Even {
        /// These.
        moves: &'a [Move],
    },
    /// To empty the workers that should have no shards.
    Drain {
        /// Shards on them.
        shards: i64,
    },
}

/// Starts a job, when nothing is in its way.
pub fn start(
    view: View,
    wanted: &ResolvedSpec,
    purpose: JobPurpose,
    leave: &PreflightOutcome,
    why: &str,
    plan: &mut Plan,
) {
    let Some(citus) = view.citus() else { return };
    let (drain, moves) = match purpose {
        JobPurpose::Even { moves } => (false, moves.len()),
        JobPurpose::Drain { shards } => (true, usize::try_from(shards).unwrap_or_default()),
    };
    if view.desired.rebalance.mode == RebalanceMode::Off {
        plan.problem(Problem::DrainHalted);
        return;
    }
    if plan.pass(can_rebalance(view, wanted, plan)).is_none() {
        return;
    }
    if let Some(job) = &citus.job
        && let Some(until) = backoff_until(view, job, citus.failed_jobs)
    {
        plan.wait(WaitingOn::RebalancePause { state: job.state.clone(), until });
        return;
    }
    plan.step(
        SqlStep::RecoverTransactions,
        "a move before transactions prepared on a node are recovered could lose committed rows",
    );
    let rebalance = &view.desired.rebalance;
    plan.step(
        SqlStep::StartRebalance {
            drain,
            strategy: match leave {
                PreflightOutcome::But(_) => PINNING.to_owned(),
                PreflightOutcome::All | PreflightOutcome::Nothing => rebalance.strategy.clone(),
            },
            transfer_mode: rebalance.transfer_mode,
            parallel_colocated: citus.parallel_colocated && rebalance.max_moves_per_node > 1,
            moves,
        },
        why,
    );
}

/// Drains the workers that should have no shards: what can be moved away from them.
pub fn drain(
    view: View,
    wanted: &ResolvedSpec,
    (shards, nodes): (i64, &BTreeSet<i32>),
    why: &str,
    plan: &mut Plan,
) {
    let Some(citus) = view.citus() else { return };
    if let Some(Observed::Unknown(unknown)) = &citus.planned_moves {
        return plan.add(unplannable(view, unknown));
    }
    let (leave, findings) = preflight::preflight_drain(view, nodes);
    plan.add(findings);
    preflight::unpin(view, &leave, plan);
    let ids: BTreeSet<i32> =
        citus.nodes.iter().filter(|row| nodes.contains(&row.group_id)).map(|row| row.node_id).collect();
    let away = |moves: &[Move]| moves.iter().any(|planned| ids.contains(&planned.from));
    let Some(moves) = plan.pass(movable(view, &leave)) else { return };
    // Citus has no plan while a job is open, and none is asked for; who pins has to see that something is left.
    if leave == PreflightOutcome::All || away(moves) {
        start(view, wanted, JobPurpose::Drain { shards }, &leave, why, plan);
    }
}

/// Whether all shards on these nodes can be moved away: the question before a drain is begun.
///
/// # Errors
/// What keeps them.
pub fn can_drain(view: View, nodes: &BTreeSet<i32>) -> Gate {
    if let Some(Observed::Unknown(why)) = view.citus().and_then(|citus| citus.planned_moves.as_ref()) {
        return Err(unplannable(view, why));
    }
    let (leave, findings) = preflight::preflight_drain(view, nodes);
    if leave == PreflightOutcome::All { Ok(()) } else { Err(findings) }
}

fn unplannable(view: View, why: &PlanUnknown) -> Findings {
    match why {
        PlanUnknown::StrategyUnknown(words) => {
            let strategy = view.desired.rebalance.strategy.clone();
            Problem::StrategyUnknown { strategy, message: words.clone() }.into()
        }
        PlanUnknown::Refused { .. } | PlanUnknown::NotAnswered(_) => {
            WaitingOn::CatalogUnknown { why: why.to_string() }.into()
        }
    }
}

/// Every worker is there or given up waiting for, nobody needs a restart, and every member runs what a move needs.
fn can_rebalance(view: View, wanted: &ResolvedSpec, plan: &Plan) -> Gate {
    // Missing workers have a wait of their own; three workers added at once make one rebalance.
    let waiting = view.missing_workers().iter().any(|missing| !missing.timed_out);
    let rolling = !rolling_restart::nodes_to_restart(view, wanted).is_empty();
    // One that is refused again and again is not waited for.
    let lasts = |step: &Step| view.snapshot.refusals.lasts(&refusals::attempt_of(step));
    let joining = plan.steps.iter().any(|PlannedStep { step, .. }| match step.effect().concerns {
        Concern::Registration => !lasts(step),
        Concern::Restart | Concern::Schema => true,
        Concern::Objects
        | Concern::Evictions
        | Concern::Question
        | Concern::Configuration
        | Concern::Preparation
        | Concern::Application
        | Concern::MovePreparation
        | Concern::Moves
        | Concern::Draining
        | Concern::Removal
        | Concern::ForceRemoval
        | Concern::Repair => false,
    });
    let unhealthy = view.unhealthy_members();
    let blocked = plan.problems.iter().any(|problem| problem.reason().consequence().nothing_moves);
    if waiting || rolling || joining || blocked || !unhealthy.is_empty() {
        return Err(Findings::default());
    }
    let members = std::iter::once(crate::api::Node::Coordinator).chain(view.registered_workers().into_keys());
    let (mut fit, mut findings) = (true, Findings::default());
    for node in members {
        let ServerCheck::Verified(postgres) = view.server(node) else { return Err(findings) };
        if postgres.wal_level != "logical" {
            fit = false;
        } else if !settings::is_configured(wanted, node, postgres)
            && postgres.rejected.is_none()
            && postgres.pending_restart.is_empty()
        {
            findings.add(WaitingOn::ConfigurationPending { node });
            fit = false;
        }
        if let Some(lack) = settings::lacks_capacity(view, node, postgres) {
            findings.add(Problem::CapacityTooLow { node: view.name(node), lack });
            fit = false;
        }
    }
    if fit { Ok(()) } else { Err(findings) }
}

/// How long to wait after a job that failed; one that somebody stopped is no failure. A server that was restarted since
/// is a reason to try at once.
fn backoff_until(view: View, job: &Job, failed: u32) -> Option<Timestamp> {
    if job.state != JobState::Failed || failed == 0 {
        return None;
    }
    let ended = job.finished_at?;
    let restarted = view
        .snapshot
        .postgres
        .values()
        .filter_map(Observed::known)
        .any(|postgres| postgres.started_at > ended);
    if restarted {
        return None;
    }
    let doubled = FIRST_PAUSE.as_secs().saturating_mul(1_i64 << failed.saturating_sub(1).min(10));
    let pause = SignedDuration::from_secs(doubled).min(LONGEST_PAUSE);
    // The clock of the servers may be ahead of ours.
    let until = ended.checked_add(pause).ok()?.min(view.snapshot.now.checked_add(pause).ok()?);
    (until > view.snapshot.now).then_some(until)
}
