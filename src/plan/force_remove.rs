//! Workers that are lost for good, with the only copy of their shards. Their data is given up when a person names exactly
//! these workers and these servers, and never otherwise: the only way in which data may go.

use super::{Hold, Plan, ProblemReason, Server, Step, View, scale_in};
use crate::{
    api::{Node, names::keys, spec::VolumePolicy},
    observe::snapshot::LiveObject,
};

type Named<'a> = Vec<(Node, &'a str)>;

/// Acts on the annotation, once.
pub fn plan(view: View, plan: &mut Plan) {
    let Some(value) = view.desired.force_remove.as_deref() else { return };
    if view.seen.status.handled.get(keys::FORCE_REMOVE).is_some_and(|handled| handled == value) {
        return;
    }
    let Some(named) = named(view, value) else {
        let example = view.name(Node::Worker(0));
        let why = format!(
            "it names no workers: write <worker>/<system identifier>, such as {example}/7436000000000000000, and commas between several"
        );
        refuse(plan, value, &why);
        return;
    };
    let (done, left): (Named, Named) =
        named.into_iter().partition(|(node, identity)| was_given_up(view, *node, identity));
    if left.is_empty() && !done.is_empty() {
        plan.handled.insert(keys::FORCE_REMOVE.to_owned(), value.to_owned());
    } else if let Some(why) = is_another(view, &left) {
        refuse(plan, value, &why);
    } else if view.citus().is_some() {
        let (members, gone): (Named, Named) =
            left.into_iter().partition(|(node, _)| view.registration(*node).is_some());
        for (node, _) in gone {
            let step = scale_in::retire(view, node, VolumePolicy::Retain);
            plan.step(step, format!("{} was given up; {UNUSED}", view.name(node)));
        }
        match why_not(view, &members) {
            Some(why) => refuse(plan, value, &why),
            None => give_up(view, members, plan),
        }
    }
}

const UNUSED: &str = "a volume of it that turns up again is not used";

/// `<worker>/<system identifier>`, several with commas between them; a worker by its StatefulSet's name or the short one.
#[must_use]
pub fn named<'a>(view: View, value: &'a str) -> Option<Named<'a>> {
    let one = |text: &'a str| {
        let (worker, identity) = text.trim().split_once('/')?;
        let node =
            Node::from_object_name(worker, &view.desired.cluster.name).or_else(|| worker.parse().ok())?;
        (node.is_worker() && !identity.is_empty()).then_some((node, identity))
    };
    value.split(',').map(one).collect()
}

/// Its StatefulSet or a volume of it carries the mark, and it is no member: whoever has its name now is another one.
fn was_given_up(view: View, node: Node, identity: &str) -> bool {
    let is = |object: &LiveObject| object.annotation(keys::SYSTEM_IDENTIFIER) == Some(identity);
    let set = view.stateful_set(node).filter(|set| is(set));
    let of_node =
        |of: Node, claim: &LiveObject| of == node && is(claim) && claim.label(keys::DRAINED).is_some();
    let marked = set.is_some_and(|set| set.annotation(keys::DRAINED).is_some())
        || view.claims().any(|(of, _, claim)| of_node(of, claim));
    let member = set.is_some() && view.registration(node).is_some();
    marked && view.citus().is_some() && !member
}

/// The worker that is meant is not there any more.
fn is_another(view: View, named: &Named) -> Option<String> {
    let other = |(node, identity): &&(Node, &str)| view.identity(*node) != Some(*identity);
    named.iter().find(other).map(|(node, _)| {
        let recorded = view.identity(*node).unwrap_or("none");
        format!(
            "the system identifier recorded for {} is {recorded}: the worker that is meant is not there any more",
            view.name(*node)
        )
    })
}

/// Why these registered workers are not given up, if something speaks against it.
fn why_not(view: View, lost: &Named) -> Option<String> {
    if !lost.is_empty() && view.registered_workers().len() <= lost.len() {
        return Some(
            "no other worker is there to put the shards on: restore a volume from a backup".to_owned(),
        );
    }
    lost.iter().find_map(|(node, _)| match view.server(*node) {
        Server::Known(_) | Server::Fresh(_) => Some(format!(
            "{} answers, so nothing of it is lost: lower spec.workers.replicas to drain it",
            view.name(*node)
        )),
        Server::Stranger(why) => Some(format!(
            "a server answers under the name {name}, and {why}. Stop that one first: kubectl scale statefulset {name} --replicas=0",
            name = view.name(*node)
        )),
        Server::Down(_) | Server::Silent(_) => None,
    })
}

fn give_up(view: View, lost: Named, plan: &mut Plan) {
    if lost.is_empty() {
        return;
    }
    // The others hold what is left, and get the lost shards: each has to be there.
    let silent = view.unwell().into_iter().find(|(other, _)| lost.iter().all(|(node, _)| node != other));
    if let Some((node, why)) = silent {
        let why = format!("{why}. If it is lost as well, name it in {}, too", keys::FORCE_REMOVE);
        plan.hold(Hold::NotAnswering { node, why });
        return;
    }
    if let Some(job) = view.open_job() {
        if job.state != "cancelling" {
            let why = format!("job {} can never end while workers are lost", job.id);
            plan.step(Step::StopRebalance { job: job.id }, why);
        }
        return;
    }
    let workers: Vec<_> = lost.iter().map(|(node, _)| (*node, view.address(*node))).collect();
    plan.step(
        Step::GiveUp { workers },
        format!("a person gives up their data by the annotation {}", keys::FORCE_REMOVE),
    );
    for (node, _) in lost {
        plan.step(scale_in::retire(view, node, VolumePolicy::Retain), UNUSED);
    }
}

fn refuse(plan: &mut Plan, value: &str, why: &str) {
    plan.problem(
        ProblemReason::ForceRemoveRefused,
        format!(
            "annotation {} is {value}: {why}. Nothing was given up. Correct or remove the annotation.",
            keys::FORCE_REMOVE
        ),
    );
}
