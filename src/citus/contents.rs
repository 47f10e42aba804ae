//! Reads: what a server holds that is not the cluster's own. Other databases are people's, and so is much in our own:
//! nothing of theirs is run here, not even by the planner, which evaluates what is constant in an index. So only
//! catalogs and statistics are read, by oid, and no table of a person is named in any statement. Nothing is written.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_postgres::types::Type;

use super::{
    cleanup::{moves_publication, moves_slot, moves_subscription},
    connection::{Connection, READ},
    error::SqlError,
    fragments::{moving, shard_table},
    messages::one_line,
    target::{Target, Tls},
    transaction::begin,
};
use crate::snapshot::{Contents, Copies, Holdings, Membership, NamedObjects, OtherDatabase};

/// Databases that are looked into at the same time.
const MAX_CONCURRENT_DATABASES: usize = 4;
/// No look into one of them takes longer, its connection included.
const DATABASE: Duration = Duration::from_secs(5);
/// The longest name or sentence that is kept, in characters.
const WORDS: usize = 200;

/// What is to be known before the look.
#[derive(Clone, Copy, Debug)]
pub struct ContentsQuestion<'a> {
    /// What pg_dist_cleanup lists for the worker: Citus will drop it.
    pub cleanup: &'a [&'a str],
}

/// What holds for a session in a database of strangers, beside what holds for any: its settings are its owner's. A
/// trigger that runs at a login is left out where there are such.
const AMONG_OTHER_EXTENSIONS: &str = " -c role=none -c default_transaction_read_only=on -c default_transaction_isolation=read\\ committed -c citus.override_table_visibility=off";
const WITHOUT_TRIGGERS: &str = " -c event_triggers=off";

