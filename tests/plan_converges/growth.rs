//! From birth to even counts: who is registered when, and what keeps a move from starting.

use super::*;

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
fn wrong_wal_level_before_a_rebalance_is_one_restart() {
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
fn no_move_starts_while_a_wrong_wal_level_cannot_be_healed() {
    // The first worker does not start with it: nobody else is restarted.
    let mut world = uneven(&[("max_connections", "1000000")]);
    let seen = world.observe();
    assert!(does(&world, &seen, "StartRebalance"), "moves do not wait for a parameter that is refused");
    for node in [Node::Coordinator, Node::Worker(1)] {
        let wrong = with_server(&seen, node, |postgres| {
            (postgres.wal_level, postgres.startup_hash) = ("replica".to_owned(), None);
        });
        let does = |name| does(&world, &wrong, name);
        assert!(!does("RestartNode") && !does("StartRebalance"), "{node}");
    }
}

#[test]
fn no_move_starts_during_a_rolling_restart() {
    let mut world = uneven(&[]);
    let seen = world.observe();
    assert!(does(&world, &seen, "StartRebalance"));
    // Its pods are made anew once the StatefulSets are written: no restart is a step of this plan.
    world.edit(|spec| spec.workers.template.priority_class_name = Some("high".to_owned()));
    let seen = world.observe();
    assert!(!does(&world, &seen, "RestartNode") && !does(&world, &seen, "StartRebalance"));
    world.edit(|spec| {
        spec.workers.template.priority_class_name = None;
        spec.rebalance.mode = RebalanceMode::Off;
        drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned()));
    });
    until(&mut world, "the first is restarted", |world| world.restarts.len() == 1);
    world.edit(|spec| spec.rebalance.mode = RebalanceMode::Auto);
    until(&mut world, "the last is restarted", |world| {
        assert_eq!(world.jobs_started, 0, "{:?}", world.restarts);
        world.restarts.len() == 3
    });
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.jobs_started, 1);
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
            let lacks = |problem: &Problem| matches!(problem, Problem::CapacityTooLow { lack, .. } if lack.setting == name);
            assert!(said.iter().any(lacks), "{node} {name}: {said:?}");
        }
    }
    // With four workers eight moves run at once, each of them in a background worker of the coordinator.
    let mut world = born(2);
    world.edit(|spec| spec.workers.replicas = 4);
    let seen = until_planned(&mut world, "StartRebalance");
    for (processes, starts) in [("10", false), ("11", true)] {
        let small = with_server(&seen, Node::Coordinator, |postgres| {
            postgres.settings.insert("max_worker_processes".to_owned(), processes.to_owned());
        });
        assert_eq!(does(&world, &small, "StartRebalance"), starts, "{processes}");
    }
}

#[test]
fn no_worker_is_registered_before_it_is_reached_both_ways() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    let mut seen = until_planned(&mut world, "AddNode");
    for number in 0..seen.connections.len() {
        let mut cut = seen.clone();
        let check = &mut cut.connections[number];
        check.error = Some("No route to host".to_owned());
        let (from, to) = (check.from, check.to);
        let holds = plan(&world.desired(), &cut).waits;
        assert!(!does(&world, &cut, "AddNode"), "{from} does not reach {to}");
        let told = |wait: &WaitingOn| matches!(wait, WaitingOn::NotConnected { from: f, to: t, .. } if (*f, *t) == (from, to));
        assert!(holds.iter().any(told), "{from} to {to}: {holds:?}");
    }
    seen.connections.clear();
    assert!(!does(&world, &seen, "AddNode"), "it was not tried yet");
}

#[test]
fn after_a_job_that_failed_there_is_a_pause() {
    let mut world = uneven(&[]);
    let mut seen = until_planned(&mut world, "StartRebalance");
    let now = seen.now;
    let snapshot::Observed::Known(citus) = &mut seen.citus else { panic!("a catalog") };
    citus.failed_jobs = 1;
    citus.job = Some(snapshot::Job {
        id: 1,
        state: snapshot::JobState::Failed,
        description: "Rebalance all colocation groups".to_owned(),
        started_at: Some(now),
        finished_at: Some(now),
        abandoned: false,
        tasks: Vec::new(),
    });
    assert!(!does(&world, &seen, "StartRebalance"));
    let told = |seen: &Snapshot| {
        let plan = plan(&world.desired(), seen);
        plan.waits.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (until, first) = (pause(&plan(&world.desired(), &seen)).expect("a pause that is told"), told(&seen));
    seen.now += jiff::SignedDuration::from_secs(5);
    assert_eq!(told(&seen), first, "nothing is written while it lasts");
    seen.now = until;
    assert!(does(&world, &seen, "StartRebalance"), "at {until}");
}

#[test]
fn no_worker_is_registered_that_might_be_initialised_once_more() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    let mut seen = until_planned(&mut world, "AddNode");
    let map = seen.objects.get_mut("ConfigMap/dialogs-worker-1").unwrap();
    map.json["data"]["initialise"] = "allowed".into();
    assert!(dialog_operator::resources::may_initialise(&map.json));
    assert!(!does(&world, &seen, "AddNode"));
}

