//! What people have put on a worker that is to go, and no catalog of ours knows: it would go with the worker, and a kept
//! volume is never taken back. There is no way around it: the person moves or drops it. Words and the question only.

use std::collections::BTreeSet;

use super::{Hold, Plan, ProblemReason, View, force_remove};
use crate::{
    api::{Node, names::keys},
    observe::snapshot::{Contents, Holdings, Named, OtherDatabase, Postgres, Seen},
};

/// So many databases, and tables with copies, are named.
const NAMED: usize = 5;

/// Workers that a step is to take something from next: what they hold has to be known, as of now.
#[must_use]
pub fn looked_at(view: View) -> BTreeSet<Node> {
    if view.citus().is_none() {
        return BTreeSet::new();
    }
    let mut nodes: BTreeSet<Node> =
        view.nodes().into_iter().filter(|node| is_removed_by_hand(view, *node)).collect();
    nodes.retain(|node| view.postgres(*node).is_some());
    if view.open_job().is_none() && view.unwell().is_empty() {
        let next =
            view.leaving().into_iter().filter(|(_, row)| row.should_have_shards || view.shards(row) == 0);
        nodes.extend(next.map(|(node, _)| node));
    }
    nodes
}

/// Somebody has removed a member that is no longer asked for, and nobody has said what becomes of its volume.
#[must_use]
pub fn is_removed_by_hand(view: View, node: Node) -> bool {
    let asked = view.desired.nodes().any(|asked| asked == node);
    !asked
        && view.is_no_member(node)
        && !view.is_retired(node)
        && view.identity(node).is_some()
        && view.postgres(node).is_none_or(Postgres::holds_metadata)
}

/// Nothing but the cluster's own was seen on the worker.
#[must_use]
pub fn is_free(view: View, node: Node) -> bool {
    view.seen.contents.get(&node).and_then(Seen::known).is_some_and(Contents::is_empty)
}

/// What is on the worker that is not the cluster's own, in words; nothing when there is nothing. When it could not be
/// looked at there is something to wait for, and it counts as not free.
pub fn found(view: View, node: Node, plan: &mut Plan) -> Option<String> {
    match view.seen.contents.get(&node) {
        Some(Seen::Known(contents)) if contents.is_empty() => None,
        Some(Seen::Known(contents)) => {
            Some(format!("on {} is {}", view.name(node), said(contents).join("; ")))
        }
        Some(Seen::Unknown(why)) => {
            plan.hold(Hold::ContentsUnknown { node, why: why.clone() });
            None
        }
        None => {
            plan.hold(Hold::ContentsUnknown { node, why: "it was not looked at yet".to_owned() });
            None
        }
    }
}

/// What there is to do about what was found.
pub const CURE: &str = "It would go with the worker, and no kept volume is ever used again: move it away if it is wanted, and drop it there; it goes on by itself within 30 s";

/// A worker that somebody has removed may be put aside: nothing else is on it, or a person has given it up by name.
#[must_use]
pub fn may_be_put_aside(view: View, node: Node, plan: &mut Plan) -> bool {
    if is_free(view, node) || force_remove::is_named(view, node) {
        return true;
    }
    let name = view.name(node);
    if view.postgres(node).is_none() {
        let why = format!(
            "{name} was removed by hand and does not answer. If it is lost, give it up by the annotation {}",
            keys::FORCE_REMOVE
        );
        plan.hold(Hold::ContentsUnknown { node, why });
    } else if let Some(found) = found(view, node, plan) {
        let what =
            format!("{name} was a member, is no longer one, and cannot be put aside: {found}. {CURE}.");
        plan.problem(ProblemReason::ScaleInRefused, what);
    }
    false
}

fn said(contents: &Contents) -> Vec<String> {
    let mut parts: Vec<String> = contents.databases.iter().take(NAMED).map(database).collect();
    let more = contents.databases.len().saturating_sub(NAMED);
    if more > 0 {
        parts.push(format!("{more} other databases"));
    }
    if !contents.local.is_empty() {
        parts.push(format!(
            "in the application's database, and not known to Citus, {}",
            holdings(&contents.local)
        ));
    }
    let named = [
        (&contents.slots, "replication slot", "drop it: SELECT pg_drop_replication_slot('<name>')"),
        (&contents.prepared, "prepared transaction", "end it: COMMIT PREPARED or ROLLBACK PREPARED '<name>'"),
        (&contents.subscriptions, "subscription", "drop it: DROP SUBSCRIPTION"),
        (&contents.publications, "publication", "drop it: DROP PUBLICATION"),
    ];
    for (found, what, cure) in named.into_iter().filter(|(found, ..)| found.count > 0) {
        parts.push(format!("{} ({cure})", list(found, what)));
    }
    for copied in contents.copies.iter().take(NAMED) {
        let shards = several(copied.shards, "shard");
        parts.push(format!(
            "{shards} of {} with more than one placement (a replication factor above 1)",
            copied.table
        ));
    }
    let more = contents.copies.len().saturating_sub(NAMED);
    if more > 0 {
        parts.push(format!("shards of {more} other tables with more than one placement"));
    }
    parts
}

