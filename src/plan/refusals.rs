//! What is refused again and again: it becomes a problem in the words of whoever refuses it, and everything that does not
//! need it goes on. Which steps need which others is `act::concurrency`'s.

use std::collections::BTreeSet;

use super::{
    KubernetesStep, Plan, Problem, SqlStep, Step, View,
    effect::Concern,
    problem::{LastingRefusal, RefusalKind},
    volumes,
};
use crate::{
    api::Node,
    resources::Manifest,
    snapshot::{Attempt, Cause, RepeatedRefusal},
};

/// What a step tries: its kind and what it is about, whatever else is in it.
#[must_use]
pub fn attempt_of(step: &Step) -> Attempt {
    let about = match step {
        // The first write and later ones are refused for the same.
        Step::Kubernetes(KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. }) => {
            return Attempt::Step(format!("Write {}", object.key()));
        }
        Step::Kubernetes(step) => about_object(step),
        Step::Sql(step) => about_statement(step),
    };
    Attempt::Step(format!("{} {about}", step.name()).trim_end().to_owned())
}

fn about_object(step: &KubernetesStep) -> String {
    match step {
        KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. } => object.key(),
        KubernetesStep::Adopt { kind, name, .. } | KubernetesStep::Delete { kind, name, .. } => {
            format!("{kind}/{name}")
        }
        KubernetesStep::CreateSecret(kind) => kind.to_string(),
        KubernetesStep::SetConnectionKeys { .. } => String::new(),
        KubernetesStep::InspectImage { image } => image.clone(),
        KubernetesStep::DeleteInspectionPod { pod } => pod.clone(),
        KubernetesStep::RefreshConfiguration { node, .. }
        | KubernetesStep::PatchPod { node, .. }
        | KubernetesStep::RecordIdentity { node, .. }
        | KubernetesStep::RestartNode { node, .. }
        | KubernetesStep::Decommission { node, .. } => node.to_string(),
    }
}

fn about_statement(step: &SqlStep) -> String {
    match step {
        SqlStep::BootstrapNode { node, .. }
        | SqlStep::GrantRights { node, .. }
        | SqlStep::Reload { node }
        | SqlStep::ResetAlterSystem { node, .. }
        | SqlStep::AddNode { node, .. }
        | SqlStep::SetShouldHaveShards { node, .. }
        | SqlStep::RemoveNode { node, .. }
        | SqlStep::ActivateNode { node, .. }
        | SqlStep::DropLeftovers { node, .. } => node.to_string(),
        SqlStep::CheckParameter { name, value, .. } => format!("{name}={value}"),
        SqlStep::CreateExtension { name } => name.clone(),
        // Corrected SQL is another schema.
        SqlStep::ApplySchema { hash } => hash.clone(),
        SqlStep::StartRebalance { drain: true, .. } => "drain".to_owned(),
        SqlStep::SetCoordinatorHost { .. }
        | SqlStep::CreateOwner { .. }
        | SqlStep::RecoverTransactions
        | SqlStep::StartRebalance { drain: false, .. }
        | SqlStep::StopRebalance { .. }
        | SqlStep::PinGroups(_)
        | SqlStep::CleanUpOrphans
        | SqlStep::ForceRemove { .. }
        | SqlStep::DeleteStaleCleanupRecords { .. } => String::new(),
    }
}

/// Tells what is refused again and again, of what is wanted now.
pub fn plan(view: View, plan: &mut Plan) {
    let mut growing: Vec<(&RepeatedRefusal, Vec<_>)> = Vec::new();
    let mut told: Vec<Problem> = Vec::new();
    for refused in view.snapshot.refusals.lasting() {
        let step =
            plan.steps.iter().map(|planned| &planned.step).find(|step| attempt_of(step) == refused.act);
        let wanted = step.is_some() || !refused.act.is_step();
        // The schema and taken names have reasons of their own, at once.
        if !wanted || refused.failure.is_reported_at_once() {
            continue;
        }
        match step.and_then(|step| growth(view, refused, step)) {
            Some(growth) => match growing.iter_mut().find(|(of, _)| is_like(of, refused)) {
                Some((_, alike)) => alike.push(growth),
                None => growing.push((refused, vec![growth])),
            },
            None => told.push(problem(view, refused, step)),
        }
    }
    told.extend(growing.into_iter().map(|(refused, all)| volumes::cannot_grow(view, refused, &all)));
    for problem in told {
        plan.problem(problem);
    }
}