/// Whatever its image would choose.
#[test]
fn every_later_node_is_made_as_the_first_ones_were() {
    let mut world = born(1);
    world.locale = "builtin C.UTF-8";
    world.edit(|spec| spec.workers.replicas = 2);
    until(&mut world, "registered", |world| world.nodes.len() == 3);
    let locales: Vec<&str> = world.volumes.values().map(|data| data.locale.as_str()).collect();
    assert_eq!(locales, ["libc C"; 3]);
    let claim =
        world.objects.iter().find(|(name, _)| name.starts_with("PersistentVolumeClaim/dialogs-coordinator"));
    assert_eq!(claim.unwrap().1.annotation("dialogcluster.dev/locale"), Some("libc C"));
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
fn no_node_can_be_evicted_while_shards_move() {
    let mut world = born(1);
    let allowed = |world: &World| {
        world.objects["PodDisruptionBudget/dialogs"].json["spec"]["maxUnavailable"].as_i64().unwrap()
    };
    assert_eq!(allowed(&world), 1);
    world.edit(|spec| spec.workers.replicas = 2);
    for _ in 0..60 {
        world.reconcile(None);
        let moves =
            world.job.iter().flat_map(|model| &model.job.tasks).any(|task| {
                matches!(task.state, snapshot::TaskState::Runnable | snapshot::TaskState::Running)
            });
        assert!(!moves || allowed(&world) == 0, "{}", world.log.join("\n"));
        world.tick();
    }
    settle(&mut world);
    assert_eq!((allowed(&world), world.jobs_started), (1, 1));
}

#[test]
fn unready_worker_delays_the_others_until_the_timeout() {
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
fn another_cluster_domain_registers_nobody_twice() {
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
fn workers_that_join_together_reach_each_other() {
    let mut world = born(1);
    world.walls.push([Node::Worker(1), Node::Worker(2)]);
    world.edit(|spec| spec.workers.replicas = 3);
    settle(&mut world);
    assert_eq!(world.nodes.len(), 3, "{:?}", world.nodes);
    assert_eq!(condition(&world, "WorkersRegistered"), "False");
    world.walls.clear();
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn worker_without_a_volume_keeps_nobody_from_joining() {
    let mut world = born(1);
    world.quota = Some(4);
    world.edit(|spec| spec.workers.replicas = 5);
    until(&mut world, "two more have joined", |world| world.nodes.len() == 4);
    for _ in 0..300 {
        world.reconcile(None);
        world.tick();
        world.now += jiff::SignedDuration::from_secs(3);
    }
    // After joinTimeout the others go on without them.
    let shards = |group| world.placements.values().filter(|of| **of == group).count();
    assert_eq!([2, 3, 4].map(shards), [11, 11, 10]);
    world.quota = None;
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn what_is_in_doubt_is_recovered_in_the_middle_of_a_job() {
    let mut world = uneven(&[]);
    until(&mut world, "a move is done", |world| moves_done(world) > 0);
    let seen = world.observe();
    assert!(!does(&world, &seen, "RecoverTransactions"));
    let seen = with_server(&seen, Node::Worker(0), |postgres| postgres.prepared_transactions = 1);
    assert!(does(&world, &seen, "RecoverTransactions"));
}

#[test]
fn nodes_known_by_other_names_are_restarted_one_by_one_as_well() {
    let mut world = born(3);
    world.cluster_domain = "example.internal".to_owned();
    // The model looks who is down at each restart.
    ask_for(&mut world, 2, 2);
    settle(&mut world);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    settle(&mut world);
    world.cluster_domain = "cluster.local".to_owned();
    settle(&mut world);
    assert_serves(&world);
    assert!(world.restarts.len() == 4, "{:?}", world.restarts);
}

#[test]
fn node_whose_names_are_taken_is_skipped_and_others_serve() {
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
