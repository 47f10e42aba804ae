//! What must never happen, checked on any plan: in tests at every step, and before acting. A plan that breaks one of
//! these is a bug of the planner; it is not carried out.

mod removal;
mod violation;

use self::removal::{
    decommissions_empty, deletes_removed_only, force_removes_requested, loses_no_foreign_contents,
    mounts_no_decommissioned, removes_decommissioned, writes_no_decommissioned,
};
pub use self::violation::Violation;
use self::violation::violation;
use super::{
    KubernetesStep, Plan, RestartCause, ServerCheck, SqlStep, Step, View, rolling_restart::nodes_to_restart,
    settings,
};
use crate::{
    api::{Node, names::keys},
    snapshot::{Leftover, Ownership},
};

/// The first rule that the plan breaks, if it breaks one.
///
/// # Errors
/// The rule and how it is broken.
pub fn check(view: View, plan: &Plan) -> Result<(), Violation> {
    for (position, planned) in plan.steps.iter().enumerate() {
        match &planned.step {
            Step::Kubernetes(step) => of_object(view, plan, position, step)?,
            Step::Sql(step) => of_statement(view, plan, position, step)?,
        }
    }
    one_restart(plan)
}

fn of_object(view: View, plan: &Plan, position: usize, step: &KubernetesStep) -> Result<(), Violation> {
    match step {
        KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. } => {
            initialises_new_nodes_only(view, &object.kind, &object.name, &object.json)?;
            mounts_no_decommissioned(view, &object.kind, &object.name, &object.json)?;
            writes_no_decommissioned(plan, position, &object.kind, &object.name)
        }
        KubernetesStep::RestartNode { node, cause, .. } => restarts_alone(view, *node, *cause),
        KubernetesStep::Decommission { node, .. } => decommissions_empty(view, plan, position, *node),
        KubernetesStep::Delete { kind, name, .. } => deletes_removed_only(view, kind, name),
        KubernetesStep::Adopt { kind, name, .. } => adopts_left_behind(view, kind, name),
        // They take nothing away, and what is wrong with them shows at the next look.
        KubernetesStep::CreateSecret(_)
        | KubernetesStep::SetConnectionKeys { .. }
        | KubernetesStep::InspectImage { .. }
        | KubernetesStep::DeleteInspectionPod { .. }
        | KubernetesStep::RefreshConfiguration { .. }
        | KubernetesStep::PatchPod { .. }
        | KubernetesStep::RecordIdentity { .. } => Ok(()),
    }
}

fn of_statement(view: View, plan: &Plan, position: usize, step: &SqlStep) -> Result<(), Violation> {
    match step {
        SqlStep::StartRebalance { .. } => jobs_start_ready(view, plan, position),
        SqlStep::AddNode { node, .. } => registers_reachable(view, plan, position, *node),
        SqlStep::SetCoordinatorHost { .. } => knows_cluster(view),
        SqlStep::SetShouldHaveShards { node, should, .. } => {
            changes_at_rest(view, *node)?;
            if *should { Ok(()) } else { loses_no_foreign_contents(view, *node) }
        }
        SqlStep::RemoveNode { node, .. } => removes_decommissioned(view, plan, position, *node),
        SqlStep::ForceRemove { workers } => {
            workers.iter().try_for_each(|(node, _)| force_removes_requested(view, *node))
        }
        SqlStep::ActivateNode { node, .. } => activates_known(view, *node),
        SqlStep::DeleteStaleCleanupRecords { records } => deletes_stale_records_only(view, records),
        SqlStep::DropLeftovers { node, leftovers } => drops_unknown(view, *node, leftovers),
        // They take nothing away, and may be done at any time; the schema is run where there is none.
        SqlStep::BootstrapNode { .. }
        | SqlStep::GrantRights { .. }
        | SqlStep::Reload { .. }
        | SqlStep::ResetAlterSystem { .. }
        | SqlStep::CheckParameter { .. }
        | SqlStep::CreateExtension { .. }
        | SqlStep::CreateOwner { .. }
        | SqlStep::ApplySchema { .. }
        | SqlStep::RecoverTransactions
        | SqlStep::PinGroups(_)
        | SqlStep::StopRebalance { .. }
        | SqlStep::CleanUpOrphans => Ok(()),
    }
}

fn jobs_start_ready(view: View, plan: &Plan, position: usize) -> Result<(), Violation> {
    let members = std::iter::once(Node::Coordinator).chain(view.registered_workers().into_keys());
    for node in members {
        let ServerCheck::Verified(postgres) = view.server(node) else {
            return Err(violation(
                12,
                "only recorded servers move shards",
                format!("{node} does not answer as itself"),
            ));
        };
        if postgres.wal_level != "logical" {
            return Err(violation(
                1,
                "moves need wal_level = logical everywhere",
                format!("{node} runs {}", postgres.wal_level),
            ));
        }
        if let Some(lack) = settings::lacks_capacity(view, node, postgres) {
            return Err(violation(1, "moves need slots, senders and workers", format!("{node}: {lack}")));
        }
    }
    let rolling = plan
        .steps
        .iter()
        .any(|planned| matches!(planned.step, Step::Kubernetes(KubernetesStep::RestartNode { .. })));
    let due = plan.resolved.as_ref().is_none_or(|wanted| !nodes_to_restart(view, wanted).is_empty());
    if rolling || due {
        return Err(violation(2, "no move starts during a rolling restart", "a restart is due"));
    }
    let recovered = plan
        .steps
        .iter()
        .take(position)
        .any(|planned| planned.step == Step::Sql(SqlStep::RecoverTransactions));
    if recovered {
        Ok(())
    } else {
        Err(violation(14, "prepared transactions are recovered before each job", "they are not"))
    }
}

