//! The planner against a model of the world: whatever happens, nothing that must never happen does, and when it stops
//! happening the cluster reaches what the spec asks for and is then left alone.

// A model reads better without the ceremony that a program needs.
#![allow(missing_docs, clippy::pedantic, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use dialog_operator::{
    api::Node,
    observe::snapshot::{Snapshot, Waiting},
    plan::{Hold, Plan, Step, plan},
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

#[test]
fn fewer_replicas_than_registered_are_refused_and_everything_serves() {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 1);
    settle(&mut world);
    assert_eq!(condition(&world, "Stalled"), "True");
    assert_eq!(condition(&world, "Ready"), "True");
    assert_eq!(world.nodes.len(), 4);
    world.edit(|spec| spec.workers.replicas = 3);
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
fn an_emptied_worker_is_never_initialised_again() {
    let mut world = born(2);
    let claim = world.pods.remove(&Node::Worker(1)).unwrap().claim;
    world.volumes.remove(&claim);
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

/// Histories to try: some in every run, many more by `PROPTEST_CASES` (`make model`).
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_converges(workers in 1..4_i32, history in prop::collection::vec(happening(), 1..25)) {
        let mut world = World::new(json!({"workers": {"replicas": workers}}));
        for what in &history {
            world.log.push(format!("--- {what:?}"));
            happen(&mut world, what);
        }
        // The faults stop, and people come to their senses: what they ask for now can be had.
        world.log.push("--- rest".to_owned());
        world.moves_fail = false;
        let registered = i32::try_from(world.nodes.iter().filter(|row| row.group_id > 0).count()).unwrap();
        let highest = world.nodes.iter().filter_map(|row| row.name.split('.').next()).filter_map(|name| Node::from_object_name(name, "dialogs"));
        let needed = highest.map(|node| if let Node::Worker(ordinal) = node { i32::from(ordinal) + 1 } else { 0 }).max().unwrap_or(0);
        world.edit(|spec| {
            spec.paused = false;
            spec.postgres.parameters.clear();
            spec.workers.replicas = spec.workers.replicas.max(needed).max(registered);
        });
        settle(&mut world);
        assert_serves(&world);
    }
}
