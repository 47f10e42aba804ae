//! What people have put on a worker that is to go, and no catalog of ours knows: it would go with the worker, and a kept
//! volume is never taken back. There is no way around it: the person moves or drops it. The question only.

use std::collections::BTreeSet;

use super::{Gate, Problem, View, WaitingOn, force_remove};
use crate::{
    api::{Node, names::keys},
    snapshot::{Contents, Observed, Postgres},
};

/// Workers that a step is to take something from next: what they hold has to be known, as of now.
#[must_use]
pub fn workers_to_inspect(view: View) -> BTreeSet<Node> {
    if view.citus().is_none() {
        return BTreeSet::new();
    }
    let mut nodes: BTreeSet<Node> =
        view.nodes().into_iter().filter(|node| was_removed_manually(view, *node)).collect();
    nodes.retain(|node| view.postgres(*node).is_some());
    if view.open_job().is_none() && view.unhealthy_members().is_empty() {
        let next = view
            .draining_workers()
            .into_iter()
            .filter(|(_, row)| row.should_have_shards || view.shards(row) == 0);
        nodes.extend(next.map(|(node, _)| node));
    }
    nodes
}

/// Somebody has removed a member that is no longer asked for, and nobody has said what becomes of its volume.
#[must_use]
pub fn was_removed_manually(view: View, node: Node) -> bool {
    let asked = view.desired.nodes().any(|asked| asked == node);
    !asked
        && view.is_no_member(node)
        && !view.is_decommissioned(node)
        && view.identity(node).is_some()
        && view.postgres(node).is_none_or(Postgres::holds_metadata)
}

/// What is on the worker that is not the cluster's own; nothing when there is nothing.
///
/// # Errors
/// It could not be looked at: then it counts as not free.
pub fn foreign_contents(view: View<'_>, node: Node) -> Result<Option<&Contents>, WaitingOn> {
    let why = match view.snapshot.contents.get(&node) {
        Some(Observed::Known(contents)) => return Ok(Some(contents).filter(|contents| !contents.is_empty())),
        Some(Observed::Unknown(why)) => why.as_str(),
        None => "it was not checked yet",
    };
    Err(WaitingOn::ContentsUnknown { node, why: why.to_owned() })
}

/// A worker that somebody has removed may be put aside: nothing else is on it, or a person has given it up by name.
///
/// # Errors
/// Why it may not.
pub fn may_be_decommissioned(view: View, node: Node) -> Gate {
    let name = view.name(node);
    match foreign_contents(view, node) {
        _ if force_remove::is_requested(view, node) => Ok(()),
        Ok(None) => Ok(()),
        _ if view.postgres(node).is_none() => {
            let why = format!(
                "{name} was removed by hand and does not answer. If it is lost, give it up by the annotation {}",
                keys::FORCE_REMOVE
            );
            Err(WaitingOn::ContentsUnknown { node, why }.into())
        }
        Ok(Some(found)) => {
            Err(Problem::DecommissionRefused { node: name, found: Box::new(found.clone()) }.into())
        }
        Err(unknown) => Err(unknown.into()),
    }
}
