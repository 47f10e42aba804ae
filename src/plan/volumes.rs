//! How large volumes are and should be, and which are kept of workers that are gone, and the step that marks those. What
//! is written to claims is `objects`'.

use std::collections::BTreeSet;

use super::{
    KubernetesStep, Plan, Problem, Step, View, WaitingOn,
    problem::{GrowthRefusal, StorageField},
};
use crate::{
    api::{Node, names::keys, spec::VolumePolicy},
    resources::{self, Manifest},
    snapshot::{LiveObject, RepeatedRefusal},
};

/// Names in a message; of more only the number is told.
const NAMED: usize = 10;

/// What a claim asks for.
#[must_use]
pub fn asked(claim: &LiveObject) -> Option<&str> {
    claim.json.pointer("/spec/resources/requests/storage")?.as_str()
}

/// There is a volume behind it. Before, nobody can make it larger.
fn is_bound(claim: &LiveObject) -> bool {
    claim.json.pointer("/status/phase").is_none_or(|phase| phase != "Pending")
}

/// What its volume has. A driver may give more than was asked for, and that is no reason to ask for more.
fn has(claim: &LiveObject) -> Option<&str> {
    let asked = asked(claim).filter(|_| is_bound(claim))?;
    let given = claim.json.pointer("/status/capacity/storage").and_then(|size| size.as_str());
    Some(given.filter(|given| resources::is_larger(asked, given)).unwrap_or(asked))
}

/// Claims that nodes use, with what their volumes have.
fn used(view: View<'_>) -> impl Iterator<Item = (Node, &str, &LiveObject, &str)> {
    view.claims()
        .filter(move |(node, name, claim)| {
            claim.label(keys::DECOMMISSIONED).is_none() && view.claim(*node) == Some(name)
        })
        .filter_map(|(node, name, claim)| Some((node, name, claim, has(claim)?)))
}

/// What a claim that is there asks for, where that is not what the spec says: no volume shrinks, also not one that
/// somebody has grown by hand; one that was drained stays as it is; one that is not bound cannot be changed.
#[must_use]
pub fn kept_size<'a>(view: View, node: Node, claim: &'a LiveObject) -> Option<&'a str> {
    let drained = claim.label(keys::DECOMMISSIONED).is_some();
    let wanted = &view.desired.storage(node).size.0;
    asked(claim).filter(|asked| drained || !is_bound(claim) || resources::is_larger(asked, wanted))
}

/// What a new claim asks for, where that is not what the spec says: as long as other workers' volumes have not grown, no
/// more than these, and then it grows with them. They may never grow, and a volume that is larger than all others would
/// keep the size from going back to theirs.
#[must_use]
pub fn size_at_birth(view: View<'_>, node: Node) -> Option<&str> {
    let wanted = &view.desired.storage(node).size.0;
    used(view)
        .filter(|(of, ..)| node.is_worker() && of.is_worker())
        .map(|(.., has)| has)
        .filter(|has| resources::is_larger(wanted, has))
        .reduce(|least, has| if resources::is_larger(least, has) { has } else { least })
}

/// Whether the spec wants more of a claim than it asks for.
#[must_use]
pub fn grows(view: View, node: Node, claim: &LiveObject) -> bool {
    asked(claim).is_some_and(|asked| resources::is_larger(&view.desired.storage(node).size.0, asked))
}

/// Tells of volumes that are not as large as the spec wants them.
pub fn plan(view: View, plan: &mut Plan) {
    for coordinator in [true, false] {
        note_larger(view, coordinator, plan);
    }
    note_growing(view, plan);
}

/// Volumes that have more than the spec wants of them. They stay as they are.
fn note_larger(view: View, coordinator: bool, plan: &mut Plan) {
    let (field, node) = if coordinator {
        (StorageField::Coordinator, Node::Coordinator)
    } else {
        (StorageField::Workers, Node::Worker(0))
    };
    let wanted = &view.desired.storage(node).size.0;
    let larger: Vec<(&str, &str)> = used(view)
        .filter(|(node, ..)| node.is_worker() != coordinator)
        .map(|(_, name, _, has)| (name, has))
        .filter(|(_, has)| resources::is_larger(has, wanted))
        .collect();
    let largest = larger.iter().map(|(_, has)| *has);
    let largest = largest.reduce(|most, has| if resources::is_larger(has, most) { has } else { most });
    let Some(largest) = largest else { return };
    plan.problem(Problem::StorageCannotShrink {
        field,
        wanted: wanted.clone(),
        larger: larger.iter().map(|(name, has)| ((*name).to_owned(), (*has).to_owned())).collect(),
        largest: largest.to_owned(),
    });
}

