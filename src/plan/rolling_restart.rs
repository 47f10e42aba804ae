//! The ordered, verified rolling restart: one node at a time, workers by ordinal, the coordinator last, and never
//! while a move runs; before all of them those that do not run. Nothing else restarts a node.

use jiff::{SignedDuration, Timestamp};

use super::{
    Findings, Gate, Hashes, KubernetesStep, Plan, PlannedStep, Problem, ResolvedSpec, RestartCause,
    ServerCheck, SqlStep, View, WaitingOn,
    live_objects::{difference, initdb_permission},
    pods::cannot_pull_image,
};
use crate::{
    api::{Node, names::keys},
    resources,
    snapshot::{Pod, Postgres},
};

/// A server that was started with everything that is wanted is not restarted again for a parameter before this time.
const RESTART_PAUSE: SignedDuration = SignedDuration::from_mins(10);

/// Restarts the next node that is due, when it may be restarted.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    plan.add(overridden_wal_levels(view, wanted));
    if let Some(requested) = view.desired.restart_requested.as_ref().filter(|value| is_handled(view, value)) {
        plan.handled.insert(keys::RESTART_REQUESTED_AT.to_owned(), requested.clone());
    }
    let due = nodes_to_restart(view, wanted);
    let Some(&(node, cause)) = due.first() else { return };
    if view.pod(node).is_some_and(|pod| pod.deleting) {
        plan.wait(WaitingOn::Rolling { node, cause, remaining: due.len() - 1 });
        return;
    }
    let Some(pod) = plan.pass(may_restart(view, wanted, node, cause)) else { return };
    plan.wait(WaitingOn::Rolling { node, cause, remaining: due.len() - 1 });
    let why = format!("{} needs a restart ({cause}), {} more to go", view.name(node), due.len() - 1);
    let booted = wanted.start_marker(view, node);
    plan.step(
        KubernetesStep::RestartNode { node, pod_uid: pod.uid.clone(), cause, start_marker: booted },
        why,
    );
}

/// The pod that may be deleted for it.
fn may_restart<'a>(view: View<'a>, wanted: &ResolvedSpec, node: Node, cause: RestartCause) -> Gate<&'a Pod> {
    // A node that is not a member yet holds no data and serves nobody: its restart hurts nobody. Nor does that of one
    // that does not run, and the others may be waiting for just that.
    if view.may_be_member(node) {
        moves_have_ended(view, node, cause)?;
        if cause != RestartCause::CrashLoop {
            others_answer(view, node)?;
        }
    }
    // Who is due is known of those alone that have loaded their configuration: the coordinator, faster than a worker,
    // must not go first.
    if cause == RestartCause::Parameters
        && let Some(node) = not_loaded_before(view, wanted, node)
    {
        return Err(WaitingOn::ConfigurationPending { node }.into());
    }
    if !template_is_current(view, wanted, node) {
        return Err(WaitingOn::ConfigurationPending { node }.into());
    }
    view.pod(node).ok_or_else(Findings::default)
}

/// A node that comes before this one in the order of restarts, and has not loaded the wanted configuration yet.
fn not_loaded_before(view: View, wanted: &ResolvedSpec, node: Node) -> Option<Node> {
    let order = |node: Node| (!node.is_worker(), node);
    view.nodes().into_iter().filter(|other| order(*other) < order(node)).find(|other| {
        matches!(view.server(*other), ServerCheck::Verified(postgres)
            if postgres.rejected.is_none() && postgres.config_hash.as_ref() != Some(&wanted.hashes(*other).config))
    })
}

/// Nodes that have a StatefulSet: workers by ordinal, the coordinator last.
fn nodes_in_order(view: View) -> Vec<Node> {
    let mut nodes: Vec<Node> =
        view.nodes().into_iter().filter(|node| view.stateful_set(*node).is_some()).collect();
    nodes.sort_by_key(|node| (!node.is_worker(), *node));
    nodes
}

