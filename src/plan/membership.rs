//! Who is a node of the cluster: servers are prepared, their identities recorded, and workers registered. Nothing is
//! removed here, and nothing is registered that could not serve.

use std::collections::BTreeSet;

use super::{
    Concern, Findings, Gate, KubernetesStep, Plan, Problem, ResolvedSpec, ServerCheck, SqlStep, View,
    WaitingOn, pods::cannot_pull_image, problem::VolumeLoss, settings, view::PORT,
};
use crate::{
    api::Node,
    resources::{self, InitdbPermission, StartFailure},
    snapshot::{Citus, Observed, Ownership, Postgres},
};

/// Takes every server one step further on its way to being a member.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    waits(view, plan);
    for node in view.nodes() {
        match view.server(node) {
            ServerCheck::Unrecorded(postgres) => {
                record_identity(view, wanted, node, postgres, plan);
                bootstrap(view, node, postgres, plan);
            }
            ServerCheck::Verified(postgres) => bootstrap(view, node, postgres, plan),
            ServerCheck::IdentityMismatch(why) => {
                plan.problem(Problem::SystemIdentifierMismatch { node: view.name(node), why });
            }
            ServerCheck::NotReady(_) | ServerCheck::Unreachable(_) => {}
        }
    }
    lost_tables(view, plan);
    let Some(citus) = plan.pass(members_may_change(view)) else { return };
    let address = view.address(Node::Coordinator);
    if citus.nodes.iter().any(|row| row.group_id == 0 && row.name == address) {
        add_workers(view, wanted, plan);
    } else if plan.pass(known_by_our_names(view, citus)).is_some() {
        plan.step(
            SqlStep::SetCoordinatorHost { address },
            "workers must know under which address the coordinator is reached",
        );
    }
}

/// What a call about members needs: a catalog, nothing that the call would delete, and every member's answer.
fn members_may_change(view: View<'_>) -> Gate<&Citus> {
    let citus = catalog(view)?;
    holds_all_metadata(view, citus)?;
    all_members_answer(view)?;
    Ok(citus)
}

/// What is waited for, node by node.
fn waits(view: View, plan: &mut Plan) {
    if let ServerCheck::NotReady(why) = view.server(Node::Coordinator) {
        node_cannot_run(view, Node::Coordinator, plan);
        plan.wait(WaitingOn::PodNotReady { node: Node::Coordinator, why });
    } else if let ServerCheck::Unreachable(why) = view.server(Node::Coordinator) {
        plan.wait(WaitingOn::NotAnswering { node: Node::Coordinator, why });
    }
    let mut members: BTreeSet<Node> = view.registered_workers().into_keys().collect();
    for missing in view.missing_workers() {
        // Without a catalog nobody knows whether one that was initialised has joined.
        if view.citus().is_none() && view.may_be_member(missing.node) {
            members.insert(missing.node);
            continue;
        }
        node_cannot_run(view, missing.node, plan);
        plan.wait(WaitingOn::WorkerMissing {
            node: missing.node,
            why: missing.why,
            timed_out: missing.timed_out,
        });
    }
    for node in members {
        match view.server(node) {
            ServerCheck::NotReady(why) => {
                node_cannot_run(view, node, plan);
                plan.wait(WaitingOn::PodNotReady { node, why });
            }
            ServerCheck::Unreachable(why) => plan.wait(WaitingOn::NotAnswering { node, why }),
            ServerCheck::Unrecorded(_) | ServerCheck::Verified(_) | ServerCheck::IdentityMismatch(_) => {}
        }
    }
}

/// A pod that cannot run for a reason that only a person can mend.
fn node_cannot_run(view: View, node: Node, plan: &mut Plan) {
    let Some(pod) = view.pod(node) else { return pod_is_refused(view, node, plan) };
    let Some(pod) = Some(pod).filter(|pod| !pod.ready) else { return };
    let Some(waiting) = &pod.waiting else { return };
    let name = view.name(node);
    match waiting.reason.as_str() {
        _ if cannot_pull_image(pod) => plan.problem(Problem::ImageNotPulled {
            pod: pod.name.clone(),
            image: pod.image.clone(),
            reason: waiting.reason.clone(),
            message: waiting.message.clone(),
        }),
        "CreateContainerConfigError" | "CrashLoopBackOff" | "RunContainerError" => {
            let last = pod.last_termination.as_ref();
            let failure = last.and_then(|last| StartFailure::from_repr(last.exit_code));
            let last = last.map_or(waiting.message.as_str(), |last| last.message.as_str()).trim();
            if failure == Some(StartFailure::VolumeEmpty) {
                let claim = view.claim(node).unwrap_or("?").to_owned();
                plan.problem(Problem::VolumeLost {
                    node: name,
                    claim,
                    loss: VolumeLoss::Empty(last.to_owned()),
                });
            } else if view.registration(node).is_some()
                || view.missing_workers().iter().all(|missing| missing.node != node || missing.timed_out)
                || node == Node::Coordinator
            {
                let (pod, last) = (pod.name.clone(), last.to_owned());
                plan.problem(Problem::NodeCannotStart { node: name, pod, last });
            }
        }
        _ => {}
    }
}

