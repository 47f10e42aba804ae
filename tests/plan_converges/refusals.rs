//! What is refused again and again: it is told in the end, it heals by itself, and the rest goes on meanwhile.

use dialog_operator::{plan::refusals::attempt_of, snapshot::Attempt};

use super::*;

pub fn passes(world: &mut World, seconds: u32) -> Plan {
    for _ in 0..seconds {
        world.reconcile(None);
        world.tick();
    }
    world.reconcile(None)
}

pub fn stalled(world: &World) -> (String, String) {
    let status = world.cluster.status.as_ref().unwrap();
    let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    (stalled.reason.clone(), stalled.message.clone())
}

/// Each act that is wanted, is refused and was tried for a while is told.
pub fn assert_told(world: &mut World) {
    let plan = world.reconcile(None);
    let message = stalled(world).1;
    for planned in &plan.steps {
        let Attempt::Step(name) = attempt_of(&planned.step) else { continue };
        let Some(refused) = world.refuses.keys().find(|refused| name.starts_with(refused.as_str())) else {
            continue;
        };
        // Another one that it stands on may be refused, too, and be told in its place.
        let tried = world.refusals.of(&Attempt::Step(name.clone())).is_some_and(|one| one.count > 8);
        assert!(
            !tried || message.contains(&format!("{refused} is refused")),
            "{name}: {message}\n{}",
            world.log.join("\n")
        );
    }
    let stalled = condition(world, "Stalled") == "True";
    assert!(!stalled || condition(world, "Reconciling") == "False", "{:#?}", world.cluster.status);
}

/// One worker is not to be had, for whatever is refused; another worker, a parameter and a restart are asked for.
#[test]
fn a_worker_that_is_refused_keeps_nothing_else_from_being_done() {
    for (refused, reason) in [
        ("AddNode worker-1", "RegistrationRefused"),
        ("BootstrapNode worker-1", "StatementRefused"),
        ("RecordIdentity worker-1", "StatementRefused"),
        ("Write PersistentVolumeClaim/dialogs-worker-1", "KubernetesRefused"),
        ("Write StatefulSet/dialogs-worker-1", "KubernetesRefused"),
    ] {
        let mut world = born(1);
        world.refuses.insert(refused.to_owned(), u32::MAX);
        world.edit(|spec| {
            spec.workers.replicas = 3;
            spec.postgres.parameters.insert("max_connections".to_owned(), "200".to_owned());
        });
        passes(&mut world, 50);
        assert_eq!(condition(&world, "Stalled"), "False", "{refused}: not before a minute");
        passes(&mut world, 120);
        let (told, message) = stalled(&world);
        assert_eq!(told, reason, "{refused}: {message}");
        assert!(message.contains("is refused"), "in the words of whoever refuses it: {message}");
        assert_eq!(condition(&world, "Reconciling"), "False");
        let counts = |world: &World| {
            world.placements.values().fold(
                std::collections::BTreeMap::<i32, i32>::new(),
                |mut counts, group| {
                    *counts.entry(*group).or_default() += 1;
                    counts
                },
            )
        };
        assert_eq!(
            counts(&world).into_values().collect::<Vec<_>>(),
            [16, 16],
            "{refused}: evened out without it"
        );
        for node in [Node::Coordinator, Node::Worker(0), Node::Worker(2)] {
            let booted = world.pods[&node].booted.as_ref().unwrap();
            assert_eq!(booted.parameters.get("max_connections").unwrap(), "200", "{refused}: {node}");
        }
        world.refuses.clear();
        let healed = settle(&mut world);
        assert_serves(&world);
        assert!(healed < 200, "{refused}: {healed}");
    }
}

/// A refused step of the whole cluster stops what stands on it, and that alone.
#[test]
fn a_refusal_for_the_cluster_stops_what_stands_on_it_alone() {
    // What is refused, whether workers join, and whether shards move.
    for (refused, joins, moves) in [
        ("Write ServiceAccount", true, true),
        ("StartRebalance", true, false),
        ("RecoverTransactions", true, false),
        ("AddNode", false, false),
    ] {
        let mut world = born(1);
        world.objects.retain(|key, _| !key.starts_with("ServiceAccount/"));
        world.refuses.insert(refused.to_owned(), u32::MAX);
        world.edit(|spec| {
            spec.workers.replicas = 2;
            spec.postgres.parameters.insert("max_connections".to_owned(), "200".to_owned());
        });
        passes(&mut world, 170);
        assert_eq!(condition(&world, "Stalled"), "True", "{refused}: {:?}", world.cluster.status);
        assert_eq!(world.nodes.len() == 3, joins, "{refused}");
        assert_eq!(world.jobs_started > 0, moves, "{refused}");
        let booted = world.pods[&Node::Coordinator].booted.as_ref().unwrap();
        assert_eq!(booted.parameters.get("max_connections").unwrap(), "200", "{refused}");
        world.refuses.clear();
        passes(&mut world, 16);
        assert_eq!(condition(&world, "Stalled"), "False", "{refused}: it heals by itself");
        settle(&mut world);
        assert_serves(&world);
    }
}

/// Two are to go; the removal of one is refused.
#[test]
fn a_removal_that_is_refused_keeps_no_other_worker() {
    let mut world = born(3);
    world.refuses.insert("RemoveNode worker-2".to_owned(), u32::MAX);
    world.edit(|spec| spec.workers.replicas = 1);
    passes(&mut world, 200);
    assert_eq!(world.nodes.len(), 3, "worker-1 is removed, worker-2 is not: {:?}", world.nodes);
    assert!(stalled(&world).1.contains("RemoveNode worker-2 is refused"), "{:?}", stalled(&world));
    world.refuses.clear();
    settle(&mut world);
    assert_serves(&world);
}

/// The volume of a worker that was born says that there was a coordinator.
#[test]
fn no_worker_is_born_before_its_coordinator_has_a_volume() {
    let mut world = World::new(json!({"workers": {"replicas": 2}}));
    world.refuses.insert("Write PersistentVolumeClaim/dialogs-coordinator".to_owned(), u32::MAX);
    passes(&mut world, 90);
    assert!(world.pods.contains_key(&Node::Worker(1)), "workers start meanwhile");
    assert_eq!(stalled(&world).0, "KubernetesRefused", "{:?}", stalled(&world));
    world.refuses.clear();
    settle(&mut world);
    assert_serves(&world);
}
