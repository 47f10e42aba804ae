//! Writes, one function a step of a plan. Each is idempotent, has a deadline and decides nothing; whether it may be
//! done now was decided by the planner. Those about members, about what moves leave behind and about lost workers live in
//! rooms of their own and are named here as well.

use std::time::Duration;

use postgres_protocol::password;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::types::Type;

pub use super::{
    cleanup::{
        cleanup_of, cleanup_orphans, delete_stale_cleanup_records, drop_leftovers, listed_for_cleanup,
    },
    force_remove::{ForceRemoved, force_remove},
    membership::{activate_node, add_node, remove_node, set_coordinator_host, set_should_have_shards},
    pinning::pin_groups,
    roles::prepare_mover,
};
use super::{
    connection::{CLUSTER_WRITE, Connection, LONG_WRITE, Parameter, WRITE},
    error::{ServerMessage, SqlError, SqlErrorKind},
    fragments::monitored,
    quote, roles,
    transaction::{SUPPRESS_STATEMENT_LOGGING, begin, execute_outside_transaction},
};
use crate::api::spec::TransferMode;

/// Makes a server ready for the operator, over the database `postgres`: what is pinned for its roles is so (a
/// `statement_timeout` of postgresql.conf would break every move, a `search_path` of the database lead Citus to
/// functions that are not its own), and the application's database exists. It belongs to `postgres`: who owns a database
/// decides on the settings of all sessions in it.
///
/// # Errors
/// Any [`SqlError`].
pub async fn bootstrap_server(maintenance: &Connection, database: &str) -> Result<(), SqlError> {
    const EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    // Nobody but people of the cluster's has business there; once, so that they may say otherwise.
    const CLOSE: &str = "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC";
    let (client, call) = maintenance.call("the preparation of its server", LONG_WRITE).await?;
    // Over `postgres` there is no Citus: what is said here stays on this node.
    roles::pin(&client, &call).await?;
    let row = call.wait(client.query_typed_one(EXISTS, &[(&database, Type::TEXT)])).await?;
    let there: bool = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    if !there {
        call.wait(client.batch_execute(CLOSE)).await?;
        execute_outside_transaction(&client, &call, &format!("CREATE DATABASE {}", quote::ident(database)))
            .await?;
    }
    Ok(())
}

/// Makes the extension in the application's database, over that database: the given version, or the one that the
/// image has by default. Does nothing when it is there.
///
/// # Errors
/// Any [`SqlError`].
pub async fn create_extension(connection: &Connection, version: Option<&str>) -> Result<(), SqlError> {
    let (client, call) = connection.call("CREATE EXTENSION citus", CLUSTER_WRITE).await?;
    let version = version.map(|version| format!(" VERSION {}", quote::literal(version))).unwrap_or_default();
    execute_outside_transaction(&client, &call, &format!("CREATE EXTENSION IF NOT EXISTS citus{version}"))
        .await
}

