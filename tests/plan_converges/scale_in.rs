//! Fewer workers: drained, looked at, removed; refused; turned round.

use dialog_operator::plan::View;

use super::*;

#[test]
fn next_worker_of_a_removed_ones_name_starts_clean() {
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
fn volumes_of_removed_workers_with_delete_are_deleted() {
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
fn worker_wanted_again_in_its_drain_gets_its_shards_back() {
    let mut world = born(5);
    world.edit(|spec| spec.workers.replicas = 2);
    until(&mut world, "a drain runs", |world| moves_done(world) >= 2);
    world.edit(|spec| spec.workers.replicas = 4);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 5);
    assert_eq!(drained(&world).len(), 1, "only the last was removed");
}

#[test]
fn scale_in_without_room_is_refused_with_its_numbers() {
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
    // Nothing is on its way out, and nothing says so.
    let waits = world.reconcile(None).waits;
    assert!(!waits.iter().any(|wait| matches!(wait, WaitingOn::Draining { .. })), "{waits:?}");
    let balanced = status.conditions.iter().find(|condition| condition.type_ == "Balanced").unwrap();
    assert_eq!((balanced.status.as_str(), balanced.reason.as_str()), ("False", "DrainRefused"));
    assert!(status.nodes.iter().all(|node| node.state == NodeState::Active), "{:?}", status.nodes);
    // Bytes that clients write are no news, until they are.
    for (free, news) in [(109_500_000, false), (109_300_000, false), (105_000_000, true)] {
        world.free = free;
        settle(&mut world);
        assert_eq!(world.cluster.status.as_ref() != Some(&status), news, "{free} bytes free");
    }
    world.free = world::PLENTY;
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 2);
}

#[test]
fn a_large_shard_needs_room_where_it_will_go() {
    let mut world = born(3);
    let group = world.nodes.iter().map(|row| row.group_id).max().unwrap();
    let (shard, _) = world.placements.iter().find(|(_, on)| **on == group).unwrap();
    world.large.insert(*shard, 60_000_000);
    // 69 MB would be 43 MB for each of two, with a quarter for work; 50 MB may be used.
    world.free = 150_000_000;
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    let status = world.cluster.status.clone().unwrap();
    let message = status.message.unwrap();
    assert_eq!(condition(&world, "Stalled"), "True", "{message}");
    for words in ["65.8 MiB must be moved; dialogs-worker-", " needs about "] {
        assert!(message.contains(words), "{words}: {message}");
    }
    world.free = 190_000_000;
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
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
    assert!(
        world.nodes.iter().filter(|row| row.group_id > 0).all(|row| row.should_have_shards),
        "nothing is begun"
    );
    world.edit(|spec| spec.rebalance.mode = RebalanceMode::Auto);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
}

#[test]
fn worker_is_not_removed_before_its_cleanup() {
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

/// Two of three workers are to stay; the third has lost its shards, and is not removed yet.
fn drained_and_still_a_member() -> World {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 2);
    until(&mut world, "the drain is done", |world| {
        let job = world.job.as_ref().map(|model| &model.job);
        job.is_some_and(|job| job.id > 0 && !job.is_open()) && !world.nodes[3].should_have_shards
    });
    world
}

#[test]
fn nobody_is_removed_while_another_member_is_silent() {
    let mut world = drained_and_still_a_member();
    for _ in 0..60 {
        world.silent.insert(Node::Worker(0), 2);
        world.reconcile(None);
        world.tick();
        assert_eq!(world.nodes.len(), 4);
    }
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
}