/// A quota, a LimitRange, Pod Security or a webhook refuses the pod again and again.
fn pod_is_refused(view: View, node: Node, plan: &mut Plan) {
    let name = view.name(node);
    if let Some(refused) = view.warning("StatefulSet", &name).filter(|refused| refused.lasts()) {
        plan.problem(Problem::PodRefused { node: name, message: refused.message.clone() });
    }
}

/// Writes down who was born, and at once withdraws the permission to initialise: the next look can register it.
fn record_identity(view: View, wanted: &ResolvedSpec, node: Node, postgres: &Postgres, plan: &mut Plan) {
    let Some(claim) = view.claim(node) else { return };
    if view.owned("PersistentVolumeClaim", claim).is_none() {
        return;
    }
    // A worker that was born before its coordinator has a volume looks like one whose coordinator is lost.
    let has_volume = |claim| view.owned("PersistentVolumeClaim", claim).is_some();
    if !view.claim(Node::Coordinator).is_some_and(has_volume) {
        plan.wait(WaitingOn::NodeNotPrepared { node });
        return;
    }
    let system_identifier = postgres.system_identifier.clone();
    let step = KubernetesStep::RecordIdentity { node, system_identifier, claim: claim.to_owned() };
    plan.step(step, format!("{} was initialised; its volume is never initialised again", view.name(node)));
    let inputs = wanted.inputs(view);
    let map = resources::config_map(&inputs, node, &wanted.parameters, InitdbPermission::Forbidden);
    if let Some(live) = view.owned("ConfigMap", &map.name) {
        let step = KubernetesStep::Apply { object: Box::new(map), uid: live.uid.clone() };
        plan.step(step, format!("{} may no longer initialise its volume", view.name(node)));
    }
}

/// Settings of the operator's role, database, extension. A registered worker that lacks its database is not helped by a new one.
fn bootstrap(view: View, node: Node, postgres: &Postgres, plan: &mut Plan) {
    let extension = match node {
        Node::Coordinator => None,
        Node::Worker(_) => {
            let coordinator = view.postgres(Node::Coordinator);
            let version = coordinator.and_then(|coordinator| {
                coordinator.extension.clone().or_else(|| coordinator.available_extension.clone())
            });
            if version.is_none() {
                return;
            }
            version
        }
    };
    let bare = !postgres.database || postgres.extension.is_none();
    let member = node.is_worker() && view.registration(node).is_some();
    if (bare && !member) || !postgres.role_pinned {
        plan.step(
            SqlStep::BootstrapNode { node, extension },
            "a node needs the settings of the operator's role, the database and the extension",
        );
    }
    // Citus takes what a role may do in a database to the workers of the day, and no further.
    let coordinator = view.postgres(Node::Coordinator).and_then(|coordinator| coordinator.owner_may_create);
    if member && coordinator == Some(true) && postgres.owner_may_create == Some(false) {
        plan.step(
            SqlStep::GrantRights { node, owner: view.desired.database.owner.clone() },
            "the application's role may do on every node what it may on the coordinator",
        );
    }
}

/// Placements without tables: an emptied worker that was activated by hand looks healthy in all other respects.
fn lost_tables(view: View, plan: &mut Plan) {
    for node in view.registered_workers().into_keys() {
        if let ServerCheck::Verified(postgres) = view.server(node)
            && postgres.missing_tables > 0
        {
            plan.problem(Problem::TablesMissing {
                node: view.name(node),
                placements: postgres.missing_tables,
            });
        }
    }
}

/// The catalog, when the coordinator is who it should be and has one.
fn catalog(view: View<'_>) -> Gate<&Citus> {
    match (view.server(Node::Coordinator), &view.snapshot.citus) {
        (ServerCheck::Verified(postgres), _) if postgres.extension.is_none() => Err(Findings::default()),
        (ServerCheck::Verified(_), Observed::Known(citus)) => Ok(citus),
        (ServerCheck::Verified(_), Observed::Unknown(why)) => {
            Err(WaitingOn::CatalogUnknown { why: why.clone() }.into())
        }
        _ => Err(Findings::default()),
    }
}

/// A coordinator that knows no nodes while a worker holds metadata of a cluster: registering anything would delete the
/// last copy of it.
fn holds_all_metadata(view: View, citus: &Citus) -> Gate {
    if citus.nodes.iter().any(|row| row.group_id != 0) {
        return Ok(());
    }
    let coordinator = view.name(Node::Coordinator);
    if let Some(node) = view.metadata_holder() {
        return Err(Problem::CoordinatorMetadataMissing { coordinator, holder: view.name(node) }.into());
    }
    // Not seen is not the same as not there: a worker that was a node before has to be looked at first. One that was
    // given up is nobody's.
    let unseen = view
        .nodes()
        .into_iter()
        .filter(|node| node.is_worker() && view.identity(*node).is_some() && !view.is_decommissioned(*node))
        .find(|node| view.postgres(*node).is_none());
    let Some(node) = unseen else { return Ok(()) };
    let why = "whether it holds the metadata of a cluster is not known".to_owned();
    let mut findings = Findings::from(WaitingOn::NotAnswering { node, why });
    if view.missing_workers().iter().any(|missing| missing.node == node && missing.timed_out) {
        let identity = view.identity(node).unwrap_or_default().to_owned();
        findings.add(Problem::MetadataUnknown { node: view.name(node), coordinator, identity });
    }
    Err(findings)
}

