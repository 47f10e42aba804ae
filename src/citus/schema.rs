//! The application's tables: the built-in SQL, and how any SQL for them is applied, whole or not at all. It runs as the
//! application's role, in a session of its own that logs in as that role and is thrown away afterwards: neither what
//! the SQL sets nor what that role has planted meets a session of the operator's.

use std::time::Duration;

use tokio_postgres::{Transaction, types::Type};

use super::{
    connection::{Call, Connection, LONG_WRITE, WRITE},
    error::{ServerMessage, SqlError, SqlErrorKind},
    quote,
    statements::{Statement, split},
    transaction,
};

/// The dialogs schema: what a cluster gets that asks for nothing else.
pub const BUILT_IN_SCHEMA: &str = include_str!("../../infrastructure/citus/schema.sql");

/// The setting of the database that remembers which SQL was applied (`ALTER DATABASE ... SET`): only a superuser can
/// write it.
pub const APPLIED_HASH: &str = "dialog.schema_hash";

/// The setting of the database that is there from before the SQL's commit to after [`APPLIED_HASH`] is written: its hash
/// and its transaction, whose end tells after a crash what is there.
const PENDING: &str = "dialog.schema_pending";
/// SQLSTATE of what the role may not do.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// What most often brings such statements here is a dump of a database that was a superuser's.
const NOT_A_SUPERUSER: &str = "The SQL runs as the application's role, to which everything in it then belongs: leave the statement out (pg_dump --schema-only --no-owner --no-privileges --no-comments), and list extensions in spec.database.extensions";

/// What is to be applied.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// The SQL.
    pub sql: &'a str,
    /// Its hash: the marker.
    pub hash: &'a str,
    /// Shards of a distributed table (`citus.shard_count`).
    pub shard_count: u32,
    /// The application's database.
    pub database: &'a str,
}

/// Finishes what an earlier try of [`apply`] left: its commit may have been the last thing that was heard of it. Answers
/// whether the SQL has been applied by now.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::LockTimeout`] while the earlier transaction has not ended yet.
pub async fn finish(maintenance: &Connection, database: &str) -> Result<bool, SqlError> {
    const LEFT: &str = "
        SELECT json_build_object('hash', hash, 'state', pg_xact_status(xid::xid8))
        FROM (SELECT split_part(value, ' ', 1) AS hash, split_part(value, ' ', 2) AS xid FROM (
          SELECT substring(entry FROM position('=' IN entry) + 1) AS value FROM pg_db_role_setting r
            JOIN pg_database d ON d.oid = r.setdatabase AND d.datname = $1, unnest(setconfig) AS entry
          WHERE r.setrole = 0 AND starts_with(entry, $2 || '=')) AS pending) AS part";
    #[derive(serde::Deserialize)]
    struct Left {
        hash: String,
        state: Option<String>,
    }
    let (mut client, call) = maintenance.call("the schema's marker", WRITE).await?;
    let parameters = [(&database as _, Type::TEXT), (&PENDING as _, Type::TEXT)];
    let Some(row) = call.wait(client.query_typed_opt(LEFT, &parameters)).await? else { return Ok(false) };
    let left: Left = call.json(&row)?;
    match left.state.as_deref() {
        // So long ago that the server has forgotten it: it is not in progress, and what committed is not forgotten
        // while it is marked.
        Some("aborted") | None => {
            call.wait(client.batch_execute(&reset_pending(database))).await?;
            Ok(false)
        }
        Some("committed") => {
            let transaction = transaction::begin(&mut client, &call, Duration::from_secs(5), WRITE).await?;
            let mark = format!("{}; {}", set(database, APPLIED_HASH, &left.hash), reset_pending(database));
            call.wait(transaction.batch_execute(&mark)).await?;
            call.wait(transaction.commit()).await?;
            Ok(true)
        }
        Some(_) => {
            let message = "the transaction in which the schema was applied has not ended yet".to_owned();
            Err(call.refused(SqlErrorKind::LockTimeout, message))
        }
    }
}

fn set(database: &str, name: &str, value: &str) -> String {
    let (database, name) = (quote::ident(database), quote::setting(name));
    format!("ALTER DATABASE {database} SET {name} = {}", quote::literal(value))
}

