//! The invariants of workers that go: what is decommissioned, removed, given up and deleted. The list of all is in
//! `invariants.rs`.

use super::violation::{Violation, violation};
use crate::{
    api::{Node, names::keys},
    plan::{KubernetesStep, Plan, PlannedStep, ServerCheck, SqlStep, Step, View, force_remove},
    snapshot::{Contents, Observed},
};

pub(super) fn decommissions_empty(
    view: View,
    plan: &Plan,
    position: usize,
    node: Node,
) -> Result<(), Violation> {
    let given_up = plan
        .steps
        .iter()
        .take(position)
        .any(|planned| matches!(&planned.step, Step::Sql(SqlStep::ForceRemove { workers }) if workers.iter().any(|(of, _)| *of == node)));
    let removed = view.is_no_member(node);
    // Before the first registration: who does not answer and is given up by name has no row to go.
    let unborn = view.citus().is_some_and(|citus| citus.nodes.iter().all(|row| row.group_id == 0));
    let forgotten = unborn && force_removes_requested(view, node).is_ok();
    if given_up || forgotten || removed && force_remove::is_requested(view, node) {
        Ok(())
    } else if removed || is_empty(view, node) {
        loses_no_foreign_contents(view, node)
    } else {
        Err(violation(8, "only the volume of a worker that holds nothing is put aside", format!("{node}")))
    }
}

/// Not by the planner's own `foreign_contents`: the two are to differ when one of them is wrong.
pub(super) fn loses_no_foreign_contents(view: View, node: Node) -> Result<(), Violation> {
    let rule = "nothing that a person made goes with a worker";
    match view.snapshot.contents.get(&node) {
        Some(Observed::Known(found)) if *found == Contents::default() => Ok(()),
        Some(Observed::Known(_)) => {
            Err(violation(17, rule, format!("{node} holds more than the cluster's own")))
        }
        Some(Observed::Unknown(why)) => Err(violation(17, rule, format!("{node}: {why}"))),
        None => Err(violation(17, rule, format!("{node} was not looked at"))),
    }
}

pub(super) fn writes_no_decommissioned(
    plan: &Plan,
    position: usize,
    kind: &str,
    name: &str,
) -> Result<(), Violation> {
    let marked = |planned: &PlannedStep| matches!(&planned.step, Step::Kubernetes(KubernetesStep::Decommission { claim: Some(claim), .. }) if claim == name);
    if kind == "PersistentVolumeClaim" && plan.steps.iter().take(position).any(marked) {
        return Err(violation(8, "a volume that was just put aside is not written as it was seen", name));
    }
    Ok(())
}

/// A StatefulSet on a drained volume: only to let a member that is on its way out answer once more. One that is there
/// and mounts it already brings nothing back, whatever else of it changes.
pub(super) fn mounts_no_decommissioned(
    view: View,
    kind: &str,
    name: &str,
    json: &serde_json::Value,
) -> Result<(), Violation> {
    let Some(node) =
        Node::from_object_name(name, &view.desired.cluster.name).filter(|_| kind == "StatefulSet")
    else {
        return Ok(());
    };
    let volumes = json.pointer("/spec/template/spec/volumes").and_then(serde_json::Value::as_array);
    let claims = volumes.into_iter().flatten().filter_map(|volume| {
        volume.pointer("/persistentVolumeClaim/claimName").and_then(serde_json::Value::as_str)
    });
    let mounted = view.stateful_set(node).and_then(|_| view.claim(node));
    let mut drained = claims
        .filter(|claim| mounted != Some(*claim))
        .filter_map(|claim| view.owned("PersistentVolumeClaim", claim))
        .filter(|claim| claim.label(keys::DECOMMISSIONED).is_some());
    if drained.next().is_some() && view.registration(node).is_none() {
        return Err(violation(8, "a drained volume never comes back as data", format!("{node}")));
    }
    Ok(())
}

