//! What would keep shards from moving, known before a job starts. Each is a problem of its own with the statement that
//! ends it; the group it is about stays where it is, and all others move.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, ProblemReason, SqlStep, View};
use crate::{
    api::spec::TransferMode,
    observe::snapshot::{Move, Obstacle, ObstacleKind, Pins},
};

/// A limit on statements that is shorter is in the way of any move of a shard with rows.
const SHORTEST: i64 = 10_000;
/// Bytes of a shard whose indexes are built in a millisecond on a slow machine.
const BYTES_PER_MILLISECOND: i64 = 5_000;

/// What the obstacles leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Everything may move, by the strategy of the spec.
    All,
    /// These groups stay where they are, and all others may move.
    But(BTreeSet<i32>),
    /// Nothing may move.
    Nothing,
}

/// Tells what is in the way of these moves, and says what may move all the same.
pub fn preflight(view: View, moves: &[Move], plan: &mut Plan) -> Leave {
    let groups: BTreeSet<i32> = moves.iter().map(|planned| planned.colocation_id).collect();
    let bytes = moves.iter().map(|planned| planned.bytes).max().unwrap_or_default();
    check(view, bytes, |obstacle| groups.contains(&obstacle.colocation_id), plan)
}

/// The same for all shards on these nodes, by `groupid`, before their drain is begun.
pub fn preflight_drain(view: View, nodes: &BTreeSet<i32>, plan: &mut Plan) -> Leave {
    let there = |obstacle: &Obstacle| obstacle.groups.iter().any(|group| nodes.contains(group));
    check(view, 0, there, plan)
}

fn check(view: View, bytes: i64, moves: impl Fn(&Obstacle) -> bool, plan: &mut Plan) -> Leave {
    let Some(citus) = view.citus() else { return Leave::Nothing };
    let applies = |obstacle: &&Obstacle| is_in_the_way(view, obstacle, bytes);
    let applying: Vec<&Obstacle> = citus.obstacles.listed.iter().filter(applies).collect();
    let told: Vec<&Obstacle> =
        applying.iter().copied().filter(|obstacle| stops_all(obstacle) || moves(obstacle)).collect();
    if told.is_empty() {
        return Leave::All;
    }
    let nothing = told.iter().any(|obstacle| stops_all(obstacle));
    // A group that is not listed cannot be kept where it is.
    let unlisted = citus.obstacles.unlisted > 0;
    // First what everything waits for.
    let (all, some): (Vec<&Obstacle>, Vec<&Obstacle>) =
        told.iter().partition(|obstacle| unlisted || stops_all(obstacle));
    tell(view, &all, "No shard is moved before that", plan);
    let stay = if nothing || unlisted {
        "Shards of these tables would stay where they are, and what moves with them"
    } else {
        "Shards of these tables stay where they are, and what moves with them; all others move"
    };
    tell(view, &some, stay, plan);
    if nothing || unlisted {
        return Leave::Nothing;
    }
    Leave::But(applying.iter().map(|obstacle| obstacle.colocation_id).collect())
}

/// Nothing moves as long as it is there.
fn stops_all(obstacle: &Obstacle) -> bool {
    obstacle.reference || obstacle.kind == ObstacleKind::OwnedBySuperuser
}

