//! Writes about what moves leave behind: rows of pg_dist_cleanup, and slots, publications, subscriptions and roles
//! that no row names any more. Whether they may go was decided by the planner.

use std::time::Duration;

use tokio_postgres::{Transaction, types::Type};

use super::{
    connection::{CLUSTER_WRITE, Call, Connection, WRITE},
    error::SqlError,
    quote,
    transaction::{begin, execute_outside_transaction},
};
use crate::snapshot::{Leftover, LeftoverKind};

/// Conditions that tell what Citus makes for a move or a split, and needs only while it runs
/// (multi_logical_replication.c), from what people make under such a name. Citus makes publications and subscriptions
/// as a superuser, or as the role that runs jobs, which nobody else can give them to; a subscription is then its own
/// role's. The owner is looked at before the name: there may be any number of others.
macro_rules! moves_publication {
    () => {
        "CASE WHEN pubowner = ANY (ARRAY(SELECT oid FROM pg_roles WHERE rolsuper OR rolname = 'dialog_mover'))
        THEN pubname ~ '^citus_shard_(move|split)_publication(_[0-9]+)+$' ELSE false END"
    };
}
/// The same of pg_subscription.
macro_rules! moves_subscription {
    () => {
        concat!(
            "CASE WHEN subowner = ANY (ARRAY(SELECT oid FROM pg_roles WHERE rolsuper OR rolname = 'dialog_mover' OR ",
            $crate::citus::cleanup::moves_role!(),
            ")) THEN subname ~ '^citus_shard_(move|split)_subscription(_[0-9]+)+$' ELSE false END"
        )
    };
}
/// The same of pg_replication_slots, where there is no owner: only who may replicate makes one, and they are few.
macro_rules! moves_slot {
    () => {
        "slot_name ~ '^citus_shard_(move|split)_slot(_[0-9]+)+$'"
    };
}
/// The same of pg_roles. What a superuser makes has no administrator. Before PostgreSQL 16 nothing that a role makes
/// has one: there a role with CREATEROLE can make one that looks like this.
macro_rules! moves_role {
    () => {
        "(rolname ~ '^citus_shard_(move|split)_subscription_role(_[0-9]+)+$' AND NOT EXISTS (
        SELECT FROM pg_auth_members m JOIN pg_roles a ON a.oid = m.member
        WHERE m.roleid = pg_roles.oid AND m.admin_option AND NOT a.rolsuper))"
    };
}
pub(super) use {moves_publication, moves_role, moves_slot, moves_subscription};

/// `CALL citus_cleanup_orphaned_resources()`: drops what finished moves left behind. It succeeds also when an open
/// transaction keeps it from dropping: look at pg_dist_cleanup afterwards. Answers with Citus' warnings.
///
/// # Errors
/// Any [`SqlError`].
pub async fn cleanup_orphans(connection: &Connection) -> Result<Vec<String>, SqlError> {
    let (client, call) = connection.call("citus_cleanup_orphaned_resources", CLUSTER_WRITE).await?;
    execute_outside_transaction(&client, &call, "CALL citus_cleanup_orphaned_resources()").await?;
    Ok(connection.take_notices())
}

/// Deletes those of these rows of pg_dist_cleanup whose group is in no row of pg_dist_node: nothing else ever ends
/// them, and every later move of their shard fails. Answers with how many there were.
///
/// # Errors
/// Any [`SqlError`].
pub async fn delete_stale_cleanup_records(
    connection: &Connection,
    record_ids: &[i64],
) -> Result<u64, SqlError> {
    const FORGET: &str = "DELETE FROM pg_dist_cleanup c WHERE record_id = ANY($1)
        AND NOT EXISTS (SELECT FROM pg_dist_node n WHERE n.groupid = c.node_group_id)";
    let (client, call) = connection.call("the forgetting of cleanup rows", WRITE).await?;
    call.wait(client.execute_typed(FORGET, &[(&record_ids, Type::INT8_ARRAY)])).await
}

