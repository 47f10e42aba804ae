//! Volumes that are not as large as the spec wants them: what is told, what goes on meanwhile, and the way back.

use jiff::SignedDuration;
use std::collections::BTreeMap;

use super::{
    refusals::{passes, stalled},
    *,
};

fn size(world: &mut World, size: &str) {
    world.edit(|spec| spec.workers.template.storage.size = Quantity(size.to_owned()));
}

/// What the claims of workers ask for.
fn asked(world: &World) -> Vec<String> {
    let claims =
        world.objects.iter().filter(|(key, _)| key.starts_with("PersistentVolumeClaim/dialogs-worker"));
    claims
        .map(|(_, claim)| claim.json["spec"]["resources"]["requests"]["storage"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn volumes_that_cannot_grow_block_nothing_and_can_go_back() {
    let mut world = born(2);
    world.expands = false;
    size(&mut world, "40Gi");
    world.edit(|spec| {
        spec.workers.replicas = 3;
        spec.postgres.parameters.insert("max_connections".to_owned(), "200".to_owned());
        spec.volumes.when_deleted = VolumePolicy::Delete;
    });
    passes(&mut world, 170);
    let (reason, message) = stalled(&world);
    assert_eq!(reason, "StorageCannotGrow", "{message}");
    assert_eq!(message.matches("must support resize").count(), 1, "once for all of them: {message}");
    for words in ["dialogs-worker-0", "dialogs-worker-2", "40Gi", "spec.workers.storage.size back to 10Gi"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(world.nodes.len(), 4, "another worker has joined");
    assert_eq!(asked(&world), ["10Gi"; 3], "one that is larger than the others could never go back");
    for (node, pod) in &world.pods {
        assert_eq!(pod.booted.as_ref().unwrap().parameters["max_connections"], "200", "{node}");
    }
    let owned = |live: &snapshot::LiveObject| live.json["metadata"].get("ownerReferences").is_some();
    let claims =
        world.objects.iter().filter(|(key, _)| key.starts_with("PersistentVolumeClaim/dialogs-worker"));
    assert!(claims.into_iter().all(|(_, claim)| owned(claim)), "what else is on a claim is written");

    let mut back = world.objects.clone();
    size(&mut world, "10Gi");
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(asked(&world), ["10Gi"; 3]);

    // Or the class learns it.
    std::mem::swap(&mut world.objects, &mut back);
    size(&mut world, "40Gi");
    world.expands = true;
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(asked(&world), ["40Gi"; 3]);
}

#[test]
fn a_new_worker_has_the_new_size_as_soon_as_the_others_have_it() {
    let mut world = born(1);
    world.edit(|spec| {
        spec.workers.template.storage.size = Quantity("30Gi".to_owned());
        spec.workers.replicas = 2;
    });
    settle(&mut world);
    assert_eq!(asked(&world), ["30Gi"; 2]);
    world.edit(|spec| spec.workers.replicas = 3);
    world.expands = false;
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(asked(&world), ["30Gi"; 3]);
}

#[test]
fn a_size_below_what_volumes_have_is_told_and_touches_nothing() {
    let mut world = born(2);
    let before = asked(&world);
    size(&mut world, "5Gi");
    world.edit(|spec| spec.workers.replicas = 3);
    passes(&mut world, 30);
    let (reason, message) = stalled(&world);
    assert_eq!(reason, "StorageCannotShrink", "{message}");
    for words in ["spec.workers.storage.size is 5Gi", "dialogs-worker-0", "(10Gi)", "Set the size to 10Gi."] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert!(!message.contains("dialogs-coordinator"), "{message}");
    assert_eq!(asked(&world)[..2], before[..], "as they were");
    assert_eq!(world.nodes.len(), 4, "another worker joins all the same");
    size(&mut world, "10Gi");
    settle(&mut world);
    assert_serves(&world);
}

/// A claim of worker-0 as its driver shows it: what it asks for, what it has, and more of its status.
fn seen_with(world: &mut World, asked: &str, has: &str, status: serde_json::Value) -> Snapshot {
    let mut seen = world.observe();
    let mut claims = seen.objects.iter_mut();
    let claim = claims.find(|(key, _)| key.starts_with("PersistentVolumeClaim/dialogs-worker-0")).unwrap().1;
    claim.json["spec"]["resources"]["requests"]["storage"] = asked.into();
    claim.json["status"] = status;
    if !has.is_empty() {
        claim.json["status"]["capacity"]["storage"] = has.into();
    }
    seen
}

#[test]
fn volumes_are_judged_by_what_they_have() {
    let bound = json!({"phase": "Bound"});
    let failed = |kind| json!({"phase": "Bound", "conditions": [{"type": kind, "status": "True", "message": "no space in pool."}]});
    // What the spec wants, what the claim asks for, what the volume has; the problem, the wait and what is asked for then.
    let rows = [
        ("10Gi", "10Gi", "10Gi", bound.clone(), None, false, None),
        ("10Gi", "10240Mi", "10Gi", bound.clone(), None, false, None),
        // A driver that gives more than it was asked for.
        ("10Gi", "10Gi", "11Gi", bound.clone(), None, false, None),
        // Grown by hand, or a spec that was set back.
        ("10Gi", "50Gi", "50Gi", bound.clone(), Some("StorageCannotShrink"), false, None),
        // The growth was taken and is not made: back is back.
        ("10Gi", "50Gi", "10Gi", bound.clone(), None, false, None),
        ("10Gi", "50Gi", "10Gi", failed("ControllerResizeError"), None, false, None),
        ("50Gi", "50Gi", "10Gi", bound.clone(), None, true, None),
        ("50Gi", "50Gi", "10Gi", failed("ControllerResizeError"), Some("StorageCannotGrow"), false, None),
        ("50Gi", "50Gi", "10Gi", failed("NodeResizeError"), Some("StorageCannotGrow"), false, None),
        ("50Gi", "50Gi", "10Gi", failed("FileSystemResizePending"), None, true, None),
        ("50Gi", "10Gi", "10Gi", bound, None, false, Some("50Gi")),
        // No volume yet: its size cannot be changed in either direction.
        ("50Gi", "10Gi", "", json!({"phase": "Pending"}), None, false, None),
        ("10Gi", "50Gi", "", json!({"phase": "Pending"}), None, false, None),
    ];
    let mut world = born(1);
    for (wanted, asked, has, status, problem, waits, asks) in rows {
        let row = format!("{wanted} {asked} {has} {status}");
        size(&mut world, wanted);
        let seen = seen_with(&mut world, asked, has, status);
        let plan = plan(&world.desired(), &seen);
        let problems: Vec<String> =
            plan.problems.iter().map(|problem| problem.reason().to_string()).collect();
        assert_eq!(problems, problem.into_iter().collect::<Vec<_>>(), "{row}");
        let held = plan.waits.iter().any(|wait| matches!(wait, WaitingOn::VolumesGrow { moves: false, .. }));
        assert_eq!(held, waits, "{row}: {:?}", plan.waits);
        let written: Vec<_> = plan
            .steps
            .iter()
            .filter_map(|planned| match &planned.step {
                Step::Kubernetes(KubernetesStep::Apply { object, .. }) => {
                    object.json["spec"]["resources"]["requests"]["storage"].as_str()
                }
                _ => None,
            })
            .filter(|size| *size != asked)
            .collect();
        assert_eq!(written, asks.into_iter().collect::<Vec<_>>(), "{row}");
        if let Some(told @ Problem::GrowthFailed { message, .. }) = plan.problems.first() {
            assert_eq!(message, "no space in pool.");
            assert!(told.to_string().contains("no space in pool. Fix"), "{told}");
        }
    }
    // In an event, from drivers that write no condition.
    let mut seen = seen_with(&mut world, "50Gi", "10Gi", json!({"phase": "Bound"}));
    size(&mut world, "50Gi");
    let key = seen.objects.keys().find(|key| key.contains("Claim/dialogs-worker-0")).unwrap().clone();
    let since = seen.now - SignedDuration::from_mins(2);
    let warning = snapshot::Warning {
        reason: "VolumeResizeFailed".to_owned(),
        message: "quota of the array".to_owned(),
        times: 9,
        first: since,
        last: seen.now,
    };
    seen.warnings = BTreeMap::from([(key, warning)]);
    let plan = plan(&world.desired(), &seen);
    let Problem::GrowthFailed { message, .. } = &plan.problems[0] else { panic!("{:?}", plan.problems) };
    assert_eq!(message, "quota of the array");
}

#[test]
fn a_growth_waits_until_no_shard_is_moved_and_says_so() {
    let mut world = uneven(&[]);
    for _ in 0..200 {
        world.reconcile(None);
        if world.job.as_ref().is_some_and(|model| model.job.runs()) {
            break;
        }
        world.tick();
    }
    size(&mut world, "40Gi");
    let seen = world.observe();
    let plan = plan(&world.desired(), &seen);
    assert!(
        plan.waits.iter().any(|wait| matches!(wait, WaitingOn::VolumesGrow { moves: true, .. })),
        "{plan:?}"
    );
    assert!(!does(&world, &seen, "Apply"));
    settle(&mut world);
    assert_serves(&world);
    assert_eq!(asked(&world), ["40Gi"; 2]);
}

/// A quota of so many claims, used up by those of workers that came and went.
#[test]
fn volume_refused_by_a_quota_is_told_with_kept_ones() {
    let mut world = born(2);
    for _ in 0..2 {
        world.edit(|spec| spec.workers.replicas = 1);
        settle(&mut world);
        world.edit(|spec| spec.workers.replicas = 2);
        settle(&mut world);
    }
    let kept = drained(&world).into_iter();
    let kept: Vec<String> = kept.map(|(key, _)| key.replace("PersistentVolumeClaim/", "")).collect();
    assert_eq!(kept.len(), 2);
    world.refuses.insert("Write PersistentVolumeClaim/dialogs-worker-2".to_owned(), u32::MAX);
    world.edit(|spec| spec.workers.replicas = 3);
    passes(&mut world, 90);
    let (reason, message) = stalled(&world);
    assert_eq!(reason, "KubernetesRefused", "{message}");
    for words in ["is refused", "are kept (2), never used again", kept[0].as_str(), kept[1].as_str()] {
        assert!(message.contains(words), "{words}: {message}");
    }
    for node in [Node::Coordinator, Node::Worker(0), Node::Worker(1)] {
        assert!(!kept.contains(&world.pods[&node].claim), "{node} uses what may be deleted");
    }
    world.refuses.clear();
    settle(&mut world);
    assert_serves(&world);
}
