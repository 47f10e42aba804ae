//! What is refused again and again: it becomes a problem in the words of whoever refuses it, and everything that does not
//! need it goes on. Which steps need which others is `act::lanes`'.

use super::{Plan, ProblemReason, Step, View, volumes};
use crate::{
    api::Node,
    snapshot::{Act, Cause, Refused},
};

/// What a step tries: its kind and what it is about, whatever else is in it.
#[must_use]
pub fn act(step: &Step) -> Act {
    let about = match step {
        // The first write and later ones are refused for the same.
        Step::Create(object) | Step::Apply { object, .. } => {
            return Act::Step(format!("Write {}", object.key()));
        }
        Step::CreateSecret(kind) => kind.to_string(),
        Step::CreateExtension { name } => name.clone(),
        Step::InspectImage { image } => image.clone(),
        Step::ForgetInspection { pod } => pod.clone(),
        Step::TryParameter { name, value, .. } => format!("{name}={value}"),
        Step::HurryConfiguration { node, .. }
        | Step::PatchPod { node, .. }
        | Step::PrepareNode { node, .. }
        | Step::GrantRights { node, .. }
        | Step::RecordIdentity { node, .. }
        | Step::Reload { node }
        | Step::ResetAlterSystem { node, .. }
        | Step::RestartNode { node, .. }
        | Step::AddNode { node, .. }
        | Step::SetShouldHaveShards { node, .. }
        | Step::Retire { node, .. }
        | Step::RemoveNode { node, .. }
        | Step::ActivateNode { node, .. }
        | Step::DropLeftovers { node, .. } => node.to_string(),
        // Corrected SQL is another schema.
        Step::ApplySchema { hash } => hash.clone(),
        Step::Adopt { kind, name, .. } | Step::Delete { kind, name, .. } => format!("{kind}/{name}"),
        Step::StartRebalance { drain: true, .. } => "drain".to_owned(),
        Step::SetCoordinatorHost { .. }
        | Step::SetConnectionKeys { .. }
        | Step::CreateOwner { .. }
        | Step::RecoverTransactions
        | Step::StartRebalance { drain: false, .. }
        | Step::StopRebalance { .. }
        | Step::PinGroups(_)
        | Step::CleanUp
        | Step::GiveUp { .. }
        | Step::ForgetCleanup { .. } => String::new(),
    };
    Act::Step(format!("{} {about}", step.name()).trim_end().to_owned())
}

/// Tells what is refused again and again, of what is wanted now.
pub fn plan(view: View, plan: &mut Plan) {
    let mut growing: Vec<(&Refused, Vec<_>)> = Vec::new();
    let planned: Vec<Act> = plan.steps.iter().map(|planned| act(&planned.step)).collect();
    for refused in view.seen.refusals.lasting() {
        let wanted = !matches!(refused.act, Act::Step(_)) || planned.contains(&refused.act);
        // The schema and taken names have reasons of their own, at once.
        if !wanted || refused.failure.is_told_at_once() {
            continue;
        }
        match growth(view, refused) {
            Some(growth) => match growing.iter_mut().find(|(of, _)| is_like(of, refused)) {
                Some((_, alike)) => alike.push(growth),
                None => growing.push((refused, vec![growth])),
            },
            None => plan.problem(reason(refused), sentence(view, refused)),
        }
    }
    for (refused, all) in growing {
        plan.problem(ProblemReason::StorageCannotGrow, volumes::cannot_grow(view, refused, &all));
    }
}

/// A volume that cannot grow. Often all cannot, and for the same.
fn growth<'a>(view: View<'a>, refused: &Refused) -> Option<(Node, &'a str, &'a str)> {
    match (&refused.act, &refused.failure.cause) {
        (Act::Step(act), Cause::Api(_)) => volumes::refused_growth(view, act),
        _ => None,
    }
}

/// The coordinator's size is another field.
fn is_like(one: &Refused, other: &Refused) -> bool {
    let is_worker = |refused: &Refused| refused.node.is_some_and(Node::is_worker);
    one.failure.cause == other.failure.cause && is_worker(one) == is_worker(other)
}

fn reason(refused: &Refused) -> ProblemReason {
    let step = match &refused.act {
        Act::Step(step) => step.split(' ').next().unwrap_or_default(),
        Act::Plan => "StartRebalance",
        Act::Look(_) | Act::Catalog | Act::Schema => "",
    };
    match (&refused.failure.cause, step) {
        (Cause::Api(_), _) => ProblemReason::KubernetesRefused,
        (Cause::Login(_), _) => ProblemReason::LoginRefused,
        (_, "AddNode") => ProblemReason::RegistrationRefused,
        (_, "StartRebalance" | "StopRebalance") => ProblemReason::RebalanceRefused,
        (Cause::Sqlstate(_) | Cause::Unusable | Cause::Wait, _) => ProblemReason::StatementRefused,
    }
}

/// The volume claim that is refused for the first time.
fn unborn(view: View, refused: &Refused) -> bool {
    let Act::Step(step) = &refused.act else { return false };
    let claim = step.strip_prefix("Write PersistentVolumeClaim/");
    claim.is_some_and(|name| view.object("PersistentVolumeClaim", name).is_none())
}

/// What is refused, why, and what to do. It says nothing that changes from one try to the next.
fn sentence(view: View, refused: &Refused) -> String {
    let words = refused.failure.message.trim_end_matches('.');
    let coordinator = Node::Coordinator.pod_name(&view.desired.cluster.name);
    let server = match refused.node {
        // What a new worker is given comes from the coordinator.
        Some(node) if reason(refused) != ProblemReason::RegistrationRefused => {
            node.pod_name(&view.desired.cluster.name)
        }
        _ => coordinator,
    };
    let cure = match reason(refused) {
        ProblemReason::KubernetesRefused if unborn(view, refused) => format!(
            "Raise the quota, or correct the policy, the webhook or the right that it names{}",
            volumes::kept_in_words(view)
        ),
        ProblemReason::KubernetesRefused => {
            "Raise the quota, or correct the policy, the webhook or the right that it names".to_owned()
        }
        ProblemReason::LoginRefused => format!(
            "Look at the server's log (`kubectl logs {server}`), and undo what was changed: a setting of the role postgres or of the database, pg_hba.conf, or the certificates in the Secrets"
        ),
        _ => {
            format!("Mend what it names (`kubectl exec -it {server} -- psql {}`)", view.desired.database.name)
        }
    };
    format!(
        "{words} ({}, again and again since {}). {cure}. It is tried again all the time, and everything that does not need it goes on.",
        refused.failure.cause,
        refused.since.strftime("%H:%M:%SZ")
    )
}
