//! Workers that are lost for good, with the only copy of their shards. Their data is given up when a person names exactly
//! these workers and these servers, and never otherwise: the only way in which data may go.

use super::{
    Concern, Plan, Problem, ServerCheck, SqlStep, View, WaitingOn, problem::ForceRemoveRefusal, volumes,
};
use crate::{
    api::{Node, names::keys, spec::VolumePolicy},
    snapshot::LiveObject,
};

type NamedWorkers<'a> = Vec<(Node, &'a str)>;

/// Acts on the annotation, once.
pub fn plan(view: View, plan: &mut Plan) {
    let Some(value) = view.desired.force_remove.as_deref() else { return };
    let named = parse_request(view, value);
    if view.snapshot.status.handled.get(keys::FORCE_REMOVE).is_some_and(|handled| handled == value) {
        was_refused(view, value, named.as_deref().unwrap_or_default(), plan);
        return;
    }
    let Some(named) = named else {
        refuse(plan, value, ForceRemoveRefusal::Unreadable { example: view.name(Node::Worker(0)) });
        return;
    };
    let (done, left): (NamedWorkers, NamedWorkers) =
        named.into_iter().partition(|(node, identity)| was_force_removed(view, *node, identity));
    if left.is_empty() && !done.is_empty() {
        plan.handled.insert(keys::FORCE_REMOVE.to_owned(), value.to_owned());
    } else if let Some(why) = is_another(view, &left) {
        refuse(plan, value, why);
    } else if view.citus().is_some() {
        let (members, gone): (NamedWorkers, NamedWorkers) =
            left.into_iter().partition(|(node, _)| view.registration(*node).is_some());
        if let Some((node, _)) = gone.iter().find(|(node, _)| !has_no_row(view, *node)) {
            let why = ForceRemoveRefusal::MayBeRegistered { node: view.name(*node) };
            refuse(plan, value, why);
            return;
        }
        for (node, _) in gone {
            let step = volumes::decommission(view, node, VolumePolicy::Retain);
            plan.step(step, format!("{} was given up; {VOLUME_NOT_REUSED}", view.name(node)));
        }
        match why_not(view, &members) {
            Some(why) => {
                // Refused for good: it must not lie in wait for the next time that the worker is away for a moment.
                plan.handled.insert(keys::FORCE_REMOVE.to_owned(), value.to_owned());
                refuse(plan, value, why);
            }
            None => force_remove(view, members, plan),
        }
    }
}

/// A value that was acted on, and whose worker is there: it was refused then, and means nothing now.
fn was_refused(view: View, value: &str, named: &[(Node, &str)], plan: &mut Plan) {
    let there = named.iter().find(|(node, identity)| {
        view.registration(*node).is_some()
            && view.identity(*node) == Some(*identity)
            && !view.is_decommissioned(*node)
    });
    if let Some((node, _)) = there {
        let why = ForceRemoveRefusal::Spent { node: view.name(*node) };
        refuse(plan, value, why);
    }
}

/// In place of the system identifier of a worker of which nothing is left that could tell it.
const NO_IDENTITY: &str = "none";

const VOLUME_NOT_REUSED: &str = "a volume of it that turns up again is not used";

/// `<worker>/<system identifier>`, several with commas between them; a worker by its StatefulSet's name or the short one.
#[must_use]
pub fn parse_request<'a>(view: View, value: &'a str) -> Option<NamedWorkers<'a>> {
    let one = |text: &'a str| {
        let (worker, identity) = text.trim().split_once('/')?;
        let node =
            Node::from_object_name(worker, &view.desired.cluster.name).or_else(|| worker.parse().ok())?;
        (node.is_worker() && !identity.is_empty()).then_some((node, identity))
    };
    let mut all: NamedWorkers = value.split(',').map(one).collect::<Option<_>>()?;
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// A person has given up this worker, and this server of it, by name.
#[must_use]
pub fn is_requested(view: View, node: Node) -> bool {
    let named =
        view.desired.force_remove.as_deref().and_then(|value| parse_request(view, value)).unwrap_or_default();
    named.iter().any(|(of, identity)| *of == node && recorded_identity(view, node) == *identity)
}

