//! Images: which one the nodes are made with, and whom it is compared with. And volumes that are larger than the spec.

use std::collections::{BTreeMap, BTreeSet};

use dialog_operator::{api::DialogClusterStatus, resources};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::LocalObjectReference;

use super::*;

#[test]
fn image_of_the_same_versions_heals_a_coordinator() {
    let mut world = born(2);
    let asked = "postgres:elsewhere";
    world.edit(|spec| spec.image = Some(asked.to_owned()));
    let mut seen = world.observe();
    let facts = snapshot::ImageFacts { postgres_major: 15, citus: "13.2-1".to_owned() };
    seen.images.insert(asked.to_owned(), snapshot::Observed::Known(facts));
    let coordinator = seen.pods.get_mut(&Node::Coordinator).unwrap();
    coordinator.ready = false;
    coordinator.waiting =
        Some(ReasonMessage { reason: "ImagePullBackOff".to_owned(), message: "not found".to_owned() });
    let image = |seen: &Snapshot| {
        let plan = plan(&world.desired(), seen);
        let taken = plan.steps.iter().any(|planned| {
            matches!(&planned.step, Step::Kubernetes(KubernetesStep::Apply { object, .. })
                if object.name == "dialogs-coordinator" && object.json.to_string().contains(asked))
        });
        (taken, plan.problems.iter().any(|problem| matches!(problem, Problem::UpgradeNotSupported { .. })))
    };
    // Told by a worker, then by the volume alone, as when the DialogCluster was made again; then by nobody ever.
    seen.postgres.remove(&Node::Coordinator);
    assert_eq!(image(&seen), (true, false));
    seen.postgres.clear();
    assert_eq!(image(&seen), (true, false));
    seen.status.nodes.clear();
    assert_eq!(image(&seen), (true, false));
    coordinators_claim(&mut seen).as_object_mut().unwrap().remove(keys::VERSIONS).unwrap();
    assert_eq!(image(&seen), (false, false));
}

fn coordinators_claim(seen: &mut Snapshot) -> &mut serde_json::Value {
    let mut claims = seen.objects.iter_mut();
    let (_, claim) =
        claims.find(|(key, _)| key.starts_with("PersistentVolumeClaim/dialogs-coordinator-")).unwrap();
    &mut claim.json["metadata"]["annotations"]
}

/// The images that StatefulSets are made or changed with.
fn images(plan: &Plan) -> BTreeSet<&str> {
    let of_set = |planned: &'_ PlannedStep| match &planned.step {
        Step::Kubernetes(KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. })
            if object.kind == "StatefulSet" =>
        {
            Some(())
        }
        _ => None,
    };
    let sets = plan.steps.iter().filter(|planned| of_set(planned).is_some());
    sets.filter_map(|planned| match &planned.step {
        Step::Kubernetes(KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. }) => {
            object.json.pointer("/spec/template/spec/containers/0/image")?.as_str()
        }
        _ => None,
    })
    .collect()
}

/// `spec.image` is absent: the image that the cluster runs, whatever new clusters are made with by now.
#[test]
fn missing_statefulsets_keep_the_image_that_runs() {
    let mut world = born(2);
    let runs = world.observe().operator.default_image;
    for sets in
        [&["dialogs-coordinator"][..], &["dialogs-coordinator", "dialogs-worker-0", "dialogs-worker-1"]]
    {
        let mut seen = world.observe();
        seen.operator.default_image = "postgres:another".to_owned();
        for set in sets {
            seen.objects.remove(&format!("StatefulSet/{set}")).unwrap();
        }
        seen.pods.clear();
        seen.postgres.clear();
        let plan = plan(&world.desired(), &seen);
        assert_eq!(images(&plan), BTreeSet::from([runs.as_str()]), "without {sets:?}");
    }
}

/// A cluster that takes its volumes back with an image of other versions, and one that the spec then corrects.
#[test]
fn volumes_taken_back_are_not_opened_with_another_citus() {
    let mut world = born(2);
    let runs = world.observe().operator.default_image;
    world.edit(|spec| spec.image = Some("postgres:newer".to_owned()));
    let mut seen = world.observe();
    seen.objects.retain(|key, _| key.starts_with("PersistentVolumeClaim/"));
    (seen.pods, seen.postgres, seen.status) =
        (BTreeMap::new(), BTreeMap::new(), DialogClusterStatus::default());
    let facts = |citus: &str| {
        snapshot::Observed::Known(snapshot::ImageFacts { postgres_major: 15, citus: citus.to_owned() })
    };
    let planned = |seen: &Snapshot| plan(&world.desired(), seen);
    let asks = |plan: &Plan| {
        plan.steps
            .iter()
            .any(|planned| matches!(planned.step, Step::Kubernetes(KubernetesStep::InspectImage { .. })))
    };
    assert!(asks(&planned(&seen)));
    assert_eq!(images(&planned(&seen)), BTreeSet::from([runs.as_str()]));
    seen.images.insert("postgres:newer".to_owned(), facts("14.1-1"));
    assert!(matches!(planned(&seen).problems[0], Problem::UpgradeNotSupported { .. }));
    assert_eq!(images(&planned(&seen)), BTreeSet::from([runs.as_str()]));
    seen.images.insert("postgres:newer".to_owned(), facts("13.2-1"));
    assert_eq!(images(&planned(&seen)), BTreeSet::from(["postgres:newer"]));
}