pub(super) fn removes_decommissioned(
    view: View,
    plan: &Plan,
    position: usize,
    node: Node,
) -> Result<(), Violation> {
    loses_no_foreign_contents(view, node)?;
    if !is_empty(view, node) {
        return Err(violation(
            4,
            "a worker is removed when nothing is on it and nothing was left behind",
            format!("{node}"),
        ));
    }
    if let Some(job) = view.open_job() {
        return Err(violation(4, "no worker is removed under a job", format!("{node}, job {}", job.id)));
    }
    if let Some((other, why)) = view.unhealthy_members().into_iter().next() {
        return Err(violation(4, "a worker is removed when every member answers", format!("{other}: {why}")));
    }
    let before = plan.steps.iter().take(position);
    let marked =
        before.clone().any(|planned| matches!(&planned.step, Step::Kubernetes(KubernetesStep::Decommission { node: of, .. }) if *of == node));
    if !marked && !view.is_decommissioned(node) {
        return Err(violation(8, "a volume is put aside before its worker is removed", format!("{node}")));
    }
    if before.clone().any(|planned| planned.step == Step::Sql(SqlStep::RecoverTransactions)) {
        Ok(())
    } else {
        Err(violation(14, "prepared transactions are ended before a worker is removed", format!("{node}")))
    }
}

pub(super) fn force_removes_requested(view: View, node: Node) -> Result<(), Violation> {
    let asked = view.desired.force_remove.as_deref();
    let handled = view.snapshot.status.handled.get(keys::FORCE_REMOVE).map(String::as_str);
    let named = asked.and_then(|value| force_remove::parse_request(view, value)).is_some_and(|named| {
        named
            .iter()
            .any(|(of, identity)| *of == node && force_remove::recorded_identity(view, node) == *identity)
    });
    let answers = matches!(
        view.server(node),
        ServerCheck::Verified(_) | ServerCheck::Unrecorded(_) | ServerCheck::IdentityMismatch(_)
    );
    if named && asked != handled && !answers && view.open_job().is_none() {
        Ok(())
    } else {
        Err(violation(
            4,
            "data is given up only where a person named the worker and its server",
            format!("{node}"),
        ))
    }
}

pub(super) fn deletes_removed_only(view: View, kind: &str, name: &str) -> Result<(), Violation> {
    if kind == "PersistentVolumeClaim" {
        // Not by the planner's own `may_be_deleted`: the two are to differ when one of them is wrong.
        let claim = view.claims().find(|(_, claim, _)| *claim == name);
        let why = match claim {
            None => "it is not ours",
            Some((_, _, claim)) if claim.label(keys::DECOMMISSIONED).is_none() => "it was not drained",
            Some((_, _, claim)) if claim.annotation(keys::RECLAIM_POLICY) != Some("Delete") => {
                "it is to be kept"
            }
            Some((node, ..)) if view.stateful_set(node).is_some() && view.claim(node) == Some(name) => {
                "a StatefulSet mounts it"
            }
            Some(_) if !view.is_catalog_ours() => "nothing says that its worker was removed",
            Some(_) => return Ok(()),
        };
        return Err(violation(5, "a volume outlives its worker", format!("{name}: {why}")));
    }
    match Node::from_object_name(name, &view.desired.cluster.name) {
        Some(node) if node == Node::Coordinator || !view.is_no_member(node) => {
            Err(violation(5, "a node's objects outlive its registration", name.to_owned()))
        }
        _ => Ok(()),
    }
}

/// The row of a worker that holds nothing: no shard, no new one, and nothing that moves left behind.
fn is_empty(view: View, node: Node) -> bool {
    let (Some(citus), Some(row)) = (view.citus(), view.registration(node)) else { return false };
    citus.groups.get(&row.group_id).is_some_and(|group| group.shards == 0)
        && !row.should_have_shards
        && !citus.cleanup.iter().any(|left| left.group_id == row.group_id)
}
