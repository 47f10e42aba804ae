//! Kubernetes objects: what should exist and what differs. Restarts of pods are `rolling_restart`'s; what
//! is there already is looked at in `live_objects`.

use super::{
    Gate, KubernetesStep, Plan, Problem, ResolvedSpec, SqlStep, Step, View, WaitingOn, contents, image,
    live_objects::{birth_locale, difference, initdb_permission, is_free},
    problem::VolumeLoss,
    secrets, volumes,
};
use crate::{
    api::{
        Node,
        names::{SecretKind, keys},
        spec::VolumePolicy,
    },
    resources::{self, ClaimRecord, Evictions, Manifest},
    snapshot::{LiveObject, Ownership},
};

/// Creates what is missing and applies what differs.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    let inputs = wanted.inputs(view);
    secrets::plan(view, wanted, plan);
    ensure(view, resources::service_account(&inputs), plan);
    ensure(view, resources::nodes_service(&inputs), plan);
    ensure(view, resources::application_service(&inputs), plan);
    if let Some(problem) = incomplete_volumes(view) {
        plan.problem(problem);
        return;
    }
    for node in view.nodes() {
        if was_never_registered(view, node) || view.is_removed(node) {
            remove(view, node, plan);
        } else {
            node_objects(view, wanted, node, plan);
        }
    }
}

fn node_objects(view: View, wanted: &ResolvedSpec, node: Node, plan: &mut Plan) {
    let inputs = wanted.inputs(view);
    let identity = view.identity(node);
    let claim = view.claim(node).map_or_else(|| new_claim_name(view, node), |claim| Ok(claim.to_owned()));
    let Some(claim) = plan.pass(claim) else { return };
    // A cache that lags shows the same for a moment; for a node that was never born there is nothing to lose.
    if view.stateful_set(node).is_some() && view.loses_volume(node) {
        let name = view.name(node);
        let there = view.owned("PersistentVolumeClaim", &claim).is_some();
        let loss = if there { VolumeLoss::Deleting } else { VolumeLoss::Gone };
        plan.problem(Problem::VolumeLost { node: name, claim: claim.clone(), loss });
        if !there {
            return;
        }
    }
    let service = resources::node_service(&inputs, node);
    let config = resources::config_map(&inputs, node, &wanted.parameters, initdb_permission(view, node));
    let free = [&service, &config].iter().all(|want| is_free(view, &want.kind, &want.name).is_ok());
    ensure(view, service, plan);
    ensure(view, config, plan);
    // A pod would mount a stranger's ConfigMap, and hide behind a stranger's Service.
    if !free {
        return;
    }
    // Only made here; `update_volumes` brings it up to date, after everything else.
    if view.object("PersistentVolumeClaim", &claim).is_none() {
        let size = volumes::size_at_birth(view, node);
        let on_volume = ClaimRecord { identity, size, ..ClaimRecord::default() };
        ensure(view, resources::volume_claim(&inputs, node, &claim, on_volume), plan);
    }
    let mut set = resources::stateful_set(&inputs, node, &claim, identity);
    if view.object("StatefulSet", &set.name).is_none() {
        // A node is taken to trust the authorities that are there when it is made: not those of a cluster that goes.
        let authority = view.object("Secret", &view.desired.cluster.secret(SecretKind::Ca));
        if authority.is_some_and(|secret| secret.ownership != Ownership::Owned) {
            return;
        }
        // With what its first server is started: that may hang as well.
        set.json["metadata"]["annotations"][keys::LAST_STARTED_WITH] = wanted.start_marker(view, node).into();
    }
    note_foreign_scaling(view, node, plan);
    ensure(view, set, plan);
}

/// One node is one pod: another number is somebody else's, who will want to know, and whom others will want to know.
fn note_foreign_scaling(view: View, node: Node, plan: &mut Plan) {
    let Some(set) = view.stateful_set(node) else { return };
    if set.json.pointer("/spec/replicas").is_some_and(|replicas| *replicas != 1) {
        plan.scaled.insert(node, set.scaled_by.clone());
    }
}

