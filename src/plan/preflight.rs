//! What would keep shards from moving, known before a job starts. Each is a problem of its own with the statement that
//! ends it; the group it is about stays where it is, and all others move.

use std::collections::BTreeSet;

use super::{
    Findings, Gate, Plan, PlannedStep, Problem, SqlStep, View,
    problem::{TableObstacle, Unmoved},
};
use crate::{
    api::{spec::TransferMode, words::several},
    snapshot::{Move, Obstacle, ObstacleKind, Pins},
};

/// A limit on statements that is shorter is in the way of any move of a shard with rows.
const SHORTEST_STATEMENT_TIMEOUT: i64 = 10_000;
/// Bytes of a shard whose indexes are built in a millisecond on a slow machine.
const BYTES_PER_MILLISECOND: i64 = 5_000;

/// What the obstacles leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreflightOutcome {
    /// Everything may move, by the strategy of the spec.
    All,
    /// These groups stay where they are, and all others may move.
    But(BTreeSet<i32>),
    /// Nothing may move.
    Nothing,
}

/// What is in the way of these moves, and what may move all the same.
#[must_use]
pub fn preflight(view: View, moves: &[Move]) -> (PreflightOutcome, Findings) {
    let groups: BTreeSet<i32> = moves.iter().map(|planned| planned.colocation_id).collect();
    let bytes = moves.iter().map(|planned| planned.bytes).max().unwrap_or_default();
    check(view, bytes, |obstacle| groups.contains(&obstacle.colocation_id))
}

/// The same for all shards on these nodes, by `groupid`, before their drain is begun.
#[must_use]
pub fn preflight_drain(view: View, nodes: &BTreeSet<i32>) -> (PreflightOutcome, Findings) {
    let there = |obstacle: &Obstacle| obstacle.groups.iter().any(|group| nodes.contains(group));
    check(view, 0, there)
}

fn check(view: View, bytes: i64, moves: impl Fn(&Obstacle) -> bool) -> (PreflightOutcome, Findings) {
    let Some(citus) = view.citus() else { return (PreflightOutcome::Nothing, Findings::default()) };
    let applies = |obstacle: &&Obstacle| blocks_moves(view, obstacle, bytes);
    let applying: Vec<&Obstacle> = citus.obstacles.listed.iter().filter(applies).collect();
    let told: Vec<&Obstacle> =
        applying.iter().copied().filter(|obstacle| stops_all(obstacle) || moves(obstacle)).collect();
    if told.is_empty() {
        return (PreflightOutcome::All, Findings::default());
    }
    let nothing = told.iter().any(|obstacle| stops_all(obstacle));
    // A group that is not listed cannot be kept where it is.
    let unlisted = citus.obstacles.unlisted > 0;
    // First what everything waits for.
    let (all, some): (Vec<&Obstacle>, Vec<&Obstacle>) =
        told.iter().partition(|obstacle| unlisted || stops_all(obstacle));
    let others = if nothing || unlisted { Unmoved::These } else { Unmoved::TheseAlone };
    let mut problems = problems_of(view, &all, Unmoved::Everything);
    problems.extend(problems_of(view, &some, others));
    let outcome = if nothing || unlisted {
        PreflightOutcome::Nothing
    } else {
        PreflightOutcome::But(applying.iter().map(|obstacle| obstacle.colocation_id).collect())
    };
    (outcome, problems.into_iter().collect())
}

/// Nothing moves as long as it is there.
fn stops_all(obstacle: &Obstacle) -> bool {
    obstacle.reference || obstacle.kind == ObstacleKind::OwnedBySuperuser
}