/// Nodes that are due a restart: those that do not run, then workers by ordinal, the coordinator last.
///
/// A node that did not start with the wanted parameters stops the roll: nobody after it is restarted with them.
#[must_use]
pub fn nodes_to_restart(view: View, wanted: &ResolvedSpec) -> Vec<(Node, RestartCause)> {
    let mut nodes = nodes_in_order(view);
    let refused = nodes.iter().any(|node| {
        let hash = &wanted.hashes(*node).config;
        view.postgres(*node)
            .and_then(|postgres| postgres.rejected.as_ref())
            .is_some_and(|rejected| rejected.config_hash == *hash)
    });
    // A claim that somebody has deleted goes when its pod does, and the data with it.
    nodes.retain(|node| !view.loses_volume(*node));
    let causes = nodes.into_iter().filter_map(|node| Some((node, cause(view, wanted, node)?)));
    let mut causes: Vec<_> = causes.collect();
    causes.sort_by_key(|(_, cause)| *cause != RestartCause::CrashLoop);
    if refused { Vec::new() } else { causes }
}

fn cause(view: View, wanted: &ResolvedSpec, node: Node) -> Option<RestartCause> {
    let pod = view.pod(node)?;
    let requested = is_requested(view, node, pod).then_some(RestartCause::Requested);
    let template = &wanted.hashes(node).user_template;
    let template_differs = pod.user_template.as_deref().is_some_and(|of_pod| of_pod != template);
    match view.server(node) {
        ServerCheck::Verified(postgres) | ServerCheck::Unrecorded(postgres) => {
            server_cause(view, wanted.hashes(node), postgres)
                .or(template_differs.then_some(RestartCause::Template))
                .or(requested)
        }
        // A pod that never gets ready with the old template is made again at once. What lets an image be pulled may be
        // no reason to restart a pod that has it, and does no harm to one that never began.
        ServerCheck::NotReady(_) if view.is_decommissioned(node) => None,
        ServerCheck::NotReady(_) => (template_differs && is_stuck(pod)
            || view.update_available(node) && cannot_pull_image(pod)
            || startup_is_stuck(view, wanted, node, pod))
        .then_some(RestartCause::CrashLoop),
        ServerCheck::Unreachable(_) | ServerCheck::IdentityMismatch(_) => None,
    }
}

/// `kubectl rollout restart` writes an annotation into the template of a StatefulSet, which restarts nobody where the
/// pods are ours to restart: we do. A request for the whole cluster is one in all templates. A pod that admission has
/// stripped of its annotations cannot say whether it is from before, and would be restarted for ever.
fn is_requested(view: View, node: Node, pod: &Pod) -> bool {
    if !pod.annotations.contains_key(keys::POD_TEMPLATE_HASH) {
        return false;
    }
    ["kubectl.kubernetes.io/restartedAt", keys::RESTART_REQUESTED_AT].into_iter().any(|key| {
        let asked = view.template_annotation(node, key);
        asked.is_some_and(|asked| pod.annotations.get(key).is_none_or(|of_pod| of_pod != asked))
    })
}

/// Every node was started since the request.
fn is_handled(view: View, requested: &String) -> bool {
    let of_pod = |node| view.pod(node).and_then(|pod| pod.annotations.get(keys::RESTART_REQUESTED_AT));
    let nodes = nodes_in_order(view);
    !nodes.is_empty() && nodes.into_iter().all(|node| of_pod(node) == Some(requested))
}

/// The pod that we had made never got ready, and would now be started with something else.
fn startup_is_stuck(view: View, wanted: &ResolvedSpec, node: Node, pod: &Pod) -> bool {
    let booted = view.stateful_set(node).and_then(|set| set.annotation(keys::LAST_STARTED_WITH));
    let Some((hash, at)) = booted.and_then(|text| text.split_once(' ')) else { return false };
    let Ok(at) = at.parse::<Timestamp>() else { return false };
    let after = pod.created_at.duration_since(at);
    // Clocks of two machines differ a little, times of Kubernetes have no fractions, and a server takes time to end.
    let of_then = after > SignedDuration::from_secs(-5) && after < SignedDuration::from_mins(1);
    of_then && hash != wanted.hashes(node).config
}

fn is_stuck(pod: &Pod) -> bool {
    pod.waiting.is_some() || pod.address.is_none()
}

