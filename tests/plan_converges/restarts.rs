//! Parameters, images and starts: who is restarted, and who is not.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_parameter_that_needs_a_restart_rolls_workers_first() {
    let mut world = born(3);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.restarts.values().copied().collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[test]
fn a_rolling_restart_is_not_told_as_something_else() {
    let mut world = born(2);
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let known = world.answers(Node::Coordinator);
        let waits = world.reconcile(None).waits;
        seen.extend(waits.iter().filter_map(|wait| match wait {
            WaitingOn::Rolling { node, .. } => Some(*node),
            _ => None,
        }));
        // A coordinator that is away takes its catalog along, and nobody left because of it.
        assert!(!waits.iter().any(|wait| matches!(wait, WaitingOn::WorkerMissing { .. })), "{waits:?}");
        let balanced = if known { "True" } else { "Unknown" };
        assert_eq!(condition(&world, "Balanced"), balanced, "nothing is to be moved: {waits:?}");
        world.tick();
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn no_node_is_restarted_while_moves_run() {
    let mut world = uneven(&[]);
    until(&mut world, "the first move is done", |world| moves_done(world) > 0);
    world.job.as_mut().unwrap().parallel = 1;
    let before = world.restarts.clone();
    world.edit(|spec| drop(spec.postgres.parameters.insert("max_connections".to_owned(), "300".to_owned())));
    let mut waited = false;
    while world.job.as_ref().is_some_and(|model| model.job.is_open()) {
        let plan = world.reconcile(None);
        waited |= plan.waits.iter().any(|wait| matches!(wait, WaitingOn::RestartWaitsForMoves { .. }));
        assert_eq!(world.restarts, before, "{:?}", plan.steps);
        world.tick();
    }
    assert!(waited, "the moves were done before a restart was due");
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(world.restarts.values().sum::<u32>(), before.values().sum::<u32>() + 3);
}

#[test]
fn coordinator_that_loads_first_is_restarted_last() {
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
fn the_kubelet_is_asked_to_hurry_and_given_time() {
    let mut world = born(1);
    world.edit(|spec| drop(spec.postgres.parameters.insert("work_mem".to_owned(), "8MB".to_owned())));
    let mut asked = Vec::new();
    for second in 0..15 {
        let plan = world.reconcile(None);
        if plan.steps.iter().any(|planned| planned.step.name() == "RefreshConfiguration") {
            asked.push(second);
        }
        // It takes its time all the same.
        world.pods.values_mut().for_each(|pod| pod.file_in = 5);
        world.tick();
    }
    assert!(asked.len() > 2 && asked.windows(2).all(|pair| pair[1] - pair[0] >= 3), "{asked:?}");
    settle(&mut world);
    assert_serves(&world);
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
fn parameter_that_fails_at_start_stops_at_one_worker() {
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
fn pod_that_cannot_pull_is_made_again_when_that_may_help() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    world.reconcile(None);
    world.tick();
    let mut seen = world.observe();
    let pod = seen.pods.get_mut(&Node::Worker(1)).unwrap();
    pod.ready = false;
    pod.waiting =
        Some(ReasonMessage { reason: "ImagePullBackOff".to_owned(), message: "no credentials".to_owned() });
    let restarted = |seen: &Snapshot| -> Vec<Node> {
        let plan = plan(&world.desired(), seen);
        let steps = plan.steps.into_iter();
        steps
            .filter_map(|planned| {
                if let Step::Kubernetes(KubernetesStep::RestartNode { node, .. }) = planned.step {
                    Some(node)
                } else {
                    None
                }
            })
            .collect()
    };
    assert_eq!(restarted(&seen), [], "nothing has changed that could help");
    let pod = seen.pods.get_mut(&Node::Worker(1)).unwrap();
    pod.annotations.insert(keys::POD_TEMPLATE_HASH.to_owned(), "old".to_owned());
    assert_eq!(restarted(&seen), [Node::Worker(1)]);
}

#[test]
fn unschedulable_coordinator_is_mended_before_workers() {
    let mut world = born(2);
    ask_for(&mut world, 1, 100);
    until(&mut world, "the coordinator has no machine", |world| {
        world.pods.get(&Node::Coordinator).is_some_and(|pod| pod.unschedulable)
    });
    // Both at once: the workers are due a restart as well, and whether a move runs cannot be known.
    ask_for(&mut world, 2, 2);
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn nodes_that_no_machine_can_take_do_not_wait_for_each_other() {
    let mut world = born(3);
    ask_for(&mut world, 100, 100);
    for node in [Node::Coordinator, Node::Worker(0), Node::Worker(2)] {
        world.reconcile(None);
        world.pods.remove(&node);
    }
    until(&mut world, "three nodes have no machine", |world| {
        world.pods.values().filter(|pod| pod.unschedulable).count() == 3
    });
    ask_for(&mut world, 2, 2);
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_value_with_which_no_server_starts_any_more_can_be_changed() {
    let mut world = born(2);
    let ask = |world: &mut World, value: &str| {
        world.edit(|spec| {
            drop(spec.postgres.parameters.insert("max_connections".to_owned(), value.to_owned()))
        });
    };
    ask(&mut world, "300");
    settle(&mut world);
    // Other machines, say. Nobody is left that could try another value first.
    world.refused_now = Some("300".to_owned());
    world.pods.clear();
    until(&mut world, "no server starts", |world| {
        world.pods.len() == 3 && world.pods.values().all(|pod| pod.refused.is_some())
    });
    ask(&mut world, "200");
    settle(&mut world);
    assert_serves(&world);
}

#[test]
fn a_restart_that_kubectl_asks_for_is_one_restart_of_that_node() {
    let mut world = born(2);
    let before = world.restarts.clone();
    let set = world.objects.get_mut("StatefulSet/dialogs-worker-0").unwrap();
    set.json["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] =
        "2026-01-01T00:00:00Z".into();
    settle(&mut world);
    let restarted =
        |node| world.restarts.get(&node).copied().unwrap_or(0) - before.get(&node).copied().unwrap_or(0);
    let nodes = [Node::Coordinator, Node::Worker(0), Node::Worker(1)];
    assert_eq!(nodes.map(restarted), [0, 1, 0]);
}

#[test]
fn a_restart_of_all_is_one_restart_of_each_for_each_value() {
    let mut world = born(2);
    let before = world.restarts.values().sum::<u32>();
    let request = |world: &mut World, value: Option<&str>| {
        let annotation =
            value.map(|value| [(keys::RESTART_REQUESTED_AT.to_owned(), value.to_owned())].into());
        world.cluster.metadata.annotations = annotation;
        settle(world);
        assert_serves(world);
        let handled = world.cluster.status.as_ref().unwrap().handled.get(keys::RESTART_REQUESTED_AT);
        assert_eq!(handled.map(String::as_str), value);
        world.restarts.values().sum::<u32>() - before
    };
    assert_eq!(request(&mut world, Some("once")), 3);
    assert_eq!(request(&mut world, Some("once")), 3, "it is acted on once");
    assert_eq!(request(&mut world, Some("again")), 6);
    assert_eq!(request(&mut world, None), 6, "a request that is withdrawn restarts nobody");
    // Nobody who is new is restarted for it.
    request(&mut world, Some("third"));
    world.edit(|spec| spec.workers.replicas = 3);
    assert_eq!(request(&mut world, Some("third")), 9);
}

#[test]
fn pods_that_admission_strips_are_not_restarted_for_ever() {
    let mut world = born(2);
    let before = world.restarts.clone();
    world.cluster.metadata.annotations =
        Some([(keys::RESTART_REQUESTED_AT.to_owned(), "once".to_owned())].into());
    for _ in 0..60 {
        world.pods.values_mut().for_each(|pod| pod.annotations.clear());
        world.reconcile(None);
        world.tick();
    }
    assert_eq!(world.restarts, before);
}

#[test]
fn annotations_of_pods_are_put_on_those_that_run() {
    let mut world = born(2);
    let before = world.restarts.clone();
    let evict = "cluster-autoscaler.kubernetes.io/safe-to-evict";
    world.edit(|spec| {
        spec.workers.template.pod_annotations.insert(evict.to_owned(), "true".to_owned());
    });
    settle(&mut world);
    assert_eq!(world.restarts, before);
    let has = |world: &World, node| world.pods[&node].annotations.get(evict).cloned();
    assert_eq!(has(&world, Node::Worker(1)).as_deref(), Some("true"));
    assert_eq!(has(&world, Node::Coordinator), None);
    world.edit(|spec| spec.workers.template.pod_annotations.clear());
    settle(&mut world);
    assert_eq!(has(&world, Node::Worker(1)), None);
    assert_eq!(world.restarts, before);
}

/// The words of the StatefulSet's controller; and a person's matter when they last.
#[test]
fn a_pod_that_is_refused_is_told_in_the_words_of_who_refuses_it() {
    let mut world = born(1);
    world.edit(|spec| spec.workers.replicas = 2);
    world.reconcile(None);
    let mut seen = world.observe();
    assert!(!seen.pods.contains_key(&Node::Worker(1)));
    let words = "create Pod dialogs-worker-1-0 failed: forbidden: exceeded quota: pods=1";
    let mut refused = |times, seconds| {
        let warning = snapshot::Warning {
            reason: "FailedCreate".to_owned(),
            message: words.to_owned(),
            times,
            first: world.now,
            last: world.now + jiff::SignedDuration::from_secs(seconds),
        };
        seen.warnings.insert("StatefulSet/dialogs-worker-1".to_owned(), warning);
        plan(&world.desired(), &seen)
    };
    let waits = refused(12, 30);
    assert_eq!(waits.problems, []);
    assert!(waits.waits.iter().any(|wait| wait.to_string().contains(words)), "{:?}", waits.waits);
    let stalls = refused(13, 60);
    let Problem::PodRefused { message, .. } = &stalls.problems[0] else { panic!("{:?}", stalls.problems) };
    assert_eq!(message, words);
}
