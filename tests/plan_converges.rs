//! The planner against a model of the world: whatever happens, nothing that must never happen does, and when it stops
//! happening the cluster reaches what the spec asks for and is then left alone.

// A model reads better without the ceremony that a program needs.
#![allow(missing_docs, clippy::pedantic, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use dialog_operator::{
    act::Done,
    api::{
        DialogClusterSpec, Node,
        names::keys,
        spec::{RebalanceMode, VolumePolicy},
        status::NodeState,
    },
    observe::snapshot::{self, CleanupRow, Leftover, LeftoverKind, Snapshot, Waiting},
    plan::{Hold, Plan, Step, plan},
    report,
};
use proptest::prelude::*;
use serde_json::json;
use world::World;

/// Reconciles until nothing is planned and nothing changes, and says how many seconds of the model that took.
fn settle(world: &mut World) -> u32 {
    let mut quiet = 0;
    for passed in 0..3_000 {
        let plan = world.reconcile(None);
        let busy = world.job.as_ref().is_some_and(|model| model.job.is_open());
        quiet = if plan.steps.is_empty() && !busy && world.silent.is_empty() { quiet + 1 } else { 0 };
        if let Some(seconds) = pause(&plan) {
            // Nothing else happens meanwhile.
            world.now += jiff::SignedDuration::from_secs(seconds);
            quiet = 0;
        }
        // Longer than any other wait of the planner.
        if quiet > 25 {
            return passed;
        }
        world.tick();
    }
    let plan = world.reconcile(None);
    panic!("never at rest: {:?} {:?} {:?}\n{}", plan.steps, plan.holds, plan.problems, world.log.join("\n"));
}

fn pause(plan: &Plan) -> Option<i64> {
    plan.holds
        .iter()
        .find_map(|hold| if let Hold::RebalancePause { seconds, .. } = hold { Some(*seconds) } else { None })
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

#[test]
fn a_cluster_is_born_and_left_alone() {
    let world = born(2);
    assert!(world.restarts.is_empty(), "{:?}", world.restarts);
    assert_eq!(world.jobs_started, 0);
}

#[test]
fn three_workers_at_once_make_one_rebalance() {
    let mut world = born(2);
    world.edit(|spec| spec.workers.replicas = 5);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.jobs_started, 1);
    assert!(world.restarts.is_empty());
}

#[test]
fn a_wrong_wal_level_is_repaired_before_the_rebalance_by_one_restart() {
    let mut world = born(1);
    world.edit(|spec| spec.paused = true);
    world.tampered.insert(Node::Worker(0));
    world.pods.remove(&Node::Worker(0));
    for _ in 0..10 {
        world.reconcile(None);
        world.tick();
    }
    assert_eq!(condition(&world, "WalLevelLogical"), "False");
    world.edit(|spec| {
        spec.paused = false;
        spec.workers.replicas = 2;
    });
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.restarts.get(&Node::Worker(0)), Some(&1));
    assert_eq!(world.restarts.len(), 1);
}

#[test]
fn a_parameter_that_needs_a_restart_rolls_workers_first() {
    let mut world = born(3);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.restarts.values().copied().collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[test]
fn the_coordinator_is_restarted_last_also_when_it_loads_its_configuration_first() {
    let mut world = born(2);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    for _ in 0..40 {
        world.reconcile(None);
        if let Some(pod) = world.pods.get_mut(&Node::Worker(0)) {
            pod.file_in = 5;
        }
        world.tick();
    }
    assert!(world.restarts.is_empty(), "{:?}", world.restarts);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.restarts.len(), 3);
}

#[test]
fn a_parameter_that_postgres_refuses_restarts_nothing_and_heals() {
    let mut world = born(2);
    world.edit(|spec| drop(spec.postgres.parameters.insert("work_mem".to_owned(), "garbage".to_owned())));
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(condition(&world, "Ready"), "True");
    assert!(world.restarts.is_empty());
    world.edit(|spec| spec.postgres.parameters.clear());
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_parameter_that_only_a_start_shows_stops_at_the_first_worker_and_heals() {
    let mut world = born(3);
    world.edit(|spec| {
        drop(spec.postgres.parameters.insert("max_connections".to_owned(), "1000000".to_owned()))
    });
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(condition(&world, "Ready"), "True");
    assert_eq!(world.restarts.values().sum::<u32>(), 1, "{:?}", world.restarts);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    settle(&mut world);
    assert_serves(&world);
}

/// Volume claims that were drained: name, and what becomes of them.
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
    let Some(snapshot::Seen::Known(postgres)) = seen.postgres.get_mut(&node) else { panic!("{node}") };
    change(postgres);
    seen
}