/// A cluster whose nodes are all known under other names: telling Citus a new address of one of them helps nobody.
fn known_by_our_names(view: View, citus: &Citus) -> Gate {
    match citus.nodes.iter().find(|row| row.group_id != 0 && view.node_of(row).is_none()) {
        None => Ok(()),
        Some(row) => {
            let (registered, address) = (row.name.clone(), view.address(Node::Coordinator));
            Err(Problem::OtherDomain { registered, address }.into())
        }
    }
}

/// One registered node that is down makes every membership call of Citus fail.
fn all_members_answer(view: View) -> Gate {
    let silent = view.unhealthy_members().into_iter();
    silent.map(|(node, why)| WaitingOn::RegisteredNodeSilent { node, why }).collect::<Findings>().gate()
}

fn add_workers(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    let missing = view.missing_workers();
    // Its copy of the metadata would lack the placements of a member that is inactive, for good: see `repair`.
    let inactive = view.registered_workers().into_iter().find(|(_, row)| !row.active);
    if let Some((node, _)) = inactive.filter(|_| !missing.is_empty()) {
        plan.wait(WaitingOn::MemberInactive { node });
        return;
    }
    for missing in missing {
        let node = missing.node;
        if let ServerCheck::Verified(postgres) = view.server(node)
            && plan.pass(may_join(view, wanted, node, postgres, plan)).is_some()
        {
            let address = view.address(node);
            let why = format!("{address} is ready and reachable from every node, and every node from it");
            plan.step(SqlStep::AddNode { node, address }, why);
        }
    }
}

fn may_join(view: View, wanted: &ResolvedSpec, node: Node, postgres: &Postgres, plan: &Plan) -> Gate {
    if let Some(group) = postgres.group_id.filter(|group| *group != 0) {
        return Err(registered_under_another_address(view, node, group).into());
    }
    let prepared = postgres.database && postgres.extension.is_some() && postgres.role_pinned;
    if !prepared || !permission_withdrawn(view, node) {
        return Err(WaitingOn::NodeNotPrepared { node }.into());
    }
    if !settings::is_configured(wanted, node, postgres) {
        return Err(WaitingOn::ConfigurationPending { node }.into());
    }
    let coordinator = view.postgres(Node::Coordinator).and_then(|coordinator| coordinator.extension.clone());
    if postgres.extension != coordinator {
        let (node, citus) = (view.name(node), postgres.extension.clone());
        return Err(Problem::CitusDiffers { node, citus, coordinator }.into());
    }
    is_connected(view, node, plan)
}

/// Registered a second time under another name, it would be two nodes to Citus and one to its data.
fn registered_under_another_address(view: View, node: Node, group: i32) -> Problem {
    let (name, address) = (view.name(node), view.address(node));
    let row = view.citus().and_then(|citus| citus.nodes.iter().find(|row| row.group_id == group));
    match row {
        Some(row) => Problem::AddressMismatch {
            node: name,
            group,
            registered: format!("{}:{}", row.name, row.port),
            node_id: row.node_id,
            address,
            port: PORT,
        },
        None => Problem::GroupUnknown { node: name, group, claim: view.claim(node).map(ToOwned::to_owned) },
    }
}

/// The start script may no longer initialise this node's volume.
fn permission_withdrawn(view: View, node: Node) -> bool {
    view.object("ConfigMap", &view.name(node))
        .is_some_and(|map| map.ownership == Ownership::Owned && !crate::resources::may_initialise(&map.json))
}

/// Both ways between the new worker and the coordinator, each registered worker and those that are registered before it
/// by this plan, under the names they get.
fn is_connected(view: View, node: Node, plan: &Plan) -> Gate {
    let effects = plan.steps.iter().map(|planned| planned.step.effect());
    let joining = effects
        .filter(|effect| effect.concerns == Concern::Registration)
        .filter_map(|effect| effect.scope.node());
    let members = std::iter::once(Node::Coordinator).chain(view.registered_workers().into_keys());
    let members: Vec<Node> = members.chain(joining).collect();
    let mut findings = Findings::default();
    for member in members {
        for (from, to) in [(member, node), (node, member)] {
            let check = view.snapshot.connections.iter().find(|check| check.from == from && check.to == to);
            let why = match check {
                Some(check) => check.error.clone(),
                None => Some("not tried yet".to_owned()),
            };
            if let Some(why) = why {
                findings.add(WaitingOn::NotConnected { from, to, why });
            }
        }
    }
    findings.gate()
}
