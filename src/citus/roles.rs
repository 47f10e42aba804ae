//! The two roles that work for the operator: `postgres`, as which it and Citus' own sessions log in, and
//! [`MOVER`], as which jobs run. What is pinned for them, and who may be moved. No role of the application is made here.

use std::{sync::LazyLock, time::Duration};

use tokio_postgres::{Client, Transaction, types::Type};

use super::{
    connection::{CLUSTER_WRITE, Call, Connection, Parameter},
    error::{SqlError, SqlErrorKind},
    quote,
    transaction::begin,
};

/// The role that runs jobs. It is no superuser: what a move runs of a table (its CHECK constraints, its domains) then
/// has the rights of those who own tables, and no more. It logs in by certificate alone: Citus connects as it.
pub const MOVER: &str = "dialog_mover";

/// What every session of these roles has, whatever the server, the database or the spec sets for others: a setting of
/// the role beats these. Those that a server does not know (`transaction_timeout` is of PostgreSQL 17) are left out.
///
/// Citus asks for its own functions without naming their schema, as superuser, on connections of its own; so the path
/// leads to nothing that another role can have made.
const PINNED: &[(&str, &str)] = &[
    ("search_path", "pg_catalog"),
    ("role", "none"),
    ("session_replication_role", "origin"),
    ("row_security", "on"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("transaction_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("lc_messages", "C"),
    ("citus.defer_drop_after_shard_move", "on"),
    ("citus.enable_alter_role_propagation", "on"),
    ("citus.enable_alter_role_set_propagation", "on"),
    ("citus.enable_create_role_propagation", "on"),
    ("citus.enable_ddl_propagation", "on"),
    ("citus.enable_local_execution", "on"),
    ("citus.enable_manual_changes_to_shards", "off"),
    ("citus.enable_metadata_sync", "on"),
    ("citus.enable_schema_based_sharding", "off"),
    ("citus.multi_shard_modify_mode", "parallel"),
    ("citus.override_table_visibility", "on"),
    ("citus.propagate_set_commands", "none"),
    ("citus.shard_replication_factor", "1"),
    ("citus.skip_constraint_validation", "off"),
    ("citus.use_citus_managed_tables", "off"),
];

static PINNED_ARRAYS: LazyLock<(Vec<&str>, Vec<&str>)> = LazyLock::new(|| PINNED.iter().copied().unzip());

/// The first three parameters of a statement with [`unpinned`].
pub(super) fn parameters() -> [Parameter<'static>; 3] {
    let (names, values) = &*PINNED_ARRAYS;
    [(names, Type::TEXT_ARRAY), (values, Type::TEXT_ARRAY), (&MOVER, Type::TEXT)]
}

/// Attributes of the mover, in pg_authid, with which it is not used.
macro_rules! unsafe_mover {
    () => {
        "(rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls OR NOT rolcanlogin OR NOT rolinherit
          OR rolconnlimit <> -1 OR rolpassword IS NOT NULL OR rolvaliduntil < now())"
    };
}

/// The common tables `pin`, `worker` (the roles) and `unpinned` of a statement: what is missing or overridden, of `$1`
/// the names, `$2` the values and `$3` the mover.
macro_rules! unpinned {
    () => {
        "pin AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::text[]) AS p(name, value)
    WHERE current_setting(p.name, true) IS NOT NULL),
worker AS MATERIALIZED (SELECT oid, rolname FROM pg_roles WHERE rolname IN (session_user, $3)),
entry AS MATERIALIZED (
  SELECT setrole, setdatabase, substring(e FROM 1 FOR position('=' IN e) - 1) AS name,
    substring(e FROM position('=' IN e) + 1) AS value
  FROM pg_db_role_setting, unnest(setconfig) AS e WHERE setrole IN (SELECT oid FROM worker)),
unpinned AS (
  SELECT rolname, name, value, NULL::name AS datname FROM worker, pin WHERE NOT EXISTS (
    SELECT FROM entry e WHERE setrole = worker.oid AND setdatabase = 0 AND (e.name, e.value) = (pin.name, pin.value))
  UNION ALL
  SELECT rolname, e.name, NULL, datname FROM entry e JOIN worker ON worker.oid = setrole JOIN pin ON pin.name = e.name
    JOIN pg_database d ON d.oid = setdatabase)"
    };
}
pub(super) use unpinned;
pub(super) use unsafe_mover;

