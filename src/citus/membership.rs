//! Writes about members: who is in pg_dist_node, and with which properties. Each call reaches every registered node,
//! and fails when one of them is silent. What a dead member leaves behind is not dealt with here.

use std::time::Duration;

use tokio_postgres::{Row, Transaction, types::Type};

use super::{
    connection::{CLUSTER_WRITE, Call, Connection, Parameter},
    error::{SqlError, SqlErrorKind},
    joining,
    transaction::{SUPPRESS_STATEMENT_LOGGING, begin, limits},
};
use crate::api::words::several;

/// `citus_set_coordinator_host`: tells the coordinator its own address.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::RemoteUnreachable`] when a registered node is silent.
pub async fn set_coordinator_host(connection: &Connection, address: &str, port: u16) -> Result<(), SqlError> {
    const SET: &str = "SELECT citus_set_coordinator_host($1, $2)";
    membership(connection, ("citus_set_coordinator_host", false), SET, address, port).await.map(drop)
}

/// `citus_add_node`. For a node that is registered it changes nothing, also when that node is inactive: see
/// [`activate_node`]. Answers with its nodeid.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::RemoteUnreachable`] when it, or a registered node, is silent; [`SqlErrorKind::LockTimeout`]
/// when an open DDL transaction is in its way.
pub async fn add_node(connection: &Connection, address: &str, port: u16) -> Result<i32, SqlError> {
    const ADD: &str = "SELECT citus_add_node($1, $2)";
    let row = membership(connection, ("citus_add_node", true), ADD, address, port).await?;
    row.try_get(0).map_err(|error| SqlError::UnexpectedResponse {
        node: connection.node().to_owned(),
        operation: "citus_add_node",
        why: error.to_string(),
    })
}

/// `citus_activate_node`: gives a registered node its metadata anew. Heals one that is inactive (`isactive`), has no
/// metadata (`hasmetadata`) or an old copy (`metadatasynced`). It also gives an emptied node its group back, and so
/// wipes the trace that it was emptied: look at that before.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::RemoteUnreachable`] when it, or a registered node, is silent.
pub async fn activate_node(connection: &Connection, address: &str, port: u16) -> Result<(), SqlError> {
    const ACTIVATE: &str = "SELECT citus_activate_node($1, $2)";
    membership(connection, ("citus_activate_node", true), ACTIVATE, address, port).await.map(drop)
}

/// Whether new shards may be put on a node (`shouldhaveshards`).
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::RemoteUnreachable`] when a registered node is silent.
pub async fn set_should_have_shards(
    connection: &Connection,
    address: &str,
    port: u16,
    should: bool,
) -> Result<(), SqlError> {
    const ALLOW: &str = "SELECT citus_set_node_property($1, $2, 'shouldhaveshards', true)";
    const REFUSE: &str = "SELECT citus_set_node_property($1, $2, 'shouldhaveshards', false)";
    let statement = if should { ALLOW } else { REFUSE };
    membership(connection, ("citus_set_node_property", false), statement, address, port).await.map(drop)
}

/// `citus_remove_node`; does nothing when the node is not registered. Citus itself refuses while the node holds the
/// only placement of a shard. It does not refuse while pg_dist_cleanup has rows of its group, and they would be
/// eternal then: that is looked at here, in the same transaction.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::OnlyPlacement`], [`SqlErrorKind::CleanupPending`]: nothing was removed.
pub async fn remove_node(connection: &Connection, address: &str, port: u16) -> Result<(), SqlError> {
    const OPERATION: &str = "citus_remove_node";
    const GROUP: &str = "SELECT groupid FROM pg_dist_node WHERE nodename = $1 AND nodeport = $2";
    const REMOVE: &str = "SELECT citus_remove_node($1, $2)";
    let (mut client, call) = connection.call(OPERATION, CLUSTER_WRITE).await?;
    let transaction = begin(&mut client, &call, LOCK, CLUSTER_WRITE).await?;
    let port = i32::from(port);
    let node: &[Parameter<'_>] = &[(&address, Type::TEXT), (&port, Type::INT4)];
    let Some(row) = call.wait(transaction.query_typed_opt(GROUP, node)).await? else {
        return Ok(());
    };
    let group: i32 = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    refuse_while_cleanup_is_pending(&transaction, &call, group).await?;
    call.wait(transaction.query_typed_one(REMOVE, node)).await?;
    // Again: the last move may have ended, and left its row, between the first look and the removal.
    refuse_while_cleanup_is_pending(&transaction, &call, group).await?;
    call.wait(transaction.commit()).await
}

async fn refuse_while_cleanup_is_pending(
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    group: i32,
) -> Result<(), SqlError> {
    const PENDING: &str = "SELECT count(*), min(object_name) FROM pg_dist_cleanup WHERE node_group_id = $1";
    let row = call.wait(transaction.query_typed_one(PENDING, &[(&group, Type::INT4)])).await?;
    let rows: i64 = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    let first: Option<String> = row.try_get(1).map_err(|error| call.misunderstood(&error))?;
    let Some(first) = first else { return Ok(()) };
    let message = format!(
        "pg_dist_cleanup still lists {} on this node ({first} is one of them)",
        several(rows, "object")
    );
    Err(call.refused(SqlErrorKind::CleanupPending, message))
}

/// How long a membership call waits for somebody else's open transaction.
const LOCK: Duration = Duration::from_secs(15);

/// A call that changes pg_dist_node on every node. Its commit is sent along with it: no operator that is killed or
/// stopped before the answer keeps Citus' locks, or leaves the coordinator without what a worker has.
async fn membership(
    connection: &Connection,
    (operation, joins): (&'static str, bool),
    statement: &str,
    address: &str,
    port: u16,
) -> Result<Row, SqlError> {
    let (client, call) = connection.call(operation, CLUSTER_WRITE).await?;
    if joins {
        joining::refuse_code_of_others(&client, &call).await?;
    }
    // A new node is given the roles that there are.
    let begin = format!("BEGIN; {}; {SUPPRESS_STATEMENT_LOGGING}", limits(LOCK, CLUSTER_WRITE));
    if let Err(error) = call.wait(client.batch_execute(&begin)).await {
        drop(call.wait(client.batch_execute("ROLLBACK")).await);
        return Err(error);
    }
    let port = i32::from(port);
    let parameters: &[Parameter<'_>] = &[(&address, Type::TEXT), (&port, Type::INT4)];
    let (row, ended) = tokio::join!(
        call.wait(client.query_typed_one(statement, parameters)),
        call.wait(client.batch_execute("COMMIT"))
    );
    // After an error the server takes COMMIT for ROLLBACK.
    let row = row?;
    ended?;
    Ok(row)
}