#[test]
fn no_move_starts_under_a_wrong_wal_level_that_no_restart_may_repair_now() {
    // The first worker does not start with it: nobody else is restarted.
    let mut world = uneven(&[("max_connections", "1000000")]);
    let seen = world.observe();
    assert!(does(&world, &seen, "StartRebalance"), "moves do not wait for a parameter that is refused");
    for node in [Node::Coordinator, Node::Worker(1)] {
        let wrong = with_server(&seen, node, |postgres| {
            (postgres.wal_level, postgres.boot_hash) = ("replica".to_owned(), None);
        });
        let does = |name| does(&world, &wrong, name);
        assert!(!does("RestartNode") && !does("StartRebalance"), "{node}");
    }
}

#[test]
fn no_move_starts_without_slots_senders_and_workers_for_it() {
    let mut world = uneven(&[]);
    let seen = world.observe();
    assert!(does(&world, &seen, "StartRebalance"));
    for name in [
        "max_replication_slots",
        "max_wal_senders",
        "max_logical_replication_workers",
        "max_worker_processes",
    ] {
        for node in [Node::Worker(0), Node::Worker(1)] {
            let small = with_server(&seen, node, |postgres| {
                postgres.settings.insert(name.to_owned(), "2".to_owned());
            });
            let said = plan(&world.desired(), &small).problems;
            assert!(!does(&world, &small, "StartRebalance"), "{node} {name}");
            assert!(said.iter().any(|problem| problem.message.contains(name)), "{node} {name}: {said:?}");
        }
    }
}

#[test]
fn no_worker_is_registered_before_it_is_reached_both_ways() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    let mut seen = world.observe();
    while !does(&world, &seen, "AddNode") {
        world.reconcile(None);
        world.tick();
        seen = world.observe();
    }
    for number in 0..seen.connections.len() {
        let mut cut = seen.clone();
        let check = &mut cut.connections[number];
        check.error = Some("No route to host".to_owned());
        let (from, to) = (check.from, check.to);
        let holds = plan(&world.desired(), &cut).holds;
        assert!(!does(&world, &cut, "AddNode"), "{from} does not reach {to}");
        let told =
            |hold: &Hold| matches!(hold, Hold::NotConnected { from: f, to: t, .. } if (*f, *t) == (from, to));
        assert!(holds.iter().any(told), "{from} to {to}: {holds:?}");
    }
    seen.connections.clear();
    assert!(!does(&world, &seen, "AddNode"), "it was not tried yet");
}

fn drained(world: &World) -> Vec<(String, String)> {
    world
        .objects
        .iter()
        .filter(|(_, live)| live.label(keys::DRAINED).is_some())
        .map(|(key, live)| (key.clone(), live.annotation(keys::RECLAIM).unwrap_or_default().to_owned()))
        .collect()
}

#[test]
fn workers_are_drained_and_removed_and_the_next_of_that_name_starts_clean() {
    let mut world = born(5);
    let volumes = world.volumes.clone();
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.jobs_started, 1, "three workers are drained by one job");
    assert_eq!(world.nodes.len(), 3);
    assert_eq!(drained(&world).len(), 3);
    assert!(!world.objects.contains_key("StatefulSet/dialogs-worker-2"));
    world.edit(|spec| spec.workers.replicas = 5);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(drained(&world).len(), 3, "kept volumes stay beside the new ones");
    assert_eq!(world.volumes.len(), volumes.len() + 3);
    for (claim, data) in &volumes {
        assert_eq!(world.volumes[claim].system_identifier, data.system_identifier, "{claim} was overwritten");
    }
    world.delete_and_make_again();
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn volumes_of_removed_workers_are_deleted_where_that_is_asked_for() {
    let mut world = born(3);
    world.edit(|spec| {
        spec.workers.replicas = 1;
        spec.volumes.when_scaled = VolumePolicy::Delete;
    });
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((drained(&world).len(), world.volumes.len()), (0, 2));
}

