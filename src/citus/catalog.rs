//! Reads of the coordinator's Citus catalog: members, shards, tables, the newest job, what Citus would move. Nothing
//! is written here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;
use tokio_postgres::{Client, types::Type};

use super::{
    connection::{Call, Connection, Parameter, READ},
    error::{SqlError, SqlErrorKind},
    fragments::{monitored, moving},
    messages::of_task,
    obstacles,
    task::{self, Place},
};
use crate::snapshot::{
    Citus, CleanupRow, DistNode, DistTable, Group, Job, Move, Observed, Placement, PlanUnknown, Task,
};

/// The longest message of a task that is kept, in characters.
const MESSAGE: usize = 4000;

/// What is to be seen of the catalog.
#[derive(Clone, Copy, Debug)]
pub struct CatalogQuestion<'a> {
    /// A row of pg_dist_rebalance_strategy: whose plan is asked for.
    pub strategy: &'a str,
    /// The application's role.
    pub owner: &'a str,
    /// Ask what Citus would move now. Never asked while a job is open.
    pub with_plan: bool,
    /// Of the plan only the moves away from nodes that should have no shards.
    pub drain_only: bool,
    /// Look at the sizes of shards: that asks every worker. Without it sizes of groups are `None` and of moves 0.
    pub with_sizes: bool,
}

/// There is a job that has not ended, or a task of one that has ended runs all the same.
macro_rules! open {
    () => {
        "EXISTS (SELECT FROM pg_dist_background_job j WHERE job_type = 'rebalance'
          AND (state NOT IN ('finished', 'cancelled', 'failed') OR EXISTS (SELECT FROM pg_dist_background_task k
            WHERE k.job_id = j.job_id AND status IN ('running', 'cancelling'))))"
    };
}

/// What this installation can do.
const CAPABILITIES: &str = "
SELECT json_build_object(
  'parallelColocated', EXISTS (SELECT FROM pg_proc WHERE proname = 'citus_rebalance_start'
    AND 'parallel_transfer_colocated_shards' = ANY(proargnames)),
  'shardSizes', EXISTS (SELECT FROM pg_proc WHERE proname = 'citus_shard_sizes' AND 'shard_id' = ANY(proargnames)))";