#[test]
fn nobody_gets_shards_again_while_a_member_is_silent() {
    let mut world = drained_and_still_a_member();
    world.edit(|spec| spec.workers.replicas = 3);
    let given = |world: &World| world.nodes[3].should_have_shards;
    let asks = |snapshot: &Snapshot, world: &World| {
        let plan = plan(&world.desired(), snapshot);
        plan.steps.iter().any(|planned| planned.step.name() == "SetShouldHaveShards")
    };
    assert!(asks(&world.observe(), &world) && !given(&world));
    world.silent.insert(Node::Worker(0), 2);
    assert!(!asks(&world.observe(), &world), "Citus refuses it as long as a member is silent");
    settle(&mut world);
    assert!(given(&world));
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
fn silent_member_under_another_address_is_not_retired() {
    let mut world = born(3);
    let row = world.nodes.iter_mut().find(|row| row.name.starts_with("dialogs-worker-2.")).unwrap();
    row.name = "dialogs-worker-2.elsewhere.svc.cluster.local".to_owned();
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    world.silent.insert(Node::Worker(2), 5);
    let seen = world.observe();
    let view = View { desired: &world.desired(), snapshot: &seen };
    assert!(view.may_be_member(Node::Worker(2)), "nothing proves that it is no member");
    settle(&mut world);
    assert_eq!(drained(&world).len(), 0);
    assert!(world.objects.contains_key("StatefulSet/dialogs-worker-2"));
    world.nodes.iter_mut().find(|row| row.name.starts_with("dialogs-worker-2.")).unwrap().name =
        "dialogs-worker-2.shop.svc.cluster.local".to_owned();
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((drained(&world).len(), world.nodes.len()), (1, 3));
}

#[test]
fn the_catalog_of_another_coordinator_proves_nothing() {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 2);
    let mut seen = until_planned(&mut world, "Delete");
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    assert!(citus.nodes.iter().all(|row| !row.name.starts_with("dialogs-worker-2.")), "{:?}", citus.nodes);
    citus.nodes[0].name = "dialogs-coordinator.elsewhere.svc.cluster.local".to_owned();
    assert!(!does(&world, &seen, "Delete"), "that the other one does not know worker-2 says nothing");
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
fn a_volume_that_was_to_be_kept_outlives_a_later_policy() {
    let mut world = born(2);
    world.edit(|spec| spec.workers.replicas = 1);
    settle(&mut world);
    world.edit(|spec| spec.volumes.when_scaled = VolumePolicy::Delete);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((drained(&world).len(), world.volumes.len()), (1, 3));
}

/// Three workers, one of which is to go: the operator is killed when it has marked it and before it has removed it.
fn marked_and_not_removed() -> World {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 2);
    let steps = plan(&world.desired(), &until_planned(&mut world, "Decommission")).steps;
    let retires = steps.iter().position(|planned| planned.step.name() == "Decommission").unwrap();
    world.reconcile(Some(retires + 1));
    assert_eq!((drained(&world).len(), world.nodes.len()), (1, 4), "marked, and registered still");
    world
}

#[test]
fn retired_worker_when_wanted_again_comes_back_clean() {
    let mut world = marked_and_not_removed();
    let before = identity(&world, Node::Worker(2));
    world.edit(|spec| spec.workers.replicas = 3);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((drained(&world).len(), world.volumes.len()), (1, 5));
    assert_ne!(identity(&world, Node::Worker(2)), before);
}

#[test]
fn new_template_beside_a_retired_worker_is_no_deadlock() {
    let mut world = marked_and_not_removed();
    world.silent.insert(Node::Coordinator, 40);
    ask_for(&mut world, 2, 1);
    // That nothing it does breaks a rule is checked at each step: a plan that does is not carried out at all.
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((drained(&world).len(), world.nodes.len()), (1, 3));
}

#[test]
fn a_drain_that_citus_cannot_plan_is_not_begun() {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 2);
    let mut seen = world.observe();
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    let words = "dialogs-coordinator refused: could not find rebalance strategy with name by_luck".to_owned();
    citus.planned_moves = Some(snapshot::Observed::Unknown(snapshot::PlanUnknown::StrategyUnknown(words)));
    let plan = plan(&world.desired(), &seen);
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    assert!(matches!(plan.problems[0], Problem::StrategyUnknown { .. }), "{:?}", plan.problems);
}

