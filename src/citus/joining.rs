//! What a node that joins would run of other roles: one read of the coordinator's catalog. Nothing is written here.

use tokio_postgres::Client;

use super::{
    code::{called, made, parts, runs_others},
    connection::Call,
    error::{SqlError, SqlErrorKind},
};

/// The first thing that would be run, in words. Citus makes everything anew on a node that joins, as superuser, and
/// gives it to its owner afterwards. What PostgreSQL evaluates meanwhile, although there is no row:
///
/// - the bounds of partitions, and the first values of aggregates: they become values of a type, whose domains have
///   CHECKs;
/// - what is constant in a partition's CHECKs and in the key that it is attached by;
/// - constants of rows, arrays and ranges in any expression: they are read as text, and domains in them are checked.
const RUN: &str = concat!(
    "
WITH RECURSIVE relation AS MATERIALIZED (
  SELECT c.oid, c.oid::regclass::text AS name, c.relispartition FROM pg_catalog.pg_dist_partition t
  JOIN pg_catalog.pg_class c ON c.oid = t.logicalrelid JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
  WHERE (c.relkind = 'p' OR c.relispartition) AND NOT r.rolsuper),
folded AS MATERIALIZED (
  SELECT 'the partition key of ' || name AS place, partexprs::text AS tree
  FROM relation JOIN pg_catalog.pg_partitioned_table ON partrelid = oid WHERE partexprs IS NOT NULL
  UNION ALL SELECT format('CHECK %s of the partition %s', conname, name), conbin::text
  FROM relation JOIN pg_catalog.pg_constraint k ON conrelid = relation.oid WHERE contype = 'c' AND relispartition),
written AS MATERIALIZED (
  SELECT 'a default of ' || adrelid::regclass AS place, adbin::text AS tree FROM pg_catalog.pg_attrdef
  UNION ALL SELECT 'CHECK ' || conname, conbin::text FROM pg_catalog.pg_constraint WHERE conbin IS NOT NULL
  UNION ALL SELECT 'the view or rule of ' || ev_class::regclass, concat(ev_action::text, ev_qual::text)
  FROM pg_catalog.pg_rewrite WHERE ev_class >= 16384
  UNION ALL SELECT 'the function ' || oid::regprocedure, concat(proargdefaults::text, prosqlbody::text)
  FROM pg_catalog.pg_proc WHERE oid >= 16384 AND (proargdefaults IS NOT NULL OR prosqlbody IS NOT NULL)
  UNION ALL SELECT 'the default of the domain ' || oid::regtype, typdefaultbin::text FROM pg_catalog.pg_type
  WHERE oid >= 16384 AND typdefaultbin IS NOT NULL
  UNION ALL SELECT 'an index of ' || indrelid::regclass, concat(indexprs::text, indpred::text) FROM pg_catalog.pg_index
  WHERE indexprs IS NOT NULL OR indpred IS NOT NULL
  UNION ALL SELECT 'a policy of ' || polrelid::regclass, concat(polqual::text, polwithcheck::text) FROM pg_catalog.pg_policy
  UNION ALL SELECT 'a trigger of ' || tgrelid::regclass, tgqual::text FROM pg_catalog.pg_trigger WHERE tgqual IS NOT NULL
  UNION ALL SELECT 'statistics of ' || stxrelid::regclass, stxexprs::text FROM pg_catalog.pg_statistic_ext
  WHERE stxexprs IS NOT NULL),
root AS (
  SELECT 'a bound of a partition of ' || name AS place, a.atttypid AS typid FROM relation
  JOIN pg_catalog.pg_partitioned_table ON partrelid = oid JOIN pg_catalog.pg_attribute a ON a.attrelid = oid
    AND a.attnum = ANY (partattrs)
  UNION SELECT place, made.typid FROM folded, LATERAL ",
    made!(),
    " AS made
  UNION SELECT 'the aggregate ' || aggfnoid::oid::regprocedure, first.typid FROM pg_catalog.pg_aggregate, LATERAL (
    SELECT aggtranstype WHERE agginitval IS NOT NULL UNION SELECT aggmtranstype WHERE aggminitval IS NOT NULL) AS first(typid)
  UNION SELECT place, found[1]::oid FROM written, regexp_matches(tree, ':consttype (\\d+)', 'g') AS found),
type AS (
  SELECT place, typid FROM root WHERE typid >= 16384
  UNION SELECT type.place, part.typid FROM type JOIN pg_catalog.pg_type y ON y.oid = type.typid, LATERAL ",
    parts!(),
    " AS part WHERE part.typid >= 16384),
expression AS (
  SELECT place || ', by the CHECK of ' || typid::regtype AS place, conbin::text AS tree, false AS folded
  FROM type JOIN pg_catalog.pg_constraint ON contypid = typid JOIN pg_catalog.pg_type y ON y.oid = typid
    JOIN pg_catalog.pg_roles r ON r.oid = y.typowner WHERE conbin IS NOT NULL AND NOT r.rolsuper
  UNION ALL SELECT place, tree, true FROM folded),
code AS (
  SELECT place || ' calls ' || p.oid::regprocedure AS what, folded, p.provolatile, l.lanname = 'sql' AS inlined,
    o.rolsuper, n.nspname IN ('pg_catalog', 'information_schema') OR EXISTS (SELECT FROM pg_catalog.pg_depend d
      WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') AS given, ",
    runs_others!(),
    " AS runs_others
  FROM expression, LATERAL ",
    called!(),
    " AS called JOIN pg_catalog.pg_proc p ON p.oid = called.funcid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_roles o ON o.oid = p.proowner JOIN pg_catalog.pg_language l ON l.oid = p.prolang)
SELECT what FROM code WHERE CASE
  WHEN given THEN runs_others OR provolatile = 'v' AND NOT folded
  WHEN rolsuper THEN false
  -- Only what cannot change is evaluated early, or what is put in its place.
  ELSE NOT folded OR provolatile = 'i' OR inlined END
ORDER BY what LIMIT 1"
);

/// Refuses when a node that joins, or is told everything anew, would run code of a role that is no superuser.
pub(super) async fn refuse_code_of_others(client: &Client, call: &Call<'_>) -> Result<(), SqlError> {
    let Some(row) = call.wait(client.query_typed_opt(RUN, &[])).await? else { return Ok(()) };
    let what: String = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    let message = format!(
        "a node that joins makes everything anew as superuser, and would run code of the application then: {what}. Drop \
         it, or make it a superuser's: ALTER FUNCTION ... OWNER TO postgres"
    );
    Err(call.refused(SqlErrorKind::JoiningRunsCode, message))
}
