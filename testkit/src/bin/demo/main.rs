//! The demo: a cluster of one worker with a million messages grows to two and to three while a writer keeps going, and
//! every row is accounted for. `make demo` runs it, on a cluster that infrastructure/demo/up.sh has brought up.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acts;
mod catalog;
mod report;
mod screen;
mod watch;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use testkit::load::{
    access::Access,
    rows,
    writer::{Pace, Writer},
};

use acts::{Stage, Time};
use report::Story;
use screen::Screen;
use watch::Watch;

/// Rows that the writer stores before anything happens: what it is like at rest.
const AT_REST: u64 = 500;

#[derive(Parser)]
struct Arguments {
    /// Namespace of the DialogCluster.
    #[arg(long, default_value = "dialog-demo")]
    namespace: String,
    /// Its name. It has one worker, and is Ready.
    #[arg(long, default_value = "dialogs")]
    name: String,
    /// Messages to load.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kube = kube::Client::try_default().await.context("no way to a Kubernetes API")?;
    let access = Access::of_cluster(&kube, &arguments.namespace, &arguments.name).await?;
    let client = access.connect_within(Duration::from_secs(15)).await.context(
        "the Service's address must be reachable from here: run the demo on a node of the cluster, or in a pod",
    )?;
    println!("Citus: {}", catalog::which_citus(&client).await?);
    load(&access, arguments.rows).await?;

    let writer = Writer::start(&access, &Pace::default(), &Time::Quiet.to_string());
    let mut stage = Stage {
        kube: &kube,
        client: &client,
        writer: &writer,
        namespace: &arguments.namespace,
        name: &arguments.name,
        watch: Watch::start(&kube, &access, &arguments.namespace, &arguments.name),
        screen: Screen::new(),
    };
    let start = catalog::shards(&client).await?;
    let acts = play(&mut stage).await?;
    stage.screen.say("");
    drop(stage);
    let ledger = writer.stop().await;
    let differences = ledger.compare(&client, arguments.rows).await?;
    let story = Story { start, acts, ledger, differences, loaded: arguments.rows };
    let kept = tell(&story);
    let (plan, took) = catalog::dialog_plan(&client).await?;
    println!("\nA whole dialog, both ways, in {}:\n\n {}\n", report::seconds(took), catalog::dialog_query());
    print_all(&plan.iter().map(|line| format!("  {line}")).collect::<Vec<_>>());
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn load(access: &Access, rows: u64) -> anyhow::Result<()> {
    let [one, other] = rows::PEOPLE;
    println!("Loading {rows} messages between users {one} and {other}, half each way ...");
    let began = Instant::now();
    let added = rows::load(access, rows).await?;
    println!("{added} loaded, {} were there, in {}", rows - added, report::seconds(began.elapsed()));
    Ok(())
}

async fn play(stage: &mut Stage<'_>) -> anyhow::Result<[acts::Act; 2]> {
    let Pace { connections, rows_per_second, .. } = Pace::default();
    stage.screen.say(&format!(
        "A writer stores {rows_per_second} messages a second over {connections} connections, until the end."
    ));
    stage.rest(AT_REST).await?;
    stage.screen.say("\nAct one: the only worker has the wrong wal_level, and a second one is wanted.");
    stage.put_back().await?;
    stage.rest(AT_REST).await?;
    let first = stage.first().await?;
    stage.screen.say("\nAct two: a third worker, and no write may fail even once.");
    stage.rest(AT_REST).await?;
    Ok([first, stage.second().await?])
}

/// Prints the report; whether every promise was kept.
fn tell(story: &Story) -> bool {
    println!("How it went\n");
    print_all(&story.shards_table());
    for (title, act) in ["Act one, 1 → 2", "Act two, 2 → 3"].iter().zip(&story.acts) {
        println!("\n{title}");
        print_all(&report::times_table(&act.times));
    }
    println!();
    print_all(&story.writer_table());
    println!("\nPromises");
    let promises = story.promises();
    for promise in &promises {
        println!("  {}  {}", if promise.kept { "kept  " } else { "BROKEN" }, promise.text);
    }
    promises.iter().all(|promise| promise.kept)
}

fn print_all(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}
