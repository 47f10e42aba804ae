//! Parameters: whether they are taken, and how a changed configuration reaches a running server without a restart.
//! Restarts are `rolling_restart`'s.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{
    Findings, Gate, KubernetesStep, Plan, PlannedStep, Problem, ResolvedSpec, ServerCheck, SqlStep, View,
    WaitingOn, problem::Shortage,
};
use crate::{
    api::{Node, names::keys},
    resources,
    snapshot::{ParameterCheck, Postgres},
};

/// After this time the kubelet is asked again for a ConfigMap that it has not brought.
const REFRESH_AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(3);

/// Background workers of the coordinator beside the executors of moves.
const COORDINATOR_PROCESSES: i64 = 3;

/// The parameters to use: the user's, when a server takes them; else those that are in use, and why.
#[must_use]
pub fn choose(view: View) -> (BTreeMap<String, String>, Findings) {
    let used = used_parameters(view).unwrap_or_else(|| view.desired.parameters.clone());
    match may_replace(view, &used) {
        Ok(()) => (view.desired.parameters.clone(), Findings::default()),
        Err(why) => (used, why),
    }
}

/// Whether the parameters of the spec may take the place of those in use.
fn may_replace(view: View, used: &BTreeMap<String, String>) -> Gate {
    let asked = &view.desired.parameters;
    let mut findings = Findings::default();
    for (name, value) in asked.iter().filter(|(name, value)| used.get(*name) != Some(*value)) {
        match view.snapshot.parameter_checks.get(&format!("{name}={value}")) {
            Some(ParameterCheck::Accepted) => {}
            Some(ParameterCheck::Rejected { message, retry_due }) => {
                findings.add(Problem::ParameterRejected { name: name.clone(), message: message.clone() });
                if *retry_due {
                    findings.add(check_parameter(view, name, value));
                }
                return Err(findings);
            }
            // The start script goes back to the last good values if these are no better.
            None if nobody_runs(view) => {}
            None => findings.add(check_parameter(view, name, value)),
        }
    }
    findings.gate()
}

/// What is in the coordinator's ConfigMap now; `None` before there is one.
fn used_parameters(view: View) -> Option<BTreeMap<String, String>> {
    let map = view.owned("ConfigMap", &view.name(Node::Coordinator))?;
    // Before the first server was born nobody can be asked, and nothing can be broken.
    let born = view.nodes().into_iter().any(|node| view.identity(node).is_some());
    born.then(|| resources::parameters_of(&map.json)).flatten()
}

/// No server runs that was ever born, and some cannot: with the values of before, perhaps.
fn nobody_runs(view: View) -> bool {
    let born: Vec<Node> = view.nodes().into_iter().filter(|node| view.identity(*node).is_some()).collect();
    let cannot = |node: &Node| view.pod(*node).is_some_and(|pod| pod.waiting.is_some());
    born.iter().all(|node| matches!(view.server(*node), ServerCheck::NotReady(_))) && born.iter().any(cannot)
}

/// A value that only a server can judge is tried on one: a worker, so that the coordinator is not touched, if there is one.
fn check_parameter(view: View, name: &str, value: &str) -> Findings {
    let mut nodes: Vec<Node> = view.nodes().into_iter().collect();
    nodes.rotate_left(1);
    let server = nodes.into_iter().find(|node| matches!(view.server(*node), ServerCheck::Verified(_)));
    let Some(node) = server else {
        let why = "no server answers that could check the changed parameters".to_owned();
        return WaitingOn::NotAnswering { node: Node::Coordinator, why }.into();
    };
    let step = SqlStep::CheckParameter { node, name: name.to_owned(), value: value.to_owned() };
    PlannedStep::new(step, "a changed value is checked on one server before it is rolled out").into()
}

/// Brings every server to the wanted configuration, as far as a reload goes.
pub fn plan(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    for node in view.nodes() {
        if let ServerCheck::Verified(postgres) | ServerCheck::Unrecorded(postgres) = view.server(node) {
            configure(view, wanted, node, postgres, plan);
        }
    }
}

