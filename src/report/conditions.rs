//! The conditions, one function each, and the rules that hold between them. Pure.

mod balanced;
mod reason;
mod reconciling;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

pub use balanced::balanced;
use reason::ConditionReason as Reason;
pub use reconciling::reconciling;

use crate::{
    act::Outcome,
    api::{Node, status::ConditionType, words::several},
    plan::{Plan, ServerCheck, View, settings},
    snapshot::{FailureReason, Login, Observed, Reach},
};

/// What a condition says, before its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionUpdate {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn condition_true(reason: impl Into<&'static str>, message: impl Into<String>) -> ConditionUpdate {
    ConditionUpdate { status: "True", reason: reason.into(), message: message.into() }
}
fn condition_false(reason: impl Into<&'static str>, message: impl Into<String>) -> ConditionUpdate {
    ConditionUpdate { status: "False", reason: reason.into(), message: message.into() }
}
fn condition_unknown(reason: impl Into<&'static str>, message: impl Into<String>) -> ConditionUpdate {
    ConditionUpdate { status: "Unknown", reason: reason.into(), message: message.into() }
}

fn why_no_catalog(view: View<'_>) -> &str {
    view.snapshot.citus.unknown().unwrap_or("the coordinator has no catalog yet")
}

/// All conditions, in the order in which people read them.
#[must_use]
pub fn all(view: View, plan: &Plan, outcome: &Outcome) -> Vec<(ConditionType, ConditionUpdate)> {
    vec![
        (ConditionType::Ready, ready(view)),
        (ConditionType::Reconciling, reconciling(plan, outcome)),
        (ConditionType::Stalled, stalled(plan)),
        (ConditionType::WalLevelLogical, wal_level_logical(view)),
        (ConditionType::ConfigurationApplied, configuration_applied(view, plan)),
        (ConditionType::WorkersRegistered, workers_registered(view)),
        (ConditionType::SchemaApplied, schema_applied(view, outcome)),
        (ConditionType::Balanced, balanced(view, plan, outcome)),
    ]
}

/// Merges with the conditions of before: `lastTransitionTime` moves only when the status does.
#[must_use]
pub fn with_times(
    updates: Vec<(ConditionType, ConditionUpdate)>,
    before: &[Condition],
    generation: i64,
    now: jiff::Timestamp,
) -> Vec<Condition> {
    updates
        .into_iter()
        .map(|(kind, update)| {
            let kind: &str = kind.into();
            let kept = before.iter().find(|old| old.type_ == kind && old.status == update.status);
            Condition {
                type_: kind.to_owned(),
                status: update.status.to_owned(),
                reason: update.reason.to_owned(),
                // The API allows 32,768 bytes; a long list of words from many nodes is cut on a character.
                message: update.message.chars().take(4096).collect(),
                last_transition_time: kept.map_or(Time(now), |old| old.last_transition_time.clone()),
                observed_generation: Some(generation),
            }
        })
        .collect()
}

/// The database serves.
#[must_use]
pub fn ready(view: View) -> ConditionUpdate {
    let unhealthy = view.unhealthy_members();
    if let Some(update) = slow_server(view, &unhealthy) {
        return update;
    }
    if let Some((node, why)) = unhealthy.first() {
        return condition_false(Reason::NodeNotAnswering, format!("{}: {why}", view.name(*node)));
    }
    let Some(citus) = view.citus() else {
        return condition_false(Reason::CatalogUnknown, why_no_catalog(view));
    };
    let workers = view.registered_workers();
    if workers.is_empty() {
        return condition_false(Reason::NoWorkers, "no worker is registered yet");
    }
    if let Some((node, _)) = workers.iter().find(|(_, row)| !row.active) {
        return condition_false(
            Reason::WorkerInactive,
            format!("{} is not active in pg_dist_node", view.name(*node)),
        );
    }
    for node in workers.keys() {
        let missing = view.postgres(*node).map_or(0, |postgres| postgres.missing_tables);
        if missing > 0 {
            return condition_false(
                Reason::TablesMissing,
                format!("{}: the tables of {} are missing", view.name(*node), several(missing, "placement")),
            );
        }
    }
    if citus.schema_hash.is_none() || !citus.owner_exists {
        return condition_false(
            Reason::SchemaNotApplied,
            "the application's role and tables do not exist yet",
        );
    }
    let serving = format!("the coordinator and {} answer", several(workers.len(), "worker"));
    let Some(reach) = &view.snapshot.reach else { return condition_true(Reason::Available, serving) };
    unreached(reach)
        .unwrap_or_else(|| condition_true(Reason::Available, format!("{serving}{}", further_findings(reach))))
}

