//! Which image the nodes run. A new image is asked what is in it before anything restarts; only the same major version
//! of PostgreSQL and the same minor version of Citus are taken. Restarting is `rolling_restart`'s.

use jiff::SignedDuration;
use serde_json::Value;

use super::{
    Findings, Gate, KubernetesStep, PlannedStep, Problem, ServerCheck, View, WaitingOn,
    problem::VersionsDiffer,
};
use crate::{
    api::{Node, names::keys},
    resources,
    snapshot::{ImageFacts, LiveObject, Observed},
};

/// An image whose pod was sent away is asked again after this time.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// The image to use now: the one asked for when it can be used, else the one that runs, and why it is not the other.
#[must_use]
pub fn choose(view: View) -> (String, Findings) {
    let running = running_image(view);
    let asked = view.desired.image.as_deref();
    let (chosen, mut findings) = match (asked, running) {
        (None, None) => (view.snapshot.operator.default_image.as_str(), Findings::default()),
        (Some(asked), Some(running)) if asked != running => match may_replace(view, asked, running) {
            Ok(()) => (asked, Findings::default()),
            Err(why) => (running, why),
        },
        (Some(only), _) | (None, Some(only)) => (only, Findings::default()),
    };
    findings.add(delete_inspections(view, asked.filter(|asked| *asked != chosen)));
    (chosen.to_owned(), findings)
}

/// Image in a StatefulSet, the coordinator's first; before there is one, what is written down on the coordinator's
/// volume, so that data that is taken back meets the image that it ran with.
fn running_image(view: View<'_>) -> Option<&str> {
    let of_set = |node| {
        let set = view.stateful_set(node)?;
        // What we wrote: in the template there may be what admission, or a person, made of it.
        set.annotation(keys::IMAGE).or_else(|| server_image(&set.json))
    };
    view.nodes().into_iter().find_map(of_set).or_else(|| coordinators_claim(view)?.annotation(keys::IMAGE))
}

/// By the container's name: where there is a mesh, its container may be the first.
fn server_image(set: &Value) -> Option<&str> {
    let mut containers = set.pointer("/spec/template/spec/containers")?.as_array()?.iter();
    containers.find(|container| container["name"] == resources::SERVER)?.get("image")?.as_str()
}

fn coordinators_claim(view: View<'_>) -> Option<&LiveObject> {
    view.owned("PersistentVolumeClaim", view.claim(Node::Coordinator)?)
}

/// What is to be written down on the coordinator's volume, beside its identity: it outlives servers and StatefulSets.
#[must_use]
pub fn image_record(view: View) -> Option<(String, String)> {
    let ServerCheck::Verified(postgres) = view.server(Node::Coordinator) else { return None };
    let facts = ImageFacts { postgres_major: postgres.major, citus: postgres.extension.clone()? };
    Some((running_image(view)?.to_owned(), facts.to_string()))
}

/// Whether the image that is asked for may take the place of the one that runs.
fn may_replace(view: View, asked: &str, running: &str) -> Gate {
    // Nothing to lose before the first server was born: the first image may simply have been a typing error.
    if view.nodes().into_iter().all(|node| view.identity(node).is_none()) {
        return Ok(());
    }
    let (image, running) = (asked.to_owned(), running.to_owned());
    // A pod that was made of what the spec said before has nothing to say.
    let said = view.snapshot.images.get(asked);
    match said.filter(|said| said.known().is_some() || !is_outdated(view, asked)) {
        None => {
            let pod = resources::inspection_pod_name(&view.desired.cluster, asked);
            let mut findings = Findings::from(WaitingOn::InspectingImage { image: image.clone() });
            if view.object("Pod", &pod).is_none() {
                let why = "a new image is inspected before anything restarts";
                findings.add(PlannedStep::new(KubernetesStep::InspectImage { image }, why));
            }
            Err(findings)
        }
        Some(Observed::Unknown(why)) => {
            Err(Problem::ImageNotUsable { image, why: why.clone(), running }.into())
        }
        Some(Observed::Known(facts)) => {
            match running_versions(view).map(|running| unsupported(&running, facts)) {
                Some(None) => Ok(()),
                Some(Some(differs)) => Err(Problem::UpgradeNotSupported { image, running, differs }.into()),
                None => {
                    let why = format!(
                        "spec.image: {asked} must have the versions that are running, and no server has reported them yet"
                    );
                    Err(WaitingOn::NotAnswering { node: Node::Coordinator, why }.into())
                }
            }
        }
    }
}

