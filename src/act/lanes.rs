//! Which steps of a plan may be done beside each other, and which ones a failure stops. Pure.

use crate::{
    api::{
        Node,
        names::{SecretKind, keys},
    },
    plan::{Planned, Step},
    snapshot::Failure,
};

/// The node that a step is about, when it disturbs nobody else and needs nothing of another node.
#[must_use]
pub fn lane(step: &Step) -> Option<Node> {
    match step {
        Step::PrepareNode { node, .. }
        | Step::GrantRights { node, .. }
        | Step::RecordIdentity { node, .. }
        | Step::Reload { node }
        | Step::ResetAlterSystem { node, .. }
        | Step::HurryConfiguration { node, .. }
        | Step::PatchPod { node, .. } => Some(*node),
        Step::Create(object) | Step::Apply { object, .. } => {
            let labels = object.json.pointer("/metadata/labels")?;
            labels.get(keys::NODE)?.as_str()?.parse().ok()
        }
        Step::AddNode { .. }
        | Step::RestartNode { .. }
        | Step::SetShouldHaveShards { .. }
        | Step::Retire { .. }
        | Step::RemoveNode { .. }
        | Step::ActivateNode { .. }
        | Step::DropLeftovers { .. }
        | Step::TryParameter { .. }
        | Step::CreateSecret(_)
        | Step::SetConnectionKeys { .. }
        | Step::InspectImage { .. }
        | Step::Adopt { .. }
        | Step::ForgetInspection { .. }
        | Step::SetCoordinatorHost { .. }
        | Step::CreateOwner { .. }
        | Step::CreateExtension { .. }
        | Step::ApplySchema { .. }
        | Step::RecoverTransactions
        | Step::StartRebalance { .. }
        | Step::StopRebalance { .. }
        | Step::PinGroups(_)
        | Step::CleanUp
        | Step::GiveUp { .. }
        | Step::ForgetCleanup { .. }
        | Step::Delete { .. } => None,
    }
}

/// The node that a step is about, whoever else it concerns.
#[must_use]
pub fn node(step: &Step) -> Option<Node> {
    match step {
        Step::AddNode { node, .. }
        | Step::RestartNode { node, .. }
        | Step::SetShouldHaveShards { node, .. }
        | Step::Retire { node, .. }
        | Step::RemoveNode { node, .. }
        | Step::ActivateNode { node, .. }
        | Step::DropLeftovers { node, .. }
        | Step::TryParameter { node, .. } => Some(*node),
        Step::PrepareNode { .. }
        | Step::GrantRights { .. }
        | Step::RecordIdentity { .. }
        | Step::Reload { .. }
        | Step::ResetAlterSystem { .. }
        | Step::HurryConfiguration { .. }
        | Step::PatchPod { .. }
        | Step::Create(_)
        | Step::Apply { .. } => lane(step),
        Step::CreateSecret(_)
        | Step::SetConnectionKeys { .. }
        | Step::InspectImage { .. }
        | Step::Adopt { .. }
        | Step::ForgetInspection { .. }
        | Step::SetCoordinatorHost { .. }
        | Step::CreateOwner { .. }
        | Step::CreateExtension { .. }
        | Step::ApplySchema { .. }
        | Step::RecoverTransactions
        | Step::StartRebalance { .. }
        | Step::StopRebalance { .. }
        | Step::PinGroups(_)
        | Step::CleanUp
        | Step::GiveUp { .. }
        | Step::ForgetCleanup { .. }
        | Step::Delete { .. } => None,
    }
}

fn is_server(step: &Step) -> bool {
    matches!(step, Step::Create(object) if object.kind == "StatefulSet")
}

/// Whether a step stands on one that failed before it: without that it would be wrong, or dangerous. Whatever does not
/// is done all the same: what is refused for one thing must not keep everything else from being done.
#[must_use]
pub fn stands_on(step: &Step, failed: &Step) -> bool {
    let of_its_node = || node(failed).is_some() && node(failed) == node(step);
    match failed {
        // Moves are protected from evictions before the first one starts.
        Step::Create(object) | Step::Apply { object, .. } if object.kind == "PodDisruptionBudget" => {
            matches!(step, Step::StartRebalance { .. })
        }
        Step::Create(_)
        | Step::Apply { .. }
        | Step::PrepareNode { .. }
        | Step::RecordIdentity { .. }
        | Step::Reload { .. }
        | Step::ResetAlterSystem { .. }
        | Step::HurryConfiguration { .. }
        | Step::RestartNode { .. }
        | Step::AddNode { .. }
        | Step::Retire { .. }
        | Step::RemoveNode { .. } => of_its_node(),
        // Certificates are signed with what is in the first Secret; the owner's password is in the last.
        // A server that is there is taken to trust authorities that were there before it.
        Step::CreateSecret(SecretKind::Ca) if is_server(step) => true,
        Step::CreateSecret(_) => matches!(step, Step::CreateSecret(_) | Step::CreateOwner { .. }),
        Step::SetCoordinatorHost { .. } => matches!(step, Step::AddNode { .. }),
        // The schema may use what is in them.
        Step::CreateOwner { .. } | Step::CreateExtension { .. } => matches!(step, Step::ApplySchema { .. }),
        // No move starts, and no worker goes, before what is prepared is ended. From its mark on there is no way back.
        Step::RecoverTransactions => {
            matches!(step, Step::StartRebalance { .. } | Step::Retire { .. } | Step::RemoveNode { .. })
        }
        Step::SetShouldHaveShards { .. } => of_its_node() || matches!(step, Step::StartRebalance { .. }),
        // Of several that are inactive each gets a copy of the metadata in its turn; nothing may change it meanwhile.
        Step::ActivateNode { .. } => matches!(
            step,
            Step::ActivateNode { .. }
                | Step::AddNode { .. }
                | Step::StartRebalance { .. }
                | Step::SetShouldHaveShards { .. }
                | Step::Retire { .. }
                | Step::RemoveNode { .. }
        ),
        Step::GiveUp { workers } => {
            node(step).is_some_and(|node| workers.iter().any(|(given_up, _)| *given_up == node))
        }
        // Every move of such a shard fails.
        Step::ForgetCleanup { .. } => matches!(step, Step::StartRebalance { .. }),
        Step::Delete { name, .. } => matches!(step, Step::Delete { name: other, .. } if other == name),
        // The role gets the password of a Secret whose keys agree with it.
        Step::SetConnectionKeys { .. } => matches!(step, Step::CreateOwner { .. }),
        // Questions and tidying up: until they are answered or done the plan is one without them. The schema is needed
        // by nothing else in a plan; a job that cannot be started or stopped, by nothing that is planned beside it.
        Step::InspectImage { .. }
        | Step::Adopt { .. }
        | Step::ForgetInspection { .. }
        | Step::TryParameter { .. }
        | Step::DropLeftovers { .. }
        | Step::PatchPod { .. }
        | Step::CleanUp
        | Step::GrantRights { .. }
        | Step::ApplySchema { .. }
        | Step::PinGroups(_)
        | Step::StartRebalance { .. }
        | Step::StopRebalance { .. } => false,
    }
}

