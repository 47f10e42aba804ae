//! Which steps of a plan may be done beside each other, and which ones a failure stops. Pure.

use crate::{
    api::Node,
    plan::{PlannedStep, SqlStep, Step},
    snapshot::Failure,
};

/// Whether a step stands on one that failed before it: without that it would be wrong, or dangerous. Whatever does not
/// is done all the same: what is refused for one thing must not keep everything else from being done.
#[must_use]
pub fn depends_on(step: &Step, failed: &Step) -> bool {
    step.effect().depends_on(&failed.effect())
}

/// The steps of a plan in the order in which they are tried: those that have failed lately, and what stands on them, come
/// last, for a step that is refused in the end may take its time until then.
#[must_use]
pub fn in_turn(steps: &[PlannedStep], failed_lately: impl Fn(&Step) -> bool) -> Vec<PlannedStep> {
    let mut late: Vec<PlannedStep> = Vec::new();
    let mut turn: Vec<PlannedStep> = Vec::new();
    for planned in steps {
        let waits = late.iter().any(|before| depends_on(&planned.step, &before.step));
        let list = if waits || failed_lately(&planned.step) { &mut late } else { &mut turn };
        list.push(planned.clone());
    }
    turn.append(&mut late);
    turn
}

/// The step only prepares for others, and each of these is put off.
#[must_use]
pub fn prepares_only_postponed(step: &Step, steps: &[PlannedStep], put_off: impl Fn(&Step) -> bool) -> bool {
    let mut others =
        steps.iter().map(|planned| &planned.step).filter(|other| depends_on(other, step)).peekable();
    *step == Step::Sql(SqlStep::RecoverTransactions) && others.peek().is_some() && others.all(put_off)
}

/// What failures have stopped of a plan.
#[derive(Debug, Default)]
pub struct FailureScope {
    failed: Vec<Step>,
    everything: bool,
}

impl FailureScope {
    /// Whether the step is not to be tried, because something that it stands on has failed.
    #[must_use]
    pub fn includes(&self, step: &Step) -> bool {
        self.everything || self.failed.iter().any(|failed| depends_on(step, failed))
    }
    /// Notes that a step has failed.
    pub fn after(&mut self, step: &Step, failure: &Failure) {
        self.everything |= failure.stops_everything();
        self.failed.push(step.clone());
    }
}

/// The plan as batches, one after another; in a batch nodes beside each other; of one node steps one after another.
/// A step that is not one node's is a batch of its own.
#[must_use]
pub fn batches(steps: &[PlannedStep]) -> Vec<Vec<Vec<&PlannedStep>>> {
    let mut batches: Vec<Vec<(Option<Node>, Vec<&PlannedStep>)>> = Vec::new();
    for planned in steps {
        let node = planned.step.effect().node_scope();
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
    use crate::plan::KubernetesStep;

    #[test]
    fn nodes_are_prepared_in_parallel_before_registration() {
        let prepare = |node| Step::from(SqlStep::BootstrapNode { node, extension: None });
        let record = |node| {
            let claim = "c".to_owned();
            Step::from(KubernetesStep::RecordIdentity { node, system_identifier: "7".into(), claim })
        };
        let add = |node| Step::from(SqlStep::AddNode { node, address: String::new() });
        let (a, b) = (Node::Worker(0), Node::Worker(1));
        let steps = [
            record(a),
            prepare(a),
            record(b),
            prepare(b),
            add(a),
            add(b),
            SqlStep::RecoverTransactions.into(),
            prepare(a),
        ];
        let steps: Vec<PlannedStep> =
            steps.into_iter().map(|step| PlannedStep { step, why: String::new() }).collect();
        let shape: Vec<Vec<Vec<&str>>> = batches(&steps)
            .into_iter()
            .map(|batch| {
                batch.into_iter().map(|lane| lane.into_iter().map(|p| p.step.name()).collect()).collect()
            })
            .collect();
        assert_eq!(
            shape,
            [
                vec![vec!["RecordIdentity", "BootstrapNode"], vec!["RecordIdentity", "BootstrapNode"]],
                vec![vec!["AddNode"]],
                vec![vec!["AddNode"]],
                vec![vec!["RecoverTransactions"]],
                vec![vec!["BootstrapNode"]],
            ]
        );
    }
}
