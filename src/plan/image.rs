//! Which image the nodes run. A new image is asked what is in it before anything restarts; only the same major version
//! of PostgreSQL and the same minor version of Citus are taken. Restarting is `roll`'s.

use super::{Hold, Plan, ProblemReason, Step, View};
use crate::{
    api::Node,
    observe::snapshot::{ImageFacts, Seen},
    resources,
};

/// The image to use now: the one asked for when it can be used, else the one that runs.
pub fn choose(view: View, plan: &mut Plan) -> String {
    let running = running_image(view);
    let asked = view.desired.image.as_deref();
    let chosen = match (asked, running) {
        (None, None) => view.seen.operator.default_image.clone(),
        (None, Some(running)) => running.to_owned(),
        (Some(asked), None) => asked.to_owned(),
        (Some(asked), Some(running)) if asked == running => asked.to_owned(),
        (Some(asked), Some(running)) => change(view, asked, running, plan),
    };
    forget_inspections(view, asked.filter(|asked| *asked != chosen), plan);
    chosen
}

/// Image in the coordinator's StatefulSet.
fn running_image(view: View<'_>) -> Option<&str> {
    view.stateful_set(Node::Coordinator)?.json.pointer("/spec/template/spec/containers/0/image")?.as_str()
}

fn change(view: View, asked: &str, running: &str, plan: &mut Plan) -> String {
    // Nothing to lose before the first server was born: the first image may simply have been a typing error.
    if view.nodes().into_iter().all(|node| view.identity(node).is_none()) {
        return asked.to_owned();
    }
    match view.seen.images.get(asked) {
        None => {
            let step = Step::InspectImage { image: asked.to_owned() };
            let pod = resources::inspection_pod(
                &resources::Inputs { desired: view.desired, operator: &view.seen.operator, image: running },
                asked,
            );
            if view.object("Pod", &pod.name).is_none() {
                plan.step(step, "a new image is asked what is in it before anything restarts");
            }
            plan.hold(Hold::InspectingImage { image: asked.to_owned() });
            running.to_owned()
        }
        Some(Seen::Unknown(why)) => {
            plan.problem(
                ProblemReason::ImageNotUsable,
                format!("spec.image: {asked} cannot be used: {why}. Nothing was restarted; {running} goes on. Correct spec.image."),
            );
            running.to_owned()
        }
        Some(Seen::Known(facts)) => {
            match running_versions(view).map(|running| unsupported(&running, facts)) {
                Some(None) => asked.to_owned(),
                Some(Some(why)) => {
                    plan.problem(
                    ProblemReason::UpgradeNotSupported,
                    format!("spec.image: {asked} {why}. Nothing was restarted; {running} goes on. Use an image of the same versions."),
                );
                    running.to_owned()
                }
                None => {
                    plan.hold(Hold::NotAnswering {
                    node: Node::Coordinator,
                    why: format!("spec.image: {asked} has to have the versions that run, and no server has told them yet"),
                });
                    running.to_owned()
                }
            }
        }
    }
}

/// Major version of PostgreSQL and version of Citus: of the coordinator, of any other node, or as one last told them.
/// The image may be what keeps them from telling.
fn running_versions(view: View) -> Option<(u32, String)> {
    let told = |node| {
        let postgres = view.postgres(node)?;
        Some((postgres.major, postgres.extension.clone()?))
    };
    let before = || {
        view.seen.status.nodes.iter().find_map(|node| {
            let major = node.postgres_version.as_deref()?.split('.').next()?.parse().ok()?;
            Some((major, node.citus_version.clone()?))
        })
    };
    view.nodes().into_iter().find_map(told).or_else(before)
}

fn unsupported((major, citus): &(u32, String), facts: &ImageFacts) -> Option<String> {
    if facts.postgres_major != *major {
        return Some(format!(
            "has PostgreSQL {}, and the cluster's data is of PostgreSQL {major}",
            facts.postgres_major
        ));
    }
    (citus_minor(&facts.citus) != citus_minor(citus))
        .then(|| format!("has Citus {}, and the cluster runs Citus {citus}", facts.citus))
}

/// `13.2` of `13.2-1`.
fn citus_minor(version: &str) -> &str {
    version.split_once('-').map_or(version, |(minor, _)| minor)
}

/// An inspection pod is removed when it has answered, or nobody asks any more.
fn forget_inspections(view: View, still_asked: Option<&str>, plan: &mut Plan) {
    let prefix = format!("Pod/{}-image-", view.desired.cluster.name);
    for (key, object) in view.seen.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let image = object.json.pointer("/spec/containers/0/image").and_then(|image| image.as_str());
        let waits = image.is_some() && image == still_asked;
        let answered =
            image.and_then(|image| view.seen.images.get(image)).is_some_and(|seen| seen.known().is_some());
        if (!waits || answered) && !object.deleting {
            let pod = key.trim_start_matches("Pod/").to_owned();
            plan.step(
                Step::ForgetInspection { pod },
                "the image has been asked, or nobody wants it any more",
            );
        }
    }
}