fn database(found: &OtherDatabase) -> String {
    let name = &found.name;
    if let Some(why) = &found.closed {
        return format!("the database {name}, into which nobody can look ({why})");
    }
    let member = found.member.as_ref().map(|member| {
        format!(
            "{} with about {} rows as a member of another Citus cluster of {} nodes",
            several(member.shards, "shard"),
            member.rows,
            member.nodes
        )
    });
    let holds = Some(holdings(&found.holds)).filter(|_| !found.holds.is_empty());
    let parts: Vec<String> = member.into_iter().chain(holds).collect();
    format!("the database {name} with {}", parts.join(" and "))
}

fn holdings(holds: &Holdings) -> String {
    let mut parts = Vec::new();
    if holds.tables > 0 {
        let named = holds.first.iter().map(|table| match table.rows {
            Some(rows) => format!("{} (about {rows} rows)", table.name),
            None => format!("{} (rows not counted)", table.name),
        });
        let more = usize::try_from(holds.tables).unwrap_or_default().saturating_sub(holds.first.len());
        let named: Vec<String> = named.chain((more > 0).then(|| format!("{more} more"))).collect();
        let rows = format!("about {} rows", holds.rows);
        parts.push(format!("{} with {rows}: {}", several(holds.tables, "table"), named.join(", ")));
    }
    if holds.sequences.count > 0 {
        parts.push(list(&holds.sequences, "sequence"));
    }
    if holds.large_objects > 0 {
        parts.push(several(holds.large_objects, "large object"));
    }
    parts.join(", ")
}

/// `2 replication slots: a, b`.
fn list(found: &Named, what: &str) -> String {
    let more = usize::try_from(found.count).unwrap_or_default().saturating_sub(found.first.len());
    let names = found.first.iter().cloned().chain((more > 0).then(|| format!("{more} more")));
    format!("{}: {}", several(found.count, what), names.collect::<Vec<_>>().join(", "))
}

fn several(count: i64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::snapshot::{Copies, LocalTable, Membership};

    fn named(names: &[&str]) -> Named {
        Named {
            count: names.len().try_into().unwrap(),
            first: names.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn what_is_found_is_named_with_how_much() {
        let notes = LocalTable { name: "public.notes".into(), rows: Some(12) };
        let local =
            Holdings { tables: 7, rows: 12, first: vec![notes], large_objects: 2, ..Holdings::default() };
        let analytics = OtherDatabase {
            name: "analytics".into(),
            member: Some(Membership { group: 2, nodes: 3, shards: 4, rows: 497 }),
            ..OtherDatabase::default()
        };
        let closed = OtherDatabase {
            name: "old".into(),
            closed: Some("it lets nobody in".into()),
            ..OtherDatabase::default()
        };
        let contents = Contents {
            databases: vec![analytics, closed],
            local,
            slots: named(&["cdc of database dialogs"]),
            prepared: named(&["a of shop in database dialogs", "b of shop in database dialogs"]),
            copies: vec![Copies { table: "t".into(), shards: 4 }],
            ..Contents::default()
        };
        assert_eq!(
            said(&contents),
            [
                "the database analytics with 4 shards with about 497 rows as a member of another Citus cluster of 3 nodes",
                "the database old, into which nobody can look (it lets nobody in)",
                "in the application's database, and not known to Citus, 7 tables with about 12 rows: public.notes (about 12 rows), 6 more, 2 large objects",
                "1 replication slot: cdc of database dialogs (drop it: SELECT pg_drop_replication_slot('<name>'))",
                "2 prepared transactions: a of shop in database dialogs, b of shop in database dialogs (end it: COMMIT PREPARED or ROLLBACK PREPARED '<name>')",
                "4 shards of t with more than one placement (a replication factor above 1)",
            ]
        );
    }
}
