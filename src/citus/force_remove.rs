//! The giving up of workers that are gone for good: the only place where data may ever go. Whether it may was decided
//! by a person; nothing here is done to a worker that answers.
//!
//! Citus has no call for it: `citus_remove_node` and `citus_disable_node` refuse while a node holds the only placement
//! of a shard, and without its placement every query of its table fails for ever. So the lost shards are made again,
//! empty, on workers that stay, with the commands Citus itself makes shards with; then one transaction points their
//! placements there, removes the lost nodes and gives the others their metadata anew. What a crash before its commit
//! leaves are empty tables that no placement names: the next try drops them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_postgres::{Transaction, types::Type};

use super::{
    connection::{Call, Connection, LONG_WRITE, Parameter},
    error::{SqlError, SqlErrorKind},
    fragments::{moving, shard_table},
    joining,
    messages::one_line,
    quote,
    spread::{self, LostShard, ShardCount},
    transaction::begin,
};

/// What was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ForceRemoved {
    /// The shards that were made again, empty.
    pub shards: Vec<i64>,
    /// The tables they belong to.
    pub tables: Vec<String>,
    /// About how many rows were in them: as many, for each shard of a table, as its other shards have on average by
    /// the statistics of the workers that stay. `None` when of some table no shard is left to tell.
    pub rows_about: Option<i64>,
}

/// What is lost and what stays, by the coordinator's catalog.
const LOSS: &str = concat!(
    "
WITH lost AS (SELECT groupid FROM pg_dist_node
    WHERE groupid <> 0 AND (nodename, nodeport) IN (SELECT * FROM unnest($1::text[], $2::int[]))),
staying AS (SELECT * FROM pg_dist_node
    WHERE isactive AND noderole = 'primary' AND groupid NOT IN (SELECT groupid FROM lost)),
shard AS (
  SELECT s.shardid, s.logicalrelid, p.groupid, p.groupid IN (SELECT groupid FROM lost) AS gone,
    CASE t.colocationid WHEN 0 THEN 'table ' || t.logicalrelid::oid ELSE 'group ' || t.colocationid END AS family,
    coalesce(s.shardminvalue, '') AS part, c.relispartition AS is_partition, n.nspname AS schema,
    pg_get_userbyid(c.relowner) AS owner,
    ",
    shard_table!(),
    " AS name
  FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_partition t USING (logicalrelid)
    JOIN pg_class c ON c.oid = t.logicalrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE ",
    moving!(),
    "),
gone AS (SELECT * FROM shard WHERE gone AND NOT EXISTS (
  SELECT FROM pg_dist_placement other JOIN staying USING (groupid) WHERE other.shardid = shard.shardid)),
link AS (
  SELECT parent.shardid AS left_shard, parent.schema AS left_schema, child.shardid AS right_shard,
    child.schema AS right_schema, child.name AS shard, 0 AS turn,
    format('ALTER TABLE %s ATTACH PARTITION %s %s', inhparent::regclass, inhrelid::regclass,
      pg_get_expr(c.relpartbound, c.oid)) AS command
  FROM gone AS child JOIN pg_inherits ON inhrelid = child.logicalrelid JOIN pg_class c ON c.oid = inhrelid
    JOIN gone AS parent ON parent.logicalrelid = inhparent AND (parent.family, parent.part) = (child.family, child.part)
  UNION ALL
  SELECT g.shardid, g.schema, other.shardid, nspname, g.name, 1,
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(k.oid))
  FROM gone AS g JOIN pg_constraint k ON conrelid = g.logicalrelid AND contype = 'f' AND conparentid = 0
    JOIN pg_dist_shard other ON other.logicalrelid = confrelid
      AND coalesce(other.shardminvalue, '') IN (g.part, '')
    JOIN pg_class c ON c.oid = confrelid JOIN pg_namespace ON pg_namespace.oid = c.relnamespace)
SELECT json_build_object(
  'groups', (SELECT coalesce(json_agg(groupid), '[]') FROM lost),
  'targets', (SELECT coalesce(json_agg(groupid ORDER BY nodeid), '[]') FROM staying WHERE shouldhaveshards
    OR (groupid <> 0 AND NOT EXISTS (SELECT FROM staying WHERE shouldhaveshards AND groupid <> 0))),
  'held', (SELECT coalesce(json_agg(json_build_object('group', groupid, 'family', family, 'shards', shards)), '[]')
    FROM (SELECT groupid, family, count(*) AS shards FROM shard WHERE NOT gone GROUP BY 1, 2) AS h),
  'shards', (SELECT coalesce(json_agg(json_build_object('id', shardid, 'table', logicalrelid::text, 'schema', schema,
      'name', name, 'owner', owner, 'family', family, 'part', part) ORDER BY is_partition, shardid), '[]') FROM gone),
  'tables', (SELECT coalesce(json_object_agg(logicalrelid::text,
      ARRAY(SELECT master_get_table_ddl_events(logicalrelid::text))), '{}')
    FROM (SELECT DISTINCT logicalrelid FROM gone) AS t),
  'links', (SELECT coalesce(json_agg(json_build_object('shard', shard, 'leftShard', left_shard,
      'leftSchema', left_schema, 'rightShard', right_shard, 'rightSchema', right_schema, 'command', command)
      ORDER BY turn), '[]') FROM link),
  'pending', (SELECT coalesce(json_agg(object_name ORDER BY record_id), '[]') FROM pg_dist_cleanup
    WHERE object_type = 1 AND node_group_id NOT IN (SELECT groupid FROM lost)
    AND object_name IN (SELECT name FROM gone)))"
);

