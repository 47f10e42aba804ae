//! Fewer workers asked for than are registered. Nothing is drained or removed: that is refused, with the numbers.

use super::{Plan, ProblemReason, View};
use crate::api::Node;

/// Refuses a scale-in.
pub fn plan(view: View, plan: &mut Plan) {
    let surplus = surplus(view);
    if surplus.is_empty() {
        return;
    }
    let registered = view.registered_workers().len();
    let names: Vec<String> = surplus.iter().map(|node| view.name(*node)).collect();
    plan.problem(
        ProblemReason::ScaleInRefused,
        format!("spec.workers.replicas: {} workers are asked for and {registered} are registered: scaling in is not supported yet, so {} and their shards stay and serve. Set spec.workers.replicas back to {registered}.", view.desired.workers, names.join(", ")),
    );
}

/// Registered workers that are no longer asked for.
#[must_use]
pub fn surplus(view: View) -> Vec<Node> {
    let workers = view.desired.workers;
    view.registered_workers()
        .into_keys()
        .filter(|node| matches!(node, Node::Worker(ordinal) if *ordinal >= workers))
        .collect()
}
