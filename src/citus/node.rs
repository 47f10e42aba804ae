//! Reads of one node: its PostgreSQL, its way to another node. Nothing is written here.

use tokio_postgres::{Client, Row, types::Type};

use super::{
    cleanup::{moves_publication, moves_role, moves_slot, moves_subscription},
    connection::{Call, Connection, Parameter, READ},
    error::{SqlError, SqlErrorKind},
    fragments::shard_table,
    messages::one_line,
    roles::{self, unpinned, unsafe_mover},
};
use crate::snapshot::{Disk, Leftover, Postgres};

/// What is to be seen of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeQuestion<'a> {
    /// The application's database.
    pub database: &'a str,
    /// The application's role.
    pub owner: &'a str,
    /// Names of the settings whose values matter.
    pub settings: &'a [&'a str],
}

/// Everything about a server that does not need the extension.
///
/// A setting that this session or its role overrides (`statement_timeout`) is shown as the configuration file has it:
/// `current_setting()` would show the override.
const SERVER: &str = concat!(
    "
WITH s AS MATERIALIZED (SELECT name, source, boot_val, pending_restart FROM pg_settings),
file AS MATERIALIZED (
  SELECT DISTINCT ON (lower(name)) lower(name) AS name, setting, sourcefile FROM pg_file_settings
  WHERE name IS NOT NULL ORDER BY lower(name), seqno DESC),
wanted AS (
  SELECT w.name, CASE
    WHEN s.source IN ('database', 'user', 'database user', 'client', 'interactive', 'test', 'connection')
    THEN coalesce(file.setting, s.boot_val) ELSE current_setting(w.name, true) END AS value
  FROM unnest($5::text[]) AS w(name)
  LEFT JOIN s ON lower(s.name) = lower(w.name) LEFT JOIN file ON file.name = lower(w.name)),
",
    unpinned!(),
    "
SELECT json_build_object(
  'systemIdentifier', (SELECT system_identifier::text FROM pg_control_system()),
  'version', split_part(current_setting('server_version'), ' ', 1),
  'major', current_setting('server_version_num')::int / 10000,
  'startedAt', pg_postmaster_start_time(),
  'walLevel', current_setting('wal_level'),
  'configHash', nullif(current_setting('dialog.config_hash', true), ''),
  'fileConfigHash', (SELECT nullif(setting, '') FROM file WHERE name = 'dialog.config_hash'),
  'startupHash', nullif(current_setting('dialog.startup_hash', true), ''),
  'rejected', CASE WHEN nullif(current_setting('dialog.rejected_hash', true), '') IS NOT NULL
    THEN json_build_object('configHash', current_setting('dialog.rejected_hash', true),
      'message', coalesce(current_setting('dialog.rejected_message', true), '')) END,
  'pendingRestart', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM s WHERE pending_restart),
  'settings', (SELECT coalesce(json_object_agg(name, value), '{}') FROM wanted WHERE value IS NOT NULL),
  'autoConf', (SELECT coalesce(json_object_agg(name, setting), '{}') FROM (
    SELECT name, setting FROM pg_file_settings WHERE name IS NOT NULL AND sourcefile LIKE '%/postgresql.auto.conf'
    ORDER BY lower(name) = ANY (SELECT lower(w.name) FROM wanted w) DESC, name IN (SELECT s.name FROM s WHERE pending_restart) DESC, name
    LIMIT 1000) AS entry),
  'locale', (SELECT CASE datlocprovider WHEN 'c' THEN 'libc ' || datcollate ELSE
      CASE datlocprovider WHEN 'b' THEN 'builtin ' WHEN 'i' THEN 'icu ' END ||
      coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') END
    FROM pg_database d WHERE datname = 'template0'),
  'database', EXISTS (SELECT FROM pg_database WHERE datname = $4),
  'extension', (SELECT extversion FROM pg_extension WHERE extname = 'citus' AND current_database() = $4),
  'availableExtension', (SELECT default_version FROM pg_available_extensions WHERE name = 'citus'),
  'rolePinned', NOT EXISTS (SELECT FROM unpinned) AND NOT EXISTS (SELECT FROM pg_authid WHERE rolname = $3 AND ",
    unsafe_mover!(),
    "),
  'ownerMayCreate', (SELECT has_database_privilege(r.oid, d.oid, 'CREATE')
      AND (current_database() <> $4 OR has_schema_privilege(r.oid, 'public', 'USAGE, CREATE'))
    FROM pg_roles r, pg_database d WHERE rolname = $6 AND datname = $4),
  'preparedTransactions', (SELECT count(*) FROM pg_prepared_xacts
    WHERE gid ^@ 'citus_' AND prepared < clock_timestamp() - interval '1 s'))"
);

