//! A worker that is lost for good, with the only copy of its shards. Its data is given up when a person names exactly
//! this worker and this server, and never otherwise: the only way in which data may go.

use super::{Plan, ProblemReason, Server, Step, View, scale_in};
use crate::{
    api::{Node, names::keys, spec::VolumePolicy},
    observe::snapshot::LiveObject,
};

/// Acts on the annotation, once.
pub fn plan(view: View, plan: &mut Plan) {
    let Some(value) = view.desired.force_remove.as_deref() else { return };
    if view.seen.status.handled.get(keys::FORCE_REMOVE).is_some_and(|handled| handled == value) {
        return;
    }
    let Some((node, identity)) = named(view, value) else {
        refuse(
            plan,
            value,
            &format!(
                "it names no worker: write <worker>/<system identifier>, such as {}/7436000000000000000",
                view.name(Node::Worker(0))
            ),
        );
        return;
    };
    if was_given_up(view, node, identity) {
        plan.handled.insert(keys::FORCE_REMOVE.to_owned(), value.to_owned());
        return;
    }
    if view.identity(node) != Some(identity) {
        let recorded = view.identity(node).unwrap_or("none");
        refuse(
            plan,
            value,
            &format!(
                "the system identifier recorded for {} is {recorded}: the worker that is meant is not there any more",
                view.name(node)
            ),
        );
        return;
    }
    if view.citus().is_none() {
        return;
    }
    if view.registration(node).is_none() {
        let step = scale_in::retire(view, node, VolumePolicy::Retain);
        plan.step(
            step,
            format!("{} was given up; a volume of it that turns up again is not used", view.name(node)),
        );
        return;
    }
    lost(view, node, value, plan);
}

/// A registered worker of that identity: gives it up if it is lost indeed.
fn lost(view: View, node: Node, value: &str, plan: &mut Plan) {
    if view.registered_workers().len() < 2 {
        refuse(
            plan,
            value,
            "it is the only worker, and there is nobody to put its shards on: restore its volume from a backup",
        );
        return;
    }
    match view.server(node) {
        Server::Known(_) | Server::Fresh(_) => refuse(
            plan,
            value,
            "it answers, so nothing of it is lost: lower spec.workers.replicas to drain it",
        ),
        Server::Stranger(why) => refuse(
            plan,
            value,
            &format!(
                "a server answers under its name, and {why}. Stop that one first: kubectl scale statefulset {} --replicas=0",
                view.name(node)
            ),
        ),
        Server::Down(_) | Server::Silent(_) => give_up(view, node, plan),
    }
}

fn give_up(view: View, node: Node, plan: &mut Plan) {
    // The others hold what is left, and get the lost shards: each has to be there.
    if view.unwell().iter().any(|(other, _)| *other != node) {
        return;
    }
    if let Some(job) = view.open_job() {
        if job.state != "cancelling" {
            let why = format!("job {} can never end while {} is lost", job.id, view.name(node));
            plan.step(Step::StopRebalance { job: job.id }, why);
        }
        return;
    }
    let address = view.address(node);
    plan.step(
        Step::GiveUp { node, address },
        format!("a person gives up the data of {} by the annotation {}", view.name(node), keys::FORCE_REMOVE),
    );
    plan.step(
        scale_in::retire(view, node, VolumePolicy::Retain),
        "a volume of it that turns up again is not used",
    );
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

/// `<worker>/<system identifier>`; the worker by its StatefulSet's name or the short one.
fn named<'a>(view: View, value: &'a str) -> Option<(Node, &'a str)> {
    let (worker, identity) = value.split_once('/')?;
    let node = Node::from_object_name(worker, &view.desired.cluster.name).or_else(|| worker.parse().ok())?;
    (node.is_worker() && !identity.is_empty()).then_some((node, identity))
}

/// Its StatefulSet or a volume of it carries the mark, and it is no member: whoever has its name now is another one.
fn was_given_up(view: View, node: Node, identity: &str) -> bool {
    let is = |object: &LiveObject| object.annotation(keys::SYSTEM_IDENTIFIER) == Some(identity);
    let set = view.stateful_set(node).filter(|set| is(set));
    let marked = set.is_some_and(|set| set.annotation(keys::DRAINED).is_some())
        || view
            .claims()
            .any(|(of, _, claim)| of == node && is(claim) && claim.label(keys::DRAINED).is_some());
    let member = set.is_some() && view.registration(node).is_some();
    marked && view.citus().is_some() && !member
}
