//! What must never happen, checked on any plan: in tests at every step, and before acting. A plan that breaks one of
//! these is a bug of the planner; it is not carried out.

use super::{Plan, RestartCause, Server, Step, View, Wanted, settings};
use crate::api::Node;

/// A rule that a plan breaks; the number is that of the list in ARCHITECTURE.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} ({rule}) would be broken: {how}")]
pub struct Broken {
    /// Number in the list "What must never happen".
    pub number: u8,
    /// The rule.
    pub rule: &'static str,
    /// How this plan breaks it.
    pub how: String,
}

/// The first rule that the plan breaks, if it breaks one.
///
/// # Errors
/// The rule and how it is broken.
pub fn check(view: View, wanted: &Wanted, plan: &Plan) -> Result<(), Broken> {
    for (position, planned) in plan.steps.iter().enumerate() {
        match &planned.step {
            Step::StartRebalance { .. } => starts_fit(view, wanted, plan, position)?,
            Step::RestartNode { node, cause, .. } => restarts_alone(view, *node, *cause)?,
            Step::AddNode { node, .. } => registers_reachable(view, *node)?,
            Step::SetCoordinatorHost { .. } => knows_cluster(view)?,
            Step::Delete { kind, name, .. } => deletes_forgotten(view, kind, name)?,
            Step::Create(object) | Step::Apply { object, .. } => {
                initialises_newborn(view, &object.kind, &object.name, &object.json)?;
            }
            _ => {}
        }
    }
    one_restart(plan)
}

fn broken(number: u8, rule: &'static str, how: impl Into<String>) -> Broken {
    Broken { number, rule, how: how.into() }
}

fn starts_fit(view: View, wanted: &Wanted, plan: &Plan, position: usize) -> Result<(), Broken> {
    let members = std::iter::once(Node::Coordinator).chain(view.registered_workers().into_keys());
    for node in members {
        let Server::Known(postgres) = view.server(node) else {
            return Err(broken(
                12,
                "only recorded servers move shards",
                format!("{node} does not answer as itself"),
            ));
        };
        if postgres.wal_level != "logical" {
            return Err(broken(
                1,
                "moves need wal_level = logical everywhere",
                format!("{node} runs {}", postgres.wal_level),
            ));
        }
        if let Some(lack) = settings::lacks_capacity(view, postgres) {
            return Err(broken(1, "moves need slots, senders and workers", format!("{node}: {lack}")));
        }
    }
    let rolling = plan.steps.iter().any(|planned| matches!(planned.step, Step::RestartNode { .. }));
    if rolling || !super::roll::due(view, wanted, &mut Plan::default()).is_empty() {
        return Err(broken(2, "no move starts during a roll", "a restart is due"));
    }
    let recovered = plan.steps.iter().take(position).any(|planned| planned.step == Step::RecoverTransactions);
    if recovered {
        Ok(())
    } else {
        Err(broken(14, "prepared transactions are recovered before each job", "they are not"))
    }
}

fn restarts_alone(view: View, node: Node, cause: RestartCause) -> Result<(), Broken> {
    let member = view.may_be_member(node);
    if member && view.move_runs() {
        return Err(broken(2, "no node restarts while a move runs", format!("{node} ({cause})")));
    }
    match view.unwell().into_iter().find(|(other, _)| member && *other != node) {
        Some((other, why)) => Err(broken(
            6,
            "two nodes are never down at once",
            format!("{node} would go while {other}: {why}"),
        )),
        None => Ok(()),
    }
}

fn registers_reachable(view: View, node: Node) -> Result<(), Broken> {
    let Server::Known(postgres) = view.server(node) else {
        return Err(broken(12, "only recorded servers are registered", format!("{node}")));
    };
    if postgres.group_id.unwrap_or(0) != 0 {
        return Err(broken(12, "no server is registered twice", format!("{node} is a member already")));
    }
    for member in std::iter::once(Node::Coordinator).chain(view.registered_workers().into_keys()) {
        for (from, to) in [(member, node), (node, member)] {
            let reached = view
                .seen
                .connections
                .iter()
                .any(|check| check.from == from && check.to == to && check.error.is_none());
            if !reached {
                return Err(broken(
                    3,
                    "a worker is reachable both ways before it is registered",
                    format!("{from} to {to}"),
                ));
            }
        }
    }
    knows_cluster(view)
}

fn knows_cluster(view: View) -> Result<(), Broken> {
    let Some(citus) = view.citus() else {
        return Err(broken(13, "the catalog is known before membership changes", "it is not"));
    };
    if citus.nodes.iter().any(|row| row.group_id != 0) {
        return Ok(());
    }
    let holder = view.metadata_holder();
    match holder {
        Some(node) => {
            Err(broken(13, "an emptied coordinator deletes no metadata", format!("{node} holds some")))
        }
        None => Ok(()),
    }
}

fn deletes_forgotten(view: View, kind: &str, name: &str) -> Result<(), Broken> {
    if kind == "PersistentVolumeClaim" {
        return Err(broken(5, "no volume is deleted", name.to_owned()));
    }
    match Node::from_object_name(name, &view.desired.cluster.name) {
        Some(node)
            if node == Node::Coordinator || view.citus().is_none() || view.registration(node).is_some() =>
        {
            Err(broken(5, "a node's objects outlive its registration", name.to_owned()))
        }
        _ => Ok(()),
    }
}

fn initialises_newborn(view: View, kind: &str, name: &str, json: &serde_json::Value) -> Result<(), Broken> {
    let node = Node::from_object_name(name, &view.desired.cluster.name);
    match node {
        Some(node)
            if kind == "ConfigMap"
                && crate::resources::may_initialise(json)
                && view.identity(node).is_some() =>
        {
            Err(broken(12, "initdb never runs on a node that was a node before", format!("{node}")))
        }
        _ => Ok(()),
    }
}

fn one_restart(plan: &Plan) -> Result<(), Broken> {
    let restarts =
        plan.steps.iter().filter(|planned| matches!(planned.step, Step::RestartNode { .. })).count();
    if restarts > 1 {
        Err(broken(6, "nodes restart one by one", format!("{restarts} at once")))
    } else {
        Ok(())
    }
}
