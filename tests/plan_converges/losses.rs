//! What is lost, emptied, removed by hand or left behind: what the operator heals, what it only tells, what a person gives up.

use dialog_operator::plan::View;

use super::*;

#[test]
fn lost_worker_when_named_is_given_up_once() {
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
    assert_eq!(world.jobs_started, 1, "what is left evens out once, with the one that takes its place");
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

/// Watches bring the end of a StatefulSet and of its ConfigMap one after the other.
#[test]
fn what_an_earlier_worker_left_is_not_the_age_of_the_next() {
    let mut world = born(3);
    lose(&mut world, Node::Worker(1));
    let lost = identity(&world, Node::Worker(1));
    annotate(&mut world, format!("worker-1/{lost}"));
    until(&mut world, "it is no member", |world| world.nodes.len() == 3);
    let timed_out = |world: &mut World| {
        let (desired, snapshot) = (world.desired(), world.observe());
        let missing = View { desired: &desired, snapshot: &snapshot }.missing_workers();
        missing.iter().map(|missing| missing.timed_out).collect::<Vec<_>>()
    };
    assert_eq!(timed_out(&mut world), [false], "its StatefulSet is to be deleted");
    world.objects.remove("StatefulSet/dialogs-worker-1").expect("it is still there");
    assert!(world.objects.contains_key("ConfigMap/dialogs-worker-1"));
    assert_eq!(timed_out(&mut world), [false], "its ConfigMap is still seen");
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

/// Of a very long pg_dist_cleanup a look has only the first rows: what is not among them may be Citus' to drop.
#[test]
fn nothing_is_taken_for_unknown_by_a_part_of_a_list() {
    let mut world = born(1);
    let mut seen = world.observe();
    let snapshot::Observed::Known(server) = seen.postgres.get_mut(&Node::Worker(0)).unwrap() else {
        panic!("seen")
    };
    server.leftovers =
        vec![Leftover { kind: LeftoverKind::Slot, name: "citus_shard_move_slot_2_10_7".to_owned() }];
    assert!(does(&world, &seen, "DropLeftovers"));
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.cleanup_in_all = citus.cleanup.len() + 1;
    assert!(!does(&world, &seen, "DropLeftovers"));
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
    live.json["metadata"]["labels"][keys::DECOMMISSIONED] = json!("by-hand");
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
}

#[test]
fn a_pod_whose_machine_is_gone_is_told_with_what_to_type() {
    let mut world = born(2);
    let said = |deleted_for: i64, world: &mut World| {
        let mut seen = world.observe();
        let pod = seen.pods.get_mut(&Node::Worker(1)).unwrap();
        pod.deleting = true;
        pod.deletion_timestamp = Some(seen.now - jiff::SignedDuration::from_secs(deleted_for));
        seen.postgres.remove(&Node::Worker(1));
        let desired = world.desired();
        let decided = plan(&desired, &seen);
        assert!(decided.steps.is_empty(), "{:?}", decided.steps);
        let status = report::status(&desired, &seen, &decided, &Outcome::default());
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
fn server_that_is_not_the_recorded_one_gets_nothing() {
    let mut world = born(2);
    let claim = world.pods[&Node::Worker(1)].claim.clone();
    let other = |world: &mut World, identity: &str| {
        let data = world.volumes.get_mut(&claim).unwrap();
        std::mem::replace(&mut data.system_identifier, identity.to_owned())
    };
    let before = other(&mut world, "7000000000000000099");
    world.edit(|spec| spec.workers.replicas = 3);
    for _ in 0..60 {
        world.reconcile(None);
        world.tick();
    }
    let status = world.cluster.status.clone().unwrap();
    let stalled = status.conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "SystemIdentifierMismatch"));
    assert!(stalled.message.contains(&before) && stalled.message.contains("7000000000000000099"));
    assert_eq!((world.nodes.len(), world.jobs_started), (3, 0), "nobody is registered, nothing moves");
    other(&mut world, &before);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 4);
}

#[test]
fn an_emptied_coordinator_registers_nobody() {
    let mut world = born(2);
    world.edit(|spec| spec.workers.replicas = 3);
    let mut seen = until_planned(&mut world, "AddNode");
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.nodes.retain(|row| row.group_id == 0);
    assert!(!does(&world, &seen, "AddNode"), "worker-0 and worker-1 hold the last copies of the catalog");
    let problems = plan(&world.desired(), &seen).problems;
    assert!(matches!(problems[0], Problem::CoordinatorMetadataMissing { .. }), "{problems:?}");
    for worker in [Node::Worker(0), Node::Worker(1)] {
        seen.postgres.insert(worker, snapshot::Observed::Unknown("no answer".to_owned()));
    }
    assert!(!does(&world, &seen, "AddNode"), "whether they do is not known");
}

/// Citus copies its metadata without the placements of members that are inactive.
#[test]
fn metadata_copied_beside_an_inactive_member_is_renewed() {
    let mut world = born(3);
    let activated = |world: &mut World| -> Vec<Node> {
        let seen = world.observe();
        let steps = plan(&world.desired(), &seen).steps.into_iter();
        steps
            .filter_map(|planned| match planned.step {
                Step::Sql(SqlStep::ActivateNode { node, .. }) => Some(node),
                _ => None,
            })
            .collect()
    };
    let (a, b) = (Node::Worker(0), Node::Worker(1));
    world.nodes[2].metadata_synced = false;
    assert_eq!(activated(&mut world), [b]);
    world.nodes[1].active = false;
    assert_eq!(activated(&mut world), [a], "Citus syncs the other one itself");
    world.nodes[2].active = false;
    assert_eq!(activated(&mut world), [a, b, a], "the first copy lacks the second one's placements");
}

#[test]
fn nobody_joins_while_a_member_is_inactive() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    until_planned(&mut world, "AddNode");
    world.nodes[1].active = false;
    let seen = world.observe();
    assert!(does(&world, &seen, "ActivateNode") && !does(&world, &seen, "AddNode"));
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_worker_that_lacks_tables_is_not_activated() {
    let mut world = born(2);
    world.nodes[2].active = false;
    let seen = world.observe();
    assert!(does(&world, &seen, "ActivateNode"));
    let seen = with_server(&seen, Node::Worker(1), |postgres| postgres.missing_tables = 3);
    assert!(!does(&world, &seen, "ActivateNode"), "that would wipe the trace of the loss");
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
fn cluster_made_again_has_its_rows_and_a_new_password() {
    let mut world = born(2);
    let identities: Vec<_> = world.volumes.values().map(|data| data.system_identifier.clone()).collect();
    world.delete_and_make_again();
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(
        world.volumes.values().map(|data| data.system_identifier.clone()).collect::<Vec<_>>(),
        identities
    );
    let secret = format!("{}/", world.objects["Secret/dialogs-app"].uid);
    assert!(world.owner.as_ref().unwrap().starts_with(&secret), "{:?}", world.owner);
}

#[test]
fn cluster_made_again_without_a_volume_initialises_nothing() {
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
fn node_with_a_deleted_claim_is_drained_and_not_restarted() {
    let mut world = born(3);
    let claim = world.pods[&Node::Worker(2)].claim.clone();
    // Kubernetes keeps the claim as long as its pod runs.
    world.objects.get_mut(&format!("PersistentVolumeClaim/{claim}")).unwrap().deleting = true;
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    let plan = (0..60).map(|_| {
        let plan = world.reconcile(None);
        world.tick();
        plan
    });
    let plan = plan.last().unwrap();
    let problem = &plan.problems[0];
    let deleting = Problem::VolumeLost {
        node: "dialogs-worker-2".to_owned(),
        claim: claim.clone(),
        loss: problem::VolumeLoss::Deleting,
    };
    assert_eq!(*problem, deleting);
    assert_eq!(
        world.restarts.keys().copied().collect::<Vec<_>>(),
        [Node::Coordinator, Node::Worker(0), Node::Worker(1)]
    );
    world.edit(|spec| spec.workers.replicas = 2);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 3);
}

#[test]
fn worker_lost_before_registration_can_be_given_up() {
    let mut world = World::new(json!({"workers": {"replicas": 3}}));
    world.silent.insert(Node::Coordinator, 60);
    until(&mut world, "three workers are born", |world| {
        (0..3).all(|number| {
            let set = world.objects.get(&format!("StatefulSet/dialogs-worker-{number}"));
            set.is_some_and(|set| set.annotation(keys::SYSTEM_IDENTIFIER).is_some())
        })
    });
    assert!(world.nodes.is_empty(), "{:?}", world.nodes);
    lose(&mut world, Node::Worker(1));
    let lost = format!("worker-1/{}", identity(&world, Node::Worker(1)));
    settle(&mut world);
    world.now += jiff::SignedDuration::from_mins(11);
    settle(&mut world);
    let plan = world.reconcile(None);
    let told: Vec<_> = plan.problems.iter().filter(|problem| problem.to_string().contains(&lost)).collect();
    assert_eq!(told.len(), 1, "{:?}", plan.problems);
    annotate(&mut world, lost);
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 4);
}

/// Volumes are to grow at the moment in which one is put aside: written as it was seen, it would lose its mark.
#[test]
fn a_volume_that_is_put_aside_does_not_grow_in_the_same_plan() {
    let mut world = born(3);
    let lost = identity(&world, Node::Worker(1));
    lose(&mut world, Node::Worker(1));
    world.expands = true;
    annotate(&mut world, format!("worker-1/{lost}"));
    while !world.log.iter().any(|line| line.starts_with("Decommission")) {
        // As if each look were the first one at this spec: growth is never over before.
        let size = 40 + world.log.len();
        world.edit(|spec| spec.workers.template.storage.size = Quantity(format!("{size}Gi")));
        world.reconcile(None);
        world.tick();
    }
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.nodes.len(), 4, "another worker took its place, on a volume of its own");
    assert_ne!(identity(&world, Node::Worker(1)), lost);
}