fn blocks_moves(view: View, obstacle: &Obstacle, bytes: i64) -> bool {
    use ObstacleKind as Kind;
    let mode = view.desired.rebalance.transfer_mode;
    match obstacle.kind {
        Kind::NoReplicaIdentity => mode == TransferMode::Auto,
        Kind::Unlogged => mode != TransferMode::BlockWrites,
        Kind::SettingOfRole
        | Kind::SettingOfRoleInDatabase
        | Kind::SettingOfDatabase
        | Kind::SettingOfAll => {
            let is_timeout = obstacle.what.as_deref().is_some_and(|name| name.ends_with("_timeout"));
            let value = obstacle.value.as_deref().unwrap_or_default();
            // One that cannot be read is taken for short.
            !is_timeout
                || milliseconds(value)
                    .is_none_or(|limit| limit < SHORTEST_STATEMENT_TIMEOUT.max(bytes / BYTES_PER_MILLISECOND))
        }
        Kind::OwnedBySuperuser
        | Kind::OwnerCannotLogIn
        | Kind::OwnerHasNoConnections
        | Kind::OwnerCannotCreate
        | Kind::PartitionOfAnother
        | Kind::ReferenceTableRunsCode => true,
    }
}

/// A time as PostgreSQL takes it: a number, and a unit or none for milliseconds.
fn milliseconds(value: &str) -> Option<i64> {
    let value = value.trim();
    let end = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let number: i64 = value.get(..end)?.parse().ok()?;
    let factor = match value.get(end..)?.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// One problem for each cure, with all its tables.
fn problems_of(view: View, told: &[&Obstacle], stays: Unmoved) -> Vec<Problem> {
    let mut found: Vec<TableObstacle> = Vec::new();
    for obstacle in told {
        let one = TableObstacle {
            kind: obstacle.kind,
            owner: obstacle.owner.clone(),
            what: obstacle.what.clone().unwrap_or_default(),
            value: obstacle.value.clone().unwrap_or_default(),
            database: view.desired.database.name.clone(),
            application: view.desired.database.owner.clone(),
            tables: vec![obstacle.table.clone()],
            more: obstacle.more,
            stays,
        };
        match found.iter_mut().find(|other| other.is_like(&one)) {
            Some(other) => {
                other.more += obstacle.more;
                if !other.tables.contains(&obstacle.table) {
                    other.tables.push(obstacle.table.clone());
                }
            }
            None => found.push(one),
        }
    }
    let mut problems: Vec<Problem> = found.into_iter().map(|one| Problem::Obstacle(Box::new(one))).collect();
    problems.sort_by_cached_key(|problem| (problem.reason(), problem.to_string()));
    problems
}

/// Pins no group any more, when all may move.
pub fn unpin(view: View, leave: &PreflightOutcome, plan: &mut Plan) {
    if *leave == PreflightOutcome::All && view.citus().is_some_and(|citus| citus.pins.is_some()) {
        let pins = Pins { base: view.desired.rebalance.strategy.clone(), groups: Vec::new() };
        plan.step(SqlStep::PinGroups(pins), "no colocation group has to stay pinned");
    }
}

/// The strategy to start a job with, once it keeps where they are those that cannot move.
///
/// # Errors
/// The step that makes it so; nothing when nothing may move.
pub fn strategy(view: View, leave: &PreflightOutcome) -> Gate<Strategy> {
    match leave {
        PreflightOutcome::Nothing => Err(Findings::default()),
        PreflightOutcome::All => Ok(Strategy::OfTheSpec),
        PreflightOutcome::But(groups) => {
            let base = view.desired.rebalance.strategy.clone();
            let pins = Pins { base, groups: groups.iter().copied().collect() };
            if view.citus().is_some_and(|citus| citus.pins.as_ref() == Some(&pins)) {
                return Ok(Strategy::Pinning);
            }
            let why =
                format!("{} cannot be moved, and the others can", several(groups.len(), "colocation group"));
            Err(PlannedStep::new(SqlStep::PinGroups(pins), why).into())
        }
    }
}

/// Which strategy a job is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// `spec.rebalance.strategy`.
    OfTheSpec,
    /// The one of the operator's own.
    Pinning,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_postgres_reads_them() {
        for (value, expected) in [
            ("100", Some(100)),
            ("100ms", Some(100)),
            (" 2 s", Some(2_000)),
            ("5min", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("1d", Some(86_400_000)),
            ("1.5s", None),
            ("", None),
            ("100us", None),
        ] {
            assert_eq!(milliseconds(value), expected, "{value}");
        }
    }
}