/// Labels and annotations that the spec puts on pods are put on those that run, and restart none. By what was written
/// on a pod last and not by what it has: admission may want it otherwise, and would have its way each time.
pub fn label_pods(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    let inputs = wanted.inputs(view);
    for node in view.nodes() {
        let Some(pod) = view.pod(node).filter(|pod| !pod.deleting) else { continue };
        let noted = pod.annotations.get(keys::POD_METADATA).map(String::as_str);
        if let Some(metadata) = resources::pod_metadata_patch(&inputs, node, noted) {
            let step = KubernetesStep::PatchPod { node, pod_uid: pod.uid.clone(), metadata };
            plan.step(step, "its labels and annotations are not those of the spec");
        }
    }
}

/// Brings volume claims up to date. Last of all, because a storage class may refuse it and nothing else may wait for
/// that; and never while a move runs. Of a drained one nothing changes but whether it goes with the DialogCluster.
pub fn update_volumes(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    volumes::plan(view, plan);
    if view.move_runs() {
        return;
    }
    for (node, name, claim) in view.claims() {
        if claim.label(keys::DECOMMISSIONED).is_none() && view.claim(node) != Some(name)
            || is_being_decommissioned(name, plan)
        {
            continue;
        }
        let drained = claim.label(keys::DECOMMISSIONED).is_some();
        let of_node = || view.identity(node).filter(|_| !drained);
        let noted = image::image_record(view).filter(|_| node == Node::Coordinator);
        let noted = noted.as_ref().map(|(image, versions)| (image.as_str(), versions.as_str()));
        let before = || Some((claim.annotation(keys::IMAGE)?, claim.annotation(keys::VERSIONS)?));
        let mut on_volume = ClaimRecord {
            identity: claim.annotation(keys::SYSTEM_IDENTIFIER).or_else(of_node),
            size: volumes::kept_size(view, node, claim),
            image: noted.or_else(before),
            locale: birth_locale(view).filter(|_| node == Node::Coordinator && !drained),
        };
        let mut want = resources::volume_claim(&wanted.inputs(view), node, name, on_volume);
        // What else is written on it does not wait for a growth that may be refused.
        if on_volume.size.is_none() && volumes::grows(view, node, claim) {
            on_volume.size = volumes::asked(claim);
            let as_it_is = resources::volume_claim(&wanted.inputs(view), node, name, on_volume);
            if difference(view, &as_it_is, claim).is_some() {
                want = as_it_is;
            }
        }
        if may_be_deleted(view, node, name, claim) {
            let step = KubernetesStep::Delete { kind: want.kind, name: want.name, uid: claim.uid.clone() };
            plan.step(
                step,
                format!("{} is no longer a member, and spec.volumes.whenScaled was Delete", view.name(node)),
            );
        } else {
            ensure(view, want, plan);
        }
    }
}

/// This plan marks the volume as drained: written as it was seen, it would lose its mark, and its next pod would get it.
fn is_being_decommissioned(name: &str, plan: &Plan) -> bool {
    plan.steps
        .iter()
        .any(|planned| matches!(&planned.step, Step::Kubernetes(KubernetesStep::Decommission { claim: Some(claim), .. }) if claim == name))
}

/// A drained volume that was to be deleted, of a worker that pg_dist_node has verifiably forgotten.
#[must_use]
pub fn may_be_deleted(view: View, node: Node, name: &str, claim: &LiveObject) -> bool {
    let mounted = view.stateful_set(node).is_some() && view.claim(node) == Some(name);
    // Another worker may have its name by now, on another volume.
    let succeeded = view.claim(node).is_some_and(|claim| claim != name);
    let delete = VolumePolicy::Delete.to_string();
    claim.label(keys::DECOMMISSIONED).is_some()
        && claim.annotation(keys::RECLAIM_POLICY) == Some(&delete)
        // A person who has changed the policy since wants it kept.
        && view.desired.volumes.when_scaled == VolumePolicy::Delete
        && (view.is_no_member(node) || succeeded && view.is_catalog_ours())
        && !mounted
}

/// The budget for evictions: none while shards move, and that before the first one does.
pub fn protect_moves(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    let about_moves = |planned: &super::PlannedStep| {
        matches!(planned.step, Step::Sql(SqlStep::RecoverTransactions | SqlStep::StartRebalance { .. }))
    };
    let starts =
        plan.steps.iter().any(|planned| matches!(planned.step, Step::Sql(SqlStep::StartRebalance { .. })));
    let evictions = if starts || view.move_may_run() { Evictions::Block } else { Evictions::AllowOne };
    // Moves that run are protected first of all: whatever else fails must not leave them open to evictions.
    let end = if evictions == Evictions::Block { 0 } else { plan.steps.len() };
    let place = plan.steps.iter().position(about_moves).unwrap_or(end);
    let later = plan.steps.split_off(place);
    ensure(view, resources::pod_disruption_budget(&wanted.inputs(view), evictions), plan);
    plan.steps.extend(later);
}

