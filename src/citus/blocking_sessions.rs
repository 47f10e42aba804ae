//! Reads: who keeps Citus from dropping orphaned objects, and who holds up a move or a step, in sentences for
//! people. Nobody is disturbed here.

use jiff::Timestamp;
use serde::Deserialize;
use tokio_postgres::types::Type;

use super::{
    connection::{Connection, READ},
    error::SqlError,
    messages::one_line,
};

/// Sessions, grouped by where they began: Citus opens several connections to a node for one query. A transaction that
/// is prepared has no session and holds its locks all the same. A slot is held by whoever reads from it. What they
/// last asked is not asked for: the values in it are the application's, and this goes into the status.
///
/// `gpid` is nodeid * 10^10 + pid, of the session that asked Citus.
const LOCK_HOLDERS: &str = "
WITH lock AS (
  SELECT l.pid, l.virtualtransaction, object.name
  FROM unnest($1::text[]) AS object(name) JOIN pg_locks l ON l.relation = to_regclass(object.name)
  WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.pid IS DISTINCT FROM pg_backend_pid()
  UNION ALL
  SELECT active_pid, NULL, slot_name FROM pg_replication_slots WHERE active AND slot_name = ANY($1)),
holder AS (
  SELECT lock.name, lock.pid, prepared.gid, coalesce(s.usename, prepared.owner, s.backend_type) AS role,
    s.application_name AS application, coalesce(s.xact_start, prepared.prepared) AS since,
    substring(s.application_name FROM 'gpid=(\\d{1,18})')::bigint AS gpid
  FROM lock LEFT JOIN pg_stat_activity s ON s.pid = lock.pid
  LEFT JOIN (SELECT l.virtualtransaction, p.* FROM pg_locks l JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
    WHERE l.pid IS NULL AND l.granted) AS prepared ON lock.pid IS NULL AND prepared.virtualtransaction = lock.virtualtransaction)
SELECT coalesce(json_agg(json_build_object('objects', objects, 'pids', pids, 'gid', gid, 'role', role,
    'application', application, 'since', since,
    'origin', (SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE nodeid = gpid / 10000000000),
    'originPid', gpid % 10000000000) ORDER BY since, pids), '[]')
FROM (
  SELECT array_agg(DISTINCT name ORDER BY name) AS objects,
    coalesce(array_agg(DISTINCT pid ORDER BY pid) FILTER (WHERE pid IS NOT NULL), '{}') AS pids, gid,
    min(role) AS role, min(application) AS application, min(since) AS since, gpid
  FROM holder GROUP BY gid, gpid, CASE WHEN gpid IS NULL THEN pid END) AS grouped";

/// Sessions, and transactions that are prepared, for which those of moves have waited for ten seconds: by `gpid` ($1),
/// or by pid on the coordinator ($2), or as the subscriber of a move. When somebody else waits who is gone by now ($3), all
/// that hold a lock which readers and writers of a table do not need, where these began. Who waits himself comes after those he waits for.
///
/// No table is read, not even of Citus' catalog: somebody may hold that one.
const BLOCKERS: &str = "
WITH lock AS MATERIALIZED (SELECT * FROM pg_locks),
activity AS MATERIALIZED (
  SELECT pid, datname, usename, backend_type, application_name, xact_start,
    substring(application_name FROM 'gpid=(\\d{1,18})')::bigint AS gpid FROM pg_stat_activity),
ours AS MATERIALIZED (
  SELECT pid FROM activity WHERE gpid = ANY ($1) OR pid = ANY ($2)
    OR usename = 'postgres' AND application_name = 'dialog-operator'
  UNION SELECT pid FROM pg_stat_subscription WHERE subname ~ '^citus_shard_(move|split)_subscription(_[0-9]+)+$'),
waiting AS (
  SELECT lock.* FROM lock JOIN ours USING (pid)
  WHERE NOT granted AND waitstart < clock_timestamp() - interval '10 s'),
