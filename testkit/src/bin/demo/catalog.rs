//! Citus' own word on things, read as the application's role: the report does not rest on the operator's alone.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio_postgres::Client;

use testkit::load::{access::Access, rows::PEOPLE};

/// What changes while a cluster grows.
#[derive(Clone, Default, PartialEq)]
pub struct Progress {
    /// Workers that are registered, active and have the metadata; and since when that many were seen.
    pub workers: i64,
    /// When that number was first seen.
    pub workers_since: Timestamp,
    /// The newest job.
    pub job: Option<Job>,
}

/// A background job of Citus.
#[derive(Clone, PartialEq)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// In Citus' words.
    pub state: String,
    /// When it was first seen.
    pub seen: Timestamp,
    /// When its first move began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

impl Progress {
    /// Takes over what was seen now, and keeps since when. Whether anything changed.
    pub fn update(&mut self, seen: Self, now: Timestamp) -> bool {
        let job = seen.job.map(|job| {
            let known = self.job.as_ref().filter(|known| known.id == job.id);
            Job { seen: known.map_or(now, |known| known.seen), ..job }
        });
        let since = if seen.workers == self.workers { self.workers_since } else { now };
        let after = Self { workers: seen.workers, workers_since: since, job };
        let changed = after != *self;
        *self = after;
        changed
    }
}

/// How far things are. Connects when there is no connection, and again next time when this one is lost.
pub async fn progress(client: &mut Option<Client>, access: &Access) -> anyhow::Result<Progress> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => access.connect().await?,
    };
    let workers = "SELECT count(*) FROM pg_dist_node WHERE groupid > 0 AND isactive AND metadatasynced";
    let job = "SELECT job_id, state::text, started_at, finished_at FROM pg_dist_background_job
                ORDER BY job_id DESC LIMIT 1";
    // One after the other: a job is never older than the workers it was made for.
    let job = tokio::time::timeout(Duration::from_secs(5), connected.query_opt(job, &[])).await??;
    let workers = tokio::time::timeout(Duration::from_secs(5), connected.query_one(workers, &[])).await??;
    let job = match job {
        None => None,
        Some(row) => Some(Job {
            id: row.try_get(0)?,
            state: row.try_get(1)?,
            seen: Timestamp::default(),
            started: row.try_get(2)?,
            finished: row.try_get(3)?,
        }),
    };
    *client = Some(connected);
    Ok(Progress { workers: workers.try_get(0)?, workers_since: Timestamp::default(), job })
}

/// Shards of the table of dialogs on each worker, by the name of its node.
pub async fn shards(client: &Client) -> anyhow::Result<Vec<(String, i64)>> {
    let statement = "
        SELECT split_part(nodename, '.', 1), count(shardid)
          FROM pg_dist_node
          LEFT JOIN (SELECT shardid, groupid FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
                      WHERE logicalrelid = 'public.dialogs'::regclass) AS placement USING (groupid)
         WHERE groupid > 0
         GROUP BY nodeid, nodename ORDER BY nodeid";
    let rows = client.query(statement, &[]).await.context("cannot read where the shards are")?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Which Citus the servers have: the real one, or the stand-in for machines without it.
pub async fn which_citus(client: &Client) -> anyhow::Result<String> {
    let statement = "SELECT citus_version(), coalesce(obj_description(oid, 'pg_extension'), '')
                       FROM pg_extension WHERE extname = 'citus'";
    let row = client.query_one(statement, &[]).await.context("cannot ask which Citus it is")?;
    let (version, comment): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let stand_in = comment.contains("stand-in") || version.contains("stand-in");
    let kind = if stand_in { "the STAND-IN for Citus of infrastructure/citus-standin" } else { "real Citus" };
    let version = version.split(" on ").next().unwrap_or_default();
    Ok(format!("{kind} ({version})"))
}

/// The query of a whole dialog of two people, newest message first.
pub fn dialog_query() -> String {
    let [one, other] = PEOPLE;
    format!(
        "SELECT from_user, to_user, message, created_at FROM public.dialogs\n \
         WHERE (from_user = {one} AND to_user = {other}) OR (from_user = {other} AND to_user = {one})\n \
         ORDER BY created_at DESC"
    )
}

/// Its plan, with what it did, and the time it took to get every row of it.
pub async fn dialog_plan(client: &Client) -> anyhow::Result<(Vec<String>, Duration)> {
    let explain = format!("EXPLAIN (ANALYZE, COSTS off) {}", dialog_query());
    let began = Instant::now();
    let rows = client.query(&explain, &[]).await.context("cannot explain the query of a dialog")?;
    let took = began.elapsed();
    let plan = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok((plan, took))
}
