//! The planner: a pure function from what is wanted and what was seen to what to do now. No client, no async, no
//! clock, no randomness, no state lives here. This file is the order of concerns; each concern has a file.

pub(crate) mod adopt;
pub mod by_shard_count;
pub mod contents;
pub(crate) mod effect;
pub(crate) mod force_remove;
pub mod foretold;
pub(crate) mod gate;
pub(crate) mod image;
pub mod invariants;
pub(crate) mod live_objects;
pub(crate) mod membership;
pub(crate) mod objects;
pub(crate) mod pods;
pub(crate) mod preflight;
pub mod problem;
pub(crate) mod rebalance;
pub mod refusals;
pub(crate) mod repair;
pub(crate) mod restart_cause;
pub(crate) mod rolling_restart;
pub(crate) mod scale_in;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod settings;
pub(crate) mod step;
pub mod view;
pub(crate) mod volumes;
pub(crate) mod waiting_on;

pub use effect::{Concern, Effect};
pub use gate::{Findings, Gate};
pub use problem::{Problem, ProblemReason};
pub use restart_cause::RestartCause;
pub use step::{KubernetesStep, Plan, PlannedStep, SqlStep, Step};
pub use view::{ServerCheck, View};
pub use waiting_on::WaitingOn;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{Desired, Node},
    resources::{self, BuildContext},
    snapshot::Snapshot,
};

/// What a plan is made from: the file of `dialog-operator plan`, as `/debug/snapshot/<namespace>/<name>` gives it.
#[derive(Serialize, Deserialize)]
pub struct PlanInput<D = Desired, S = Snapshot> {
    /// What the user wants.
    pub desired: D,
    /// What there is.
    pub snapshot: S,
}

/// What to do now, and why, and what is waited for.
///
/// The order is the order in which one thing needs another: an image and parameters that can be used, objects made of
/// them, servers that run with them, members that are registered, tables, even shards.
#[must_use]
pub fn plan(desired: &Desired, snapshot: &Snapshot) -> Plan {
    let view = View { desired, snapshot };
    let (wanted, choices) = resolve(view);
    let mut plan = Plan { resolved: Some(wanted.clone()), ..Plan::default() };
    if desired.deleting {
        return plan;
    }
    adopt::plan(view, &mut plan);
    if !adopt::comes_first(view, &plan) {
        plan.add(choices);
        concerns(view, &wanted, &mut plan);
    }
    refusals::plan(view, &mut plan);
    blocked_by_sessions(view, &mut plan);
    if desired.paused {
        let steps = plan.steps.len();
        plan.steps.clear();
        plan.waits.insert(0, WaitingOn::Paused { steps });
    }
    plan
}

/// Whoever holds up a move or a step is named. Nobody's session is ended.
fn blocked_by_sessions(view: View, plan: &mut Plan) {
    let about_moves = |planned: &PlannedStep| match planned.step.effect().concerns {
        Concern::MovePreparation | Concern::Moves => true,
        Concern::Objects
        | Concern::Evictions
        | Concern::Question
        | Concern::Configuration
        | Concern::Restart
        | Concern::Preparation
        | Concern::Registration
        | Concern::Application
        | Concern::Schema
        | Concern::Draining
        | Concern::Removal
        | Concern::ForceRemoval
        | Concern::Repair => false,
    };
    let moves = view.open_job().is_some() || plan.steps.iter().any(about_moves);
    for (node, sessions) in view.snapshot.blocking_moves.iter().filter(|(_, sessions)| !sessions.is_empty()) {
        plan.wait(WaitingOn::HeldUp { node: *node, moves, sessions: sessions.clone() });
    }
}

fn concerns(view: View, wanted: &ResolvedSpec, plan: &mut Plan) {
    objects::plan(view, wanted, plan);
    settings::plan(view, wanted, plan);
    membership::plan(view, wanted, plan);
    schema::plan(view, plan);
    repair::plan(view, plan);
    scale_in::plan(view, wanted, plan);
    rolling_restart::plan(view, wanted, plan);
    rebalance::plan(view, wanted, plan);
    force_remove::plan(view, plan);
    objects::protect_moves(view, wanted, plan);
    repair::drop_leftovers(view, plan);
    objects::label_pods(view, wanted, plan);
    objects::update_volumes(view, wanted, plan);
}

/// The plan, looked at once more before it is carried out: one that breaks a rule is a bug of the planner, and nothing
/// of it is done.
#[must_use]
pub fn plan_checked(desired: &Desired, snapshot: &Snapshot) -> Plan {
    let mut plan = plan(desired, snapshot);
    if let Err(broken) = invariants::check(View { desired, snapshot }, &plan) {
        plan.steps.clear();
        plan.problem(Problem::InvariantBroken { rule: broken.to_string() });
    }
    plan
}

/// What the spec comes to now, and what that needs or meets.
fn resolve(view: View) -> (ResolvedSpec, Findings) {
    let (image, mut findings) = image::choose(view);
    let (parameters, about_parameters) = settings::choose(view);
    findings.add(about_parameters);
    let hash = |node| {
        let inputs = BuildContext { desired: view.desired, operator: &view.snapshot.operator, image: &image };
        Hashes {
            config: resources::config_hash(&inputs, node, &parameters),
            startup: resources::startup_hash(&inputs, node, &parameters),
            user_template: resources::user_template_hash(&inputs, node),
        }
    };
    // All workers are made alike: two sets of hashes are enough for any number of nodes.
    let (coordinator, worker) = (hash(Node::Coordinator), hash(Node::Worker(0)));
    (ResolvedSpec { image, parameters, coordinator, worker }, findings)
}

/// What the spec comes to after looking at what is possible: the image that can be used, the parameters that are taken.
/// Computed once a reconcile: it is handed on in the plan, and nobody chooses again.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedSpec {
    /// Image of every node.
    pub image: String,
    /// The user's parameters, or those of before when these are refused.
    pub parameters: BTreeMap<String, String>,
    coordinator: Hashes,
    worker: Hashes,
}

/// By which a server or a pod is recognised as made of what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// `dialog.config_hash` of a server that has loaded the wanted configuration.
    pub config: String,
    /// `dialog.startup_hash` of a server that was started with it.
    pub startup: String,
    /// Annotation of a pod made of what the user writes now.
    pub user_template: String,
}

impl ResolvedSpec {
    /// What the builders of objects need.
    #[must_use]
    pub fn inputs<'a>(&'a self, view: View<'a>) -> BuildContext<'a> {
        BuildContext { desired: view.desired, operator: &view.snapshot.operator, image: &self.image }
    }
    /// With what a pod of the node that is made now is started, and when that was.
    #[must_use]
    pub fn start_marker(&self, view: View, node: Node) -> String {
        format!("{} {}", self.hashes(node).config, view.snapshot.now)
    }
    /// The hashes of a node.
    #[must_use]
    pub fn hashes(&self, node: Node) -> &Hashes {
        if node.is_worker() { &self.worker } else { &self.coordinator }
    }
}