fn is_in_the_way(view: View, obstacle: &Obstacle, bytes: i64) -> bool {
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
                || milliseconds(value).is_none_or(|limit| limit < SHORTEST.max(bytes / BYTES_PER_MILLISECOND))
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

/// One problem for each reason and cure, with all its tables.
fn tell(view: View, told: &[&Obstacle], waits: &str, plan: &mut Plan) {
    let mut sentences: BTreeMap<(ProblemReason, String), (Vec<&str>, i64)> = BTreeMap::new();
    for obstacle in told {
        let (tables, more) = sentences.entry(sentence(view, obstacle)).or_default();
        if !tables.contains(&obstacle.table.as_str()) {
            tables.push(&obstacle.table);
        }
        *more += obstacle.more;
    }
    for ((reason, words), (tables, more)) in sentences {
        // A statement has its own end.
        let end = if words.ends_with(';') { "" } else { "." };
        plan.problem(reason, format!("{}: {words}{end} {waits}.", listed(&tables, more)));
    }
}

/// Some names, and how many others there are.
fn listed(tables: &[&str], more: i64) -> String {
    let (first, others) = tables.split_at(tables.len().min(10));
    let others = i64::try_from(others.len()).unwrap_or(i64::MAX).saturating_add(more);
    let others = if others == 0 { String::new() } else { format!(" and {others} more") };
    format!("{}{others}", first.join(", "))
}

fn sentence(view: View, obstacle: &Obstacle) -> (ProblemReason, String) {
    use ObstacleKind as Kind;
    let (table, owner) = (&obstacle.table, identifier(&obstacle.owner));
    let owner = &owner;
    let what = obstacle.what.as_deref().unwrap_or_default();
    let value = obstacle.value.as_deref().unwrap_or_default();
    let database = identifier(&view.desired.database.name);
    let application = identifier(&view.desired.database.owner);
    let setting = |whose: String| {
        let name = format!(
            "{what} is {value} for {whose}, and indexes and constraints of shards that move are made as {owner}"
        );
        let cure = match obstacle.kind {
            Kind::SettingOfRole => format!(": ALTER ROLE {owner} RESET {what}"),
            Kind::SettingOfRoleInDatabase => {
                format!(": ALTER ROLE {owner} IN DATABASE {database} RESET {what}")
            }
            Kind::SettingOfDatabase => format!(": ALTER DATABASE {database} RESET {what}"),
            _ => format!(": ALTER ROLE ALL RESET {what}"),
        };
        (ProblemReason::OwnerSettings, format!("{name}{cure};"))
    };
    match obstacle.kind {
        Kind::NoReplicaIdentity => (
            ProblemReason::NoReplicaIdentity,
            "cannot use logical replication to transfer shards of the relation since it doesn't have a REPLICA IDENTITY or PRIMARY KEY: ALTER TABLE ... ADD PRIMARY KEY (...); or ALTER TABLE ... REPLICA IDENTITY FULL; or set spec.rebalance.transferMode to force_logical or block_writes".to_owned(),
        ),
        Kind::Unlogged => (
            ProblemReason::UnloggedTable,
            "unlogged, and logical replication copies no such table: ALTER TABLE ... SET LOGGED; or DROP TABLE ...; or set spec.rebalance.transferMode to block_writes, which moves it with its rows while writes wait".to_owned(),
        ),
        Kind::OwnedBySuperuser => (
            ProblemReason::TableOwnedBySuperuser,
            format!("owned by the superuser {owner}, and no move is made as a superuser: ALTER TABLE {table} OWNER TO {application};"),
        ),
        Kind::OwnerCannotLogIn => (
            ProblemReason::OwnerCannotLogIn,
            format!("the owner {owner} may not log in, and shards that move are made as their owner: ALTER ROLE {owner} LOGIN; or ALTER TABLE {table} OWNER TO {application};"),
        ),
        Kind::OwnerHasNoConnections => (
            ProblemReason::OwnerCannotLogIn,
            format!("the owner {owner} may have no connection, and shards that move are made as their owner: ALTER ROLE {owner} CONNECTION LIMIT -1; or ALTER TABLE {table} OWNER TO {application};"),
        ),
        Kind::OwnerCannotCreate => (
            ProblemReason::OwnerCannotCreate,
            format!("the owner {owner} may not make tables in the schema {what}, and shards that move are made as their owner: GRANT CREATE ON SCHEMA {} TO {owner};", identifier(what)),
        ),
        Kind::PartitionOfAnother => (
            ProblemReason::PartitionOwnerDiffers,
            format!("a partition of {what}, which is {value}'s and not {owner}'s: ALTER TABLE {table} OWNER TO {};", identifier(value)),
        ),
        Kind::SettingOfRole => setting(format!("the role {owner}")),
        Kind::SettingOfRoleInDatabase => setting(format!("the role {owner} in the database {database}")),
        Kind::SettingOfDatabase => setting(format!("the database {database}")),
        Kind::SettingOfAll => setting("all roles".to_owned()),
        Kind::ReferenceTableRunsCode => (
            ProblemReason::ReferenceTableRunsCode,
            format!("{what}, and Citus copies a reference table to a new node as a superuser: ALTER TABLE {table} OWNER TO postgres; GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {owner};"),
        ),
    }
}

/// A name as SQL takes it.
fn identifier(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit();
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with(|first: char| first.is_ascii_digit())
    {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The strategy to start a job with, once it keeps where they are those that cannot move; until then the step that
/// makes it so. `None`: not now.
pub fn strategy(view: View, leave: &Leave, plan: &mut Plan) -> Option<Strategy> {
    let citus = view.citus()?;
    let base = &view.desired.rebalance.strategy;
    match leave {
        Leave::Nothing => None,
        Leave::All => {
            if citus.pins.is_some() {
                let pins = Pins { base: base.clone(), groups: Vec::new() };
                plan.step(SqlStep::PinGroups(pins), "no group has to stay where it is any more");
            }
            Some(Strategy::OfTheSpec)
        }
        Leave::But(groups) => {
            let pins = Pins { base: base.clone(), groups: groups.iter().copied().collect() };
            if citus.pins.as_ref() == Some(&pins) {
                return Some(Strategy::Pinning);
            }
            let why = format!("{} colocation groups cannot be moved, and the others can", groups.len());
            plan.step(SqlStep::PinGroups(pins), why);
            None
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

    #[test]
    fn names_are_quoted_where_they_need_it() {
        assert_eq!(identifier("shop_1"), "shop_1");
        for name in ["1shop", "my-shop", "Shop"] {
            assert_eq!(identifier(name), format!("\"{name}\""));
        }
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