#[test]
fn a_worker_that_is_wanted_again_in_the_middle_of_its_drain_gets_its_shards_back() {
    let mut world = born(5);
    world.edit(|spec| spec.workers.replicas = 2);
    until(&mut world, "a drain runs", |world| moves_done(world) >= 2);
    world.edit(|spec| spec.workers.replicas = 4);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 5);
    assert_eq!(drained(&world).len(), 1, "only the last was removed");
}

fn moves_done(world: &World) -> usize {
    world.job.iter().flat_map(|model| &model.job.tasks).filter(|task| task.state == "done").count()
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

#[test]
fn a_scale_in_without_room_is_refused_with_its_numbers_and_changes_nothing() {
    let mut world = born(3);
    world.free = 110_000_000;
    world.edit(|spec| spec.workers.replicas = 1);
    settle(&mut world);
    let status = world.cluster.status.clone().unwrap();
    let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "ScaleInRefused"));
    // 21 shards of 1 MB, and a quarter more; 110 MB are free, of which Citus keeps 100.
    for number in ["20.0 MiB", "25.0 MiB", "9.5 MiB", "104.9 MiB", "953.6 MiB"] {
        assert!(stalled.message.contains(number), "{number}: {}", stalled.message);
    }
    assert_eq!(condition(&world, "Ready"), "True");
    assert!(world.nodes.iter().skip(1).all(|row| row.should_have_shards), "{:?}", world.nodes);
    world.free = world::PLENTY;
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 2);
}

#[test]
fn a_scale_in_with_mode_off_is_refused() {
    let mut world = born(3);
    world.edit(|spec| {
        spec.workers.replicas = 2;
        spec.rebalance.mode = RebalanceMode::Off;
    });
    settle(&mut world);
    assert_eq!((condition(&world, "Stalled").as_str(), world.nodes.len()), ("True", 4));
    world.edit(|spec| spec.rebalance.mode = RebalanceMode::Auto);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
}

#[test]
fn a_worker_is_not_removed_while_something_of_it_is_left_to_clean_up() {
    let mut world = born(2);
    world.held.insert(Node::Worker(1), 60);
    world.edit(|spec| spec.workers.replicas = 1);
    until(&mut world, "the session is named", |world| {
        let message = world.cluster.status.as_ref().and_then(|status| status.message.clone());
        message.is_some_and(|message| message.contains("session 7 of somebody"))
    });
    assert_eq!(world.nodes.len(), 3);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((world.nodes.len(), world.cleanup.len()), (2, 0));
}

#[test]
fn an_unreachable_worker_is_not_removed() {
    let mut world = born(2);
    for _ in 0..60 {
        world.silent.insert(Node::Worker(1), 2);
        world.edit(|spec| spec.workers.replicas = 1);
        world.reconcile(None);
        world.tick();
    }
    assert_eq!(world.nodes.len(), 3);
    assert!(world.nodes.iter().skip(1).all(|row| row.should_have_shards));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 2);
}

fn identity(world: &World, node: Node) -> String {
    let set = &world.objects[&format!("StatefulSet/{}", node.object_name("dialogs"))];
    set.annotation(keys::SYSTEM_IDENTIFIER).unwrap().to_owned()
}

fn annotate(world: &mut World, value: String) {
    world.cluster.metadata.annotations = Some([(keys::FORCE_REMOVE.to_owned(), value)].into());
}

#[test]
fn a_lost_worker_is_given_up_when_a_person_names_it_and_only_once() {
    let mut world = born(3);
    let lost = identity(&world, Node::Worker(1));
    for wrong in [
        format!("worker-1/{lost}"),
        format!("worker-2/{lost}"),
        "worker-1".to_owned(),
        format!("coordinator/{lost}"),
    ] {
        annotate(&mut world, wrong.clone());
        settle(&mut world);
        assert_eq!(condition(&world, "Stalled"), "True", "{wrong}");
        assert_eq!(world.nodes.len(), 4, "{wrong}: a worker that answers is given up");
    }
    lose(&mut world, Node::Worker(1));
    world.cluster.metadata.annotations = None;
    world.reconcile(None);
    annotate(&mut world, format!("worker-1/{lost}"));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 4, "another worker took its place");
    assert_ne!(identity(&world, Node::Worker(1)), lost);
    assert_eq!(
        world.cluster.status.as_ref().unwrap().handled[keys::FORCE_REMOVE],
        format!("worker-1/{lost}")
    );
    // The same words do nothing to the next worker of that name.
    let next = identity(&world, Node::Worker(1));
    for _ in 0..30 {
        world.silent.insert(Node::Worker(1), 2);
        world.reconcile(None);
        world.tick();
    }
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(identity(&world, Node::Worker(1)), next);
}

