//! Whether new connections can be made: what is asked over sessions that were opened for this and are thrown away.
//! Nothing is written here, and no row is read.

use tokio_postgres::types::Type;

use super::{
    connection::{Connection, READ},
    error::SqlError,
    fragments::moving,
};

/// A table of the application that as many workers as possible hold shards of, with as few shards as possible.
const WITNESS: &str = concat!(
    "
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_dist_partition t
JOIN pg_catalog.pg_class c ON c.oid = t.logicalrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_dist_shard USING (logicalrelid) JOIN pg_catalog.pg_dist_placement p USING (shardid)
WHERE ",
    moving!(),
    " AND c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = $1
    AND has_schema_privilege(r.oid, n.oid, 'USAGE') AND has_table_privilege(r.oid, c.oid, 'SELECT'))
GROUP BY c.oid, n.nspname, c.relname ORDER BY count(DISTINCT p.groupid) DESC, count(*), c.oid LIMIT 1"
);

/// The table that [`ask_each_worker`] is to name; `None` while the application's role may read no distributed table.
///
/// # Errors
/// Any [`SqlError`].
pub async fn witness(connection: &Connection, owner: &str) -> Result<Option<String>, SqlError> {
    let (client, call) = connection.call("the look for a table of every worker", READ).await?;
    let row = call.wait(client.query_typed_opt(WITNESS, &[(&owner, Type::TEXT)])).await?;
    row.map(|row| row.try_get(0).map_err(|error| call.misunderstood(&error))).transpose()
}

/// Needs every worker that holds a shard of the table, and reads no row: Citus answers `LIMIT 0` and `WHERE false`
/// itself, but this it asks of each shard, where it is false before the table is opened.
///
/// # Errors
/// Any [`SqlError`].
pub async fn ask_each_worker(connection: &Connection, table: &str) -> Result<(), SqlError> {
    let (client, call) = connection.call("a query of every worker", READ).await?;
    // One connection to each worker, whatever the number of its shards.
    call.wait(client.batch_execute("SET citus.max_adaptive_executor_pool_size = 1")).await?;
    let ask = format!(
        "SELECT pg_catalog.count(*) FROM {table} WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.<) 0"
    );
    call.wait(client.query_typed_one(&ask, &[])).await.map(drop)
}

/// Whether a server had no connection left (53300), in its own words or in Citus' that quotes them: it is busy, and
/// nothing is broken.
#[must_use]
pub fn has_no_connection_left(words: &str) -> bool {
    ["too many clients already", "remaining connection slots", "too many connections for"]
        .iter()
        .any(|said| words.contains(said))
}