blocking AS (
  SELECT b.pid, NULL::text AS virtualtransaction, NULL::oid AS relation
  FROM waiting, unnest(pg_blocking_pids(waiting.pid)) AS b(pid) WHERE b.pid <> 0
  UNION
  SELECT NULL, held.virtualtransaction, NULL FROM waiting w JOIN lock held ON held.granted AND held.pid IS NULL
    AND (held.locktype, held.database, held.relation, held.page, held.tuple, held.virtualxid, held.transactionid,
      held.classid, held.objid, held.objsubid)
    IS NOT DISTINCT FROM (w.locktype, w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid,
      w.classid, w.objid, w.objsubid)
  UNION
  SELECT pid, CASE WHEN pid IS NULL THEN virtualtransaction END, relation FROM lock
  WHERE $3 AND granted AND locktype = 'relation'
    AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND NOT EXISTS (SELECT FROM activity a WHERE a.pid = lock.pid AND a.gpid % 10000000000 <> a.pid)),
holder AS (
  SELECT b.pid, b.relation, p.gid, coalesce(s.usename, p.owner, s.backend_type) AS role,
    coalesce(s.datname, p.database) AS database, s.application_name AS application,
    coalesce(s.xact_start, p.prepared) AS since, s.gpid,
    EXISTS (SELECT FROM lock WHERE lock.pid = b.pid AND NOT lock.granted) AS waits
  FROM blocking b LEFT JOIN activity s ON s.pid = b.pid
  LEFT JOIN (SELECT l.virtualtransaction, p.* FROM lock l JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
    WHERE l.pid IS NULL AND l.granted) AS p ON b.pid IS NULL AND p.virtualtransaction = b.virtualtransaction
  WHERE b.pid IS NULL OR NOT EXISTS (SELECT FROM ours WHERE ours.pid = b.pid)),
grouped AS (
  SELECT coalesce(array_agg(DISTINCT relation::regclass::text) FILTER (WHERE relation IS NOT NULL), '{}') AS objects,
    coalesce(array_agg(DISTINCT pid ORDER BY pid) FILTER (WHERE pid IS NOT NULL), '{}') AS pids, gid,
    min(role) AS role, min(database) AS database, min(application) AS application, min(since) AS since, gpid,
    bool_and(waits) AS waits
  FROM holder WHERE coalesce(since < clock_timestamp() - interval '10 s', true)
  GROUP BY gid, gpid, CASE WHEN gpid IS NULL THEN pid END)
SELECT json_build_object('total', (SELECT count(*) FROM grouped), 'first', (
  SELECT coalesce(json_agg(json_build_object('objects', objects, 'pids', pids, 'gid', gid, 'role', role,
    'database', database, 'application', application, 'since', since, 'originId', gpid / 10000000000,
    'originPid', gpid % 10000000000) ORDER BY waits, since, pids), '[]')
  FROM (SELECT * FROM grouped ORDER BY waits, since, pids LIMIT 3) AS first))";

/// For whom others are looked for that hold them up.
#[derive(Clone, Debug, Default)]
pub struct BlockersQuestion<'a> {
    /// `gpid`s of the running tasks of the job: nodeid * 10^10 + pid.
    pub gpids: &'a [i64],
    /// On the coordinator their pids.
    pub pids: &'a [i32],
    /// Something else waited for a lock, and does so again and again.
    pub any: bool,
    /// Names of nodes by nodeid.
    pub nodes: &'a [(i32, String)],
}