/// Who is recorded for a worker.
#[must_use]
pub fn recorded_identity(view: View<'_>, node: Node) -> &str {
    view.identity(node).unwrap_or(NO_IDENTITY)
}

/// Its StatefulSet or a volume of it carries the mark, and it is no member: whoever has its name now is another one.
fn was_force_removed(view: View, node: Node, identity: &str) -> bool {
    if identity == NO_IDENTITY {
        return view.is_no_member(node);
    }
    let is = |object: &LiveObject| object.annotation(keys::SYSTEM_IDENTIFIER) == Some(identity);
    let set = view.stateful_set(node).filter(|set| is(set));
    let of_node =
        |of: Node, claim: &LiveObject| of == node && is(claim) && claim.label(keys::DECOMMISSIONED).is_some();
    let marked = set.is_some_and(|set| set.annotation(keys::DECOMMISSIONED).is_some())
        || view.claims().any(|(of, _, claim)| of_node(of, claim));
    let member = set.is_some() && view.registration(node).is_some();
    marked && view.citus().is_some() && !member
}

/// The worker that is meant is not there any more.
fn is_another(view: View, named: &NamedWorkers) -> Option<ForceRemoveRefusal> {
    let other = |(node, identity): &&(Node, &str)| recorded_identity(view, *node) != *identity;
    named.iter().find(other).map(|(node, _)| ForceRemoveRefusal::OtherServer {
        node: view.name(*node),
        recorded: recorded_identity(view, *node).to_owned(),
    })
}

/// Why these registered workers are not given up, if something speaks against it.
fn why_not(view: View, lost: &NamedWorkers) -> Option<ForceRemoveRefusal> {
    if !lost.is_empty() && view.registered_workers().len() <= lost.len() {
        return Some(ForceRemoveRefusal::NoOtherWorker);
    }
    lost.iter().find_map(|(node, _)| match view.server(*node) {
        ServerCheck::Verified(_) | ServerCheck::Unrecorded(_) => {
            Some(ForceRemoveRefusal::Answers { node: view.name(*node) })
        }
        ServerCheck::IdentityMismatch(why) => {
            Some(ForceRemoveRefusal::SystemIdentifierMismatch { node: view.name(*node), why })
        }
        ServerCheck::NotReady(_) | ServerCheck::Unreachable(_) => None,
    })
}

/// A worker without a row that a person has named: nothing of it is in the catalog, or nothing of anybody.
#[must_use]
pub fn has_no_row(view: View, node: Node) -> bool {
    let nobody = view.citus().is_some_and(|citus| citus.nodes.iter().all(|row| row.group_id == 0));
    view.is_no_member(node) || nobody && view.postgres(node).is_none()
}

fn force_remove(view: View, lost: NamedWorkers, plan: &mut Plan) {
    let restarts = plan.steps.iter().any(|planned| planned.step.effect().concerns == Concern::Restart);
    if lost.is_empty() || restarts {
        return;
    }
    // The others hold what is left, and get the lost shards: each has to be there.
    let silent =
        view.unhealthy_members().into_iter().find(|(other, _)| lost.iter().all(|(node, _)| node != other));
    if let Some((node, why)) = silent {
        let why = format!("{why}. If it is lost as well, name it in {}, too", keys::FORCE_REMOVE);
        plan.wait(WaitingOn::NotAnswering { node, why });
        return;
    }
    if let Some(job) = view.open_job() {
        if job.can_be_stopped() {
            let why = format!("job {} can never end while workers are lost", job.id);
            plan.step(SqlStep::StopRebalance { job: job.id }, why);
        }
        return;
    }
    let workers: Vec<_> = lost.iter().map(|(node, _)| (*node, view.address(*node))).collect();
    plan.step(
        SqlStep::ForceRemove { workers },
        format!("a person gives up their data by the annotation {}", keys::FORCE_REMOVE),
    );
    for (node, _) in lost {
        plan.step(volumes::decommission(view, node, VolumePolicy::Retain), VOLUME_NOT_REUSED);
    }
}

fn refuse(plan: &mut Plan, value: &str, why: ForceRemoveRefusal) {
    plan.problem(Problem::ForceRemoveRefused { value: value.to_owned(), why });
}
