//! What would keep Citus from moving tables, looked for before a job starts: one read of the coordinator's catalog.
//! What follows from it is the planner's.

use serde::Deserialize;
use tokio_postgres::Client;

use super::{
    code::{called, made, parts, runs_others},
    connection::Call,
    error::SqlError,
};
use crate::snapshot::{Obstacle, Obstacles, Pins};

/// The strategy of the operator's own.
pub use crate::snapshot::PINNING;

/// One row for each table and each thing that is in its way. Of each kind a hundred are listed: one of each group before
/// a second one, so that a group with any number of partitions hides no other.
///
/// A move makes tables, indexes and constraints on the target in sessions of the tables' owners, so what keeps these
/// from working there breaks it: the right to log in, settings of role and database, the right to create in the schema.
/// Partitions are attached by the owner of their parent. Reference tables count where a node lacks them: copying them
/// there is the first task of every job, and Citus' superuser does it, so that no code of another role may run then:
/// functions in CHECKs (of the table, and of domains that its columns are made of), generated columns, triggers and
/// indexes are read out of the stored expressions. Of PostgreSQL's own only volatile functions can do harm, and those that
/// read a table that they are told.
const OBSTACLES: &str = concat!(
    "
WITH t AS MATERIALIZED (
  SELECT c.oid, c.oid::regclass::text AS name, t.colocationid, t.partmethod = 'n' AND t.repmodel = 't' AS reference, c.relpersistence,
    c.relreplident, c.relkind, r.rolname AS owner, r.oid AS roleid, r.rolsuper, r.rolcanlogin, r.rolconnlimit,
    n.nspname, n.oid AS nspid
  FROM pg_catalog.pg_dist_partition t JOIN pg_catalog.pg_class c ON c.oid = t.logicalrelid
  JOIN pg_catalog.pg_roles r ON r.oid = c.relowner JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE ",
    super::fragments::moving!(),
    " OR t.partmethod = 'n' AND t.repmodel = 't' AND EXISTS (
    SELECT FROM pg_catalog.pg_dist_node d WHERE d.isactive AND d.noderole = 'primary' AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_dist_placement p JOIN pg_catalog.pg_dist_shard s USING (shardid)
      WHERE s.logicalrelid = t.logicalrelid AND p.groupid = d.groupid))),
setting AS (
  SELECT DISTINCT ON (t.roleid, name) t.roleid, name, substring(entry FROM position('=' IN entry) + 1) AS value,
    s.setrole <> 0 AS of_role, s.setdatabase <> 0 AS of_database
  FROM (SELECT DISTINCT roleid FROM t) AS t JOIN pg_catalog.pg_db_role_setting s
    ON s.setrole IN (0, t.roleid) AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database
      WHERE datname = pg_catalog.current_database())),
    unnest(s.setconfig) AS entry, lower(substring(entry FROM 1 FOR position('=' IN entry) - 1)) AS name
  WHERE name IN ('statement_timeout', 'transaction_timeout', 'default_transaction_read_only', 'role')
  ORDER BY t.roleid, name, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC),
written AS MATERIALIZED (
  SELECT c.conrelid AS relid, 'CHECK ' || c.conname AS place, c.conbin::text AS tree
  FROM t JOIN pg_catalog.pg_constraint c ON c.conrelid = t.oid WHERE t.reference AND c.contype = 'c'
  UNION ALL
  SELECT t.oid, 'generated column ' || a.attname, d.adbin::text
  FROM t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid JOIN pg_catalog.pg_attrdef d
    ON d.adrelid = t.oid AND d.adnum = a.attnum WHERE t.reference AND a.attgenerated <> ''
  UNION ALL
  SELECT t.oid, 'index ' || i.indexrelid::regclass, concat(i.indexprs::text, i.indpred::text)
  FROM t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid WHERE t.reference
    AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)),