/// Volumes that were asked to grow, or will be when no shard is moved, and have not grown yet. The API server takes a
/// growth long before the driver has made it, or has failed to.
fn note_growing(view: View, plan: &mut Plan) {
    let moves = view.move_runs();
    let (mut asked_to, mut waiting) = (Vec::new(), Vec::new());
    for (node, name, claim, has) in used(view) {
        let wanted = &view.desired.storage(node).size.0;
        if !resources::is_larger(wanted, has) {
            continue;
        }
        let asked_for_more = asked(claim).is_some_and(|asked| resources::is_larger(asked, has));
        if let Some(why) = failure(view, name, claim).filter(|_| asked_for_more) {
            plan.problem(Problem::GrowthFailed {
                claim: name.to_owned(),
                has: has.to_owned(),
                wanted: wanted.clone(),
                field: field(node),
                message: why.to_owned(),
            });
        } else if asked_for_more {
            asked_to.push(format!("{name} ({has})"));
        } else if moves {
            waiting.push(format!("{name} ({has})"));
        }
    }
    for (names, moves) in [(asked_to, false), (waiting, true)] {
        if !names.is_empty() {
            plan.wait(WaitingOn::VolumesGrow { volumes: first(names), moves });
        }
    }
}

/// Why a growth that the API server took is not made, in the words of whoever is to make it.
fn failure<'a>(view: View<'a>, name: &str, claim: &'a LiveObject) -> Option<&'a str> {
    let conditions = claim.json.pointer("/status/conditions").and_then(|conditions| conditions.as_array());
    let failed = conditions.into_iter().flatten().find(|condition| {
        let kind = condition["type"].as_str().unwrap_or_default();
        ["ControllerResizeError", "NodeResizeError"].contains(&kind) && condition["status"] == "True"
    });
    let said = failed.and_then(|condition| condition["message"].as_str());
    let warning = || view.warning("PersistentVolumeClaim", name).filter(|warning| warning.lasts());
    said.or_else(|| Some(warning()?.message.as_str()))
}

fn field(node: Node) -> StorageField {
    if node.is_worker() { StorageField::Workers } else { StorageField::Coordinator }
}

/// The growth that is refused, if it is one: which claim, and what it asks for.
#[must_use]
pub fn refused_growth<'a>(view: View<'a>, written: &Manifest) -> Option<(Node, &'a str, &'a str)> {
    let is_claim = written.kind == "PersistentVolumeClaim";
    let (node, name, claim) = view.claims().find(|(_, name, _)| is_claim && *name == written.name)?;
    Some((node, name, asked(claim).filter(|_| grows(view, node, claim))?))
}

/// Growths that are refused for the same, as one problem.
#[must_use]
pub fn cannot_grow(view: View, refused: &RepeatedRefusal, all: &[(Node, &str, &str)]) -> Problem {
    let node = all.first().map_or(Node::Coordinator, |(node, ..)| *node);
    let alike = |(of, .., has): (Node, &str, &LiveObject, &str)| {
        of.is_worker() != node.is_worker() || all.iter().all(|(.., asked)| !resources::is_larger(has, asked))
    };
    // Where another has more, no size is right for both.
    let back_to = all.first().filter(|_| used(view).all(alike)).map(|(.., asked)| (*asked).to_owned());
    let under_quota = refused.failure.message.contains("quota");
    Problem::GrowthRefused(Box::new(GrowthRefusal {
        field: field(node),
        wanted: view.desired.storage(node).size.0.clone(),
        claims: all.iter().map(|(_, name, asked)| ((*name).to_owned(), (*asked).to_owned())).collect(),
        back_to,
        message: refused.failure.message.clone(),
        cause: refused.failure.cause.clone(),
        since: refused.since,
        unused_claims: if under_quota { unused(view) } else { BTreeSet::new() },
    }))
}

/// Claims of workers that were drained: nobody uses them again, and they count for a quota.
#[must_use]
pub fn kept(view: View<'_>) -> Vec<&str> {
    let mut kept: Vec<&str> = view
        .claims()
        .filter(|(node, name, claim)| {
            let mounted = view.stateful_set(*node).is_some() && view.claim(*node) == Some(name);
            claim.label(keys::DECOMMISSIONED).is_some() && !mounted
        })
        .map(|(_, name, _)| name)
        .collect();
    kept.sort_unstable();
    kept
}

/// The same, as what may be deleted to make room under a quota.
#[must_use]
pub fn unused(view: View<'_>) -> BTreeSet<String> {
    kept(view).into_iter().map(ToOwned::to_owned).collect()
}

fn first(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

/// The step that marks a worker and its volume as decommissioned. Colons are no part of a label.
#[must_use]
pub fn decommission(view: View, node: Node, reclaim: VolumePolicy) -> Step {
    let claim = view.claim(node).filter(|claim| view.owned("PersistentVolumeClaim", claim).is_some());
    Step::Kubernetes(KubernetesStep::Decommission {
        node,
        claim: claim.map(ToOwned::to_owned),
        mark: view.snapshot.now.strftime("%Y-%m-%dT%H-%M-%SZ").to_string(),
        reclaim,
    })
}