#[derive(Deserialize)]
struct Blockers {
    total: usize,
    first: Vec<BlockingSession>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockingSession {
    objects: Vec<String>,
    pids: Vec<i32>,
    gid: Option<String>,
    role: Option<String>,
    #[serde(default)]
    database: Option<String>,
    #[serde(default)]
    origin_id: Option<i64>,
    application: Option<String>,
    since: Option<Timestamp>,
    #[serde(default)]
    origin: Option<String>,
    origin_pid: Option<i64>,
}

/// Who holds a lock on these objects of the session's node, named as pg_dist_cleanup names them, and so keeps
/// `CALL citus_cleanup_orphaned_resources()` from dropping them: a sentence each, the one that has been there for
/// longest first. A time in it is the one when the transaction began, so that the sentence does not change.
///
/// # Errors
/// Any [`SqlError`].
pub async fn lock_holders(connection: &Connection, objects: &[&str]) -> Result<Vec<String>, SqlError> {
    let (client, call) = connection.call("the query for lock holders", READ).await?;
    let row = call.wait(client.query_typed_one(LOCK_HOLDERS, &[(&objects, Type::TEXT_ARRAY)])).await?;
    let holders: Vec<BlockingSession> = call.json(&row)?;
    Ok(holders.iter().map(|holder| holder.sentence(connection.node())).collect())
}

/// Who holds up what is asked about, on the session's node: a sentence each, the one that has been there for longest
/// first, and how many others there are.
///
/// # Errors
/// Any [`SqlError`].
pub async fn blockers(connection: &Connection, ask: &BlockersQuestion<'_>) -> Result<Vec<String>, SqlError> {
    let (client, call) = connection.call("the query for blocking sessions", READ).await?;
    let parameters = [
        (&ask.gpids as _, Type::INT8_ARRAY),
        (&ask.pids as _, Type::INT4_ARRAY),
        (&ask.any as _, Type::BOOL),
    ];
    let found: Blockers = call.json(&call.wait(client.query_typed_one(BLOCKERS, &parameters)).await?)?;
    let more = found.total.saturating_sub(found.first.len());
    let named = |holder: BlockingSession| {
        let origin = ask.nodes.iter().find(|(id, _)| Some(i64::from(*id)) == holder.origin_id);
        let origin = origin.map(|(_, name)| name.clone());
        BlockingSession { origin, ..holder }.sentence(connection.node())
    };
    let first = found.first.into_iter().map(named);
    Ok(first.chain((more > 0).then(|| format!("{more} more on {}", connection.node()))).collect())
}

impl BlockingSession {
    fn sentence(&self, node: &str) -> String {
        let pids: Vec<_> = self.pids.iter().map(ToString::to_string).collect();
        let who = match &self.gid {
            Some(gid) => format!("the prepared transaction {gid}"),
            None => format!("pid {}", pids.join(", ")),
        };
        let application = self.application.as_deref().filter(|name| !name.is_empty());
        let since = self.since.and_then(|since| since.round(jiff::Unit::Second).ok());
        let objects = listed(&self.objects);
        let holds = if objects.is_empty() { String::new() } else { format!(" holds {objects}") };
        let parts = [
            Some(format!("{who} on {node}{holds}")),
            self.role.as_ref().map(|role| format!("user {role}")),
            self.database.as_ref().map(|database| format!("database {database}")),
            application.map(|name| format!("application_name {name}")),
            since.map(|since| format!("in a transaction since {since}")),
            self.origin
                .as_ref()
                .zip(self.origin_pid)
                .map(|(node, pid)| format!("begun by pid {pid} on {node}")),
        ];
        let known: Vec<_> = parts.into_iter().flatten().collect();
        // Names of transactions and applications are whatever somebody chose.
        one_line(&known.join(", "))
    }
}

/// The first of some names, and how many others there are.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_a_sentence() {
        let connection = BlockingSession {
            objects: vec!["public.a_1".to_owned(), "public.a_2".to_owned(), "public.a_3".to_owned()],
            pids: vec![7, 9],
            gid: None,
            role: Some("shop".to_owned()),
            database: None,
            origin_id: None,
            application: Some("citus_internal gpid=10000000042".to_owned()),
            since: Some("2026-01-02T03:04:05.6Z".parse().unwrap()),
            origin: Some("shop-coordinator:5432".to_owned()),
            origin_pid: Some(42),
        };
        assert_eq!(
            connection.sentence("shop-worker-1"),
            "pid 7, 9 on shop-worker-1 holds public.a_1 and 2 more, user shop, application_name citus_internal \
             gpid=10000000042, in a transaction since 2026-01-02T03:04:06Z, begun by pid 42 on shop-coordinator:5432"
        );
        let prepared = BlockingSession {
            objects: vec!["public.a_1".to_owned()],
            pids: vec![],
            gid: Some("citus_0_1_2_3".to_owned()),
            application: None,
            origin: None,
            origin_pid: None,
            ..connection
        };
        assert_eq!(
            prepared.sentence("shop-worker-1"),
            "the prepared transaction citus_0_1_2_3 on shop-worker-1 holds public.a_1, user shop, in a transaction \
             since 2026-01-02T03:04:06Z"
        );
    }
}