/// What the server has in all its databases, and what it is able to.
const SERVER: &str = concat!(
    "
SELECT json_build_object(
  'eventTriggers', EXISTS (SELECT FROM pg_settings WHERE name = 'event_triggers'),
  'objects', to_regclass('pg_catalog.pg_dist_object') IS NOT NULL,
  'databases', (SELECT coalesce(json_agg(json_build_object('name', datname, 'open', datallowconn) ORDER BY datname), '[]')
    FROM pg_database WHERE datname <> current_database() AND (datname <> 'template0' OR datallowconn)),
  'slots', (SELECT json_build_object('count', count(*), 'first', coalesce((array_agg(slot_name || coalesce(' of database ' || database, '')
      ORDER BY slot_name))[:5], '{}'))
    FROM pg_replication_slots WHERE NOT temporary AND NOT (database IS NOT DISTINCT FROM current_database() AND ",
    moves_slot!(),
    ")),
  'subscriptions', (SELECT json_build_object('count', count(*), 'first', coalesce((array_agg(subname || ' of database ' || datname
      ORDER BY subname))[:5], '{}'))
    FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE NOT (datname = current_database() AND ",
    moves_subscription!(),
    ")),
  'prepared', (SELECT json_build_object('count', count(*), 'first', coalesce((array_agg(
      format('%s of %s in database %s', gid, owner, database) ORDER BY prepared, gid))[:5], '{}'))
    FROM pg_prepared_xacts WHERE NOT (database = current_database() AND gid ~ '^citus_[0-9]{1,9}_[0-9]+_[0-9]+_[0-9]+$'
      AND EXISTS (SELECT FROM pg_dist_node WHERE groupid::text = split_part(gid, '_', 2)))))"
);

/// What a database holds. `known` is what Citus knows, `objects` is pg_dist_object, where there is one.
///
/// Rows are what PostgreSQL has counted itself, else what it estimated when it looked last; a table with pages and
/// neither was not counted. The size of its file is asked for without a lock, which somebody may hold for hours.
macro_rules! holdings {
    () => {
        concat!("
WITH known AS MATERIALIZED (SELECT oid, bool_or(shard) AS shard FROM (KNOWN) AS known WHERE oid IS NOT NULL GROUP BY oid),
object AS MATERIALIZED (SELECT classid, objid FROM (OBJECTS) AS object),
relation AS MATERIALIZED (
  SELECT c.oid, c.relkind, format('%I.%I', n.nspname, c.relname) AS name, known.oid IS NOT NULL AS known,
    coalesce(known.shard, false) AS shard,
    CASE WHEN c.relkind NOT IN ('r', 'm') THEN 0
      WHEN pg_stat_get_live_tuples(c.oid) > 0 THEN pg_stat_get_live_tuples(c.oid)
      WHEN c.reltuples > 0 THEN c.reltuples::bigint
      WHEN coalesce((pg_stat_file(pg_relation_filepath(c.oid), true)).size, 0) = 0 THEN 0 END AS rows
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN known ON known.oid = c.oid
  WHERE c.relkind IN ('r', 'p', 'm', 'f', 'S') AND c.relpersistence <> 't'
    AND (n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') OR c.oid >= 16384)
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')),
local AS (SELECT * FROM relation WHERE relkind <> 'S' AND NOT known),
sequence AS (SELECT name FROM relation WHERE relkind = 'S' AND NOT known
  AND NOT EXISTS (SELECT FROM object WHERE classid = 'pg_class'::regclass AND objid = relation.oid)
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = relation.oid
    AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_attrdef'::regclass
    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = relation.oid))
SELECT json_build_object(
  'holds', json_build_object(
    'tables', (SELECT count(*) FROM local),
    'rows', (SELECT coalesce(sum(rows), 0)::bigint FROM local),
    'uncounted', (SELECT count(*) FROM local WHERE rows IS NULL),
    'first', (SELECT coalesce(json_agg(json_build_object('name', name, 'rows', rows) ORDER BY rows DESC NULLS FIRST, name), '[]')
      FROM (SELECT name, rows FROM local ORDER BY rows DESC NULLS FIRST, name LIMIT 5) AS fullest),
    'sequences', (SELECT json_build_object('count', count(*), 'first', coalesce((array_agg(name ORDER BY name))[:5], '{}'))
      FROM sequence),
    'largeObjects', (SELECT count(*) FROM pg_largeobject_metadata)),
  'publications', (SELECT json_build_object('count', count(*), 'first', coalesce((array_agg(pubname::text ORDER BY pubname))[:5], '{}'))
    FROM pg_publication p WHERE NOT ",
            moves_publication!(),
            "
    AND NOT EXISTS (SELECT FROM object WHERE classid = 'pg_publication'::regclass AND objid = p.oid)),
  'member', MEMBER)")
    };
}

/// Tables that Citus knows, and the shards that are here. What bears the name of one that is elsewhere is somebody's.
const KNOWN: &str = concat!(
    "SELECT logicalrelid::oid AS oid, false AS shard FROM pg_dist_partition
    UNION ALL SELECT to_regclass(",
    shard_table!(),
    ")::oid, true FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)
    WHERE groupid = (SELECT groupid FROM pg_dist_local_group LIMIT 1)"
);
const CLEANUP: &str = " UNION ALL SELECT to_regclass(name)::oid, true FROM unnest($1::text[]) AS name";
const NOTHING_KNOWN: &str = "SELECT NULL::oid AS oid, false AS shard WHERE false";
const OBJECTS: &str = "SELECT classid, objid FROM pg_dist_object";
const NO_OBJECTS: &str = "SELECT NULL::oid AS classid, NULL::oid AS objid WHERE false";
/// It says that it is a worker, or it knows nodes.
const MEMBER: &str = "(SELECT json_build_object('group', groupid, 'nodes', nodes,
    'shards', (SELECT count(*) FROM relation WHERE shard), 'rows', (SELECT coalesce(sum(rows), 0)::bigint FROM relation WHERE shard))
  FROM (SELECT coalesce((SELECT groupid FROM pg_dist_local_group LIMIT 1), 0) AS groupid,
    (SELECT count(*) FROM pg_dist_node) AS nodes) AS part WHERE groupid <> 0 OR nodes > 0)";

/// Whether the extension's catalogs are in a database.
const HAS_CITUS: &str = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
    AND to_regclass('pg_catalog.pg_dist_local_group') IS NOT NULL";

/// Shards with a placement in a group and another one elsewhere, by table.
const COPIES: &str = concat!(
    "
SELECT coalesce(json_agg(json_build_object('table', name, 'shards', shards) ORDER BY name), '[]') FROM (
  SELECT t.logicalrelid::text AS name, count(*) AS shards
  FROM pg_dist_placement p JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_partition t USING (logicalrelid)
  WHERE p.groupid = $1 AND ",
    moving!(),
    "
    AND EXISTS (SELECT FROM pg_dist_placement o WHERE o.shardid = p.shardid AND o.groupid <> p.groupid)
  GROUP BY t.logicalrelid) AS copied"
);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    event_triggers: bool,
    objects: bool,
    databases: Vec<Database>,
    slots: NamedObjects,
    subscriptions: NamedObjects,
    prepared: NamedObjects,
}

#[derive(Deserialize)]
struct Database {
    name: String,
    open: bool,
}

#[derive(Deserialize)]
struct Inside {
    holds: Holdings,
    publications: NamedObjects,
    member: Option<Membership>,
}

/// What a worker's server holds that is not the cluster's own. `session` is over the application's database; `target`
/// and `tls` are the way to the others, each of which is connected to, looked at and left: a connection that is kept
/// would keep it from being dropped. What cannot be looked at is in the answer, with why.
///
/// # Errors
/// Any [`SqlError`]: then nothing is known.
pub async fn observe_contents(
    connection: &Connection,
    (target, tls): (&Target, &Tls),
    ask: &ContentsQuestion<'_>,
) -> Result<Contents, SqlError> {
    let server: Server = {
        let (client, call) = connection.call("the query for other contents", READ).await?;
        let row = call.wait(client.query_typed_one(SERVER, &[])).await?;
        call.json(&row)?
    };
    let objects = if server.objects { OBJECTS } else { NO_OBJECTS };
    let own = statement(&format!("{KNOWN}{CLEANUP}"), objects, "NULL");
    let inside: Inside = {
        let (mut client, call) =
            connection.call("the query for tables that Citus does not know", READ).await?;
        let transaction = begin(&mut client, &call, READ, READ).await?;
        // Citus would hide what bears a shard's name.
        call.wait(transaction.batch_execute("SET LOCAL citus.override_table_visibility = off")).await?;
        let parameters = [(&ask.cleanup as _, Type::TEXT_ARRAY)];
        let inside = call.json(&call.wait(transaction.query_typed_one(&own, &parameters)).await?)?;
        call.wait(transaction.commit()).await?;
        inside
    };
    let options =
        format!("{AMONG_OTHER_EXTENSIONS}{}", if server.event_triggers { WITHOUT_TRIGGERS } else { "" });
    let others = stream::iter(server.databases).map(|database| other(target, tls, &options, database));
    let others: Vec<Option<OtherDatabase>> = others.buffered(MAX_CONCURRENT_DATABASES).collect().await;
    Ok(Contents {
        databases: others.into_iter().flatten().collect(),
        local: clean(inside.holds),
        publications: shown(&inside.publications),
        subscriptions: shown(&server.subscriptions),
        slots: shown(&server.slots),
        prepared: shown(&server.prepared),
        copies: Vec::new(),
    })
}

/// Tables whose shards have a placement in this group and another one elsewhere, as the coordinator knows them.
///
/// # Errors
/// Any [`SqlError`].
pub async fn observe_copies(coordinator: &Connection, group: i32) -> Result<Vec<Copies>, SqlError> {
    let (client, call) = coordinator.call("the query for shards with copies", READ).await?;
    let row = call.wait(client.query_typed_one(COPIES, &[(&group, Type::INT4)])).await?;
    let copies: Vec<Copies> = call.json(&row)?;
    Ok(copies.into_iter().map(|copied| Copies { table: words(&copied.table), ..copied }).collect())
}

fn statement(known: &str, objects: &str, member: &str) -> String {
    // The last one first: what is put in has none of the words.
    holdings!().replace("MEMBER", member).replace("OBJECTS", objects).replace("KNOWN", known)
}

/// What is in another database: nothing when it is empty.
async fn other(target: &Target, tls: &Tls, options: &str, database: Database) -> Option<OtherDatabase> {
    let name = words(&database.name);
    let closed = |why: String| {
        Some(OtherDatabase { name: name.clone(), closed: Some(why), ..OtherDatabase::default() })
    };
    if !database.open {
        return closed("it lets nobody in (datallowconn is false)".to_owned());
    }
    let target = Target { database: database.name.clone(), ..target.clone() };
    match timeout(DATABASE, observe_inside(&target, tls, options)).await {
        Err(_) => closed(format!("no answer within {} s", DATABASE.as_secs())),
        Ok(Ok(inside)) if inside.holds.is_empty() && inside.member.is_none() => None,
        Ok(Ok(inside)) => {
            Some(OtherDatabase { name, closed: None, holds: clean(inside.holds), member: inside.member })
        }
        Ok(Err(error)) => closed(words(&error.to_string())),
    }
}

async fn observe_inside(target: &Target, tls: &Tls, options: &str) -> Result<Inside, SqlError> {
    let connection = target.connect_with(tls, options).await?;
    let (client, call) = connection.call("the query of another database", READ).await?;
    let row = call.wait(client.query_typed_one(HAS_CITUS, &[])).await?;
    let has_citus: bool = row.try_get(0).map_err(|error| call.misunderstood(&error))?;
    let statement = if has_citus {
        statement(KNOWN, NO_OBJECTS, MEMBER)
    } else {
        statement(NOTHING_KNOWN, NO_OBJECTS, "NULL")
    };
    call.json(&call.wait(client.query_typed_one(&statement, &[])).await?)
}

fn clean(mut holds: Holdings) -> Holdings {
    for table in &mut holds.first {
        table.name = words(&table.name);
    }
    Holdings { sequences: shown(&holds.sequences), ..holds }
}

fn shown(named: &NamedObjects) -> NamedObjects {
    NamedObjects { count: named.count, first: named.first.iter().map(|name| words(name)).collect() }
}

/// A name that people chose, as it may stand in a sentence.
fn words(name: &str) -> String {
    let plain: String = one_line(name).chars().filter(|letter| !letter.is_control()).collect();
    plain.chars().take(WORDS).collect()
}
