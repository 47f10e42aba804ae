//! The planner: a pure function from what is wanted and what was seen to what to do now. No client, no async, no
//! clock, no randomness, no state lives here. This file is the order of concerns; each concern has a file.

pub mod image;
pub mod invariants;
pub mod membership;
pub mod objects;
pub mod rebalance;
pub mod roll;
pub mod scale_in;
pub mod schema;
pub mod settings;
pub mod step;
pub mod view;

pub use step::{Hold, Plan, Planned, Problem, ProblemReason, RestartCause, Step};
pub use view::{Server, View};

use crate::{api::Desired, observe::Snapshot};

/// What to do now, and why, and what is waited for.
///
/// The order is the order in which one thing needs another: an image and parameters that can be used, objects made of
/// them, servers that run with them, members that are registered, tables, even shards.
#[must_use]
pub fn plan(desired: &Desired, seen: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    if desired.deleting {
        return plan;
    }
    let view = View { desired, seen };
    let wanted = wanted(view, &mut plan);
    objects::plan(view, &wanted, &mut plan);
    settings::plan(view, &wanted, &mut plan);
    membership::plan(view, &wanted, &mut plan);
    schema::plan(view, &mut plan);
    scale_in::plan(view, &mut plan);
    roll::plan(view, &wanted, &mut plan);
    rebalance::plan(view, &wanted, &mut plan);
    objects::grow_volumes(view, &wanted, &mut plan);
    if desired.paused {
        let steps = plan.steps.len();
        plan.steps.clear();
        plan.holds.insert(0, Hold::Paused { steps });
    }
    plan
}

/// The plan, looked at once more before it is carried out: one that breaks a rule is a bug of the planner, and nothing
/// of it is done.
#[must_use]
pub fn checked(desired: &Desired, seen: &Snapshot) -> Plan {
    let mut plan = plan(desired, seen);
    let view = View { desired, seen };
    if let Err(broken) = invariants::check(view, &wanted(view, &mut Plan::default()), &plan) {
        plan.steps.clear();
        plan.problem(
            ProblemReason::InvariantBroken,
            format!(
                "{broken}. Nothing was done. This is a bug of the operator: please report it with its snapshot."
            ),
        );
    }
    plan
}

/// What the spec comes to now; what that needs or meets goes into the plan.
pub fn wanted(view: View, plan: &mut Plan) -> Wanted {
    Wanted { image: image::choose(view, plan), parameters: settings::choose(view, plan) }
}

/// What the spec comes to after looking at what is possible: the image that can be used, the parameters that are taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Image of every node.
    pub image: String,
    /// The user's parameters, or those of before when these are refused.
    pub parameters: std::collections::BTreeMap<String, String>,
}

impl Wanted {
    /// What the builders of objects need.
    #[must_use]
    pub fn inputs<'a>(&'a self, view: View<'a>) -> crate::resources::Inputs<'a> {
        crate::resources::Inputs { desired: view.desired, operator: &view.seen.operator, image: &self.image }
    }
}
