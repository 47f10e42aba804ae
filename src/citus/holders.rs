//! Reads: who keeps Citus from dropping what moves left behind, in sentences for people. Nobody is disturbed here.

use jiff::Timestamp;
use serde::Deserialize;
use tokio_postgres::types::Type;

use super::{
    error::SqlError,
    session::{READ, Session},
    words::one_line,
};

/// Sessions, grouped by where they began: Citus opens several connections to a node for one query. A transaction that
/// is prepared has no session and holds its locks all the same. A slot is held by whoever reads from it. What they
/// last asked is not asked for: the values in it are the application's, and this goes into the status.
///
/// `gpid` is nodeid * 10^10 + pid, of the session that asked Citus.
const HOLDERS: &str = "
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    objects: Vec<String>,
    pids: Vec<i32>,
    gid: Option<String>,
    role: Option<String>,
    application: Option<String>,
    since: Option<Timestamp>,
    origin: Option<String>,
    origin_pid: Option<i64>,
}

/// Who holds a lock on these objects of the session's node, named as pg_dist_cleanup names them, and so keeps
/// `CALL citus_cleanup_orphaned_resources()` from dropping them: a sentence each, the one that has been there for
/// longest first. A time in it is the one when the transaction began, so that the sentence does not change.
///
/// # Errors
/// Any [`SqlError`].
pub async fn lock_holders(session: &Session, objects: &[&str]) -> Result<Vec<String>, SqlError> {
    let (client, call) = session.call("the look at who holds locks", READ).await?;
    let row = call.wait(client.query_typed_one(HOLDERS, &[(&objects, Type::TEXT_ARRAY)])).await?;
    let holders: Vec<Holder> = call.json(&row)?;
    Ok(holders.iter().map(|holder| holder.sentence(session.node())).collect())
}

impl Holder {
    fn sentence(&self, node: &str) -> String {
        let pids: Vec<_> = self.pids.iter().map(ToString::to_string).collect();
        let who = match &self.gid {
            Some(gid) => format!("the prepared transaction {gid}"),
            None => format!("pid {}", pids.join(", ")),
        };
        let application = self.application.as_deref().filter(|name| !name.is_empty());
        let since = self.since.and_then(|since| since.round(jiff::Unit::Second).ok());
        let parts = [
            Some(format!("{who} on {node} holds {}", listed(&self.objects))),
            self.role.as_ref().map(|role| format!("user {role}")),
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
        let session = Holder {
            objects: vec!["public.a_1".to_owned(), "public.a_2".to_owned(), "public.a_3".to_owned()],
            pids: vec![7, 9],
            gid: None,
            role: Some("shop".to_owned()),
            application: Some("citus_internal gpid=10000000042".to_owned()),
            since: Some("2026-01-02T03:04:05.6Z".parse().unwrap()),
            origin: Some("shop-coordinator:5432".to_owned()),
            origin_pid: Some(42),
        };
        assert_eq!(
            session.sentence("shop-worker-1"),
            "pid 7, 9 on shop-worker-1 holds public.a_1 and 2 more, user shop, application_name citus_internal \
             gpid=10000000042, in a transaction since 2026-01-02T03:04:06Z, begun by pid 42 on shop-coordinator:5432"
        );
        let prepared = Holder {
            objects: vec!["public.a_1".to_owned()],
            pids: vec![],
            gid: Some("citus_0_1_2_3".to_owned()),
            application: None,
            origin: None,
            origin_pid: None,
            ..session
        };
        assert_eq!(
            prepared.sentence("shop-worker-1"),
            "the prepared transaction citus_0_1_2_3 on shop-worker-1 holds public.a_1, user shop, in a transaction \
             since 2026-01-02T03:04:06Z"
        );
    }
}