#[derive(Deserialize)]
struct Loss {
    groups: Vec<i32>,
    targets: Vec<i32>,
    held: Vec<ShardCount>,
    /// Partitions after the tables they are partitions of.
    shards: Vec<Shard>,
    /// What makes a table, by its name.
    tables: BTreeMap<String, Vec<String>>,
    links: Vec<Link>,
    pending: Vec<String>,
}

#[derive(Deserialize)]
struct Shard {
    id: i64,
    table: String,
    schema: String,
    name: String,
    owner: String,
    #[serde(flatten)]
    lost: LostShard,
}

/// What ties two shards together: one is the other's partition, or refers to it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    shard: String,
    left_shard: i64,
    left_schema: String,
    right_shard: i64,
    right_schema: String,
    command: String,
}

/// Gives up the data of workers that are gone for good, all in one: while one of them is registered and silent, no
/// other could be given up. Afterwards their shards are there again, empty, spread evenly over the workers that stay
/// and may have shards; no node knows the lost ones any more. Does nothing for those that are not registered: what a
/// crash right after the commit kept back is known to nobody.
///
/// No job may be open.
///
/// # Errors
/// Any [`SqlError`]; [`SqlErrorKind::NodeAnswers`], [`SqlErrorKind::NoSurvivor`], [`SqlErrorKind::CleanupPending`] while
/// pg_dist_cleanup lists a lost shard on a node that stays, [`SqlErrorKind::DataInTheWay`] when such a node has rows under
/// a lost shard's name, [`SqlErrorKind::RemoteUnreachable`] when it is silent. After any of them nothing is given up.
pub async fn force_remove(
    coordinator: &Connection,
    workers: &[(&str, u16)],
) -> Result<ForceRemoved, SqlError> {
    const LOCK: &str = "LOCK TABLE pg_dist_node IN EXCLUSIVE MODE";
    let (mut client, call) = coordinator.call("the force-removal of a worker", LONG_WRITE).await?;
    let addresses = workers.iter().map(|(host, port)| (*host, i32::from(*port)));
    let (hosts, ports): (Vec<_>, Vec<_>) = addresses.unzip();
    let nodes: &[Parameter<'_>] = &[(&hosts, Type::TEXT_ARRAY), (&ports, Type::INT4_ARRAY)];
    let transaction = begin(&mut client, &call, Duration::from_secs(15), LONG_WRITE).await?;
    call.wait(transaction.batch_execute("SET LOCAL citus.node_connection_timeout = '5s'")).await?;
    ensure_unreachable(coordinator, &transaction, &call, nodes).await?;
    // What is made again, and all members in the end, are as one that joins.
    joining::refuse_code_of_others(transaction.client(), &call).await?;
    // Before the look: nobody joins or leaves until the end.
    call.wait(transaction.batch_execute(LOCK)).await?;
    let loss: Loss = call.json(&call.wait(transaction.query_typed_one(LOSS, nodes)).await?)?;
    if loss.groups.is_empty() {
        return Ok(ForceRemoved::default());
    }
    let placed = loss.place(&call)?;
    // Nothing is asked of the lost ones from here on, by this transaction.
    let silence = "UPDATE pg_dist_node SET isactive = false, hasmetadata = false, metadatasynced = false
        WHERE groupid = ANY($1)";
    call.wait(transaction.execute_typed(silence, &[(&loss.groups, Type::INT4_ARRAY)])).await?;
    let given_up = ForceRemoved {
        shards: placed.keys().copied().collect(),
        tables: loss.tables.keys().cloned().collect(),
        rows_about: if placed.is_empty() { Some(0) } else { rows_about(&transaction, &call, &loss).await? },
    };
    if !placed.is_empty() {
        make_empty(&transaction, &call, &loss.recreate_plan(&placed)).await?;
    }
    repoint_placements(&transaction, &call, &loss, &placed, nodes).await?;
    call.wait(transaction.commit()).await?;
    Ok(given_up)
}

/// A server that refuses a login, starts up or shows a wrong certificate is there, and so may be its data.
async fn ensure_unreachable(
    coordinator: &Connection,
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    nodes: &[Parameter<'_>],
) -> Result<(), SqlError> {
    // Nobody else is asked: another silent node would cost its timeout.
    const ANSWERS: &str = "
        WITH lost AS MATERIALIZED (SELECT nodename, nodeport FROM pg_dist_node
          WHERE (nodename, nodeport) IN (SELECT * FROM unnest($1::text[], $2::int[])))
        SELECT nodename || ':' || nodeport FROM lost WHERE citus_check_connection_to_node(nodename, nodeport) LIMIT 1";
    const SPEAKS: &[&str] = &["FATAL", "SSL", "certificate"];
    coordinator.take_notices();
    let answer = call.wait(transaction.query_typed_opt(ANSWERS, nodes)).await?;
    let node: Option<String> = answer.and_then(|row| row.try_get(0).ok());
    let speaks = |warning: &String| SPEAKS.iter().any(|word| warning.contains(word));
    let who = node.or_else(|| coordinator.take_notices().into_iter().find(speaks));
    let Some(who) = who else { return Ok(()) };
    Err(call.refused(
        SqlErrorKind::NodeAnswers,
        format!("it answers, so its data is not given up: {}", one_line(&who)),
    ))
}

impl Loss {
    /// The group that each lost shard goes to.
    fn place(&self, call: &Call<'_>) -> Result<BTreeMap<i64, i32>, SqlError> {
        if let Some(first) = self.pending.first() {
            let message = format!("pg_dist_cleanup still lists {first} on a worker that stays");
            return Err(call.refused(SqlErrorKind::CleanupPending, message));
        }
        let lost: Vec<&LostShard> = self.shards.iter().map(|shard| &shard.lost).collect();
        let Some(groups) = spread::distribute_evenly(&lost, &self.held, &self.targets) else {
            let message = "no worker that stays may have shards".to_owned();
            return Err(call.refused(SqlErrorKind::NoSurvivor, message));
        };
        Ok(self.shards.iter().map(|shard| shard.id).zip(groups).collect())
    }

    /// The statements that make the lost shards, by the group that runs them, and the names of all of them.
    fn recreate_plan(&self, placed: &BTreeMap<i64, i32>) -> RecreatePlan {
        let mut statements: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        let mut names: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        let mut groups: BTreeMap<&str, i32> = BTreeMap::new();
        for shard in &self.shards {
            let Some(group) = placed.get(&shard.id) else { continue };
            groups.insert(&shard.name, *group);
            names.entry(*group).or_default().push(shard.name.clone());
            let make = |ddl: &String| {
                let (schema, ddl) = (quote::literal(&shard.schema), quote::literal(ddl));
                format!("SELECT worker_apply_shard_ddl_command({}, {schema}, {ddl})", shard.id)
            };
            let commands = self.tables.get(&shard.table).into_iter().flatten().map(make);
            statements.entry(*group).or_default().extend(commands);
        }
        for link in &self.links {
            let Some(group) = groups.get(link.shard.as_str()) else { continue };
            statements.entry(*group).or_default().push(format!(
                "SELECT worker_apply_inter_shard_ddl_command({}, {}, {}, {}, {})",
                link.left_shard,
                quote::literal(&link.left_schema),
                link.right_shard,
                quote::literal(&link.right_schema),
                quote::literal(&link.command)
            ));
        }
        let all = self.shards.iter().map(|shard| (shard.name.clone(), shard.owner.clone())).collect();
        RecreatePlan { all, names, statements }
    }
}

/// What the workers that stay are told, all of them the same.
#[derive(Serialize)]
struct RecreatePlan {
    /// The owner of each lost shard, by its name.
    all: BTreeMap<String, String>,
    names: BTreeMap<i32, Vec<String>>,
    statements: BTreeMap<i32, Vec<String>>,
}

/// Runs on each node that stays. What has a lost shard's name there, is a table of its owner and has an empty file is of an
/// earlier try; columnar has two blocks from the beginning. Anything else of that name is somebody's. None of it is read:
/// a view runs its owner's functions with the rights of whoever reads it, and so does an index of a table whose query is
/// planned. It is looked at once more under its lock, or another could take its place meanwhile.
/// Citus' own shards take no numbers from sequences: the coordinator does that, and a sequence must not depend on them.
const MAKE: &str = "
DECLARE
  own text := (SELECT groupid FROM pg_dist_local_group);
  shard text;
  shard_owner text;
  statement text;
  filled bool;
BEGIN
  SET LOCAL search_path = pg_catalog;
  SET LOCAL lock_timeout = '15s';
  SET LOCAL citus.enable_ddl_propagation = off;
  SET LOCAL citus.enable_manual_changes_to_shards = on;
  FOR shard, shard_owner IN SELECT key, value FROM jsonb_each_text(making->'all') WHERE to_regclass(key) IS NOT NULL LOOP
    FOR look IN 1..2 LOOP
      IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass(shard) AND relkind IN ('r', 'p')
        AND pg_get_userbyid(relowner) = shard_owner AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid
          AND inhrelid NOT IN (SELECT to_regclass(key) FROM jsonb_object_keys(making->'all') AS key
            WHERE to_regclass(key) IS NOT NULL))) THEN
        RAISE EXCEPTION 'data in the way: % is there already and is no shard of %', shard, shard_owner;
      END IF;
      EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', shard);
    END LOOP;
    SELECT pg_relation_size(c.oid) > CASE amname WHEN 'columnar' THEN 2 * current_setting('block_size')::int ELSE 0 END
      INTO filled FROM pg_class c LEFT JOIN pg_am am ON am.oid = c.relam WHERE c.oid = to_regclass(shard);
    IF filled THEN
      RAISE EXCEPTION 'data in the way: % is there already and holds rows, or held some', shard;
    END IF;
  END LOOP;
  FOR shard IN SELECT key FROM jsonb_object_keys(making->'all') AS key WHERE to_regclass(key) IS NOT NULL LOOP
    EXECUTE format('DROP TABLE IF EXISTS %s CASCADE', shard);
  END LOOP;
  FOR statement IN SELECT jsonb_array_elements_text(making->'statements'->own) LOOP
    EXECUTE statement;
  END LOOP;
  FOR shard IN SELECT jsonb_array_elements_text(making->'names'->own) LOOP
    FOR statement IN
      SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP IDENTITY', shard, attname) FROM pg_attribute
      WHERE attrelid = shard::regclass AND attidentity <> '' AND NOT attisdropped
      UNION ALL
      SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', shard, attname)
      FROM pg_attrdef d JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
      WHERE adrelid = shard::regclass AND EXISTS (SELECT FROM pg_depend JOIN pg_class s ON s.oid = refobjid
        WHERE classid = 'pg_attrdef'::regclass AND objid = d.oid AND refclassid = 'pg_class'::regclass AND relkind = 'S')
    LOOP
      EXECUTE statement;
    END LOOP;
  END LOOP;
