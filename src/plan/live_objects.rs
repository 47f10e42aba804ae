//! What is there under the names of ours: whether a name is free, how an object differs from the wanted one, what a node's
//! volume was made with. Answers only.

use super::{Findings, Gate, Problem, ServerCheck, View, WaitingOn};
use crate::{
    api::{Node, names::keys},
    resources::{self, InitdbPermission, Manifest},
    snapshot::{LiveObject, Ownership},
};

/// Whether a name is free or ours. A stranger's object is left alone.
pub(super) fn is_free(view: View, kind: &str, name: &str) -> Gate {
    match view.object(kind, name).map(|object| object.ownership) {
        None | Some(Ownership::Owned) => Ok(()),
        Some(Ownership::OwnedByDeleted) => {
            Err(WaitingOn::FormerObjects { object: format!("{kind}/{name}") }.into())
        }
        // What is wrong with it is told.
        Some(Ownership::Left) => Err(Findings::default()),
        Some(Ownership::Foreign) => {
            Err(Problem::ObjectConflict { kind: kind.to_owned(), name: name.to_owned() }.into())
        }
    }
}

/// The first difference that a write of ours would mend. What admission made of the last one it would make again, and
/// again; another value than that is somebody's since. What protects moves from evictions is written all the same.
pub(super) fn difference(view: View, want: &Manifest, live: &LiveObject) -> Option<String> {
    let made = view.snapshot.rewritten.get(&want.key()).filter(|_| want.kind != "PodDisruptionBudget");
    let made = made.map_or(&[][..], |made| &made.differences);
    let differences = resources::differences(want, &live.json);
    differences.iter().find(|one| !made.contains(one)).map(ToString::to_string)
}

/// Whether a node may initialise its volume, and with which locale.
pub(super) fn initdb_permission(view: View<'_>, node: Node) -> InitdbPermission<'_> {
    match view.identity(node) {
        None => InitdbPermission::Allowed(birth_locale(view)),
        Some(_) => InitdbPermission::Forbidden,
    }
}

/// The locale that the cluster was born with: what was written down on the coordinator's volume, or before that what
/// its server says. It never changes: rows that are sorted in one way on one node and otherwise on another are lost to
/// queries.
pub(super) fn birth_locale(view: View<'_>) -> Option<&str> {
    let claim = view.owned("PersistentVolumeClaim", view.claim(Node::Coordinator)?)?;
    let ServerCheck::Verified(coordinator) = view.server(Node::Coordinator) else {
        return claim.annotation(keys::LOCALE);
    };
    claim.annotation(keys::LOCALE).or(coordinator.locale.as_deref())
}
