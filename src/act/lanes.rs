//! Which steps of a plan may be done beside each other, and which ones a failure stops. Pure.

use std::collections::BTreeSet;

use crate::{
    api::{Node, names::keys},
    plan::{Planned, Step},
};

/// The node that a step is about, when it disturbs nobody else and needs nothing of another node.
#[must_use]
pub fn lane(step: &Step) -> Option<Node> {
    match step {
        Step::PrepareNode { node, .. }
        | Step::RecordIdentity { node, .. }
        | Step::Reload { node }
        | Step::ResetAlterSystem { node, .. }
        | Step::HurryConfiguration { node, .. } => Some(*node),
        Step::Create(object) | Step::Apply { object, .. } => {
            let labels = object.json.pointer("/metadata/labels")?;
            labels.get(keys::NODE)?.as_str()?.parse().ok()
        }
        _ => None,
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
        _ => lane(step),
    }
}

/// What failures have stopped of a plan.
#[derive(Debug, Default)]
pub struct Stopped {
    nodes: BTreeSet<Node>,
    schema: bool,
}

impl Stopped {
    /// Whether the step is not to be tried, because something before it has failed.
    #[must_use]
    pub fn includes(&self, step: &Step) -> bool {
        self.schema && is_of_schema(step) || node(step).is_some_and(|node| self.nodes.contains(&node))
    }
    /// Notes that a step has failed, and says whether the rest of the plan goes on.
    ///
    /// What concerns one node alone (a quota that is used up, a full disk) stops that node. The application's role and
    /// tables are needed by nothing else. A question stops nothing: until it is answered the plan is one without the
    /// answer; nor does tidying up. Every other step stands on those before it.
    #[must_use]
    pub fn after(&mut self, step: &Step) -> bool {
        if let Some(node) = lane(step) {
            self.nodes.insert(node);
            return true;
        }
        self.schema |= is_of_schema(step);
        is_of_schema(step) || is_question(step) || matches!(step, Step::DropLeftovers { .. })
    }
}

fn is_of_schema(step: &Step) -> bool {
    matches!(step, Step::CreateOwner { .. } | Step::ApplySchema { .. })
}

fn is_question(step: &Step) -> bool {
    matches!(step, Step::TryParameter { .. } | Step::InspectImage { .. } | Step::ForgetInspection { .. })
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
    fn nodes_are_prepared_beside_each_other_and_all_before_any_is_registered() {
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