/// The steps of a plan in the order in which they are tried: those that have failed lately, and what stands on them, come
/// last, for a step that is refused in the end may take its time until then.
#[must_use]
pub fn in_turn(steps: &[Planned], failed_lately: impl Fn(&Step) -> bool) -> Vec<Planned> {
    let mut late: Vec<Planned> = Vec::new();
    let mut turn: Vec<Planned> = Vec::new();
    for planned in steps {
        let waits = late.iter().any(|before| stands_on(&planned.step, &before.step));
        let list = if waits || failed_lately(&planned.step) { &mut late } else { &mut turn };
        list.push(planned.clone());
    }
    turn.append(&mut late);
    turn
}

/// The step only prepares for others, and each of these is put off.
#[must_use]
pub fn is_for_nothing(step: &Step, steps: &[Planned], put_off: impl Fn(&Step) -> bool) -> bool {
    let mut others =
        steps.iter().map(|planned| &planned.step).filter(|other| stands_on(other, step)).peekable();
    *step == Step::RecoverTransactions && others.peek().is_some() && others.all(put_off)
}

/// What failures have stopped of a plan.
#[derive(Debug, Default)]
pub struct Stopped {
    failed: Vec<Step>,
    everything: bool,
}

impl Stopped {
    /// Whether the step is not to be tried, because something that it stands on has failed.
    #[must_use]
    pub fn includes(&self, step: &Step) -> bool {
        self.everything || self.failed.iter().any(|failed| stands_on(step, failed))
    }
    /// Notes that a step has failed.
    pub fn after(&mut self, step: &Step, failure: &Failure) {
        self.everything |= failure.stops_everything();
        self.failed.push(step.clone());
    }
}

/// The plan as batches, one after another; in a batch lanes beside each other; in a lane steps one after another.
/// A step that is not one node's is a batch of its own.
#[must_use]
pub fn batches(steps: &[Planned]) -> Vec<Vec<Vec<&Planned>>> {
    let mut batches: Vec<Vec<(Option<Node>, Vec<&Planned>)>> = Vec::new();
    for planned in steps {
        let node = lane(&planned.step);
        let open =
            batches.last_mut().filter(|batch| node.is_some() && batch.iter().all(|(of, _)| of.is_some()));
        match open {
            Some(batch) => match batch.iter_mut().find(|(of, _)| *of == node) {
                Some((_, lane)) => lane.push(planned),
                None => batch.push((node, vec![planned])),
            },
            None => batches.push(vec![(node, vec![planned])]),
        }
    }
    batches.into_iter().map(|batch| batch.into_iter().map(|(_, lane)| lane).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_prepared_in_parallel_before_registration() {
        let prepare = |node| Step::PrepareNode { node, extension: None };
        let record = |node| Step::RecordIdentity { node, system_identifier: "7".into(), claim: "c".into() };
        let add = |node| Step::AddNode { node, address: String::new() };
        let (a, b) = (Node::Worker(0), Node::Worker(1));
        let steps = [
            record(a),
            prepare(a),
            record(b),
            prepare(b),
            add(a),
            add(b),
            Step::RecoverTransactions,
            prepare(a),
        ];
        let steps: Vec<Planned> =
            steps.into_iter().map(|step| Planned { step, why: String::new() }).collect();
        let shape: Vec<Vec<Vec<&str>>> = batches(&steps)
            .into_iter()
            .map(|batch| {
                batch.into_iter().map(|lane| lane.into_iter().map(|p| p.step.name()).collect()).collect()
            })
            .collect();
        assert_eq!(
            shape,
            [
                vec![vec!["RecordIdentity", "PrepareNode"], vec!["RecordIdentity", "PrepareNode"]],
                vec![vec!["AddNode"]],
                vec![vec!["AddNode"]],
                vec![vec!["RecoverTransactions"]],
                vec![vec!["PrepareNode"]],
            ]
        );
    }
}