/// One look that takes too long, at a server whose pod is ready, is much work and no outage: two in a row are.
fn slow_server(view: View, unhealthy: &[(Node, String)]) -> Option<ConditionUpdate> {
    let mut why = unhealthy.iter().map(|(node, why)| format!("{}: {why}", view.name(*node))).next();
    if why.is_none() {
        why = view.snapshot.citus.unknown().map(|why| format!("the coordinator's catalog: {why}"));
    }
    let nodes: BTreeSet<Node> = unhealthy.iter().map(|(node, _)| *node).collect();
    let is_late = !view.snapshot.slow_nodes.is_empty() && nodes.is_subset(&view.snapshot.slow_nodes);
    let why = why.filter(|_| is_late && view.snapshot.status.is_true(ConditionType::Ready))?;
    Some(condition_true(
        Reason::Available,
        format!("{why}; its pod is ready, and one slow answer is no outage yet"),
    ))
}

/// Sessions of before may go on while no new one can be made: then it does not serve, or not for long.
fn unreached(reach: &Reach) -> Option<ConditionUpdate> {
    // One look may have met a passing moment.
    if reach.failures < 2 {
        return None;
    }
    if !reach.broken.is_empty() {
        let words = format!("new connections cannot be made: {}", reach.broken.join("; "));
        return Some(condition_false(Reason::NodesCannotConnect, words));
    }
    match &reach.application {
        Login::PasswordDiffers(why) => Some(condition_false(
            Reason::OwnerCannotConnect,
            format!(
                "PasswordDiffers: the application's role does not get in with the password of its Secret: {why}"
            ),
        )),
        Login::Failed(why) => Some(condition_false(
            Reason::OwnerCannotConnect,
            format!(
                "the application's role does not get through to every worker over new connections: {why}"
            ),
        )),
        Login::Well | Login::Untried(_) => None,
    }
}

/// What is no failure and worth knowing.
fn further_findings(reach: &Reach) -> String {
    let untried = match &reach.application {
        Login::Untried(why) => format!("; the application's login is not tried: {why}"),
        Login::Well | Login::PasswordDiffers(_) | Login::Failed(_) => String::new(),
    };
    // Which of many has none is another one each time.
    let busy = reach.busy.first().map(|why| format!("; no connection is free: {why}"));
    format!("{untried}{}", busy.unwrap_or_default())
}

/// The operator cannot go on by itself.
#[must_use]
pub fn stalled(plan: &Plan) -> ConditionUpdate {
    match plan.problems.first() {
        None => condition_false(Reason::NoProblem, "no manual action is required"),
        Some(first) => {
            let messages: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
            condition_true(first.reason(), messages.join(" "))
        }
    }
}

/// Members of the cluster, and what their servers said.
fn members(view: View<'_>) -> Vec<(Node, ServerCheck<'_>)> {
    let workers = view.registered_workers().into_keys();
    std::iter::once(Node::Coordinator).chain(workers).map(|node| (node, view.server(node))).collect()
}

fn unobserved(view: View, members: &[(Node, ServerCheck)]) -> Option<ConditionUpdate> {
    let silent = members.iter().find_map(|(node, server)| match server {
        ServerCheck::Verified(_) | ServerCheck::Unrecorded(_) => None,
        ServerCheck::NotReady(why) | ServerCheck::Unreachable(why) | ServerCheck::IdentityMismatch(why) => {
            Some(condition_unknown(Reason::NodeNotAnswering, format!("{}: {why}", view.name(*node))))
        }
    });
    silent.or_else(|| {
        let none = members.len() < 2;
        none.then(|| condition_unknown(Reason::NoWorkers, "no worker is registered yet"))
    })
}

/// Every node runs with `wal_level = logical`.
#[must_use]
pub fn wal_level_logical(view: View) -> ConditionUpdate {
    let mut members = members(view);
    // Workers that answer and are not registered yet count as well: a move may soon come from them.
    for missing in view.missing_workers() {
        if let server @ (ServerCheck::Verified(_) | ServerCheck::Unrecorded(_)) = view.server(missing.node) {
            members.push((missing.node, server));
        }
    }
    let wrong: Vec<String> = members
        .iter()
        .filter_map(|(node, server)| match server {
            ServerCheck::Verified(postgres) | ServerCheck::Unrecorded(postgres)
                if postgres.wal_level != "logical" =>
            {
                Some(format!("{} runs wal_level = {}", view.name(*node), postgres.wal_level))
            }
            _ => None,
        })
        .collect();
    if !wrong.is_empty() {
        return condition_false(Reason::WrongWalLevel, wrong.join(", "));
    }
    unobserved(view, &members)
        .unwrap_or_else(|| condition_true(Reason::Running, "every node runs wal_level = logical"))
}