/// Lists are bounded, as people and applications may make any number of what is in them. Of the rows of pg_dist_cleanup
/// the first thousand of each member are listed, what is no shard before others, and the first thousand of all groups
/// that are no member's: so each group that has rows has one here.
const CATALOG: &str = concat!(
    "
WITH job AS (SELECT * FROM pg_dist_background_job j WHERE job_type = 'rebalance'
  ORDER BY EXISTS (SELECT FROM pg_dist_background_task k WHERE k.job_id = j.job_id
    AND status IN ('running', 'cancelling')) DESC, job_id DESC LIMIT 1),
task AS (
  SELECT k.*, substring(command FROM 'citus_move_shard_placement\\((\\d+)')::bigint AS shardid,
    row_number() OVER (ORDER BY status = 'done', coalesce(message, '') = '', task_id) AS number
  FROM pg_dist_background_task k JOIN job USING (job_id)),
cleanup AS (
  SELECT *, row_number() OVER (PARTITION BY CASE WHEN node_group_id IN (SELECT groupid FROM pg_dist_node) THEN node_group_id END
    ORDER BY object_type = 1, record_id) AS number FROM pg_dist_cleanup)
SELECT json_build_object(
  'nodes', (SELECT coalesce(json_agg(json_build_object('nodeId', nodeid, 'groupId', groupid, 'name', nodename,
      'port', nodeport, 'active', isactive, 'hasMetadata', hasmetadata,
      'metadataSynced', coalesce(metadatasynced, false), 'shouldHaveShards', shouldhaveshards)
      ORDER BY groupid, nodeid), '[]') FROM pg_dist_node),
  'groups', (SELECT coalesce(json_object_agg(groupid, json_build_object('shards', shards)), '{}') FROM (
      SELECT groupid, count(shardid) AS shards FROM (
        SELECT groupid, NULL::bigint AS shardid FROM pg_dist_node
        UNION ALL
        SELECT p.groupid, p.shardid FROM pg_dist_placement p JOIN pg_dist_shard USING (shardid)
        JOIN pg_dist_partition t USING (logicalrelid) WHERE ",
    moving!(),
    ") AS placement GROUP BY groupid) AS groups),
  'tables', (SELECT coalesce(json_agg(json_build_object('name', t.logicalrelid::text, 'distributed', ",
    moving!(),
    ",
      'replicaIdentity', c.relreplident = 'f' OR c.relkind = 'p' OR EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
        AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)),
      'colocationId', t.colocationid) ORDER BY t.logicalrelid::text), '[]')
      FROM (SELECT * FROM pg_dist_partition ORDER BY logicalrelid LIMIT 1000) AS t
      JOIN pg_class c ON c.oid = t.logicalrelid),
  'job', (SELECT json_build_object('id', job_id, 'state', state, 'description', description,
      'startedAt', started_at, 'finishedAt', finished_at,
      'abandoned', NOT ",
    monitored!(),
    " AND EXISTS (SELECT FROM task k WHERE status = 'cancelling'
          AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = k.pid))) FROM job),
  'tasks', (SELECT coalesce(json_agg(json_build_object('id', task_id, 'state', status, 'command', command,
      'table', (SELECT logicalrelid::text FROM pg_dist_shard s WHERE s.shardid = task.shardid),
      'retried', coalesce(retry_count, 0), 'pid', pid,
      'message', CASE WHEN status <> 'done' AND number <= 100 AND octet_length(message) <= 16000 THEN message END,
      'begin', CASE WHEN status <> 'done' AND number <= 100 AND octet_length(message) > 16000
        THEN encode(substring(textsend(message) FOR 16000), 'hex') END)
      ORDER BY task_id), '[]') FROM task),
  'failedJobs', (SELECT count(*) FROM pg_dist_background_job WHERE job_type = 'rebalance'
      AND state = 'failed' AND job_id > coalesce((SELECT max(job_id) FROM pg_dist_background_job
        WHERE job_type = 'rebalance' AND state = 'finished'), -1)),
  'cleanup', (SELECT coalesce(json_agg(json_build_object('recordId', record_id, 'groupId', node_group_id,
      'objectType', object_type, 'objectName', object_name) ORDER BY record_id), '[]') FROM cleanup WHERE number <= 1000),
  'cleanupInAll', (SELECT count(*) FROM cleanup),
  'extensions', (SELECT json_agg(extname) FROM pg_extension),
  'ownerExists', EXISTS (SELECT FROM pg_roles WHERE rolname = $1),
  'schemaHash', (SELECT substring(entry FROM position('=' IN entry) + 1) FROM pg_db_role_setting r
      JOIN pg_database d ON d.oid = r.setdatabase AND d.datname = current_database(), unnest(setconfig) AS entry
      WHERE r.setrole = 0 AND starts_with(entry, $2 || '=')),
  'ownerSecret', (SELECT substring(entry FROM position('=' IN entry) + 1) FROM pg_db_role_setting r
      JOIN pg_database d ON d.oid = r.setdatabase AND d.datname = current_database(), unnest(setconfig) AS entry
      WHERE r.setrole = 0 AND starts_with(entry, $3 || '=')))"
);

/// Citus' own plan. It names each shard of a colocation group; they move together, as one move. The strategy passes
/// through `job`, so that nothing is planned while a job is open.
const PLAN: &str = concat!(
    "
SELECT json_build_object('open', ",
    open!(),
    ", 'moves', coalesce(json_agg(json_build_object('shard', shard, 'table', name, 'colocationId', colocationid,
    'sourceName', sourcename, 'sourcePort', sourceport, 'targetName', targetname, 'targetPort', targetport)
    ORDER BY place), '[]'))
