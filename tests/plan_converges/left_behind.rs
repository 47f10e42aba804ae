//! A `DialogCluster` that is deleted without what it owned, and made again.

use super::{
    refusals::{passes, stalled},
    *,
};

fn uids(world: &World) -> Vec<String> {
    world.pods.values().map(|pod| pod.uid.clone()).collect()
}

#[test]
fn what_is_left_behind_is_taken_over_and_nobody_is_restarted() {
    // Asked for before and after: a worker more, a worker less.
    for (before, after) in [(2, 2), (2, 3), (3, 2)] {
        let mut world = born(before);
        let (pods, restarts) = (uids(&world), world.restarts.clone());
        world.orphan_and_make_again();
        world.edit(|spec| spec.workers.replicas = after);
        let first = world.reconcile(None);
        assert!(first.steps.len() > 10 && first.problems.is_empty(), "{first:?}");
        assert!(
            first
                .steps
                .iter()
                .all(|planned| matches!(planned.step, Step::Kubernetes(KubernetesStep::Adopt { .. }))),
            "nothing else before it is seen whole: {first:?}"
        );
        settle(&mut world);
        assert_serves(&world);
        assert_eq!(world.restarts, restarts);
        let stay = uids(&world);
        let kept = pods.iter().filter(|uid| stay.contains(uid)).count();
        assert_eq!(kept, pods.len().min(stay.len()), "{before} to {after}: the same pods");
        assert_eq!(world.nodes.len(), 1 + usize::try_from(after).unwrap());
    }
}

/// It is taken over in the middle of a move, too.
#[test]
fn a_job_that_runs_meanwhile_is_adopted_with_the_rest() {
    let mut world = uneven(&[]);
    until(&mut world, "a move runs", |world| world.job.as_ref().is_some_and(|model| model.job.runs()));
    let (jobs, pods) = (world.jobs_started, uids(&world));
    world.orphan_and_make_again();
    settle(&mut world);
    assert_serves(&world);
    assert_eq!((world.jobs_started, uids(&world)), (jobs, pods));
}

#[test]
fn a_server_that_its_volume_does_not_know_is_not_taken_over() {
    for identity in [json!("77"), json!(null)] {
        let mut world = born(2);
        world.orphan_and_make_again();
        let set = world.objects.get_mut("StatefulSet/dialogs-worker-1").unwrap();
        set.json["metadata"]["annotations"][keys::SYSTEM_IDENTIFIER] = identity;
        let uid = set.uid.clone();
        passes(&mut world, 60);
        let (reason, message) = stalled(&world);
        assert_eq!(reason, "ObjectConflict", "{message}");
        for words in ["StatefulSet/dialogs-worker-1", "`kubectl -n shop delete statefulset dialogs-worker-1`"]
        {
            assert!(message.contains(words), "{words}: {message}");
        }
        let live = &world.objects["StatefulSet/dialogs-worker-1"];
        assert_eq!((live.ownership, &live.uid), (snapshot::Ownership::Left, &uid), "it is left alone");
        assert_eq!(world.objects["StatefulSet/dialogs-worker-0"].ownership, snapshot::Ownership::Owned);
        assert_eq!(world.nodes.len(), 3, "and stays a member");
        // What the message says.
        world.objects.remove("StatefulSet/dialogs-worker-1");
        world.pods.remove(&Node::Worker(1));
        settle(&mut world);
        assert_serves(&world);
    }
}

#[test]
fn nothing_is_adopted_without_volumes_or_under_other_names() {
    let adopts = |world: &World, seen: &Snapshot| -> Vec<String> {
        let steps = plan(&world.desired(), seen).steps.into_iter();
        steps
            .filter_map(|planned| match planned.step {
                Step::Kubernetes(KubernetesStep::Adopt { kind, name, .. }) => Some(format!("{kind}/{name}")),
                _ => None,
            })
            .collect()
    };
    let mut world = born(1);
    world.orphan_and_make_again();
    let seen = world.observe();
    let all = adopts(&world, &seen);
    assert!(all.contains(&"StatefulSet/dialogs-worker-0".to_owned()), "{all:?}");

    let mut more = seen.clone();
    for (key, label) in [
        ("ConfigMap/dialogs-worker-7", Some("worker-7")),
        ("StatefulSet/dialogs-worker-7", Some("worker-7")),
        ("ConfigMap/notes", None),
        ("Secret/dialogs-notes", None),
        ("Pod/web", None),
    ] {
        let mut live = seen.objects["ConfigMap/dialogs-worker-0"].clone();
        live.json["metadata"]["labels"][keys::NODE] = json!(label);
        more.objects.insert(key.to_owned(), live);
    }
    more.objects.remove("StatefulSet/dialogs-worker-7");
    assert_eq!(adopts(&world, &more), all, "who may make objects may make any number of them");

    let mut labelled = seen.clone();
    let config = labelled.objects.get_mut("ConfigMap/dialogs-worker-0").unwrap();
    config.json["metadata"]["labels"][keys::NODE] = json!("worker-1");
    assert!(!adopts(&world, &labelled).contains(&"ConfigMap/dialogs-worker-0".to_owned()));
    let told = plan(&world.desired(), &labelled);
    assert!(
        told.problems
            .iter()
            .any(|problem| problem.to_string().contains("kubectl -n shop delete configmap dialogs-worker-0")),
        "{told:?}"
    );

    let mut volumeless = seen;
    volumeless.objects.retain(|key, _| !key.starts_with("PersistentVolumeClaim/"));
    assert_eq!(adopts(&world, &volumeless), [""; 0]);
    let told = plan(&world.desired(), &volumeless);
    let volumeless = |problem: &Problem| {
        matches!(problem, Problem::NotAdopted { why: problem::NotOurs::NoCoordinator { .. }, .. })
    };
    assert!(told.problems.iter().any(volumeless), "{told:?}");
}

#[test]
fn adoption_that_fails_delays_the_rest_for_a_minute_only() {
    let mut world = born(1);
    world.orphan_and_make_again();
    world.refuses.insert("Adopt ConfigMap/dialogs-worker-0".to_owned(), u32::MAX);
    world.edit(|spec| spec.workers.replicas = 2);
    passes(&mut world, 200);
    assert_eq!(world.nodes.len(), 3, "{}", world.log.join("\n"));
    assert!(stalled(&world).1.contains("is refused"), "{:?}", stalled(&world));
    world.refuses.clear();
    settle(&mut world);
    assert_serves(&world);
}