fn refusal(world: &World) -> String {
    let status = world.cluster.status.as_ref().unwrap();
    let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "ScaleInRefused"), "{stalled:?}");
    assert_eq!(condition(world, "Reconciling"), "False");
    stalled.message.clone()
}

#[test]
fn foreign_data_keeps_a_worker_from_being_drained() {
    for policy in [VolumePolicy::Retain, VolumePolicy::Delete] {
        let mut world = born(3);
        world.put(Node::Worker(2), Some(world::Theirs::Table(1000)));
        world.edit(|spec| {
            spec.workers.replicas = 2;
            spec.volumes.when_scaled = policy;
        });
        settle(&mut world);
        let status = world.cluster.status.clone();
        let message = refusal(&world);
        assert!(message.contains("dialogs-worker-2 is") && message.contains("about 1000 rows"), "{message}");
        assert!(world.nodes.iter().skip(1).all(|row| row.should_have_shards), "{:?}", world.nodes);
        assert_eq!((condition(&world, "Ready").as_str(), world.jobs_started), ("True", 0));
        // Rows that come and go are no news, until they are.
        for (rows, news) in [(1009, false), (950, false), (0, true)] {
            world.put(Node::Worker(2), Some(world::Theirs::Table(rows)));
            settle(&mut world);
            assert_eq!(world.cluster.status != status, news, "{rows} rows");
        }
        world.put(Node::Worker(2), None);
        settle(&mut world);
        assert_serves(&world);
        assert_eq!(world.nodes.len(), 3);
    }
}

#[test]
fn a_worker_that_cannot_be_looked_at_is_waited_for() {
    let mut world = born(2);
    world.put(Node::Worker(1), Some(world::Theirs::Hidden));
    world.edit(|spec| spec.workers.replicas = 1);
    settle(&mut world);
    assert_eq!((condition(&world, "Stalled").as_str(), world.nodes.len()), ("False", 3));
    let message = world.cluster.status.clone().unwrap().message.unwrap();
    assert!(message.contains("lock timeout"), "{message}");
    assert!(world.nodes.iter().skip(1).all(|row| row.should_have_shards));
    world.put(Node::Worker(1), None);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 2);
}

#[test]
fn foreign_data_that_comes_in_a_drain_stops_the_removal() {
    let mut world = born(3);
    world.edit(|spec| {
        spec.workers.replicas = 2;
        spec.volumes.when_scaled = VolumePolicy::Delete;
    });
    until(&mut world, "a drain runs", |world| moves_done(world) >= 2);
    world.put(Node::Worker(2), Some(world::Theirs::Table(5)));
    settle(&mut world);
    let message = refusal(&world);
    assert!(message.contains("dialogs-worker-2 is drained and cannot be removed"), "{message}");
    assert!(message.contains("about 5 rows"), "{message}");
    assert_eq!((world.nodes.len(), drained(&world).len()), (4, 0));
    assert!(!world.nodes[3].should_have_shards);
    // The way back is open.
    world.edit(|spec| spec.workers.replicas = 3);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 4);
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    refusal(&world);
    world.put(Node::Worker(2), None);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((world.nodes.len(), world.volumes.len()), (3, 3));
}

#[test]
fn worker_removed_by_hand_keeps_foreign_data() {
    let mut world = born(3);
    world.edit(|spec| spec.workers.replicas = 2);
    until(&mut world, "drained", |world| {
        world.placements.values().all(|group| *group != world.nodes[3].group_id) && world.cleanup.is_empty()
    });
    world.put(Node::Worker(2), Some(world::Theirs::Table(5)));
    world.nodes.remove(3);
    settle(&mut world);
    assert!(refusal(&world).contains("dialogs-worker-2 was a member"), "{}", refusal(&world));
    assert_eq!(drained(&world).len(), 0);
    world.silent.insert(Node::Worker(2), 20);
    settle(&mut world);
    assert_eq!(drained(&world).len(), 0, "nothing is put aside because it was silent for a moment");
    world.put(Node::Worker(2), None);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(drained(&world).len(), 1);
}