FROM (
  SELECT (array_agg(shardid ORDER BY ordinality))[1] AS shard,
    (array_agg(table_name::text ORDER BY ordinality))[1] AS name,
    sourcename, sourceport, targetname, targetport, t.colocationid, min(ordinality) AS place
  FROM (SELECT $1::text::name AS strategy WHERE NOT ",
    open!(),
    ") AS job,
    LATERAL get_rebalance_table_shards_plan(rebalance_strategy => job.strategy, drain_only => $2) WITH ORDINALITY
    JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_partition t ON t.logicalrelid = s.logicalrelid
  GROUP BY t.colocationid, CASE t.colocationid WHEN 0 THEN t.logicalrelid::oid END, s.shardminvalue,
    sourcename, sourceport, targetname, targetport) AS moves"
);

/// Sizes by group and by shard; a shard's size is that of all that moves with it. A group of which a node did not
/// tell everything has none. Of each colocation group Citus plans with the table that it meets first in pg_dist_partition
/// (`NonColocatedDistRelationIdList`); placements are those of these tables.
const SIZES: &str = concat!(
    "
WITH size AS MATERIALIZED (SELECT shard_id::bigint AS shardid, max(size) AS bytes FROM citus_shard_sizes() GROUP BY 1),
shard AS (
  SELECT s.shardid, s.logicalrelid, size.bytes, sum(size.bytes) OVER (PARTITION BY t.colocationid,
    CASE t.colocationid WHEN 0 THEN t.logicalrelid::oid END, s.shardminvalue)::bigint AS together
  FROM pg_dist_shard s JOIN pg_dist_partition t USING (logicalrelid) LEFT JOIN size USING (shardid) WHERE ",
    moving!(),
    "),
representative AS (
  SELECT DISTINCT ON (colocation) logicalrelid, colocation, place FROM (
    SELECT logicalrelid, CASE colocationid WHEN 0 THEN -(logicalrelid::oid::bigint) ELSE colocationid END AS colocation,
      row_number() OVER (ORDER BY t.ctid) AS place
    FROM pg_dist_partition t WHERE ",
    moving!(),
    ") AS tables ORDER BY colocation, place)
SELECT json_build_object(
  'placements', (SELECT coalesce(json_agg(json_build_array(shardid, colocation, groupid, together)
    ORDER BY place, shardid), '[]')
    FROM representative JOIN shard USING (logicalrelid) JOIN pg_dist_placement USING (shardid)),
  'groups', (SELECT coalesce(json_object_agg(groupid, bytes), '{}') FROM (
    SELECT groupid, CASE WHEN count(*) = count(bytes) THEN sum(bytes)::bigint END AS bytes
    FROM pg_dist_placement JOIN shard USING (shardid) GROUP BY groupid) AS groups),
  'shards', (SELECT coalesce(json_object_agg(shardid, together), '{}') FROM shard WHERE together IS NOT NULL))"
);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    parallel_colocated: bool,
    shard_sizes: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Catalog {
    nodes: Vec<DistNode>,
    groups: BTreeMap<i32, Group>,
    tables: Vec<DistTable>,
    job: Option<RawJob>,
    tasks: Vec<RawTask>,
    failed_jobs: u32,
    cleanup: Vec<CleanupRow>,
    cleanup_in_all: usize,
    owner_exists: bool,
    schema_hash: Option<String>,
    owner_secret: Option<String>,
    extensions: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawJob {
    id: i64,
    state: String,
    description: String,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    abandoned: bool,
}

#[derive(Deserialize)]
struct RawTask {
    id: i64,
    state: String,
    command: String,
    table: Option<String>,
    retried: i64,
    message: Option<String>,
    /// The first bytes of a message that is too long, in hex: they may be no text.
    begin: Option<String>,
    pid: Option<i32>,
}

#[derive(Deserialize)]
struct RawPlan {
    open: bool,
    moves: Vec<RawMove>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMove {
    shard: i64,
    table: String,
    colocation_id: i32,
    source_name: String,
    source_port: i32,
    target_name: String,
    target_port: i32,
}

#[derive(Deserialize)]
struct Sizes {
    groups: BTreeMap<i32, Option<i64>>,
    shards: BTreeMap<i64, i64>,
    placements: Vec<Placement>,
}

/// What the coordinator's catalog says, in two round trips. A plan that Citus refuses to make is `Unknown` with its
/// words, sizes that cannot be had are `None`; neither hides the rest.
///
/// # Errors
/// Any [`SqlError`]; [`super::SqlErrorKind::NoExtension`] as long as the database does not have the extension.
pub async fn observe_citus(connection: &Connection, ask: &CatalogQuestion<'_>) -> Result<Citus, SqlError> {
    let (client, call) = connection.call("the look at the Citus catalog", READ).await?;
    let abilities: Capabilities = call.json(&call.wait(client.query_typed_one(CAPABILITIES, &[])).await?)?;
    // All are on their way before the first answer is read; the catalog's comes first, whatever becomes of the others.
    let parameters: [Parameter<'_>; 3] =
        [(&ask.owner, Type::TEXT), (&super::APPLIED_HASH, Type::TEXT), (&super::OWNER_SECRET, Type::TEXT)];
    let catalog = call.wait(client.query_typed_one(CATALOG, &parameters));
    let planned =
        async { if ask.with_plan { Some(Box::pin(plan_moves(&client, &call, ask)).await) } else { None } };
    let obstacles = Box::pin(obstacles::obstacles(&client, &call));
    let sizes =
        async { if ask.with_sizes && abilities.shard_sizes { sizes(&client, &call).await } else { None } };
    let (catalog, planned, obstacles, sizes) = tokio::join!(catalog, planned, obstacles, sizes);
    let catalog: Catalog = call.json(&catalog?)?;
    let (obstacles, pins) = obstacles?;
    let mut citus = assemble(catalog, planned, sizes.as_ref(), abilities.parallel_colocated);
    (citus.obstacles, citus.pins) = (obstacles, pins);
    if citus.pins.is_some() && citus.planned_moves.is_some() {
        let ask = CatalogQuestion { strategy: obstacles::PINNING, ..*ask };
        let names = Names { nodes: &citus.nodes, sizes: sizes.as_ref() };
        citus.planned_moves_when_pinned = names.plan(Box::pin(plan_moves(&client, &call, &ask)).await);
    }
    citus.placements = sizes.map(|sizes| sizes.placements);
    Ok(citus)
}

async fn plan_moves(
    client: &Client,
    call: &Call<'_>,
    ask: &CatalogQuestion<'_>,
) -> Result<Option<Vec<RawMove>>, SqlError> {
    let row = call
        .wait(client.query_typed_one(PLAN, &[(&ask.strategy, Type::TEXT), (&ask.drain_only, Type::BOOL)]))
        .await?;
    let plan: RawPlan = call.json(&row)?;
    Ok((!plan.open).then_some(plan.moves))
}

/// Sizes are for people to read: without an answer there are none, and the next look asks again.
async fn sizes(client: &Client, call: &Call<'_>) -> Option<Sizes> {
    let answer = call.wait(client.query_typed_one(SIZES, &[])).await;
    answer
        .and_then(|row| call.json(&row))
        .inspect_err(|error| tracing::debug!(%error, "no sizes of shards"))
        .ok()
}

fn assemble(
    catalog: Catalog,
    plan: Option<Result<Option<Vec<RawMove>>, SqlError>>,
    sizes: Option<&Sizes>,
    parallel_colocated: bool,
) -> Citus {
    let names = Names { nodes: &catalog.nodes, sizes };
    let tasks = catalog.tasks.into_iter().map(|task| names.task(task)).collect();
    let job = catalog.job.map(|job| Job {
        id: job.id,
        state: job.state.into(),
        description: job.description,
        started_at: job.started_at,
        finished_at: job.finished_at,
        abandoned: job.abandoned,
        tasks,
    });
    let plan = plan.and_then(|plan| names.plan(plan)).filter(|_| !job.as_ref().is_some_and(Job::is_open));
    let mut groups = catalog.groups;
    for (id, group) in &mut groups {
        // A group without shards is not among the sizes: it holds nothing.
        group.bytes = sizes.and_then(|sizes| sizes.groups.get(id).copied().unwrap_or(Some(0)));
    }
    Citus {
        nodes: catalog.nodes,
        groups,
        tables: catalog.tables,
        job,
        failed_jobs: catalog.failed_jobs,
        cleanup: catalog.cleanup,
        cleanup_in_all: catalog.cleanup_in_all,
        planned_moves: plan,
        parallel_colocated,
        owner_exists: catalog.owner_exists,
        owner_secret: catalog.owner_secret,
        extensions: catalog.extensions,
        schema_hash: catalog.schema_hash,
        ..Citus::default()
    }
}

/// Errors are told apart by their kind: the name of a cluster, a node or a table in one may be any word.
fn plan_unknown(error: &SqlError) -> PlanUnknown {
    let words = error.to_string();
    match error {
        SqlError::Refused { refusal: SqlErrorKind::StrategyUnknown, .. } => {
            PlanUnknown::StrategyUnknown(words)
        }
        SqlError::Refused {
            refusal: SqlErrorKind::Cancelled | SqlErrorKind::LockTimeout | SqlErrorKind::RemoteUnreachable,
            ..
        } => PlanUnknown::NotAnswered(words),
        SqlError::Refused { words: said, .. } => {
            PlanUnknown::Refused { sqlstate: said.sqlstate.clone(), words }
        }
        _ => PlanUnknown::NotAnswered(words),
    }
}

/// A task's message as people may read it, and no more of it than that. It is cut here and not by the server, which
/// refuses to cut a text that is no UTF-8.
fn shown(message: &str) -> Option<String> {
    let text: String = of_task(message).chars().take(MESSAGE).collect();
    (!text.is_empty()).then_some(text)
}

/// Bytes in hex as a text; what is no UTF-8 is replaced.
fn from_hex(hex: &str) -> String {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What turns the texts of tasks and plans into moves.
struct Names<'a> {
    nodes: &'a [DistNode],
    sizes: Option<&'a Sizes>,
}

impl Names<'_> {
    fn id(&self, place: &Place) -> Option<i32> {
        match place {
            Place::Id(id) => Some(*id),
            Place::Address(name, port) => {
                let node = self.nodes.iter().find(|node| node.name == *name && node.port == *port);
                node.map(|node| node.node_id)
            }
        }
    }

    fn transfer(&self, shard: i64, table: String, from: &Place, to: &Place) -> Option<Move> {
        let bytes = self.sizes.and_then(|sizes| sizes.shards.get(&shard)).copied().unwrap_or(0);
        Some(Move { shard, table, bytes, from: self.id(from)?, to: self.id(to)?, colocation_id: 0 })
    }

    fn task(&self, task: RawTask) -> Task {
        let table = task.table.unwrap_or_default();
        Task {
            id: task.id,
            state: task.state.into(),
            transfer: task::parse(&task.command)
                .and_then(|command| self.transfer(command.shard, table, &command.from, &command.to)),
            retried: task.retried,
            message: task.message.or_else(|| task.begin.as_deref().map(from_hex)).as_deref().and_then(shown),
            pid: task.pid,
        }
    }

    fn plan(&self, plan: Result<Option<Vec<RawMove>>, SqlError>) -> Option<Observed<Vec<Move>, PlanUnknown>> {
        match plan {
            Ok(None) => None,
            Ok(Some(moves)) => {
                let moves: Option<Vec<_>> = moves.into_iter().map(|found| self.planned(found)).collect();
                let changed = || PlanUnknown::NotAnswered("nodes changed during the look".to_owned());
                Some(moves.map_or_else(|| Observed::Unknown(changed()), Observed::Known))
            }
            Err(error) => Some(Observed::Unknown(plan_unknown(&error))),
        }
    }

    fn planned(&self, found: RawMove) -> Option<Move> {
        let from = Place::Address(found.source_name, found.source_port);
        let to = Place::Address(found.target_name, found.target_port);
        let transfer = self.transfer(found.shard, found.table, &from, &to)?;
        Some(Move { colocation_id: found.colocation_id, ..transfer })
    }
}