/// The object that a step writes.
fn written(step: &Step) -> Option<&Manifest> {
    match step {
        Step::Kubernetes(KubernetesStep::Create(object) | KubernetesStep::Apply { object, .. }) => {
            Some(object)
        }
        Step::Kubernetes(_) | Step::Sql(_) => None,
    }
}

/// A volume that cannot grow. Often all cannot, and for the same.
fn growth<'a>(view: View<'a>, refused: &RepeatedRefusal, step: &Step) -> Option<(Node, &'a str, &'a str)> {
    let by_api_server = matches!(refused.failure.cause, Cause::Api(_));
    volumes::refused_growth(view, written(step).filter(|_| by_api_server)?)
}

/// The coordinator's size is another field.
fn is_like(one: &RepeatedRefusal, other: &RepeatedRefusal) -> bool {
    let is_worker = |refused: &RepeatedRefusal| refused.node.is_some_and(Node::is_worker);
    one.failure.cause == other.failure.cause && is_worker(one) == is_worker(other)
}

/// Who refuses comes before what is refused.
fn kind(refused: &RepeatedRefusal, step: Option<&Step>) -> RefusalKind {
    match &refused.failure.cause {
        Cause::Api(_) => RefusalKind::Kubernetes,
        Cause::Login(_) => RefusalKind::Login,
        Cause::Sqlstate(_) | Cause::Unusable | Cause::Wait => match (&refused.act, step) {
            (Attempt::Plan, _) => RefusalKind::Rebalance,
            (Attempt::Step(_), Some(step)) => statement_kind(step.effect().concerns),
            (Attempt::Step(_) | Attempt::Observation(_) | Attempt::Catalog | Attempt::Schema, _) => {
                RefusalKind::Statement
            }
        },
    }
}

fn statement_kind(concern: Concern) -> RefusalKind {
    match concern {
        Concern::Registration => RefusalKind::Registration,
        Concern::Moves => RefusalKind::Rebalance,
        Concern::Objects
        | Concern::Evictions
        | Concern::Question
        | Concern::Configuration
        | Concern::Restart
        | Concern::Preparation
        | Concern::Application
        | Concern::Schema
        | Concern::MovePreparation
        | Concern::Draining
        | Concern::Removal
        | Concern::ForceRemoval
        | Concern::Repair => RefusalKind::Statement,
    }
}

/// The volume claim that is refused for the first time.
fn is_first_claim(view: View, step: Option<&Step>) -> bool {
    let claim = step.and_then(written).filter(|object| object.kind == "PersistentVolumeClaim");
    claim.is_some_and(|claim| view.object(&claim.kind, &claim.name).is_none())
}

/// What is refused, why, and where to look.
fn problem(view: View, refused: &RepeatedRefusal, step: Option<&Step>) -> Problem {
    let kind = kind(refused, step);
    // What a new worker is given comes from the coordinator.
    let at = refused.node.filter(|_| kind != RefusalKind::Registration).unwrap_or(Node::Coordinator);
    Problem::Refused(Box::new(LastingRefusal {
        kind,
        message: refused.failure.message.clone(),
        cause: refused.failure.cause.clone(),
        since: refused.since,
        pod: at.pod_name(&view.desired.cluster.name),
        database: view.desired.database.name.clone(),
        unused_claims: if is_first_claim(view, step) { volumes::unused(view) } else { BTreeSet::new() },
    }))
}