/// The volume of a worker is destroyed.
fn lose(world: &mut World, node: Node) {
    if let Some(pod) = world.pods.remove(&node) {
        world.volumes.remove(&pod.claim);
        world.lost.insert(pod.claim);
    }
}

#[test]
fn a_refused_request_does_not_lie_in_wait_for_a_restart() {
    let mut world = born(3);
    let lives = identity(&world, Node::Worker(1));
    annotate(&mut world, format!("worker-1/{lives}"));
    settle(&mut world);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    settle(&mut world);
    assert_eq!((identity(&world, Node::Worker(1)), world.restarts.len()), (lives, 4));
    assert_eq!(condition(&world, "Stalled"), "True", "it is said as long as the annotation is there");
    world.cluster.metadata.annotations = None;
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_lost_worker_of_which_nothing_is_left_can_be_given_up() {
    let mut world = born(3);
    lose(&mut world, Node::Worker(1));
    world.objects.retain(|key, _| {
        !key.starts_with("StatefulSet/dialogs-worker-1")
            && !key.starts_with("PersistentVolumeClaim/dialogs-worker-1")
    });
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    annotate(&mut world, "worker-1/none".to_owned());
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn an_operator_with_another_cluster_domain_removes_nobody() {
    let mut world = born(3);
    world.cluster_domain = "example.internal".to_owned();
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert!(world.objects.contains_key("StatefulSet/dialogs-worker-2"));
    assert_eq!(drained(&world).len(), 0);
    world.cluster_domain = "cluster.local".to_owned();
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_worker_that_may_have_no_shards_yet_is_not_balanced() {
    let mut world = born(3);
    world.held.insert(Node::Worker(2), 200);
    world.edit(|spec| spec.workers.replicas = 2);
    until(&mut world, "drained", |world| {
        world.job.as_ref().is_some_and(|model| !model.job.is_open()) && !world.nodes[3].should_have_shards
    });
    world.edit(|spec| {
        spec.workers.replicas = 3;
        spec.paused = true;
    });
    world.reconcile(None);
    assert_eq!(condition(&world, "Balanced"), "False");
}

#[test]
fn a_volume_that_is_to_be_kept_after_all_is_kept() {
    let mut world = born(2);
    world.edit(|spec| {
        spec.workers.replicas = 1;
        spec.volumes.when_scaled = VolumePolicy::Delete;
    });
    until(&mut world, "removed", |world| world.nodes.len() == 2);
    world.edit(|spec| spec.volumes.when_scaled = VolumePolicy::Retain);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(drained(&world).len(), 1);
}

#[test]
fn a_drain_that_citus_cannot_plan_is_not_begun() {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 2);
    let mut seen = world.observe();
    let snapshot::Seen::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.plan = Some(snapshot::Seen::Unknown("strategy by_luck does not exist".to_owned()));
    let plan = plan(&world.desired(), &seen);
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    assert_eq!(plan.problems[0].reason.to_string(), "StrategyUnknown");
}

#[test]
fn two_lost_workers_are_given_up_together() {
    let mut world = born(4);
    let lost = [1, 3].map(|number| format!("worker-{number}/{}", identity(&world, Node::Worker(number))));
    lose(&mut world, Node::Worker(1));
    lose(&mut world, Node::Worker(3));
    annotate(&mut world, lost[0].clone());
    for _ in 0..30 {
        world.reconcile(None);
        world.tick();
    }
    assert_eq!(world.nodes.len(), 5, "one cannot go while the other is silent");
    annotate(&mut world, lost.join(","));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 5);
}

#[test]
fn the_only_worker_is_not_given_up() {
    let mut world = born(1);
    let only = identity(&world, Node::Worker(0));
    lose(&mut world, Node::Worker(0));
    annotate(&mut world, format!("worker-0/{only}"));
    settle(&mut world);
    assert_eq!((condition(&world, "Stalled").as_str(), world.nodes.len()), ("True", 2));
}

#[test]
fn states_that_citus_does_not_leave_by_itself_are_left() {
    let mut world = born(2);
    world.cleanup.push(CleanupRow {
        record_id: 9,
        group_id: 99,
        object_type: 1,
        object_name: "public.dialogs_102008".to_owned(),
    });
    world.nodes[1].metadata_synced = false;
    world.nodes[2].active = false;
    let claim = world.pods[&Node::Worker(0)].claim.clone();
    let slot = Leftover { kind: LeftoverKind::Slot, name: "citus_shard_move_slot_2_10_7".to_owned() };
    world.volumes.get_mut(&claim).unwrap().leftovers.push(slot);
    world.edit(|spec| spec.workers.replicas = 3);
    settle(&mut world);
    assert_serves(&world);
    assert!(world.cleanup.is_empty());
    assert!(world.nodes.iter().all(|row| row.active && row.metadata_synced), "{:?}", world.nodes);
    assert!(world.volumes[&claim].leftovers.is_empty());
}

#[test]
fn a_worker_that_was_removed_by_hand_is_put_aside_by_a_label() {
    let mut world = born(2);
    let shards: Vec<i64> = world.placements.keys().copied().collect();
    let stays = world.nodes[1].group_id;
    let claim = world.pods[&Node::Worker(0)].claim.clone();
    for shard in shards {
        world.placements.insert(shard, stays);
        world.rows.insert(shard, claim.clone());
    }
    world.nodes.truncate(2);
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    let claim = world.pods[&Node::Worker(1)].claim.clone();
    let live = world.objects.get_mut(&format!("PersistentVolumeClaim/{claim}")).unwrap();
    live.json["metadata"]["labels"][keys::DRAINED] = json!("by-hand");
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
}

#[test]
fn no_node_can_be_evicted_from_before_the_first_move_to_after_the_last() {
    let mut world = born(1);
    let allowed = |world: &World| {
        world.objects["PodDisruptionBudget/dialogs"].json["spec"]["maxUnavailable"].as_i64().unwrap()
    };
    assert_eq!(allowed(&world), 1);
    world.edit(|spec| spec.workers.replicas = 2);
    for _ in 0..60 {
        world.reconcile(None);
        let moves = world
            .job
            .iter()
            .flat_map(|model| &model.job.tasks)
            .any(|task| matches!(task.state.as_str(), "runnable" | "running"));
        assert!(!moves || allowed(&world) == 0, "{}", world.log.join("\n"));
        world.tick();
    }
    settle(&mut world);
    assert_eq!((allowed(&world), world.jobs_started), (1, 1));
}

#[test]
fn a_server_that_hangs_at_its_start_is_healed_by_the_next_spec() {
    let mut world = born(3);
    let connections = |spec: &mut DialogClusterSpec, number: &str| {
        drop(spec.postgres.parameters.insert("max_connections".to_owned(), number.to_owned()));
    };
    world.edit(|spec| connections(spec, "2000000"));
    for _ in 0..60 {
        world.reconcile(None);
        world.tick();
    }
    assert_eq!(world.restarts.values().sum::<u32>(), 1, "no other node follows: {:?}", world.restarts);
    assert_eq!(condition(&world, "Ready"), "False");
    world.edit(|spec| connections(spec, "300"));
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_pod_that_cannot_pull_its_image_is_made_again_when_that_may_help_and_only_then() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    world.reconcile(None);
    world.tick();
    let mut seen = world.observe();
    let pod = seen.pods.get_mut(&Node::Worker(1)).unwrap();
    (pod.ready, pod.revision) = (false, Some("old".to_owned()));
    pod.waiting =
        Some(Waiting { reason: "ImagePullBackOff".to_owned(), message: "no credentials".to_owned() });
    let restarted = |seen: &Snapshot| -> Vec<Node> {
        let plan = plan(&world.desired(), seen);
        let steps = plan.steps.into_iter();
        steps
            .filter_map(
                |planned| if let Step::RestartNode { node, .. } = planned.step { Some(node) } else { None },
            )
            .collect()
    };
    let mut revision = |newest: &str| {
        let set = seen.objects.get_mut("StatefulSet/dialogs-worker-1").unwrap();
        set.json["status"]["updateRevision"] = newest.into();
        restarted(&seen)
    };
    assert_eq!(revision("old"), [], "nothing has changed that could help");
    assert_eq!(revision("new"), [Node::Worker(1)]);
}

#[test]
fn a_pod_whose_machine_is_gone_is_told_with_what_to_type() {
    let mut world = born(2);
    let said = |deleted_for: i64, world: &mut World| {
        let mut seen = world.observe();
        let pod = seen.pods.get_mut(&Node::Worker(1)).unwrap();
        pod.deleting = true;
        pod.ends_by = Some(seen.now - jiff::SignedDuration::from_secs(deleted_for));
        seen.postgres.remove(&Node::Worker(1));
        let desired = world.desired();
        let decided = plan(&desired, &seen);
        assert!(decided.steps.is_empty(), "{:?}", decided.steps);
        let status = report::status(&desired, &seen, &decided, &Done::default());
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        let state = status.nodes.iter().find(|node| node.name == "dialogs-worker-1").unwrap().state;
        (ready.message.clone(), state)
    };
    let (message, state) = said(5, &mut world);
    assert!(message.ends_with("is being deleted"), "{message}");
    assert_eq!(state, NodeState::Restarting);
    let (message, state) = said(120, &mut world);
    assert!(message.contains("kubectl delete node local"), "{message}");
    assert_eq!(state, NodeState::Unreachable);
}

#[test]
fn an_emptied_worker_is_never_initialised_again() {
    let mut world = born(2);
    let claim = world.pods[&Node::Worker(1)].claim.clone();
    lose(&mut world, Node::Worker(1));
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(condition(&world, "Ready"), "False");
    assert!(!world.volumes.contains_key(&claim));
    let status = world.cluster.status.as_ref().unwrap();
    assert!(status.message.as_ref().unwrap().contains("dialogs-worker-1"), "{:?}", status.message);
}

#[test]
fn a_worker_that_never_gets_ready_holds_the_others_only_until_the_timeout() {
    let mut world = born(1);
    world.edit(|spec| {
        spec.workers.replicas = 3;
        spec.workers.join_timeout = "1m".to_owned();
    });
    for _ in 0..400 {
        world.silent.insert(Node::Worker(2), 2);
        world.reconcile(None);
        world.tick();
    }
    assert_eq!(world.nodes.len(), 3, "the other worker joined");
    assert_eq!(world.jobs_started, 1, "and got its shards");
    assert_eq!(condition(&world, "WorkersRegistered"), "False");
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_cluster_made_again_gets_its_volumes_its_rows_and_a_working_password_back() {
    let mut world = born(2);
    let identities: Vec<_> = world.volumes.values().map(|data| data.system_identifier.clone()).collect();
    world.delete_and_make_again();
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(
        world.volumes.values().map(|data| data.system_identifier.clone()).collect::<Vec<_>>(),
        identities
    );
    assert_eq!(world.owner, Some(world.objects["Secret/dialogs-app"].uid.clone()));
}

#[test]
fn a_cluster_made_again_without_its_coordinators_volume_initialises_nothing() {
    let mut world = born(2);
    world.delete_and_make_again();
    world.objects.retain(|key, _| !key.starts_with("PersistentVolumeClaim/dialogs-coordinator"));
    let volumes = world.volumes.len();
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(world.volumes.len(), volumes);
    assert!(world.pods.is_empty());
}

#[test]
fn an_operator_started_with_another_cluster_domain_registers_nobody_twice() {
    let mut world = born(2);
    world.cluster_domain = "example.internal".to_owned();
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(world.nodes.len(), 3);
    world.cluster_domain = "cluster.local".to_owned();
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_node_whose_names_are_taken_is_not_made_and_the_others_serve_on() {
    let mut world = born(1);
    for (kind, name) in [("ConfigMap", "dialogs-worker-1"), ("Service", "dialogs-worker-2")] {
        world.put_stranger(kind, name);
    }
    world.edit(|spec| spec.workers.replicas = 4);
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(condition(&world, "Ready"), "True");
    for node in ["dialogs-worker-1", "dialogs-worker-2"] {
        assert!(!world.objects.contains_key(&format!("StatefulSet/{node}")), "{node}");
    }
    assert!(world.objects.contains_key("StatefulSet/dialogs-worker-3"));
    world.objects.remove("ConfigMap/dialogs-worker-1");
    world.objects.remove("Service/dialogs-worker-2");
    settle(&mut world);
    assert_serves(&world);
}

/// What people and the world do to a cluster.
#[derive(Clone, Debug)]
enum Happening {
    Scale(i32),
    MaxConnections(u32),
    Garbage,
    ClearParameters,
    Pause(bool),
    Parallel(i32),
    KillPod(u16),
    Cut(u16, u32),
    Tamper(u16),
    AlterSystem(u16),
    MovesFail(bool),
    Mode(RebalanceMode),
    WhenScaled(VolumePolicy),
    LittleRoom,
    Hold(u16, u32),
    JobByHand,
    MadeAgain,
    CleanupOfNobody(i64),
    Inactive(u16),
    Leftover(u16),
    Lose(u16),
    LaggingCache,
    OperatorKilled(usize),
    Time(u32),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        3 => (1..6_i32).prop_map(Scale),
        1 => prop_oneof![Just(200_u32), Just(300), Just(1_000_000)].prop_map(MaxConnections),
        1 => Just(Garbage),
        1 => Just(ClearParameters),
        1 => any::<bool>().prop_map(Pause),
        1 => (1..8_i32).prop_map(Parallel),
        2 => (0..6_u16).prop_map(KillPod),
        2 => (0..6_u16, 1..60_u32).prop_map(|(node, ticks)| Cut(node, ticks)),
        1 => (0..6_u16).prop_map(Tamper),
        1 => (0..6_u16).prop_map(AlterSystem),
        1 => any::<bool>().prop_map(MovesFail),
        1 => prop_oneof![Just(RebalanceMode::Auto), Just(RebalanceMode::Off)].prop_map(Mode),
        1 => prop_oneof![Just(VolumePolicy::Retain), Just(VolumePolicy::Delete)].prop_map(WhenScaled),
        1 => Just(LittleRoom),
        1 => (1..6_u16, 1..60_u32).prop_map(|(node, ticks)| Hold(node, ticks)),
        1 => Just(JobByHand),
        1 => Just(MadeAgain),
        1 => (0..world::SHARDS).prop_map(CleanupOfNobody),
        1 => (1..6_u16).prop_map(Inactive),
        1 => (0..6_u16).prop_map(Leftover),
        1 => (1..6_u16).prop_map(Lose),
        2 => Just(LaggingCache),
        3 => (0..6_usize).prop_map(OperatorKilled),
        6 => (1..30_u32).prop_map(Time),
    ]
}

fn node(number: u16) -> Node {
    number.checked_sub(1).map_or(Node::Coordinator, Node::Worker)
}

fn happen(world: &mut World, what: &Happening) {
    match *what {
        Happening::Scale(replicas) => world.edit(|spec| spec.workers.replicas = replicas),
        Happening::MaxConnections(value) => {
            world.edit(|spec| {
                drop(spec.postgres.parameters.insert("max_connections".to_owned(), value.to_string()))
            });
        }
        Happening::Garbage => world
            .edit(|spec| drop(spec.postgres.parameters.insert("work_mem".to_owned(), "garbage".to_owned()))),
        Happening::ClearParameters => world.edit(|spec| spec.postgres.parameters.clear()),
        Happening::Pause(paused) => world.edit(|spec| spec.paused = paused),
        Happening::Parallel(moves) => world.edit(|spec| spec.rebalance.max_parallel_moves = moves),
        Happening::KillPod(number) => drop(world.pods.remove(&node(number))),
        Happening::Cut(number, ticks) => drop(world.silent.insert(node(number), ticks)),
        Happening::Tamper(number) => {
            world.tampered.insert(node(number));
            world.pods.remove(&node(number));
        }
        Happening::AlterSystem(number) => {
            let claim = world.pods.get(&node(number)).map(|pod| pod.claim.clone());
            if let Some(data) = claim.and_then(|claim| world.volumes.get_mut(&claim)) {
                data.auto_conf.insert("wal_retrieve_retry_interval".to_owned(), "9s".to_owned());
            }
        }
        Happening::MovesFail(fail) => world.moves_fail = fail,
        Happening::Mode(mode) => world.edit(|spec| spec.rebalance.mode = mode),
        Happening::WhenScaled(policy) => world.edit(|spec| spec.volumes.when_scaled = policy),
        Happening::LittleRoom => world.free = world::VOLUME / 10,
        Happening::Hold(number, ticks) => drop(world.held.insert(node(number), ticks)),
        Happening::JobByHand => world.start_by_hand(),
        Happening::MadeAgain => world.delete_and_make_again(),
        Happening::CleanupOfNobody(shard) => world.cleanup.push(CleanupRow {
            record_id: -shard,
            group_id: 1000,
            object_type: 1,
            object_name: format!("public.dialogs_{}", 102_008 + shard),
        }),
        Happening::Inactive(number) => {
            if let Some(row) = world.nodes.get_mut(usize::from(number)) {
                (row.active, row.metadata_synced) = (number % 2 == 0, false);
            }
        }
        Happening::Leftover(number) => {
            let claim = world.pods.get(&node(number)).map(|pod| pod.claim.clone());
            if let Some(data) = claim.and_then(|claim| world.volumes.get_mut(&claim)) {
                data.leftovers.push(snapshot::Leftover {
                    kind: LeftoverKind::Slot,
                    name: format!("citus_shard_move_slot_{number}"),
                });
            }
        }
        Happening::Lose(number) => {
            // A worker that was a member: what is lost before has nothing to lose.
            let row = world
                .nodes
                .iter()
                .any(|row| row.name.starts_with(&format!("{}.", node(number).object_name("dialogs"))));
            // The only one cannot be given up.
            if row && world.lost.is_empty() && world.nodes.len() > 2 {
                lose(world, node(number));
            }
        }
        Happening::LaggingCache => {
            let before = world.objects.clone();
            world.reconcile(None);
            world.stale = Some(before);
        }
        Happening::OperatorKilled(after) => drop(world.reconcile(Some(after))),
        Happening::Time(ticks) => {
            for _ in 0..ticks {
                world.reconcile(None);
                world.tick();
            }
        }
    }
}

/// Histories to try in each of the two halves: a few in a run without optimisation, some thousands in `make test`, many
/// more by `make model`. A failure shows the shortest history that fails, and proptest keeps its seed.
fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse::<u32>().ok());
    cases.map_or(4, |cases| cases.div_ceil(2))
}

