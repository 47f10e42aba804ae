//! The planner against a model of the world: whatever happens, nothing that must never happen does, and when it stops
//! happening the cluster reaches what the spec asks for and is then left alone.

// A model reads better without the ceremony that a program needs.
#![allow(clippy::pedantic, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod golden;
mod growth;
mod histories;
mod images;
mod jobs;
mod left_behind;
mod losses;
mod preflights;
mod refusals;
mod restarts;
mod scale_in;
mod secrets;
mod status_reports;
mod volumes;
mod world;

use dialog_operator::{
    act::Outcome,
    api::{
        DialogClusterSpec, Node,
        names::keys,
        spec::{RebalanceMode, VolumePolicy},
        status::NodeState,
    },
    plan::{KubernetesStep, Plan, PlannedStep, Problem, SqlStep, Step, WaitingOn, plan, problem},
    report,
    snapshot::{self, CleanupRow, Leftover, LeftoverKind, ReasonMessage, Snapshot},
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proptest::prelude::*;
use serde_json::json;
use world::World;

/// Reconciles until nothing is planned and nothing changes, and says how many seconds of the model that took.
fn settle(world: &mut World) -> u32 {
    settle_and(world, |_, _| ())
}

/// The same, and each reconcile is looked at.
fn settle_and(world: &mut World, mut look: impl FnMut(&World, &Plan)) -> u32 {
    let mut quiet = 0;
    for passed in 0..3_000 {
        let plan = world.reconcile(None);
        look(world, &plan);
        // A job with moves from or to a lost worker ends when that one is given up, and not before.
        let busy = world.job.as_ref().is_some_and(|model| model.job.is_open() && world.lost.is_empty());
        quiet = if plan.steps.is_empty() && !busy && world.silent.is_empty() { quiet + 1 } else { 0 };
        if let Some(until) = pause(&plan) {
            // Nothing else happens meanwhile.
            world.now = until;
            quiet = 0;
        }
        // Longer than any other wait of the planner.
        if quiet > 25 {
            return passed;
        }
        world.tick();
    }
    let plan = world.reconcile(None);
    panic!("never at rest: {:?} {:?} {:?}\n{}", plan.steps, plan.waits, plan.problems, world.log.join("\n"));
}

fn pause(plan: &Plan) -> Option<jiff::Timestamp> {
    plan.waits
        .iter()
        .find_map(|wait| if let WaitingOn::RebalancePause { until, .. } = wait { Some(*until) } else { None })
}

fn condition(world: &World, kind: &str) -> String {
    let status = world.cluster.status.as_ref().unwrap();
    let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    found.status.clone()
}

fn assert_serves(world: &World) {
    for kind in
        ["Ready", "WalLevelLogical", "ConfigurationApplied", "WorkersRegistered", "SchemaApplied", "Balanced"]
    {
        assert_eq!(
            condition(world, kind),
            "True",
            "{kind}: {:#?}\n{}",
            world.cluster.status,
            world.log.join("\n")
        );
    }
    for kind in ["Reconciling", "Stalled"] {
        assert_eq!(condition(world, kind), "False", "{kind}: {:#?}", world.cluster.status);
    }
    let mut counts = std::collections::BTreeMap::new();
    for group in world.placements.values() {
        *counts.entry(*group).or_insert(0) += 1;
    }
    let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(most - least <= 1, "{counts:?}");
}

fn born(workers: i32) -> World {
    let mut world = World::new(json!({"workers": {"replicas": workers}}));
    settle(&mut world);
    assert_serves(&world);
    world
}

/// Two workers, all shards on the first, and a rebalance that may begin now.
fn uneven(parameters: &[(&str, &str)]) -> World {
    let mut world = World::new(json!({"workers": {"replicas": 1}, "rebalance": {"mode": "Off"}}));
    settle(&mut world);
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    world.edit(|spec| spec.postgres.parameters.extend(parameters));
    settle(&mut world);
    world.edit(|spec| spec.rebalance.mode = RebalanceMode::Auto);
    world
}

/// Whether the plan for what is seen has such a step.
fn does(world: &World, seen: &Snapshot, name: &str) -> bool {
    plan(&world.desired(), seen).steps.iter().any(|planned| planned.step.name() == name)
}

/// The same, with a node's server changed.
fn with_server(seen: &Snapshot, node: Node, change: impl FnOnce(&mut snapshot::Postgres)) -> Snapshot {
    let mut seen = seen.clone();
    let Some(snapshot::Observed::Known(postgres)) = seen.postgres.get_mut(&node) else { panic!("{node}") };
    change(postgres);
    seen
}

/// Volume claims that were drained: name, and what becomes of them.
fn drained(world: &World) -> Vec<(String, String)> {
    world
        .objects
        .iter()
        .filter(|(_, live)| live.label(keys::DECOMMISSIONED).is_some())
        .map(|(key, live)| {
            (key.clone(), live.annotation(keys::RECLAIM_POLICY).unwrap_or_default().to_owned())
        })
        .collect()
}

fn moves_done(world: &World) -> usize {
    world
        .job
        .iter()
        .flat_map(|model| &model.job.tasks)
        .filter(|task| task.state == snapshot::TaskState::Done)
        .count()
}

/// Reconciles until something is so.
fn until(world: &mut World, what: &str, wanted: impl Fn(&World) -> bool) {
    for _ in 0..500 {
        if wanted(world) {
            return;
        }
        world.reconcile(None);
        world.tick();
    }
    panic!("never: {what}\n{}", world.log.join("\n"));
}

/// Reconciles until the plan has such a step, which is not carried out: what was seen then.
fn until_planned(world: &mut World, name: &str) -> Snapshot {
    for _ in 0..500 {
        let seen = world.observe();
        if does(world, &seen, name) {
            return seen;
        }
        world.reconcile(None);
        world.tick();
    }
    panic!("never planned: {name}\n{}", world.log.join("\n"));
}

fn identity(world: &World, node: Node) -> String {
    let set = &world.objects[&format!("StatefulSet/{}", node.object_name("dialogs"))];
    set.annotation(keys::SYSTEM_IDENTIFIER).unwrap().to_owned()
}

fn annotate(world: &mut World, value: String) {
    world.cluster.metadata.annotations = Some([(keys::FORCE_REMOVE.to_owned(), value)].into());
}

/// The templates ask for CPU: each other value is another template, and no machine has a hundred.
fn ask_for(world: &mut World, workers: u32, coordinator: u32) {
    let requests = |cpu: u32| Some([("cpu".to_owned(), Quantity(cpu.to_string()))].into());
    world.edit(|spec| {
        spec.workers.template.resources.requests = requests(workers);
        spec.coordinator.resources.requests = requests(coordinator);
    });
}

/// The volume of a worker is destroyed.
fn lose(world: &mut World, node: Node) {
    if let Some(pod) = world.pods.remove(&node) {
        world.volumes.remove(&pod.claim);
        world.lost.insert(pod.claim);
    }
}