/// What a node's own copy of the Citus catalog says about itself.
///
/// What moves left behind is bounded: a node may have any number of it.
const MEMBER: &str = concat!(
    "
WITH leftover AS MATERIALIZED (
  SELECT 'slot' AS kind, slot_name AS name FROM pg_replication_slots
  WHERE database = current_database() AND NOT active AND NOT temporary AND ",
    moves_slot!(),
    "
  UNION ALL SELECT 'publication', pubname FROM pg_publication WHERE ",
    moves_publication!(),
    "
  UNION ALL SELECT 'subscription', subname FROM pg_subscription
  WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND ",
    moves_subscription!(),
    "
  UNION ALL SELECT 'role', rolname FROM pg_roles WHERE ",
    moves_role!(),
    ")
SELECT json_build_object(
  'groupId', (SELECT groupid FROM pg_dist_local_group LIMIT 1),
  'knownNodes', (SELECT count(*) FROM pg_dist_node),
  'missingTables', (
    SELECT count(*) FROM pg_dist_placement p JOIN pg_dist_shard USING (shardid)
    WHERE p.groupid = (SELECT groupid FROM pg_dist_local_group LIMIT 1)
    AND to_regclass(",
    shard_table!(),
    ") IS NULL),
  'leftovers', (SELECT coalesce(json_agg(json_build_object('kind', kind, 'name', name) ORDER BY kind, name), '[]')
    FROM (SELECT * FROM leftover ORDER BY kind, name LIMIT 1000) AS first),
  'leftoversInAll', (SELECT count(*) FROM leftover),
  'disk', (SELECT json_build_object('free', available_disk_size, 'total', total_disk_size)
    FROM citus_local_disk_space_stats()))"
);

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    group_id: Option<i32>,
    known_nodes: i64,
    missing_tables: i64,
    leftovers: Vec<Leftover>,
    leftovers_in_all: i64,
    disk: Option<Disk>,
}

/// Everything there is to see of one node's PostgreSQL, in one round trip (two at the first look, and when a shard's
/// table seems to be missing). What only the extension can tell is left empty when the session is over another
/// database than the application's or the extension is not there yet.
///
/// # Errors
/// Any [`SqlError`]: then nothing is known.
pub async fn observe_node(connection: &Connection, ask: &NodeQuestion<'_>) -> Result<Postgres, SqlError> {
    let (client, call) = connection.call("the look at its PostgreSQL", READ).await?;
    let [names, values, mover] = roles::parameters();
    let parameters: [Parameter<'_>; 6] = [
        names,
        values,
        mover,
        (&ask.database, Type::TEXT),
        (&ask.settings, Type::TEXT_ARRAY),
        (&ask.owner, Type::TEXT),
    ];
    let server = call.wait(client.query_typed_one(SERVER, &parameters));
    let expected = connection.saw_extension();
    let member = async { if expected { Some(ask_member(&client, &call).await) } else { None } };
    // Both are on their way before the first answer is read.
    let (server, member) = tokio::join!(server, member);
    let mut seen: Postgres = call.json(&server?)?;
    connection.note_extension(seen.extension.is_some());
    if seen.extension.is_some() {
        let member = observe_member(&client, &call, member).await?;
        seen.group_id = member.group_id;
        seen.dist_node_rows = member.known_nodes;
        seen.missing_tables = member.missing_tables;
        seen.leftovers = member.leftovers;
        seen.leftovers_in_all = member.leftovers_in_all;
        seen.disk = member.disk;
    }
    Ok(seen)
}

async fn ask_member(client: &Client, call: &Call<'_>) -> Result<Row, SqlError> {
    call.wait(client.query_typed_one(MEMBER, &[])).await
}

async fn observe_member(
    client: &Client,
    call: &Call<'_>,
    first: Option<Result<Row, SqlError>>,
) -> Result<Member, SqlError> {
    let row = match first {
        Some(row) => row?,
        None => ask_member(client, call).await?,
    };
    let member: Member = call.json(&row)?;
    if member.missing_tables == 0 {
        return Ok(member);
    }
    // The catalog is read as of the statement's beginning and the tables as of now: a shard that has just left looks
    // missing. A second look tells it from one that is.
    call.json(&ask_member(client, call).await?)
}

/// Whether a node can connect to another one the way Citus would (`citus_check_connection_to_node`).
///
/// # Errors
/// Why not, in Citus' words; or why the node could not be asked.
pub async fn check_connection(connection: &Connection, address: &str, port: u16) -> Result<(), String> {
    const CHECK: &str = "SELECT citus_check_connection_to_node($1, $2)";
    let ask = async {
        let (client, call) = connection.call("citus_check_connection_to_node", READ).await?;
        let row = call
            .wait(client.query_typed_one(CHECK, &[(&address, Type::TEXT), (&i32::from(port), Type::INT4)]))
            .await?;
        let reached: bool = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
        Ok((reached, connection.take_notices()))
    };
    match ask.await {
        Ok((true, _)) => Ok(()),
        Ok((false, warnings)) if warnings.is_empty() => {
            Err(format!("{} cannot connect to {address}:{port}", connection.node()))
        }
        Ok((false, warnings)) => Err(format!("{}: {}", connection.node(), one_line(&warnings.join("; ")))),
        Err(SqlError::Refused { refusal: SqlErrorKind::RemoteUnreachable, words, .. }) => {
            Err(format!("{}: {words}", connection.node()))
        }
        Err(error) => Err(error.to_string()),
    }
}
