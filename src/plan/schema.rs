//! The application's role and tables: made once, when every worker asked for has joined, in one transaction. A changed
//! schema is never run again.

use super::{Plan, ServerCheck, SqlStep, View, WaitingOn, secrets};
use crate::{
    api::Node,
    snapshot::{Login, Observed},
};

/// Makes the role, then the tables.
pub fn plan(view: View, plan: &mut Plan) {
    let (Some(citus), ServerCheck::Verified(coordinator)) = (view.citus(), view.server(Node::Coordinator))
    else {
        return;
    };
    let workers = view.registered_workers();
    let waiting = view.missing_workers().iter().any(|missing| !missing.timed_out);
    if coordinator.extension.is_none()
        || workers.is_empty()
        || waiting
        || !view.unhealthy_members().is_empty()
    {
        return;
    }
    let born = citus.schema_hash.is_some();
    for name in view.desired.database.extensions.iter().filter(|name| !citus.extensions.contains(*name)) {
        let step = SqlStep::CreateExtension { name: name.clone() };
        plan.step(step, "spec.database.extensions names it, and the application's role cannot make it");
    }
    // A Secret that was changed, or made anew as after the DialogCluster was deleted and made again, has another password.
    // Somebody has given the role another one. The Secret is what counts: whoever reads it must get in.
    let application = view.snapshot.reach.as_ref().map(|reach| &reach.application);
    let differs = matches!(application, Some(Login::PasswordDiffers(_)));
    if let Some(marker) = secrets::password_marker(view)
        && (!citus.owner_exists || citus.owner_secret.as_ref() != Some(&marker) || differs)
    {
        let owner = view.desired.database.owner.clone();
        let step = SqlStep::CreateOwner { owner, secret_uid: marker };
        plan.step(step, "the application logs in with this role and the password of its Secret");
    }
    if born {
        return;
    }
    match &view.snapshot.schema_sql {
        Observed::Known(schema) => plan.step(
            SqlStep::ApplySchema { hash: schema.hash.clone() },
            "all requested workers have joined and there are no tables yet",
        ),
        Observed::Unknown(why) => plan.wait(WaitingOn::SchemaSource { why: why.clone() }),
    }
}
