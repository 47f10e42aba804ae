//! What must never happen, checked on any plan: in tests at every step, and before acting. A plan that breaks one of
//! these is a bug of the planner; it is not carried out.

use super::{KubernetesStep, Plan, RestartCause, Server, SqlStep, Step, View, Wanted, settings};
use crate::{
    api::{Node, names::keys},
    snapshot::{Contents, Leftover, Ownership, Seen},
};

/// A rule that a plan breaks; the number is that of the list in ARCHITECTURE.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {number} ({rule}) would be broken: {how}")]
pub struct Broken {
    /// Number in the list of invariants in ARCHITECTURE.md.
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
            Step::Kubernetes(step) => of_object(view, plan, position, step)?,
            Step::Sql(step) => of_statement(view, wanted, (plan, position), step)?,
        }
    }
    one_restart(plan)
}

fn of_object(view: View, plan: &Plan, position: usize, step: &KubernetesStep) -> Result<(), Broken> {
    match step {
        KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. } => {
            initialises_newborn(view, &object.kind, &object.name, &object.json)?;
            mounts_undrained(view, &object.kind, &object.name, &object.json)?;
            writes_no_marked(plan, position, &object.kind, &object.name)
        }
        KubernetesStep::RestartNode { node, cause, .. } => restarts_alone(view, *node, *cause),
        KubernetesStep::Retire { node, .. } => retires_empty(view, plan, position, *node),
        KubernetesStep::Delete { kind, name, .. } => deletes_forgotten(view, kind, name),
        KubernetesStep::Adopt { kind, name, .. } => adopts_left_behind(view, kind, name),
        // They take nothing away, and what is wrong with them shows at the next look.
        KubernetesStep::CreateSecret(_)
        | KubernetesStep::SetConnectionKeys { .. }
        | KubernetesStep::InspectImage { .. }
        | KubernetesStep::ForgetInspection { .. }
        | KubernetesStep::HurryConfiguration { .. }
        | KubernetesStep::PatchPod { .. }
        | KubernetesStep::RecordIdentity { .. } => Ok(()),
    }
}

fn of_statement(
    view: View,
    wanted: &Wanted,
    (plan, position): (&Plan, usize),
    step: &SqlStep,
) -> Result<(), Broken> {
    match step {
        SqlStep::StartRebalance { .. } => starts_fit(view, wanted, plan, position),
        SqlStep::AddNode { node, .. } => registers_reachable(view, plan, position, *node),
        SqlStep::SetCoordinatorHost { .. } => knows_cluster(view),
        SqlStep::SetShouldHaveShards { node, should, .. } => {
            changes_at_rest(view, *node)?;
            if *should { Ok(()) } else { takes_nothing_along(view, *node) }
        }
        SqlStep::RemoveNode { node, .. } => removes_retired(view, plan, position, *node),
        SqlStep::GiveUp { workers } => {
            workers.iter().try_for_each(|(node, _)| gives_up_the_named(view, *node))
        }
        SqlStep::ActivateNode { node, .. } => activates_known(view, *node),
        SqlStep::ForgetCleanup { records } => forgets_nobody(view, records),
        SqlStep::DropLeftovers { node, leftovers } => drops_unknown(view, *node, leftovers),
        // They take nothing away, and may be done at any time; the schema is run where there is none.
        SqlStep::PrepareNode { .. }
        | SqlStep::GrantRights { .. }
        | SqlStep::Reload { .. }
        | SqlStep::ResetAlterSystem { .. }
        | SqlStep::TryParameter { .. }
        | SqlStep::CreateExtension { .. }
        | SqlStep::CreateOwner { .. }
        | SqlStep::ApplySchema { .. }
        | SqlStep::RecoverTransactions
        | SqlStep::PinGroups(_)
        | SqlStep::StopRebalance { .. }
        | SqlStep::CleanUp => Ok(()),
    }
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
    let rolling = plan
        .steps
        .iter()
        .any(|planned| matches!(planned.step, Step::Kubernetes(KubernetesStep::RestartNode { .. })));
    if rolling || !super::roll::due(view, wanted, &mut Plan::default()).is_empty() {
        return Err(broken(2, "no move starts during a roll", "a restart is due"));
    }
    let recovered = plan
        .steps
        .iter()
        .take(position)
        .any(|planned| planned.step == Step::Sql(SqlStep::RecoverTransactions));
    if recovered {
        Ok(())
    } else {
        Err(broken(14, "prepared transactions are recovered before each job", "they are not"))
    }
}

fn restarts_alone(view: View, node: Node, cause: RestartCause) -> Result<(), Broken> {
    let member = view.may_be_member(node);
    // Not by `View::loses_volume`: the two are to differ when one of them is wrong.
    let claim = view.claim(node).and_then(|claim| view.object("PersistentVolumeClaim", claim));
    if view.identity(node).is_some() && claim.is_none_or(|claim| claim.deleting) {
        return Err(broken(8, "a claim that goes with its pod keeps its pod", format!("{node} ({cause})")));
    }
    if member && view.move_runs() {
        return Err(broken(2, "no node restarts while a move runs", format!("{node} ({cause})")));
    }
    // One that does not run is not taken down.
    let runs = !matches!(view.server(node), Server::Down(_));
    match view.unwell_besides(node).into_iter().find(|_| member && runs) {
        Some((other, why)) => Err(broken(
            6,
            "two nodes are never down at once",
            format!("{node} would go while {other}: {why}"),
        )),
        None => Ok(()),
    }
}