type AS (
  WITH RECURSIVE type AS (
    SELECT relid, typid FROM (
      SELECT t.oid AS relid, a.atttypid AS typid FROM t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid
      WHERE t.reference AND a.attnum > 0 AND NOT a.attisdropped
      UNION SELECT relid, made.typid FROM written, LATERAL ",
    made!(),
    " AS made) AS root
    UNION
    SELECT type.relid, part.typid FROM type JOIN pg_catalog.pg_type y ON y.oid = type.typid, LATERAL ",
    parts!(),
    " AS part WHERE part.typid <> 0)
  SELECT * FROM type),
expression AS (
  SELECT * FROM written
  UNION ALL
  SELECT type.relid, 'domain ' || c.contypid::regtype, c.conbin::text
  FROM type JOIN pg_catalog.pg_constraint c ON c.contypid = type.typid
  WHERE type.typid <> 0 AND c.conbin IS NOT NULL),
called AS (
  SELECT relid, place, called.funcid FROM expression, LATERAL ",
    called!(),
    " AS called
  UNION ALL
  SELECT g.tgrelid, 'trigger ' || g.tgname, g.tgfoid FROM t JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.oid
  WHERE t.reference AND NOT g.tgisinternal),
code AS (
  SELECT DISTINCT ON (relid) relid, place || ' calls ' || p.oid::regprocedure AS what
  FROM called JOIN pg_catalog.pg_proc p ON p.oid = called.funcid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  WHERE p.provolatile = 'v' OR ",
    runs_others!(),
    " OR n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid
      AND d.deptype = 'e')
  ORDER BY relid, place),
obstacle AS (
  SELECT 'noReplicaIdentity' AS kind, t.*, NULL::text AS what, NULL::text AS value FROM t
  WHERE NOT (relreplident = 'f' OR relkind = 'p' OR EXISTS (SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid = t.oid AND i.indisvalid
    AND (relreplident = 'd' AND i.indisprimary OR relreplident = 'i' AND i.indisreplident)))
  UNION ALL SELECT 'unlogged', t.*, NULL, NULL FROM t WHERE relpersistence = 'u'
  UNION ALL SELECT 'ownedBySuperuser', t.*, NULL, NULL FROM t WHERE rolsuper AND NOT reference
  UNION ALL SELECT 'ownerCannotLogIn', t.*, NULL, NULL FROM t WHERE NOT rolcanlogin
  UNION ALL SELECT 'ownerHasNoConnections', t.*, NULL, NULL FROM t WHERE rolconnlimit = 0 AND NOT rolsuper
  UNION ALL SELECT 'ownerCannotCreate', t.*, nspname, NULL FROM t
    WHERE NOT pg_catalog.has_schema_privilege(roleid, nspid, 'CREATE')
  UNION ALL SELECT 'partitionOfAnother', t.*, p.inhparent::regclass::text, o.rolname
    FROM t JOIN pg_catalog.pg_inherits p ON p.inhrelid = t.oid JOIN pg_catalog.pg_class c ON c.oid = p.inhparent
    JOIN pg_catalog.pg_roles o ON o.oid = c.relowner WHERE c.relowner <> t.roleid
  UNION ALL SELECT CASE WHEN of_role AND of_database THEN 'settingOfRoleInDatabase' WHEN of_role THEN 'settingOfRole'
      WHEN of_database THEN 'settingOfDatabase' ELSE 'settingOfAll' END, t.*, s.name, s.value
    FROM t JOIN setting s USING (roleid)
    WHERE NOT (s.name = 'role' AND s.value IN ('none', t.owner))
      AND NOT (s.name = 'default_transaction_read_only' AND NOT s.value::boolean)
      AND NOT (s.name LIKE '%timeout' AND s.value ~ '^\\s*0+\\s*[a-z]*\\s*$')
  UNION ALL SELECT 'referenceTableRunsCode', t.*, code.what, NULL FROM t JOIN code ON code.relid = t.oid
    WHERE NOT rolsuper),
alike AS (SELECT *, row_number() OVER (PARTITION BY kind, colocationid, reference, owner, what, value ORDER BY name) AS nth
  FROM obstacle),
numbered AS (SELECT *, row_number() OVER (PARTITION BY kind ORDER BY nth, name) AS number FROM alike),
counted AS (SELECT *, count(*) FILTER (WHERE number > 100) OVER (
    PARTITION BY kind, colocationid, reference, owner, what, value) AS more FROM numbered)
SELECT json_build_object(
  'total', (SELECT count(*) FROM obstacle),
  'unlisted', (SELECT count(*) FROM counted WHERE nth = 1 AND number > 100),
  'listed', (SELECT coalesce(json_agg(json_build_object('kind', kind, 'table', name, 'colocationId', colocationid,
      'reference', reference, 'owner', owner, 'what', what, 'value', value, 'more', CASE nth WHEN 1 THEN more ELSE 0 END,
      'groups', (SELECT coalesce(json_agg(DISTINCT p.groupid), '[]') FROM pg_catalog.pg_dist_placement p
        JOIN pg_catalog.pg_dist_shard s USING (shardid) WHERE s.logicalrelid = o.oid))
      ORDER BY kind, name), '[]') FROM counted o WHERE number <= 100),
  'pins', (SELECT pg_catalog.obj_description(p.oid, 'pg_proc')::json FROM pg_catalog.pg_dist_rebalance_strategy r
      JOIN pg_catalog.pg_proc p ON p.oid = r.shard_allowed_on_node_function
      JOIN pg_catalog.pg_roles o ON o.oid = p.proowner
      WHERE r.name = 'dialog_operator' AND o.rolsuper))"
);

#[derive(Deserialize)]
struct Found {
    total: i64,
    unlisted: i64,
    listed: Vec<Obstacle>,
    pins: Option<Pins>,
}

/// What is in the way of moves, and which groups are kept where they are.
pub(super) async fn obstacles(
    client: &Client,
    call: &Call<'_>,
) -> Result<(Obstacles, Option<Pins>), SqlError> {
    let row = call.wait(client.query_typed_one(OBSTACLES, &[])).await?;
    let found: Found = call.json(&row)?;
    Ok((Obstacles { total: found.total, listed: found.listed, unlisted: found.unlisted }, found.pins))
}