/// A volume may be made, and initialised, only for a node that cannot have been one before.
fn is_new_node(view: View, node: Node) -> Gate {
    // The coordinator remembers every worker. While it is a stranger to us (never recorded), nothing was born yet.
    if node == Node::Coordinator || view.identity(Node::Coordinator).is_none() {
        return Ok(());
    }
    let Some(citus) = view.citus() else {
        let why = format!("{} may have been a node before: the coordinator has to say", view.name(node));
        return Err(WaitingOn::CatalogUnknown { why }.into());
    };
    let address = view.address(node);
    if citus.nodes.iter().any(|row| row.name == address) {
        return Err(Problem::RegisteredWithoutVolume { node: view.name(node) }.into());
    }
    Ok(())
}

/// The name of the volume claim that a node gets, if it may get a new one.
fn new_claim_name(view: View, node: Node) -> Gate<String> {
    is_new_node(view, node)?;
    let label = node.to_string();
    let existing: Vec<&str> = view
        .snapshot
        .objects
        .iter()
        .filter(|(_, object)| object.label(keys::NODE) == Some(&label))
        .filter_map(|(key, _)| key.strip_prefix("PersistentVolumeClaim/"))
        .collect();
    Ok(resources::claim_name(&view.desired.cluster, node, &existing))
}

/// Workers' volumes without the coordinator's: the metadata of those shards is not here, so nothing may start.
fn incomplete_volumes(view: View) -> Option<Problem> {
    if view.claim(Node::Coordinator).is_some() {
        return None;
    }
    let orphan = view.snapshot.objects.iter().find(|(key, object)| {
        key.starts_with("PersistentVolumeClaim/")
            && object.ownership == Ownership::Owned
            && object.label(keys::DECOMMISSIONED).is_none()
            && object.annotation(keys::SYSTEM_IDENTIFIER).is_some()
    })?;
    let claim = orphan.0.trim_start_matches("PersistentVolumeClaim/").to_owned();
    Some(Problem::CoordinatorVolumeMissing { claim })
}

/// A worker that is no longer wanted and was never registered: nothing of the cluster's data can be on it.
fn was_never_registered(view: View, node: Node) -> bool {
    let asked = view.desired.nodes().any(|asked| asked == node);
    !asked && view.is_no_member(node)
}

fn remove(view: View, node: Node, plan: &mut Plan) {
    let name = view.name(node);
    let retired = view.is_decommissioned(node);
    if contents::was_removed_manually(view, node) {
        if plan.pass(contents::may_be_decommissioned(view, node)).is_none() {
            return;
        }
        // Its volume must not come back as that of the next worker of its name.
        plan.step(
            volumes::decommission(view, node, VolumePolicy::Retain),
            format!("{name} was a member and is no longer one"),
        );
        return;
    }
    let why = if retired { "is no longer a member" } else { "is no longer wanted and was never registered" };
    for kind in ["StatefulSet", "ConfigMap", "Service"] {
        if let Some(object) = view.owned(kind, &name).filter(|object| !object.deleting) {
            let step =
                KubernetesStep::Delete { kind: kind.to_owned(), name: name.clone(), uid: object.uid.clone() };
            plan.step(step, format!("{name} {why}"));
        }
    }
}

/// Creates it, or applies what differs, when its name is free or ours.
fn ensure(view: View, want: Manifest, plan: &mut Plan) {
    if plan.pass(is_free(view, &want.kind, &want.name)).is_none() {
        return;
    }
    match view.object(&want.kind, &want.name) {
        None => {
            let why = format!("{} does not exist yet", want.key());
            plan.step(KubernetesStep::Create(Box::new(want)), why);
        }
        Some(live) if live.deleting => plan.wait(WaitingOn::FormerObjects { object: want.key() }),
        Some(live) => {
            if let Some(difference) = difference(view, &want, live) {
                let uid = live.uid.clone();
                plan.step(KubernetesStep::Apply { object: Box::new(want), uid }, difference);
            }
        }
    }
}