/// Makes an extension that the spec names, over the application's database on the coordinator, from where Citus takes
/// it to all nodes, also later ones: in `public`, or where the extension itself says. Does nothing when it is there.
///
/// Its script runs as superuser with that schema in its path. PostgreSQL's own functions and operators come first there,
/// but one of the application that fits better is preferred; so there may be none of such a name.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::ScriptMeetsCode`].
pub async fn create_extension_of_spec(connection: &Connection, name: &str) -> Result<(), SqlError> {
    const OWN_SCHEMA: &str =
        "SELECT EXISTS (SELECT FROM pg_available_extensions a JOIN pg_available_extension_versions v
        ON v.name = a.name AND v.version = a.default_version WHERE a.name = $1 AND v.schema IS NOT NULL)";
    const EXTENSION_MEETS: &str = "
        WITH place AS (SELECT oid FROM pg_namespace WHERE nspname = 'public' OR nspname IN (
          SELECT schema FROM pg_available_extension_versions WHERE name = $1)),
        named AS (
          SELECT 'the function ' || p.oid::regprocedure AS what, proowner AS owner FROM pg_proc p JOIN place
            ON place.oid = pronamespace WHERE proname IN (SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace)
          UNION ALL SELECT 'the operator ' || o.oid::regoperator, oprowner FROM pg_operator o JOIN place
            ON place.oid = oprnamespace WHERE oprname IN (SELECT oprname FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace))
        SELECT what FROM named JOIN pg_roles r ON r.oid = owner WHERE NOT rolsuper
          AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = $1) ORDER BY what LIMIT 1";
    let (client, call) = connection.call("CREATE EXTENSION", CLUSTER_WRITE).await?;
    let row = call.wait(client.query_typed_one(OWN_SCHEMA, &[(&name, Type::TEXT)])).await?;
    let own: bool = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    let met = call.wait(client.query_typed_opt(EXTENSION_MEETS, &[(&name, Type::TEXT)])).await?;
    if let Some(row) = met {
        let planted: String = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
        let message = format!(
            "the script of {name} runs as superuser and would find {planted} of the application, which is named as one of \
             PostgreSQL's own: rename it, or give it to postgres"
        );
        return Err(call.refused(SqlErrorKind::ScriptMeetsCode, message));
    }
    let schema = if own { "" } else { " SCHEMA public" };
    let statement = format!("CREATE EXTENSION IF NOT EXISTS {}{schema} CASCADE", quote::ident(name));
    execute_outside_transaction(&client, &call, &statement).await
}

/// `pg_reload_conf()`.
///
/// # Errors
/// Any [`SqlError`].
pub async fn reload(connection: &Connection) -> Result<(), SqlError> {
    let (client, call) = connection.call("pg_reload_conf", WRITE).await?;
    call.wait(client.query_typed_one("SELECT pg_reload_conf()", &[])).await.map(drop)
}

/// `ALTER SYSTEM RESET` of each name. It takes a reload or a restart to show.
///
/// # Errors
/// Any [`SqlError`]; names before the refused one are reset.
pub async fn reset_alter_system(connection: &Connection, names: &[String]) -> Result<(), SqlError> {
    let (client, call) = connection.call("ALTER SYSTEM RESET", WRITE).await?;
    for name in names {
        call.wait(client.batch_execute(&format!("ALTER SYSTEM RESET {}", quote::setting(name)))).await?;
    }
    Ok(())
}

/// Asks a server whether it takes a value: `ALTER SYSTEM SET` and at once `RESET`, the latter also when the former
/// failed. Answers with PostgreSQL's words when it does not take it.
///
/// # Errors
/// Any [`SqlError`] but a refusal of the value. Then the server may still have the entry: `auto_conf` shows it.
pub async fn try_parameter(
    connection: &Connection,
    name: &str,
    value: &str,
) -> Result<Option<String>, SqlError> {
    let (client, call) = connection.call("ALTER SYSTEM", WRITE).await?;
    let setting = quote::setting(name);
    let set = format!("ALTER SYSTEM SET {setting} = {}", quote::literal(value));
    let taken = call.wait(client.batch_execute(&set)).await;
    let reset = call.wait(client.batch_execute(&format!("ALTER SYSTEM RESET {setting}"))).await;
    match taken {
        // Classes 22 and 42: the value, or the name, is wrong. 55P02: it cannot be changed. 0A000: not in this build.
        Err(SqlError::Refused { words, .. }) if is_about_the_value(&words) => Ok(Some(words.in_full())),
        Err(error) => Err(error),
        Ok(()) => reset.map(|()| None),
    }
}

fn is_about_the_value(words: &ServerMessage) -> bool {
    let state = words.sqlstate.as_str();
    state.starts_with("22") || state.starts_with("42") || matches!(state, "55P02" | "0A000")
}