fn restarts_alone(view: View, node: Node, cause: RestartCause) -> Result<(), Violation> {
    let member = view.may_be_member(node);
    // Not by `View::loses_volume`: the two are to differ when one of them is wrong.
    let claim = view.claim(node).and_then(|claim| view.object("PersistentVolumeClaim", claim));
    if view.identity(node).is_some() && claim.is_none_or(|claim| claim.deleting) {
        return Err(violation(
            8,
            "a claim that goes with its pod keeps its pod",
            format!("{node} ({cause})"),
        ));
    }
    if member && view.move_runs() {
        return Err(violation(2, "no node restarts while a move runs", format!("{node} ({cause})")));
    }
    // One that does not run is not taken down.
    let runs = !matches!(view.server(node), ServerCheck::NotReady(_));
    match view.unhealthy_peers(node).into_iter().find(|_| member && runs) {
        Some((other, why)) => Err(violation(
            6,
            "two nodes are never down at once",
            format!("{node} would go while {other}: {why}"),
        )),
        None => Ok(()),
    }
}

fn registers_reachable(view: View, plan: &Plan, position: usize, node: Node) -> Result<(), Violation> {
    let ServerCheck::Verified(postgres) = view.server(node) else {
        return Err(violation(12, "only recorded servers are registered", format!("{node}")));
    };
    if postgres.group_id.unwrap_or(0) != 0 {
        return Err(violation(12, "no server is registered twice", format!("{node} is a member already")));
    }
    let before = plan.steps.iter().take(position);
    let joined = before.filter_map(|planned| {
        if let Step::Sql(SqlStep::AddNode { node, .. }) = planned.step { Some(node) } else { None }
    });
    let members = std::iter::once(Node::Coordinator).chain(view.registered_workers().into_keys());
    for member in members.chain(joined) {
        for (from, to) in [(member, node), (node, member)] {
            let reached = view
                .snapshot
                .connections
                .iter()
                .any(|check| check.from == from && check.to == to && check.error.is_none());
            if !reached {
                return Err(violation(
                    3,
                    "a worker is reachable both ways before it is registered",
                    format!("{from} to {to}"),
                ));
            }
        }
    }
    knows_cluster(view)
}

fn knows_cluster(view: View) -> Result<(), Violation> {
    let Some(citus) = view.citus() else {
        return Err(violation(13, "the catalog is known before membership changes", "it is not"));
    };
    if citus.nodes.iter().any(|row| row.group_id != 0) {
        return Ok(());
    }
    let holder = view.metadata_holder();
    match holder {
        Some(node) => {
            Err(violation(13, "an emptied coordinator deletes no metadata", format!("{node} holds some")))
        }
        None => Ok(()),
    }
}

fn changes_at_rest(view: View, node: Node) -> Result<(), Violation> {
    match view.open_job() {
        Some(job) => {
            Err(violation(7, "shouldhaveshards never changes under a job", format!("{node}, job {}", job.id)))
        }
        None => Ok(()),
    }
}

fn activates_known(view: View, node: Node) -> Result<(), Violation> {
    match view.server(node) {
        ServerCheck::Verified(postgres) if postgres.missing_tables == 0 => Ok(()),
        _ => Err(violation(12, "only a recorded server with its tables is activated", format!("{node}"))),
    }
}

fn deletes_stale_records_only(view: View, records: &[i64]) -> Result<(), Violation> {
    let citus = view.citus();
    let of_member = citus.into_iter().flat_map(|citus| &citus.cleanup).find(|row| {
        records.contains(&row.record_id)
            && citus.is_some_and(|citus| citus.nodes.iter().any(|node| node.group_id == row.group_id))
    });
    match of_member {
        Some(row) => Err(violation(4, "cleanup of a member is never forgotten", row.object_name.clone())),
        None => Ok(()),
    }
}

fn drops_unknown(view: View, node: Node, leftovers: &[Leftover]) -> Result<(), Violation> {
    let listed = |left: &&Leftover| {
        view.citus().is_none_or(|citus| citus.cleanup.iter().any(|row| row.object_name == left.name))
    };
    match leftovers.iter().find(listed) {
        _ if view.open_job().is_some() => {
            Err(violation(2, "nothing of a move is dropped while a job is open", format!("{node}")))
        }
        Some(left) => Err(violation(2, "what Citus will clean up itself is left to it", left.name.clone())),
        None => Ok(()),
    }
}

/// Not by the planner's own words: the two are to differ when one of them is wrong.
fn adopts_left_behind(view: View, kind: &str, name: &str) -> Result<(), Violation> {
    let taken =
        |how: &str| Err(violation(9, "nothing of a stranger is taken over", format!("{kind}/{name}: {how}")));
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

fn initialises_new_nodes_only(
    view: View,
    kind: &str,
    name: &str,
    json: &serde_json::Value,
) -> Result<(), Violation> {
    let node = Node::from_object_name(name, &view.desired.cluster.name);
    match node {
        Some(node)
            if kind == "ConfigMap"
                && crate::resources::may_initialise(json)
                && view.identity(node).is_some() =>
        {
            Err(violation(12, "initdb never runs on a node that was a node before", format!("{node}")))
        }
        _ => Ok(()),
    }
}

fn one_restart(plan: &Plan) -> Result<(), Violation> {
    let restarts = plan
        .steps
        .iter()
        .filter(|planned| matches!(planned.step, Step::Kubernetes(KubernetesStep::RestartNode { .. })))
        .count();
    if restarts > 1 {
        Err(violation(6, "nodes restart one by one", format!("{restarts} at once")))
    } else {
        Ok(())
    }
}