/// Major version of PostgreSQL and version of Citus: of the coordinator, of any other node, as written down on the
/// coordinator's volume, or as a node last told them.
/// The image may be what keeps them from telling.
fn running_versions(view: View) -> Option<(u32, String)> {
    let told = |node| {
        let postgres = view.postgres(node)?;
        Some((postgres.major, postgres.extension.clone()?))
    };
    let before = || {
        view.snapshot.status.nodes.iter().find_map(|node| {
            let major = node.postgres_version.as_deref()?.split('.').next()?.parse().ok()?;
            Some((major, node.citus_version.clone()?))
        })
    };
    let noted = || {
        let facts: ImageFacts = coordinators_claim(view)?.annotation(keys::VERSIONS)?.parse().ok()?;
        Some((facts.postgres_major, facts.citus))
    };
    view.nodes().into_iter().find_map(told).or_else(noted).or_else(before)
}

fn unsupported((major, citus): &(u32, String), facts: &ImageFacts) -> Option<VersionsDiffer> {
    if facts.postgres_major != *major {
        return Some(VersionsDiffer::Postgres { image: facts.postgres_major, running: *major });
    }
    (citus_minor(&facts.citus) != citus_minor(citus))
        .then(|| VersionsDiffer::Citus { image: facts.citus.clone(), running: citus.clone() })
}

/// `13.2` of `13.2-1`.
fn citus_minor(version: &str) -> &str {
    version.split_once('-').map_or(version, |(minor, _)| minor)
}

/// An inspection pod is removed when it has answered, when nobody asks any more, or when it is to be asked anew.
fn delete_inspections(view: View, still_asked: Option<&str>) -> Findings {
    let prefix = format!("Pod/{}-image-", view.desired.cluster.name);
    let mut findings = Findings::default();
    for (key, object) in view.snapshot.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let image = object.annotation(keys::IMAGE);
        let waits = image.is_some() && image == still_asked;
        let answered = image
            .and_then(|image| view.snapshot.images.get(image))
            .is_some_and(|seen| seen.known().is_some());
        let why = if !waits || answered {
            "the image was inspected, or is no longer wanted"
        } else if image.is_some_and(|image| is_outdated(view, image)) {
            "the image is inspected again with the current spec"
        } else if was_evicted(view, object) {
            "the pod was evicted before it could answer"
        } else {
            continue;
        };
        if !object.deleting {
            let pod = key.trim_start_matches("Pod/").to_owned();
            findings.add(PlannedStep::new(KubernetesStep::DeleteInspectionPod { pod }, why));
        }
    }
    findings
}

/// The pod that asks this image was made of another spec: other pull secrets, say, or another kind of machine.
fn is_outdated(view: View, image: &str) -> bool {
    let inputs = resources::BuildContext { desired: view.desired, operator: &view.snapshot.operator, image };
    let want = resources::inspection_pod(&inputs, image);
    let wanted = want.json["metadata"]["annotations"][keys::APPLIED_HASH].as_str();
    view.object("Pod", &want.name).is_some_and(|pod| pod.annotation(keys::APPLIED_HASH) != wanted)
}

/// Evicted, preempted or refused by its machine: that says nothing of the image. Asked again after a pause.
fn was_evicted(view: View, pod: &LiveObject) -> bool {
    let status = |field: &str| pod.json.get("status").and_then(|status| status.get(field)?.as_str());
    status("phase") == Some("Failed")
        && status("reason").is_some()
        && view.snapshot.now.duration_since(pod.created_at) > ASK_AGAIN
}