/// Which of these names pg_dist_cleanup lists now: Citus writes down what a move will make before it makes it.
///
/// # Errors
/// Any [`SqlError`].
pub async fn listed_for_cleanup(connection: &Connection, names: &[&str]) -> Result<Vec<String>, SqlError> {
    const LISTED: &str =
        "SELECT coalesce(json_agg(object_name), '[]') FROM pg_dist_cleanup WHERE object_name = ANY($1)";
    let (client, call) = connection.call("the look at pg_dist_cleanup", WRITE).await?;
    let row = call.wait(client.query_typed_one(LISTED, &[(&names, Type::TEXT_ARRAY)])).await?;
    call.json(&row)
}

/// Everything that pg_dist_cleanup lists for a group: also when it is too much for every look.
///
/// # Errors
/// Any [`SqlError`].
pub async fn cleanup_of(connection: &Connection, group: i32) -> Result<Vec<String>, SqlError> {
    const OF: &str =
        "SELECT coalesce(json_agg(object_name), '[]') FROM pg_dist_cleanup WHERE node_group_id = $1";
    let (client, call) = connection.call("the look at what is to be dropped", WRITE).await?;
    let row = call.wait(client.query_typed_one(OF, &[(&group, Type::INT4)])).await?;
    call.json(&row)
}

/// Drops, on the node of the session, what a dead move left there. A subscription is cut off from its slot before, so
/// that its publisher need not answer; a slot that is in use stays; what Citus would not have made is not touched.
///
/// # Errors
/// Any [`SqlError`]; what comes before the refused one, in the order subscriptions, roles, publications, slots, is
/// dropped.
pub async fn drop_leftovers(connection: &Connection, leftovers: &[Leftover]) -> Result<(), SqlError> {
    let (mut client, call) = connection.call("the dropping of what a move left", CLUSTER_WRITE).await?;
    let mut leftovers: Vec<_> = leftovers.iter().collect();
    // A role owns a subscription, a subscription uses a slot.
    leftovers.sort_by_key(|leftover| leftover.kind);
    for leftover in leftovers {
        let transaction = begin(&mut client, &call, Duration::from_secs(5), WRITE).await?;
        // On a worker too Citus would take some of it to other nodes.
        call.wait(transaction.batch_execute("SET LOCAL citus.enable_ddl_propagation = off")).await?;
        drop_one(&transaction, &call, leftover).await?;
        call.wait(transaction.commit()).await?;
    }
    Ok(())
}

async fn drop_one(
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    leftover: &Leftover,
) -> Result<(), SqlError> {
    const SLOT: &str = concat!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1::text AND NOT active AND ",
        moves_slot!()
    );
    const SUBSCRIPTION: &str = concat!(
        "SELECT FROM pg_subscription WHERE subname = $1::text
        AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND ",
        moves_subscription!()
    );
    const PUBLICATION: &str =
        concat!("SELECT FROM pg_publication WHERE pubname = $1::text AND ", moves_publication!());
    const ROLE: &str = concat!("SELECT FROM pg_roles WHERE rolname = $1::text AND ", moves_role!());
    let name = quote::ident(&leftover.name);
    let (look, drop) = match leftover.kind {
        LeftoverKind::Slot => (SLOT, None),
        LeftoverKind::Subscription => {
            let drop = format!(
                "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE);
                DROP SUBSCRIPTION {name}"
            );
            (SUBSCRIPTION, Some(drop))
        }
        LeftoverKind::Publication => (PUBLICATION, Some(format!("DROP PUBLICATION {name}"))),
        LeftoverKind::Role => (ROLE, Some(format!("DROP ROLE {name}"))),
    };
    let found = call.wait(transaction.query_typed_opt(look, &[(&leftover.name, Type::TEXT)])).await?;
    match drop.filter(|_| found.is_some()) {
        Some(drop) => call.wait(transaction.batch_execute(&drop)).await,
        None => Ok(()),
    }
}