fn reset_pending(database: &str) -> String {
    format!("ALTER DATABASE {} RESET {}", quote::ident(database), quote::setting(PENDING))
}

/// Runs the SQL in one transaction over `owner`, a session of the application's role that nobody else uses, and writes the
/// hash beside it over `maintenance`, a session of the operator's over the database `postgres`. Unqualified names are made
/// in `public`.
///
/// # Errors
/// [`SqlError::Schema`] names the line and the statement; [`SqlErrorKind::UnusableSchema`] when the SQL would end the
/// transaction or is not SQL alone. After any error nothing is applied; after one that is not the SQL's only [`finish`]
/// tells.
pub async fn apply(maintenance: &Connection, owner: Connection, schema: &Schema<'_>) -> Result<(), SqlError> {
    let statements = split(schema.sql);
    for statement in &statements {
        if let Some(why) = statement.unusable() {
            return Err(unusable(&owner, statement, why));
        }
    }
    if finish(maintenance, schema.database).await? {
        return Ok(());
    }
    let (mut client, call) = owner.call("the schema", LONG_WRITE).await?;
    let transaction = transaction::begin(&mut client, &call, Duration::from_secs(30), LONG_WRITE).await?;
    // Sequential: with more than one connection a node Citus refuses CREATE SCHEMA and its like after the first
    // distributed table of the transaction.
    let settings = format!(
        "SET LOCAL citus.shard_count = {}; SET LOCAL citus.multi_shard_modify_mode = 'sequential';
        SET LOCAL search_path = public",
        schema.shard_count
    );
    call.wait(transaction.batch_execute(&settings)).await?;
    let begun = number(&transaction, &call).await?;
    for statement in statements.iter().filter(|statement| !statement.is_of_pg_dump()) {
        // One statement and no more, however the text is read.
        call.wait(transaction.execute_typed(statement.text, &[]))
            .await
            .map_err(|error| name_statement(error, statement))?;
    }
    if number(&transaction, &call).await? != begun {
        let message = "the SQL ended the transaction in which it was applied".to_owned();
        return Err(call.refused(SqlErrorKind::UnusableSchema, message));
    }
    mark_pending(maintenance, schema, &begun).await?;
    // What is deferred fails here.
    let commit = Statement { text: "COMMIT", line: schema.sql.lines().count() };
    call.wait(transaction.commit()).await.map_err(|error| name_statement(error, &commit))?;
    drop(client);
    finish(maintenance, schema.database).await.map(drop)
}

/// The number of the transaction, as text.
async fn number(transaction: &Transaction<'_>, call: &Call<'_>) -> Result<String, SqlError> {
    const NUMBER: &str = "SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text";
    let row = call.wait(transaction.query_typed_one(NUMBER, &[])).await?;
    row.try_get(0).map_err(|error| call.misunderstood(&error))
}

async fn mark_pending(maintenance: &Connection, schema: &Schema<'_>, number: &str) -> Result<(), SqlError> {
    let (client, call) = maintenance.call("the schema's marker", WRITE).await?;
    let pending = set(schema.database, PENDING, &format!("{} {number}", schema.hash));
    call.wait(client.batch_execute(&pending)).await
}

fn name_statement(error: SqlError, statement: &Statement<'_>) -> SqlError {
    match error {
        SqlError::Refused { node, refusal, mut words, .. } => {
            if statement.holds_secret() {
                words.forget_quoted();
            }
            if words.sqlstate == INSUFFICIENT_PRIVILEGE && words.hint.is_none() {
                words.hint = Some(NOT_A_SUPERUSER.to_owned());
            }
            SqlError::Schema {
                node,
                line: words.position.map_or(statement.line, |position| statement.line_of(position)),
                statement: statement.shown(),
                refusal,
                words,
            }
        }
        other => other,
    }
}

fn unusable(connection: &Connection, statement: &Statement<'_>, why: &str) -> SqlError {
    let (line, text) = (statement.line, statement.shown());
    SqlError::Refused {
        node: connection.node().to_owned(),
        operation: "the schema",
        refusal: SqlErrorKind::UnusableSchema,
        words: Box::new(ServerMessage {
            message: format!("line {line}, {text}, {why}; remove it. Nothing was applied"),
            ..ServerMessage::default()
        }),
    }
}
