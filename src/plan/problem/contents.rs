//! What people keep on a worker, in words: how much of what, and what to type. docs/runbook.md explains each part.

use crate::{
    api::words::several,
    snapshot::{Contents, Holdings, NamedObjects, OtherDatabase},
};

/// So many databases, and tables with copies, are named.
const NAMED: usize = 5;

/// `on dialogs-worker-2 is ...`.
pub(super) fn found(node: &str, contents: &Contents) -> String {
    format!("on {node} is {}", description(contents).join("; "))
}

fn description(contents: &Contents) -> Vec<String> {
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
        parts.push(format!("shards of {} with more than one placement", several(more, "other table")));
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
            "{} with about {} as a member of another Citus cluster of {}",
            several(member.shards, "shard"),
            several(member.rows, "row"),
            several(member.nodes, "node")
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
            Some(rows) => format!("{} (about {})", table.name, several(rows, "row")),
            None => format!("{} (rows not counted)", table.name),
        });
        let more = usize::try_from(holds.tables).unwrap_or_default().saturating_sub(holds.first.len());
        let named: Vec<String> = named.chain((more > 0).then(|| format!("{more} more"))).collect();
        let (tables, rows) = (several(holds.tables, "table"), several(holds.rows, "row"));
        parts.push(format!("{tables} with about {rows}: {}", named.join(", ")));
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
fn list(found: &NamedObjects, what: &str) -> String {
    let more = usize::try_from(found.count).unwrap_or_default().saturating_sub(found.first.len());
    let names = found.first.iter().cloned().chain((more > 0).then(|| format!("{more} more")));
    format!("{}: {}", several(found.count, what), names.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Copies, LocalTable, Membership};

    fn named(names: &[&str]) -> NamedObjects {
        NamedObjects {
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
            description(&contents),
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