#[test]
fn image_is_inspected_again_when_its_pod_would_differ() {
    let mut world = born(1);
    let asked = "postgres:private";
    world.edit(|spec| spec.image = Some(asked.to_owned()));
    // The pod as it was made of the spec of then.
    let inspection = |world: &mut World| {
        let (desired, operator) = (world.desired(), world.observe().operator);
        let inputs = resources::BuildContext { desired: &desired, operator: &operator, image: asked };
        let pod = resources::inspection_pod(&inputs, asked);
        (pod.key(), pod.json)
    };
    let (key, json) = inspection(&mut world);
    let with_pod = |world: &mut World, json: &serde_json::Value| {
        let mut seen = world.observe();
        let live = snapshot::LiveObject {
            uid: "p".to_owned(),
            ownership: snapshot::Ownership::Owned,
            created_at: world.now,
            deleting: false,
            scaled_by: None,
            json: json.clone(),
        };
        seen.objects.insert(key.clone(), live);
        seen.images
            .insert(asked.to_owned(), snapshot::Observed::Unknown("ImagePullBackOff: denied".to_owned()));
        seen
    };
    let said = |world: &World, seen: &Snapshot| {
        let plan = plan(&world.desired(), seen);
        let again = plan.steps.iter().any(|planned| {
            matches!(planned.step, Step::Kubernetes(KubernetesStep::DeleteInspectionPod { .. }))
        });
        (again, plan.problems.iter().any(|problem| problem.reason().to_string() == "ImageNotUsable"))
    };
    let seen = with_pod(&mut world, &json);
    assert_eq!(said(&world, &seen), (false, true), "it waits for a person");
    let secret = LocalObjectReference { name: "pull".to_owned() };
    world.edit(|spec| spec.image_pull_secrets = vec![secret.clone()]);
    let seen = with_pod(&mut world, &json);
    assert_eq!(said(&world, &seen), (true, false), "a person has done something");
    // Evicted: nobody has said anything about the image.
    let mut evicted = inspection(&mut world).1;
    evicted["status"] = serde_json::json!({"phase": "Failed", "reason": "Evicted"});
    let mut seen = with_pod(&mut world, &evicted);
    seen.images.clear();
    assert_eq!(said(&world, &seen), (false, false), "after a pause");
    seen.now = seen.now.checked_add(SignedDuration::from_secs(11)).unwrap();
    assert_eq!(said(&world, &seen), (true, false));
}

/// A webhook that takes all images from a mirror: from the birth of a cluster, or on one that runs.
#[test]
fn image_rewritten_by_admission_stays_and_by_people_is_reset() {
    const MIRROR: &str = "mirror.example/registry.example/a-team/with-quite-a-long-name";
    let mut world = World::new(json!({"workers": {"replicas": 2}}));
    world.mirror = Some(MIRROR);
    settle(&mut world);
    assert_serves(&world);
    let restarts = world.restarts.clone();
    // An operator that has just started does not know: one write of each finds it out again.
    world.rewritten.clear();
    assert_eq!(images(&plan(&world.desired(), &world.observe())).len(), 1);
    settle(&mut world);
    assert_eq!(world.restarts, restarts);
    let mut seen = world.observe();
    assert_eq!(plan(&world.desired(), &seen).steps, []);
    // Another image is asked about once, and written.
    world.edit(|spec| spec.image = Some("postgres:other".to_owned()));
    assert!(does(&world, &seen, "InspectImage"));
    let facts = snapshot::ImageFacts { postgres_major: 15, citus: "13.2-1".to_owned() };
    seen.images.insert("postgres:other".to_owned(), snapshot::Observed::Known(facts));
    assert_eq!(images(&plan(&world.desired(), &seen)), BTreeSet::from(["postgres:other"]));
    world.edit(|spec| spec.image = None);
    // `kubectl set image`
    let set = seen.objects.get_mut("StatefulSet/dialogs-worker-0").unwrap();
    let image = &mut set.json["spec"]["template"]["spec"]["containers"][0]["image"];
    *image = format!("{MIRROR}/postgres:mine").into();
    assert_eq!(images(&plan(&world.desired(), &seen)), BTreeSet::from(["postgres:dev"]));
}
