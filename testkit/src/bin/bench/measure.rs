//! The measurement: a worker with everything, a second one that joins, and clients that keep inserting meanwhile.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dialog_operator::{
    api::{Desired, spec::TransferMode},
    citus::{
        BUILT_IN_SCHEMA, CatalogQuestion, Connection, Schema, apply_schema,
        commands::{self, RebalanceOptions},
        observe_citus,
    },
    snapshot::Citus,
};
use jiff::Timestamp;
use testkit::{
    load::{
        ledger::Figures,
        rows,
        writer::{Pace, Writer},
    },
    postgres::{self, DATABASE, OWNER, PASSWORD},
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::Client;

use crate::servers::{Cluster, Kind, NODES};

/// Rows that are inserted before the worker joins: connections are open then, and plans made.
const AT_REST: u64 = 500;
/// How long the moves may take: five times what they take with the defaults.
const MOVES: Duration = Duration::from_mins(8);
/// Between two looks at the job.
const LOOK: Duration = Duration::from_millis(200);

/// What came of it.
pub struct Measured {
    /// In its own words.
    pub citus: String,
    /// Moves of the job.
    pub moves: usize,
    /// From the first move's beginning to the job's end, by Citus' clock.
    pub took: Duration,
    /// From the call that asked for it to the end: also what Citus waits before it begins.
    pub asked: Duration,
    /// Inserts from that call to the end.
    pub inserts: Figures,
    /// Shards of each worker afterwards.
    pub shards: Vec<i64>,
    /// Rows in the table afterwards, and how many were loaded or acknowledged.
    pub rows: (i64, i64),
}

/// Loads, joins, moves.
pub async fn moves(cluster: &Cluster, rows: u64) -> anyhow::Result<Measured> {
    let desired = postgres::desired();
    let coordinator = found(cluster, &desired).await?;
    let client = cluster.access().connect().await?;
    println!("  settings: {}", settings(&client).await?);
    println!("  loading {rows} messages");
    rows::load_everybody(&cluster.access(), rows).await?;
    // Neither autovacuum nor a checkpoint has anything left of the load to do while it is measured.
    client.batch_execute("VACUUM (ANALYZE) public.dialogs").await?;
    for place in 0..NODES.len() {
        commands::checkpoint(&cluster.session(place, DATABASE).await?).await?;
    }

    let pace = Pace::default();
    let writer = Writer::start(&cluster.access(), &pace, "all");
    until_at_rest(&writer).await?;
    commands::add_node(&coordinator, "localhost", cluster.port(2)).await?;
    let options = RebalanceOptions {
        strategy: "by_shard_count",
        transfer_mode: TransferMode::Auto,
        parallel_colocated: cluster.kind == Kind::Operators
            && catalog(&coordinator, &desired).await?.parallel_colocated
            && desired.rebalance.max_moves_per_node > 1,
    };
    println!("  moving, parallel_transfer_colocated_shards = {}", options.parallel_colocated);
    let began = Instant::now();
    let job = commands::start_rebalance(&coordinator, &options).await?.context("nothing to move")?;
    let (started, finished) = ended(&client, job).await?;
    let ended = Instant::now();
    println!("  moved");

    let ledger = writer.stop().await;
    let seen = catalog(&coordinator, &desired).await?;
    let count = client.query_one("SELECT count(*) FROM public.dialogs", &[]).await?.try_get(0)?;
    Ok(Measured {
        citus: version(&client).await?,
        moves: seen.job.map_or(0, |job| job.tasks.iter().filter(|task| task.transfer.is_some()).count()),
        took: Duration::try_from(finished.duration_since(started))?,
        asked: ended - began,
        inserts: ledger.between(began, ended),
        shards: seen.groups.iter().filter(|(group, _)| **group != 0).map(|(_, group)| group.shards).collect(),
        rows: (count, i64::try_from(rows)? + i64::try_from(ledger.acknowledged().count())?),
    })
}

/// A cluster of one worker with the schema of dialogs, empty.
async fn found(cluster: &Cluster, desired: &Desired) -> anyhow::Result<Connection> {
    cluster.prepare().await?;
    let coordinator = cluster.session(0, DATABASE).await?;
    commands::set_coordinator_host(&coordinator, "localhost", cluster.port(0)).await?;
    commands::add_node(&coordinator, "localhost", cluster.port(1)).await?;
    commands::create_owner(&coordinator, OWNER, &PASSWORD.into(), DATABASE).await?;
    let schema =
        Schema { sql: BUILT_IN_SCHEMA, hash: "bench", shard_count: desired.shard_count, database: DATABASE };
    let owner = cluster.owner().await?;
    apply_schema(&cluster.session(0, "postgres").await?, owner, &schema).await?;
    Ok(coordinator)
}

async fn catalog(coordinator: &Connection, desired: &Desired) -> anyhow::Result<Citus> {
    let ask = CatalogQuestion {
        strategy: &desired.rebalance.strategy,
        owner: OWNER,
        with_plan: false,
        drain_only: false,
        with_sizes: false,
    };
    Ok(observe_citus(coordinator, &ask).await?)
}

async fn until_at_rest(writer: &Writer) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut clock = tokio::time::interval(Duration::from_millis(20));
    while writer.acknowledged() < AT_REST {
        let seen = writer.so_far().phase("all").words;
        ensure!(Instant::now() < deadline, "{} inserts in a minute: {seen:?}", writer.acknowledged());
        clock.tick().await;
    }
    Ok(())
}

/// When the job began and ended, by Citus' clock: a look costs next to nothing, and does not change the result.
async fn ended(client: &Client, job: i64) -> anyhow::Result<(Timestamp, Timestamp)> {
    let look = "SELECT state::text, started_at, finished_at FROM pg_dist_background_job WHERE job_id = $1";
    let look = client.prepare(look).await?;
    let deadline = Instant::now() + MOVES;
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let row = client.query_one(&look, &[&job]).await?;
        let (state, times): (String, (Option<_>, Option<_>)) =
            (row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?));
        match (state.as_str(), times) {
            ("finished", (Some(started), Some(finished))) => return Ok((started, finished)),
            ("scheduled" | "running" | "finished", _) => {}
            _ => anyhow::bail!("the job is {state}"),
        }
        ensure!(Instant::now() < deadline, "the job is {state} after {} s", MOVES.as_secs());
    }
}

/// What is not as PostgreSQL and Citus would have it, and has to do with more than how a server is reached.
async fn settings(client: &Client) -> anyhow::Result<String> {
    let statement =
        "SELECT string_agg(name || ' = ' || current_setting(name), ', ' ORDER BY name) FROM pg_settings
        WHERE source IN ('configuration file', 'command line') AND setting IS DISTINCT FROM boot_val
          AND category !~ '^(File Locations|Connections and|Client Connection|Preset)'
          AND name !~ '^(log_timezone|citus.node_conninfo|dialog[.].*)$'";
    Ok(client.query_one(statement, &[]).await?.try_get(0)?)
}

async fn version(client: &Client) -> anyhow::Result<String> {
    let statement = "SELECT citus_version(), current_setting('server_version')";
    let row = client.query_one(statement, &[]).await?;
    let (citus, postgres): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let short = |text: &str, words: usize| text.split(' ').take(words).collect::<Vec<_>>().join(" ");
    Ok(format!("real {} on PostgreSQL {}", short(&citus, 2), short(&postgres, 1)))
}