/// Makes the application's role, or gives it this password, and lets it make tables of its own: it may create in the
/// database, which is not its own, and in `public`. Citus takes all of it to the workers, the role also to those that
/// come later; what it may do there is [`grant_rights`]'s.
///
/// The password does not leave this process: the server gets its SCRAM-SHA-256 verifier, and is told not to log that.
///
/// # Errors
/// Any [`SqlError`]. No message holds the password or the verifier.
pub async fn create_owner(
    connection: &Connection,
    owner: &str,
    password: &SecretString,
    database: &str,
) -> Result<(), SqlError> {
    let (mut client, call) = connection.call("CREATE ROLE", CLUSTER_WRITE).await?;
    let transaction = begin(&mut client, &call, Duration::from_secs(15), CLUSTER_WRITE).await?;
    call.wait(transaction.batch_execute(SUPPRESS_STATEMENT_LOGGING)).await?;
    let exists = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
    let exists = call.wait(transaction.query_typed_one(exists, &[(&owner, Type::TEXT)])).await?;
    let exists: bool = exists.try_get(0).map_err(|error| call.misunderstood(&error))?;
    let verb = if exists { "ALTER" } else { "CREATE" };
    let role = quote::ident(owner);
    let verifier = password::scram_sha_256(password.expose_secret().as_bytes());
    let statement = format!("{verb} ROLE {role} LOGIN PASSWORD {}", quote::literal(&verifier));
    call.wait(transaction.batch_execute(&statement)).await?;
    call.wait(transaction.batch_execute(&rights(owner, database))).await?;
    call.wait(transaction.commit()).await
}

fn rights(owner: &str, database: &str) -> String {
    let (owner, database) = (quote::ident(owner), quote::ident(database));
    format!(
        "GRANT CREATE, CONNECT, TEMPORARY ON DATABASE {database} TO {owner};
        GRANT USAGE, CREATE ON SCHEMA public TO {owner}"
    )
}

/// Gives the application's role on this node what it was given on the coordinator, over the application's database:
/// Citus takes rights on a database to the nodes of the day, and no further.
///
/// # Errors
/// Any [`SqlError`].
pub async fn grant_rights(connection: &Connection, owner: &str, database: &str) -> Result<(), SqlError> {
    let (mut client, call) = connection.call("GRANT", WRITE).await?;
    let transaction = begin(&mut client, &call, Duration::from_secs(5), WRITE).await?;
    let grant = format!("SET LOCAL citus.enable_ddl_propagation = off; {}", rights(owner, database));
    call.wait(transaction.batch_execute(&grant)).await?;
    call.wait(transaction.commit()).await
}

/// Setting of the database: uid of the Secret whose password the application's role has.
pub const OWNER_SECRET: &str = "dialog.owner_secret";

/// Writes down whose password the application's role has now, so that another Secret of that name is noticed.
///
/// # Errors
/// Any [`SqlError`].
pub async fn record_owner_secret(
    connection: &Connection,
    database: &str,
    secret_uid: &str,
) -> Result<(), SqlError> {
    let (client, call) = connection.call("ALTER DATABASE SET", CLUSTER_WRITE).await?;
    let statement = format!(
        "ALTER DATABASE {} SET {} = {}",
        quote::ident(database),
        quote::setting(OWNER_SECRET),
        quote::literal(secret_uid)
    );
    execute_outside_transaction(&client, &call, &statement).await
}

/// `recover_prepared_transactions()`: finishes or undoes what a crash left prepared on the workers. Answers with how
/// many there were.
///
/// # Errors
/// Any [`SqlError`].
pub async fn recover_transactions(connection: &Connection) -> Result<i32, SqlError> {
    let (client, call) = connection.call("recover_prepared_transactions", CLUSTER_WRITE).await?;
    let row = call.wait(client.query_typed_one("SELECT recover_prepared_transactions()", &[])).await?;
    row.try_get(0).map_err(|error| call.misunderstood(&error))
}

/// How a rebalance is done.
#[derive(Clone, Copy, Debug)]
pub struct RebalanceOptions<'a> {
    /// A row of pg_dist_rebalance_strategy.
    pub strategy: &'a str,
    /// `shard_transfer_mode`.
    pub transfer_mode: TransferMode,
    /// Pass `parallel_transfer_colocated_shards => true`: only where the function has that argument.
    pub parallel_colocated: bool,
}