/// Servers with another `wal_level` that a restart would not change.
fn overridden_wal_levels(view: View, wanted: &ResolvedSpec) -> Findings {
    let overridden = |node: Node| {
        view.pod(node).filter(|_| !view.loses_volume(node))?;
        let (ServerCheck::Verified(postgres) | ServerCheck::Unrecorded(postgres)) = view.server(node) else {
            return None;
        };
        let heals = postgres.rejected.is_some() || boots_anew(wanted.hashes(node), postgres);
        let (node, wal_level) = (view.name(node), postgres.wal_level.clone());
        (wal_level != "logical" && !heals).then_some(Problem::WalLevelOverridden { node, wal_level })
    };
    nodes_in_order(view).into_iter().filter_map(overridden).collect()
}

/// Would it start with anything else than it was started with? If not, a restart heals nothing.
fn boots_anew(hashes: &Hashes, postgres: &Postgres) -> bool {
    postgres.startup_hash.as_ref() != Some(&hashes.startup)
}

fn server_cause(view: View, hashes: &Hashes, postgres: &Postgres) -> Option<RestartCause> {
    if let Some(rejected) = &postgres.rejected {
        return (rejected.config_hash != hashes.config).then_some(RestartCause::Parameters);
    }
    let boots_anew = boots_anew(hashes, postgres);
    if postgres.wal_level != "logical" && boots_anew {
        return Some(RestartCause::WalLevel);
    }
    let loaded = postgres.config_hash.as_ref() == Some(&hashes.config);
    // What a person set with ALTER SYSTEM is the person's to restart for.
    let ours = postgres.pending_restart.iter().any(|name| !postgres.auto_conf.contains_key(name));
    // An override that was reset shows as pending, too; the pause keeps one that comes back from making a loop.
    let long_ago = view.snapshot.now.duration_since(postgres.started_at) > RESTART_PAUSE;
    (loaded && ours && (boots_anew || long_ago)).then_some(RestartCause::Parameters)
}

/// Nothing restarts while a move runs. A job whose tasks only fail and wait is stopped, so that its cause can be healed.
fn moves_have_ended(view: View, node: Node, cause: RestartCause) -> Gate {
    if view.citus().is_none() && node.is_worker() && cause != RestartCause::CrashLoop {
        return Err(WaitingOn::CatalogUnknown { why: "whether a move runs is not known".to_owned() }.into());
    }
    let Some(job) = view.open_job() else { return Ok(()) };
    let fails = job.tasks.iter().any(crate::snapshot::Task::is_failing);
    let mut findings = Findings::from(WaitingOn::RestartWaitsForMoves { node, cause });
    if !view.move_runs() && job.can_be_stopped() && (fails || cause == RestartCause::WalLevel) {
        let why = format!(
            "{} needs a restart ({cause}), and the moves of job {} only wait for their next try",
            view.name(node),
            job.id
        );
        findings.add(PlannedStep::new(SqlStep::StopRebalance { job: job.id }, why));
    }
    Err(findings)
}

/// Two nodes are never down at once because of the operator: every other member answers first.
fn others_answer(view: View, node: Node) -> Gate {
    let silent = view.unhealthy_peers(node).into_iter();
    silent.map(|(node, why)| WaitingOn::NotAnswering { node, why }).collect::<Findings>().gate()
}

/// The StatefulSet and the ConfigMap in the API server are the wanted ones, and the controller of StatefulSets has
/// seen it: else the new pod would be made of the old template, and restarted a second time.
fn template_is_current(view: View, wanted: &ResolvedSpec, node: Node) -> bool {
    let pending = |kind: &str| {
        let name = view.name(node);
        view.owned(kind, &name).is_none_or(|live| !is_settled(&live.json))
    };
    let inputs = wanted.inputs(view);
    let initialise = initdb_permission(view, node);
    let map = resources::config_map(&inputs, node, &wanted.parameters, initialise);
    let map_differs =
        view.owned("ConfigMap", &map.name).is_none_or(|live| difference(view, &map, live).is_some());
    let set_differs = view.claim(node).is_none_or(|claim| {
        let set = resources::stateful_set(&inputs, node, claim, view.identity(node));
        view.owned("StatefulSet", &set.name).is_none_or(|live| difference(view, &set, live).is_some())
    });
    !map_differs && !set_differs && !pending("StatefulSet")
}

/// `status.observedGeneration` has caught up.
fn is_settled(json: &serde_json::Value) -> bool {
    let generation = json.pointer("/metadata/generation").and_then(serde_json::Value::as_i64);
    let observed = json.pointer("/status/observedGeneration").and_then(serde_json::Value::as_i64);
    generation.is_none() || observed >= generation
}