/// Every node runs the parameters of the spec.
#[must_use]
pub fn configuration_applied(view: View, plan: &Plan) -> ConditionUpdate {
    let rejected = plan
        .problems
        .iter()
        .find(|problem| problem.reason() == crate::plan::ProblemReason::ConfigurationRejected);
    if let Some(problem) = rejected {
        return condition_false(Reason::ConfigurationRejected, problem.to_string());
    }
    let resolved = plan.resolved.as_ref().filter(|wanted| wanted.parameters == view.desired.parameters);
    let Some(wanted) = resolved else {
        return condition_false(
            Reason::ValidatingParameters,
            "changed parameters are checked on one server first",
        );
    };
    let members = members(view);
    for (node, server) in &members {
        if let ServerCheck::Verified(postgres) | ServerCheck::Unrecorded(postgres) = server
            && !settings::is_configured(wanted, *node, postgres)
        {
            let pending: Vec<&str> = postgres.pending_restart.iter().map(String::as_str).collect();
            return if pending.is_empty() {
                condition_false(
                    Reason::ConfigurationPending,
                    format!("{} does not run the configuration of this generation yet", view.name(*node)),
                )
            } else {
                condition_false(
                    Reason::PendingRestart,
                    format!("{} waits for a restart: {}", view.name(*node), pending.join(", ")),
                )
            };
        }
    }
    unobserved(view, &members)
        .unwrap_or_else(|| condition_true(Reason::Running, "every node runs the parameters of the spec"))
}

/// Every worker asked for is registered and reachable.
#[must_use]
pub fn workers_registered(view: View) -> ConditionUpdate {
    if view.citus().is_none() {
        return condition_unknown(Reason::CatalogUnknown, why_no_catalog(view));
    }
    let missing = view.missing_workers();
    if let Some(first) = missing.first() {
        let names: Vec<String> = missing.iter().map(|missing| view.name(missing.node)).collect();
        let message =
            format!("not registered: {}. {}: {}", names.join(", "), view.name(first.node), first.why);
        return if missing.iter().any(|missing| missing.timed_out) {
            condition_false(Reason::JoinTimeout, message)
        } else {
            condition_false(Reason::WorkersMissing, message)
        };
    }
    let workers = view.registered_workers();
    for (node, row) in &workers {
        if !row.active || !row.metadata_synced {
            return condition_false(
                Reason::NotSynced,
                format!(
                    "{} is active: {}, metadata synced: {}",
                    view.name(*node),
                    row.active,
                    row.metadata_synced
                ),
            );
        }
        if let ServerCheck::NotReady(why)
        | ServerCheck::Unreachable(why)
        | ServerCheck::IdentityMismatch(why) = view.server(*node)
        {
            return condition_false(Reason::NodeNotAnswering, format!("{}: {why}", view.name(*node)));
        }
    }
    let citus = view.citus().map(|citus| citus.nodes.as_slice()).unwrap_or_default();
    let foreign: Vec<&str> = citus
        .iter()
        .filter(|row| row.group_id != 0 && view.node_of(row).is_none())
        .map(|row| row.name.as_str())
        .collect();
    let also = if foreign.is_empty() {
        String::new()
    } else {
        format!("; also registered and not of this spec: {}", foreign.join(", "))
    };
    condition_true(Reason::AllRegistered, format!("{} registered{also}", several(workers.len(), "worker")))
}

/// Database, role, schema and distributed tables exist.
#[must_use]
pub fn schema_applied(view: View, outcome: &Outcome) -> ConditionUpdate {
    // Any other failure passes: the catalog tells what is there.
    if let Some((_, failure)) =
        outcome.failures().find(|(_, failure)| failure.reason == FailureReason::Schema)
    {
        return condition_false(Reason::SchemaFailed, failure.message.clone());
    }
    let Some(citus) = view.citus() else {
        return condition_unknown(Reason::CatalogUnknown, why_no_catalog(view));
    };
    match &citus.schema_hash {
        None => condition_false(Reason::NotApplied, "the schema is applied when the workers have joined"),
        Some(_) if !citus.owner_exists => condition_false(
            Reason::OwnerMissing,
            format!("the role {} does not exist", view.desired.database.owner),
        ),
        Some(applied) => match &view.snapshot.schema_sql {
            Observed::Known(sql) if view.desired.schema_source.is_some() && sql.hash != *applied => {
                condition_true(
                    Reason::SchemaChangeIgnored,
                    "the schema was applied at birth; its ConfigMap has changed since and is not run again",
                )
            }
            _ => condition_true(Reason::Applied, "the schema was applied"),
        },
    }
}