/// `citus_rebalance_start`, as [`roles::MOVER`]: Citus runs a job's tasks as the role that started it. Answers with the
/// job's id, or `None` when there is nothing to move.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::RebalanceRunning`], [`SqlErrorKind::NoReplicaIdentity`], [`SqlErrorKind::StrategyUnknown`].
pub async fn start_rebalance(
    connection: &Connection,
    options: &RebalanceOptions<'_>,
) -> Result<Option<i64>, SqlError> {
    start(connection, options, false).await
}

/// `citus_rebalance_start(drain_only => true)`: empties the nodes whose `shouldhaveshards` is false. Answers as
/// [`start_rebalance`].
///
/// # Errors
/// As [`start_rebalance`].
pub async fn start_drain(
    connection: &Connection,
    options: &RebalanceOptions<'_>,
) -> Result<Option<i64>, SqlError> {
    start(connection, options, true).await
}

async fn start(
    connection: &Connection,
    options: &RebalanceOptions<'_>,
    drain_only: bool,
) -> Result<Option<i64>, SqlError> {
    prepare_mover(connection).await?;
    let (mut client, call) = connection.call("citus_rebalance_start", CLUSTER_WRITE).await?;
    let transaction = begin(&mut client, &call, Duration::from_secs(15), CLUSTER_WRITE).await?;
    call.wait(transaction.batch_execute(&format!("SET LOCAL ROLE {}", quote::ident(roles::MOVER)))).await?;
    let parallel =
        if options.parallel_colocated { ", parallel_transfer_colocated_shards => true" } else { "" };
    // The mode is a constant and no parameter: the mover may not name the schema of its type.
    let statement = format!(
        "SELECT citus_rebalance_start(rebalance_strategy => $1::text::name, drain_only => $2,
            shard_transfer_mode => {}{parallel})",
        quote::literal(&options.transfer_mode.to_string())
    );
    let parameters: &[Parameter<'_>] = &[(&options.strategy, Type::TEXT), (&drain_only, Type::BOOL)];
    let row = call.wait(transaction.query_typed_one(&statement, parameters)).await?;
    let job = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    call.wait(transaction.commit()).await?;
    Ok(job)
}

/// `citus_job_cancel`, if this job is open, or a task of it runs although it has ended. Answers whether it was.
/// `citus_rebalance_stop` names no job, and knows none that has ended.
///
/// Not while a task of it is being cancelled: a second call marks that one as cancelled before its process has ended
/// (`CancelTasksForJob`), the monitor takes its end for a failure, and the move begins again in a job that has ended. A task
/// whose monitor is gone is none: nobody else would ever end it (`ResetRunningBackgroundTasks` looks at running ones).
///
/// # Errors
/// Any [`SqlError`].
pub async fn stop_rebalance(connection: &Connection, job: i64) -> Result<bool, SqlError> {
    const STOP: &str = concat!(
        "SELECT pg_catalog.citus_job_cancel(job_id) FROM pg_catalog.pg_dist_background_job j
        WHERE job_id = $1 AND job_type = 'rebalance' AND (state NOT IN ('finished', 'cancelled', 'failed')
          OR EXISTS (SELECT FROM pg_catalog.pg_dist_background_task k WHERE k.job_id = j.job_id AND status = 'running'))
          AND NOT (EXISTS (SELECT FROM pg_catalog.pg_dist_background_task k
            WHERE k.job_id = j.job_id AND status = 'cancelling') AND ",
        monitored!(),
        ")"
    );
    let (client, call) = connection.call("citus_job_cancel", WRITE).await?;
    Ok(call.wait(client.query_typed_opt(STOP, &[(&job, Type::INT8)])).await?.is_some())
}

/// `CHECKPOINT`: before a restart, so that the shutdown has little left to write.
///
/// # Errors
/// Any [`SqlError`].
pub async fn checkpoint(connection: &Connection) -> Result<(), SqlError> {
    let (client, call) = connection.call("CHECKPOINT", LONG_WRITE).await?;
    execute_outside_transaction(&client, &call, "CHECKPOINT").await
}