/// Pins what is not pinned, over a database without Citus: it stays on this node.
pub(super) async fn pin(client: &Client, call: &Call<'_>) -> Result<(), SqlError> {
    const UNPINNED: &str = concat!(
        "WITH ",
        unpinned!(),
        "
SELECT json_build_object(
  'settings', (SELECT coalesce(json_agg(json_build_object('role', rolname, 'name', name, 'value', value,
    'database', datname)), '[]') FROM unpinned),
  'mover', EXISTS (SELECT FROM pg_authid WHERE rolname = $3 AND ",
        unsafe_mover!(),
        "))"
    );
    #[derive(serde::Deserialize)]
    struct Unpinned {
        settings: Vec<Setting>,
        mover: bool,
    }
    let unpinned: Unpinned = call.json(&call.wait(client.query_typed_one(UNPINNED, &parameters())).await?)?;
    let mut statements: Vec<String> = unpinned.settings.iter().map(Setting::statement).collect();
    if unpinned.mover {
        statements.push(format!("ALTER ROLE {} {ATTRIBUTES}", quote::ident(MOVER)));
    }
    call.wait(client.batch_execute(&statements.join(";"))).await
}

/// What the mover is. Its password, should somebody have given it one, goes.
const ATTRIBUTES: &str = "LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT -1 \
    VALID UNTIL 'infinity' PASSWORD NULL";

#[derive(serde::Deserialize)]
struct Setting {
    role: String,
    name: String,
    value: Option<String>,
    database: Option<String>,
}

impl Setting {
    fn statement(&self) -> String {
        let (role, name) = (quote::ident(&self.role), quote::setting(&self.name));
        match (&self.value, &self.database) {
            (Some(value), _) => format!("ALTER ROLE {role} SET {name} = {}", quote::literal(value)),
            (None, Some(database)) => {
                format!("ALTER ROLE {role} IN DATABASE {} RESET {name}", quote::ident(database))
            }
            (None, None) => format!("ALTER ROLE {role} RESET {name}"),
        }
    }
}

/// Makes the mover ready for a job, over the application's database on the coordinator, from where Citus takes it to all
/// nodes, also later ones: it exists, is no superuser, has what is pinned, and is a member of every role that owns a
/// table of Citus. Writes nothing that is so already.
///
/// # Errors
/// Any [`SqlError`]; a refusal when it would have the rights of a superuser all the same.
pub async fn prepare_mover(connection: &Connection) -> Result<(), SqlError> {
    const MISSING: &str = concat!(
        "WITH ",
        unpinned!(),
        "
SELECT json_build_object(
  'exists', EXISTS (SELECT FROM pg_roles WHERE rolname = $3),
  'wrong', EXISTS (SELECT FROM pg_authid WHERE rolname = $3 AND ",
        unsafe_mover!(),
        "),
  'settings', (SELECT coalesce(json_agg(json_build_object('role', rolname, 'name', name, 'value', value,
    'database', datname)), '[]') FROM unpinned WHERE rolname = $3),
  'optional', EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pg_auth_members'::regclass AND attname = 'inherit_option'),
  'owners', (SELECT coalesce(json_agg(DISTINCT owner.rolname), '[]') FROM pg_dist_partition JOIN pg_class c
      ON c.oid = logicalrelid JOIN pg_roles owner ON owner.oid = c.relowner
    WHERE NOT owner.rolsuper AND owner.rolname <> $3 AND NOT EXISTS (SELECT FROM pg_auth_members m
      JOIN pg_roles mover ON mover.oid = m.member AND mover.rolname = $3 WHERE m.roleid = owner.oid
        AND coalesce(to_jsonb(m)->>'inherit_option', 'true')::bool AND coalesce(to_jsonb(m)->>'set_option', 'true')::bool)))"
    );
    #[derive(serde::Deserialize)]
    struct Missing {
        exists: bool,
        wrong: bool,
        settings: Vec<Setting>,
        optional: bool,
        owners: Vec<String>,
    }
    let (mut client, call) = connection.call("the preparation of the role of jobs", CLUSTER_WRITE).await?;
    let transaction = begin(&mut client, &call, Duration::from_secs(15), CLUSTER_WRITE).await?;
    let mover = quote::ident(MOVER);
    let parameters = parameters();
    let look = transaction.query_typed_one(MISSING, &parameters);
    let mut missing: Missing = call.json(&call.wait(look).await?)?;
    if !missing.exists || missing.wrong {
        let verb = if missing.exists { "ALTER" } else { "CREATE" };
        call.wait(transaction.batch_execute(&format!("{verb} ROLE {mover} {ATTRIBUTES}"))).await?;
        let look = transaction.query_typed_one(MISSING, &parameters);
        missing = call.json(&call.wait(look).await?)?;
    }
    let options = if missing.optional { " WITH INHERIT TRUE, SET TRUE" } else { "" };
    let grants =
        missing.owners.iter().map(|owner| format!("GRANT {} TO {mover}{options}", quote::ident(owner)));
    let settings = missing.settings.iter().map(Setting::statement);
    for statement in grants.chain(settings) {
        call.wait(transaction.batch_execute(&statement)).await?;
    }
    refuse_a_superuser(&transaction, &call).await?;
    call.wait(transaction.commit()).await
}

/// A role that is a member of a superuser's can be one whenever it wants, and so can one that has the server's files or
/// its shell: the code of one owner runs with the rights of all of them.
async fn refuse_a_superuser(transaction: &Transaction<'_>, call: &Call<'_>) -> Result<(), SqlError> {
    const SUPERUSER: &str = "SELECT min(rolname) FROM pg_roles WHERE (rolsuper
          OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))
        AND pg_has_role($1::text::name, oid, 'MEMBER')";
    let row = call.wait(transaction.query_typed_one(SUPERUSER, &[(&MOVER, Type::TEXT)])).await?;
    let superuser: Option<String> = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    let Some(superuser) = superuser else { return Ok(()) };
    let message = format!(
        "{MOVER}, or a role that owns a distributed table, is a member of {superuser}, and no job runs \
         with a superuser's rights: REVOKE that membership, or ALTER TABLE ... OWNER TO another role"
    );
    Err(call.refused(SqlErrorKind::SuperuserWouldMove, message))
}