END";

/// Makes the tables. This is committed by each worker for itself.
async fn make_empty(
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    making: &RecreatePlan,
) -> Result<(), SqlError> {
    let making = serde_json::to_string(making).map_err(|error| call.misunderstood(&error))?;
    let body = format!("DECLARE making jsonb := {};{MAKE}", quote::literal(&making));
    let command = format!("DO {}", quote::literal(&body));
    on_all_nodes(transaction, call, &command).await.map(drop)
}

/// `run_command_on_all_nodes`: the answers of all active nodes, or the first refusal.
async fn on_all_nodes(
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    command: &str,
) -> Result<Vec<String>, SqlError> {
    const RUN: &str = "SELECT nodeid, success, result FROM run_command_on_all_nodes($1)";
    let rows = call.wait(transaction.query_typed(RUN, &[(&command, Type::TEXT)])).await?;
    let mut answers = Vec::new();
    for row in rows {
        let answer = (|| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))();
        let (node, success, answer): (i32, bool, Option<String>) =
            answer.map_err(|error: tokio_postgres::Error| call.misunderstood(&error))?;
        let answer = answer.unwrap_or_default();
        if !success {
            let refusal = if answer.contains("data in the way") {
                SqlErrorKind::DataInTheWay
            } else {
                SqlErrorKind::of("", &answer)
            };
            return Err(call.refused(refusal, format!("on the node with id {node}: {answer}")));
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// What a worker knows of its own shards of a table.
#[derive(Deserialize)]
struct Statistics {
    table: String,
    shards: i64,
    rows: i64,
}

/// By the statistics of each worker for its own shards: those of the last ANALYZE, or of what was written since.
async fn rows_about(
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    loss: &Loss,
) -> Result<Option<i64>, SqlError> {
    const ROWS: &str = concat!(
        "
SELECT coalesce(json_agg(json_build_object('table', name, 'shards', shards, 'rows', rows)), '[]') FROM (
  SELECT format('%I.%I', nspname, placed.relname) AS name, count(*) AS shards, sum(CASE own.relkind WHEN 'p' THEN 0
    ELSE greatest(own.reltuples, pg_stat_get_live_tuples(own.oid)) END)::bigint AS rows
  FROM (SELECT c.relname, n.nspname, to_regclass(",
        shard_table!(),
        ") AS shard
      FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid)
        JOIN pg_class c ON c.oid = s.logicalrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE p.groupid = (SELECT groupid FROM pg_dist_local_group)) AS placed
    JOIN pg_class own ON own.oid = shard
  GROUP BY 1) AS tables"
    );
    let mut known: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for answer in on_all_nodes(transaction, call, ROWS).await? {
        let tables: Vec<Statistics> =
            serde_json::from_str(&answer).map_err(|error| call.misunderstood(&error))?;
        for table in tables {
            let (shards, rows) = known.entry(table.table).or_default();
            *shards += table.shards;
            *rows += table.rows;
        }
    }
    let mut gone: BTreeMap<&str, i64> = BTreeMap::new();
    for shard in &loss.shards {
        *gone.entry(&shard.table).or_default() += 1;
    }
    let of_table = |(table, gone): (&str, i64)| {
        let (shards, rows) = known.get(table)?;
        rows.saturating_mul(gone).checked_div(*shards)
    };
    Ok(gone.into_iter().map(of_table).sum())
}

/// What is to be written in the catalogs: placements, nodes, and what is to be cleaned up on them. The workers that
/// stay get the new catalog whole, in the same transaction.
async fn repoint_placements(
    transaction: &Transaction<'_>,
    call: &Call<'_>,
    loss: &Loss,
    placed: &BTreeMap<i64, i32>,
    nodes: &[Parameter<'_>],
) -> Result<(), SqlError> {
    const POINT: &str = "UPDATE pg_dist_placement p SET groupid = target.groupid
        FROM unnest($1::bigint[], $2::int[]) AS target(shardid, groupid)
        WHERE p.shardid = target.shardid AND p.groupid = ANY($3)";
    const FORGET: &str = "DELETE FROM pg_dist_cleanup WHERE node_group_id = ANY($1)";
    const REMOVE: &str =
        "SELECT citus_remove_node(host, port) FROM unnest($1::text[], $2::int[]) AS n(host, port)
        WHERE (host, port) IN (SELECT nodename, nodeport FROM pg_dist_node)";
    const RENEW: &str = "SELECT citus_activate_node(nodename, nodeport) FROM pg_dist_node
        WHERE isactive AND noderole = 'primary' AND groupid <> 0";
    let (shards, targets): (Vec<i64>, Vec<i32>) = placed.iter().unzip();
    let groups: Parameter<'_> = (&loss.groups, Type::INT4_ARRAY);
    let point: &[Parameter<'_>] =
        &[(&shards, Type::INT8_ARRAY), (&targets, Type::INT4_ARRAY), (&loss.groups, Type::INT4_ARRAY)];
    call.wait(transaction.execute_typed(POINT, point)).await?;
    call.wait(transaction.execute_typed(FORGET, &[groups])).await?;
    call.wait(transaction.query_typed(REMOVE, nodes)).await?;
    call.wait(transaction.query_typed(RENEW, &[])).await.map(drop)
}