fn configure(view: View, wanted: &ResolvedSpec, node: Node, postgres: &Postgres, plan: &mut Plan) {
    let hash = &wanted.hashes(node).config;
    if let Some(rejected) = &postgres.rejected {
        // It runs with its last good configuration, which no reload can change; `rolling_restart` restarts it when there is a new one.
        if rejected.config_hash == *hash {
            let message = rejected.message.clone();
            plan.problem(Problem::ConfigurationRejected { node: view.name(node), message });
        }
        return;
    }
    let ours = resources::settings(view.desired, node);
    let overrides: Vec<String> = postgres
        .auto_conf
        .keys()
        .filter(|name| ours.contains_key(*name) || wanted.parameters.contains_key(*name))
        .cloned()
        .collect();
    if !overrides.is_empty() {
        let why = format!("ALTER SYSTEM overrides {} of the spec", overrides.join(", "));
        plan.step(SqlStep::ResetAlterSystem { node, names: overrides }, why);
    }
    if postgres.config_hash.as_ref() == Some(hash) {
        return;
    }
    plan.wait(WaitingOn::ConfigurationPending { node });
    if postgres.file_config_hash.as_ref() == Some(hash) {
        plan.step(SqlStep::Reload { node }, "a changed configuration has arrived and is not loaded yet");
    } else if config_map_is_current(view, wanted, node) {
        refresh_configuration(view, node, hash, plan);
    }
}

/// The node's ConfigMap in the API server is the wanted one.
fn config_map_is_current(view: View, wanted: &ResolvedSpec, node: Node) -> bool {
    view.owned("ConfigMap", &view.name(node)).and_then(|map| resources::parameters_of(&map.json))
        == Some(wanted.parameters.clone())
}

fn refresh_configuration(view: View, node: Node, hash: &str, plan: &mut Plan) {
    let Some(pod) = view.pod(node) else { return };
    let asked: Option<(&str, Timestamp)> = pod
        .config_refresh
        .as_deref()
        .and_then(|value| value.split_once(' '))
        .and_then(|(hash, at)| Some((hash, at.parse().ok()?)));
    let lately = asked.is_some_and(|(asked, at)| {
        asked == hash && view.snapshot.now.duration_since(at) < REFRESH_AGAIN_AFTER
    });
    if !lately {
        let value = format!("{hash} {}", view.snapshot.now);
        let step = KubernetesStep::RefreshConfiguration { node, pod_uid: pod.uid.clone(), value };
        plan.step(
            step,
            format!("annotation {} makes the kubelet bring the changed ConfigMap now", keys::CONFIG_REFRESH),
        );
    }
}

/// Whether this server runs with everything that is wanted: nothing to load, nothing that waits for a restart.
#[must_use]
pub fn is_configured(wanted: &ResolvedSpec, node: Node, postgres: &Postgres) -> bool {
    let hash = &wanted.hashes(node).config;
    postgres.wal_level == "logical"
        && postgres.rejected.is_none()
        && postgres.pending_restart.is_empty()
        && postgres.config_hash.as_deref() == Some(hash)
}

/// Why this server cannot take part in a move, if it cannot: settings too low for the moves at the same time.
#[must_use]
pub fn lacks_capacity(view: View, node: Node, postgres: &Postgres) -> Option<Shortage> {
    let of_a_node = i64::from(view.desired.rebalance.max_moves_per_node);
    // Each move is a background worker of the coordinator, and takes two workers. Beside them there are Citus' maintenance
    // daemon, its monitor and PostgreSQL's launcher; an executor that finds no room costs as the limit of all does.
    let pairs = i64::try_from(view.registered_workers().len().div_ceil(2)).unwrap_or(i64::MAX);
    let in_all = of_a_node.saturating_mul(pairs).min(resources::MAX_MOVES.into());
    let processes = if node.is_worker() { of_a_node } else { in_all + COORDINATOR_PROCESSES };
    [
        ("max_replication_slots", of_a_node),
        ("max_wal_senders", of_a_node),
        ("max_logical_replication_workers", of_a_node),
        ("max_worker_processes", processes),
    ]
    .into_iter()
    .find_map(|(name, needed)| {
        let value: i64 = postgres.settings.get(name)?.parse().ok()?;
        (value < needed).then(|| Shortage { setting: name.to_owned(), value, needed })
    })
}
