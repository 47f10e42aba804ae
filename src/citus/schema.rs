//! The application's tables: the built-in SQL, and how any SQL for them is applied, whole or not at all.

use std::time::Duration;

use tokio_postgres::Transaction;

use super::{
    commands,
    error::{Refusal, SqlError, Words},
    quote,
    session::{Call, LONG_WRITE, Session},
    statements::{Statement, split},
};

/// The dialogs schema: what a cluster gets that asks for nothing else.
pub const BUILT_IN_SCHEMA: &str = include_str!("../../infrastructure/citus/schema.sql");

/// The setting of the database that remembers which SQL was applied (`ALTER DATABASE ... SET`): it is written in the
/// same transaction.
pub const APPLIED_HASH: &str = "dialog.schema_hash";

/// What is to be applied.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// The SQL.
    pub sql: &'a str,
    /// Its hash: the marker.
    pub hash: &'a str,
    /// Shards of a distributed table (`citus.shard_count`).
    pub shard_count: u32,
    /// The role that will own what the SQL makes. It exists.
    pub owner: &'a str,
    /// The application's database.
    pub database: &'a str,
}

/// Objects that belong to the superuser, and neither they nor their schema to an extension: by kind, as `ALTER <kind> <name> OWNER TO` takes them.
/// Indexes, sequences of a column, row types and shards follow the table they belong to.
const OBJECTS: &str = "
SELECT format('%s %s', kind, name) FROM (
  SELECT 'pg_namespace'::regclass AS class, oid, 'SCHEMA' AS kind, quote_ident(nspname) AS name, nspowner AS owner,
    oid AS schema
  FROM pg_namespace
  UNION ALL
  SELECT 'pg_class'::regclass, c.oid, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
      WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, c.oid::regclass::text, relowner, relnamespace
  FROM pg_class c WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND NOT EXISTS (SELECT FROM pg_dist_shard s JOIN pg_class p ON p.oid = s.logicalrelid
      WHERE c.relname = p.relname || '_' || s.shardid AND c.relnamespace = p.relnamespace)
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
      AND d.deptype IN ('a', 'i') AND d.refclassid = 'pg_class'::regclass AND c.relkind = 'S')
  UNION ALL
  SELECT 'pg_proc'::regclass, oid, CASE prokind WHEN 'a' THEN 'AGGREGATE' ELSE 'ROUTINE' END, oid::regprocedure::text,
    proowner, pronamespace
  FROM pg_proc
  UNION ALL
  SELECT 'pg_type'::regclass, t.oid, CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, t.oid::regtype::text,
    typowner, typnamespace
  FROM pg_type t WHERE typtype IN ('e', 'd', 'r') OR typtype = 'c'
    AND EXISTS (SELECT FROM pg_class c WHERE c.oid = typrelid AND c.relkind = 'c')
) AS object
WHERE owner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
AND schema NOT IN (SELECT oid FROM pg_namespace
  WHERE nspname IN ('pg_catalog', 'information_schema', 'pg_toast') OR nspname LIKE 'pg\\_temp%' OR nspname LIKE 'pg\\_toast%')
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'e' AND (d.classid = object.class AND d.objid = object.oid
  OR d.classid = 'pg_namespace'::regclass AND d.objid = object.schema))
ORDER BY kind <> 'SCHEMA', name";

/// Runs the SQL as the superuser in one transaction, gives what it made to the owner, and writes the hash beside it.
/// Unqualified names are made in `public`.
///
/// # Errors
/// [`SqlError::Schema`] names the line and the statement; [`Refusal::UnusableSchema`] when the SQL would end the
/// transaction or is not SQL alone. After any error nothing is applied; after [`SqlError::DeadlineExceeded`] only the marker tells.
pub async fn apply(session: &Session, schema: &Schema<'_>) -> Result<(), SqlError> {
    let statements = split(schema.sql);
    for statement in &statements {
        if let Some(why) = statement.unusable() {
            return Err(unusable(session, statement, why));
        }
    }
    let (mut client, call) = session.call("the schema", LONG_WRITE).await?;
    let transaction = commands::begin(&mut client, &call, Duration::from_secs(30), LONG_WRITE).await?;
    let before = objects(&transaction, &call).await?;
    // Sequential: with more than one connection a node Citus refuses CREATE SCHEMA, ALTER TABLE ... OWNER and their like
    // after the first distributed table of the transaction.
    let settings = format!(
        "SET LOCAL citus.shard_count = {}; SET LOCAL citus.multi_shard_modify_mode = 'sequential';
        SET LOCAL search_path = public",
        schema.shard_count
    );
    call.wait(transaction.batch_execute(&settings)).await?;
    for statement in &statements {
        call.wait(transaction.batch_execute(statement.text))
            .await
            .map_err(|error| name_statement(error, statement))?;
    }
    // What the SQL may have set for itself ends here, so that names mean what they say again.
    call.wait(transaction.batch_execute("SET LOCAL search_path = pg_catalog")).await?;
    let mut made = objects(&transaction, &call).await?;
    made.retain(|object| !before.contains(object));
    let owner = quote::ident(schema.owner);
    for object in made {
        let alter = format!("ALTER {object} OWNER TO {owner}");
        let statement = Statement { text: &alter, line: 0 };
        call.wait(transaction.batch_execute(&alter))
            .await
            .map_err(|error| name_statement(error, &statement))?;
    }
    let marker = format!(
        "ALTER DATABASE {} SET {} = {}",
        quote::ident(schema.database),
        quote::setting(APPLIED_HASH),
        quote::literal(schema.hash)
    );
    call.wait(transaction.batch_execute(&marker)).await?;
    call.wait(transaction.commit()).await
}

async fn objects(transaction: &Transaction<'_>, call: &Call<'_>) -> Result<Vec<String>, SqlError> {
    let rows = call.wait(transaction.query_typed(OBJECTS, &[])).await?;
    rows.iter().map(|row| row.try_get::<_, String>(0).map_err(|error| call.misunderstood(&error))).collect()
}

fn name_statement(error: SqlError, statement: &Statement<'_>) -> SqlError {
    match error {
        SqlError::Refused { node, words, .. } => SqlError::Schema {
            node,
            line: words.position.map_or(statement.line, |position| statement.line_of(position)),
            statement: statement.first_line().to_owned(),
            words,
        },
        other => other,
    }
}

fn unusable(session: &Session, statement: &Statement<'_>, why: &str) -> SqlError {
    let (line, text) = (statement.line, statement.first_line());
    SqlError::Refused {
        node: session.node().to_owned(),
        doing: "the schema",
        refusal: Refusal::UnusableSchema,
        words: Box::new(Words {
            message: format!("line {line}, `{text}`, {why}; remove it. Nothing was applied"),
            ..Words::default()
        }),
    }
}
