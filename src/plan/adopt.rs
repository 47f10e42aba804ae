//! Objects that an earlier `DialogCluster` of this name has left behind (`kubectl delete --cascade=orphan`): they get the
//! new one as their owner, before anything else is planned, and nobody notices. Whose an object may be is decided here.

use strum::IntoEnumIterator;

use super::{KubernetesStep, Plan, Problem, Step, View, problem::NotOurs, refusals};
use crate::{
    api::{
        Node,
        names::{SecretKind, keys},
    },
    snapshot::{LiveObject, Ownership},
};

/// Takes over what was left behind. Nothing else is planned before that is done ([`comes_first`]): a cluster of which only
/// a part is seen looks like one that has lost the rest.
pub fn plan(view: View, plan: &mut Plan) {
    for (key, live) in &view.snapshot.objects {
        let Some((kind, name)) = key.split_once('/') else { continue };
        if live.ownership != Ownership::Left || live.deleting || !is_expected(view, kind, name, live) {
            continue;
        }
        match why_not(view, kind, name, live) {
            None => plan.step(
                KubernetesStep::Adopt { kind: kind.to_owned(), name: name.to_owned(), uid: live.uid.clone() },
                format!("{key} was left behind by an earlier DialogCluster of this name"),
            ),
            Some(why) => plan.problem(Problem::NotAdopted {
                kind: kind.to_owned(),
                name: name.to_owned(),
                namespace: view.desired.cluster.namespace.clone(),
                why,
            }),
        }
    }
}

/// Something is taken over now. What is refused for long keeps the rest waiting no longer.
#[must_use]
pub fn comes_first(view: View, plan: &Plan) -> bool {
    plan.steps.iter().any(|planned| {
        matches!(&planned.step, Step::Kubernetes(KubernetesStep::Adopt { kind, .. }) if kind != "Pod")
            && !view.snapshot.refusals.lasts(&refusals::attempt_of(&planned.step))
    })
}

/// It has a name that this cluster needs, or is of a worker that was born. Who may make objects may make any number of
/// them that look like ours.
fn is_expected(view: View, kind: &str, name: &str, live: &LiveObject) -> bool {
    let cluster = &view.desired.cluster;
    let node = Node::from_object_name(name, &cluster.name);
    let is_asked = node.is_some_and(|node| view.desired.nodes().any(|asked| asked == node));
    let has_set = || {
        let set = view.object("StatefulSet", name);
        set.is_some_and(|set| matches!(set.ownership, Ownership::Owned | Ownership::Left))
    };
    match kind {
        "StatefulSet" => is_asked || node.is_some_and(|node| !recorded(view, node).is_empty()),
        "ConfigMap" => is_asked || node.is_some() && has_set(),
        "Service" => {
            is_asked
                || node.is_some() && has_set()
                || [cluster.service(), cluster.nodes_service()].iter().any(|ours| ours == name)
        }
        "PodDisruptionBudget" | "ServiceAccount" => name == cluster.name,
        "Secret" => SecretKind::iter().any(|kind| cluster.secret(kind) == name),
        // One that was asked what is in an image; pods of nodes have their StatefulSet.
        "Pod" => live.label(keys::NODE).is_none() && name.starts_with(&format!("{}-image-", cluster.name)),
        _ => false,
    }
}

/// Why an object that was left behind is not this cluster's.
fn why_not(view: View, kind: &str, name: &str, live: &LiveObject) -> Option<NotOurs> {
    // Only volumes outlive their cluster otherwise, and it is they that a cluster is made of.
    if recorded(view, Node::Coordinator).is_empty() {
        let coordinator = view.name(Node::Coordinator);
        return Some(NotOurs::NoCoordinator { coordinator });
    }
    let node = Node::from_object_name(name, &view.desired.cluster.name)?;
    let labelled = live.label(keys::NODE);
    if labelled != Some(node.to_string().as_str()) {
        return Some(NotOurs::OtherNode { label: labelled.map(ToOwned::to_owned) });
    }
    if kind != "StatefulSet" {
        return None;
    }
    let (identity, claims) = (live.annotation(keys::SYSTEM_IDENTIFIER), recorded(view, node));
    match identity {
        // It was made, and nobody was born yet: neither there nor on a volume.
        None if claims.is_empty() => None,
        Some(identity) if claims.contains(&identity) => None,
        None | Some(_) => Some(NotOurs::OtherServer {
            recorded: identity.map(ToOwned::to_owned),
            on_volume: claims.first().map(|claim| (*claim).to_owned()),
        }),
    }
}

/// System identifiers on the volume claims of a node, of those that are its own still.
fn recorded(view: View<'_>, node: Node) -> Vec<&str> {
    let claims = view.claims().filter(|(of, ..)| *of == node);
    claims.filter_map(|(.., claim)| claim.annotation(keys::SYSTEM_IDENTIFIER)).collect()
}