fn registers_reachable(view: View, plan: &Plan, position: usize, node: Node) -> Result<(), Broken> {
    let Server::Known(postgres) = view.server(node) else {
        return Err(broken(12, "only recorded servers are registered", format!("{node}")));
    };
    if postgres.group_id.unwrap_or(0) != 0 {
        return Err(broken(12, "no server is registered twice", format!("{node} is a member already")));
    }
    let before = plan.steps.iter().take(position);
    let joined = before.filter_map(|planned| {
        if let Step::Sql(SqlStep::AddNode { node, .. }) = planned.step { Some(node) } else { None }
    });
    let members = std::iter::once(Node::Coordinator).chain(view.registered_workers().into_keys());
    for member in members.chain(joined) {
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

fn changes_at_rest(view: View, node: Node) -> Result<(), Broken> {
    match view.open_job() {
        Some(job) => {
            Err(broken(7, "shouldhaveshards never changes under a job", format!("{node}, job {}", job.id)))
        }
        None => Ok(()),
    }
}

/// The row of a worker that holds nothing: no shard, no new one, and nothing that moves left behind.
fn is_empty(view: View, node: Node) -> bool {
    let (Some(citus), Some(row)) = (view.citus(), view.registration(node)) else { return false };
    citus.groups.get(&row.group_id).is_some_and(|group| group.shards == 0)
        && !row.should_have_shards
        && !citus.cleanup.iter().any(|left| left.group_id == row.group_id)
}

fn retires_empty(view: View, plan: &Plan, position: usize, node: Node) -> Result<(), Broken> {
    let given_up = plan
        .steps
        .iter()
        .take(position)
        .any(|planned| matches!(&planned.step, Step::Sql(SqlStep::GiveUp { workers }) if workers.iter().any(|(of, _)| *of == node)));
    let removed = view.is_no_member(node);
    // Before the first registration: who does not answer and is given up by name has no row to go.
    let unborn = view.citus().is_some_and(|citus| citus.nodes.iter().all(|row| row.group_id == 0));
    let forgotten = unborn && gives_up_the_named(view, node).is_ok();
    if given_up || forgotten || removed && super::force_remove::is_named(view, node) {
        Ok(())
    } else if removed || is_empty(view, node) {
        takes_nothing_along(view, node)
    } else {
        Err(broken(8, "only the volume of a worker that holds nothing is put aside", format!("{node}")))
    }
}

/// Not by the planner's own `is_free`: the two are to differ when one of them is wrong.
fn takes_nothing_along(view: View, node: Node) -> Result<(), Broken> {
    let rule = "nothing that a person made goes with a worker";
    match view.seen.contents.get(&node) {
        Some(Seen::Known(found)) if *found == Contents::default() => Ok(()),
        Some(Seen::Known(_)) => Err(broken(17, rule, format!("{node} holds more than the cluster's own"))),
        Some(Seen::Unknown(why)) => Err(broken(17, rule, format!("{node}: {why}"))),
        None => Err(broken(17, rule, format!("{node} was not looked at"))),
    }
}

fn writes_no_marked(plan: &Plan, position: usize, kind: &str, name: &str) -> Result<(), Broken> {
    let marked = |planned: &super::Planned| matches!(&planned.step, Step::Kubernetes(KubernetesStep::Retire { claim: Some(claim), .. }) if claim == name);
    if kind == "PersistentVolumeClaim" && plan.steps.iter().take(position).any(marked) {
        return Err(broken(8, "a volume that was just put aside is not written as it was seen", name));
    }
    Ok(())
}

fn removes_retired(view: View, plan: &Plan, position: usize, node: Node) -> Result<(), Broken> {
    takes_nothing_along(view, node)?;
    if !is_empty(view, node) {
        return Err(broken(
            4,
            "a worker is removed when nothing is on it and nothing was left behind",
            format!("{node}"),
        ));
    }
    if let Some(job) = view.open_job() {
        return Err(broken(4, "no worker is removed under a job", format!("{node}, job {}", job.id)));
    }
    if let Some((other, why)) = view.unwell().into_iter().next() {
        return Err(broken(4, "a worker is removed when every member answers", format!("{other}: {why}")));
    }
    let before = plan.steps.iter().take(position);
    let marked =
        before.clone().any(|planned| matches!(&planned.step, Step::Kubernetes(KubernetesStep::Retire { node: of, .. }) if *of == node));
    if !marked && !view.is_retired(node) {
        return Err(broken(8, "a volume is put aside before its worker is removed", format!("{node}")));
    }
    if before.clone().any(|planned| planned.step == Step::Sql(SqlStep::RecoverTransactions)) {
        Ok(())
    } else {
        Err(broken(14, "prepared transactions are ended before a worker is removed", format!("{node}")))
    }
}

fn gives_up_the_named(view: View, node: Node) -> Result<(), Broken> {
    let asked = view.desired.force_remove.as_deref();
    let handled = view.seen.status.handled.get(keys::FORCE_REMOVE).map(String::as_str);
    let named = asked.and_then(|value| super::force_remove::named(view, value)).is_some_and(|named| {
        named
            .iter()
            .any(|(of, identity)| *of == node && super::force_remove::recorded(view, node) == *identity)
    });
    let answers = matches!(view.server(node), Server::Known(_) | Server::Fresh(_) | Server::Stranger(_));
    if named && asked != handled && !answers && view.open_job().is_none() {
        Ok(())
    } else {
        Err(broken(
            4,
            "data is given up only where a person named the worker and its server",
            format!("{node}"),
        ))
    }
}

fn activates_known(view: View, node: Node) -> Result<(), Broken> {
    match view.server(node) {
        Server::Known(postgres) if postgres.missing_tables == 0 => Ok(()),
        _ => Err(broken(12, "only a recorded server with its tables is activated", format!("{node}"))),
    }
}

fn forgets_nobody(view: View, records: &[i64]) -> Result<(), Broken> {
    let citus = view.citus();
    let of_member = citus.into_iter().flat_map(|citus| &citus.cleanup).find(|row| {
        records.contains(&row.record_id)
            && citus.is_some_and(|citus| citus.nodes.iter().any(|node| node.group_id == row.group_id))
    });
    match of_member {
        Some(row) => Err(broken(4, "cleanup of a member is never forgotten", row.object_name.clone())),
        None => Ok(()),
    }
}

fn drops_unknown(view: View, node: Node, leftovers: &[Leftover]) -> Result<(), Broken> {
    let listed = |left: &&Leftover| {
        view.citus().is_none_or(|citus| citus.cleanup.iter().any(|row| row.object_name == left.name))
    };
    match leftovers.iter().find(listed) {
        _ if view.open_job().is_some() => {
            Err(broken(2, "nothing of a move is dropped while a job is open", format!("{node}")))
        }
        Some(left) => Err(broken(2, "what Citus will clean up itself is left to it", left.name.clone())),
        None => Ok(()),
    }
}

/// A StatefulSet on a drained volume: only to let a member that is on its way out answer once more. One that is there
/// and mounts it already brings nothing back, whatever else of it changes.
fn mounts_undrained(view: View, kind: &str, name: &str, json: &serde_json::Value) -> Result<(), Broken> {
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
        .filter_map(|claim| view.own("PersistentVolumeClaim", claim))
        .filter(|claim| claim.label(keys::DECOMMISSIONED).is_some());
    if drained.next().is_some() && view.registration(node).is_none() {
        return Err(broken(8, "a drained volume never comes back as data", format!("{node}")));
    }
    Ok(())
}

/// Not by the planner's own words: the two are to differ when one of them is wrong.
fn adopts_left_behind(view: View, kind: &str, name: &str) -> Result<(), Broken> {
    let taken =
        |how: &str| Err(broken(9, "nothing of a stranger is taken over", format!("{kind}/{name}: {how}")));
    let Some(live) = view.object(kind, name).filter(|live| live.ownership == Ownership::Left) else {
        return taken("it has an owner, or is a stranger's");
    };
    let volumes = |node| {
        let claims = view.claims().filter(move |(of, ..)| *of == node);
        claims.map(|(.., claim)| claim.annotation(keys::SYSTEM_IDENTIFIER))
    };
    if !volumes(Node::Coordinator).any(|identity| identity.is_some()) {
        return taken("no coordinator was born");
    }
    let Some(node) =
        Node::from_object_name(name, &view.desired.cluster.name).filter(|_| kind == "StatefulSet")
    else {
        return Ok(());
    };
    match live.annotation(keys::SYSTEM_IDENTIFIER) {
        None if volumes(node).any(|identity| identity.is_some()) => {
            taken("it is nobody, and its volume is somebody's")
        }
        identity @ Some(_) if !volumes(node).any(|of| of == identity) => {
            taken("its volume is another server's")
        }
        _ => Ok(()),
    }
}

fn deletes_forgotten(view: View, kind: &str, name: &str) -> Result<(), Broken> {
    if kind == "PersistentVolumeClaim" {
        // Not by the planner's own `is_forgotten`: the two are to differ when one of them is wrong.
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
        return Err(broken(5, "a volume outlives its worker", format!("{name}: {why}")));
    }
    match Node::from_object_name(name, &view.desired.cluster.name) {
        Some(node) if node == Node::Coordinator || !view.is_no_member(node) => {
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
    let restarts = plan
        .steps
        .iter()
        .filter(|planned| matches!(planned.step, Step::Kubernetes(KubernetesStep::RestartNode { .. })))
        .count();
    if restarts > 1 {
        Err(broken(6, "nodes restart one by one", format!("{restarts} at once")))
    } else {
        Ok(())
    }
}