fn histories() -> impl Strategy<Value = (i32, Vec<Happening>)> {
    (1..4_i32, prop::collection::vec(happening(), 1..25))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    // Two halves, so that two processors have something to do.
    #[test]
    fn whatever_happens_it_converges((workers, history) in histories()) {
        converges(workers, &history);
    }

    #[test]
    fn whatever_else_happens_it_converges((workers, history) in histories()) {
        converges(workers, &history);
    }
}

fn converges(workers: i32, history: &[Happening]) {
    let mut world = World::new(json!({"workers": {"replicas": workers}}));
    for what in history {
        world.log.push(format!("--- {what:?}"));
        happen(&mut world, what);
    }
    // The faults stop, and people come to their senses: what they ask for now can be had.
    world.log.push("--- rest".to_owned());
    world.moves_fail = false;
    world.free = world::PLENTY;
    world.edit(|spec| {
        spec.paused = false;
        spec.postgres.parameters.clear();
        spec.rebalance.mode = RebalanceMode::Auto;
    });
    for _ in 0..40 {
        world.reconcile(None);
        world.tick();
    }
    // What is lost for good is given up by name.
    if let Some(claim) = world.lost.first().cloned() {
        let lost = world.objects.iter().find_map(|(key, live)| {
            let node = Node::from_object_name(key.strip_prefix("StatefulSet/")?, "dialogs")?;
            let identity = live.annotation(keys::SYSTEM_IDENTIFIER)?;
            live.json.to_string().contains(&claim).then(|| format!("{node}/{identity}"))
        });
        if let Some(lost) = lost {
            world.log.push(format!("--- give up {lost}"));
            annotate(&mut world, lost);
        }
    }
    settle(&mut world);
    assert_serves(&world);
    let asked = usize::try_from(world.cluster.spec.workers.replicas).unwrap();
    assert_eq!(world.nodes.len(), 1 + asked, "{:?}", world.nodes);
    let sets = world.objects.keys().filter(|key| key.starts_with("StatefulSet/")).count();
    assert_eq!(sets, 1 + asked, "{:?}", world.objects.keys());
}
