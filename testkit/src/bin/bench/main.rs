//! How much sooner a cluster of the operator is even: the same 16 moves under the same load, with the defaults of
//! PostgreSQL and Citus and with the settings that a cluster of the operator is born with, one after the other on
//! servers of this machine, without Kubernetes. `make bench` runs it.

mod measure;
mod report;
mod servers;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use testkit::postgres::INSTALLATION;
use tokio::signal::unix::{SignalKind, signal};

use measure::Measured;
use servers::{Cluster, Kind};

/// How long all of it may take: three times what it takes on two slow cores.
const PATIENCE: Duration = Duration::from_mins(20);

#[derive(Parser)]
struct Arguments {
    /// Messages to load. Figures to publish are those of the default.
    #[arg(long, env = "ROWS", default_value_t = 1_000_000)]
    rows: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if INSTALLATION.stand_in {
        eprintln!("this is the stand-in for Citus: do not measure with it");
        return Ok(ExitCode::FAILURE);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // A task of its own: when it is aborted, what it holds is dropped, servers and directories with it.
    let mut work = tokio::spawn(run(arguments.rows));
    let why = tokio::select! {
        ended = &mut work => return ended?,
        _ = interrupt.recv() => "interrupted".to_owned(),
        _ = terminate.recv() => "terminated".to_owned(),
        () = tokio::time::sleep(PATIENCE) => format!("not done within {} minutes", PATIENCE.as_secs() / 60),
    };
    work.abort();
    let _ = work.await;
    eprintln!("{why}; the servers are stopped and their data is removed");
    Ok(ExitCode::FAILURE)
}

async fn run(rows: u64) -> anyhow::Result<ExitCode> {
    println!("{}", report::machine());
    let [defaults, operators] =
        [measured(Kind::Defaults, rows).await?, measured(Kind::Operators, rows).await?];
    println!("\n{}\n", report::table(&defaults, &operators, rows).join("\n"));
    let promises = report::promises(&defaults, &operators);
    for (kept, promise) in &promises {
        println!("  {}  {promise}", if *kept { "kept  " } else { "BROKEN" });
    }
    Ok(if promises.iter().all(|(kept, _)| *kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fresh servers, a measurement, and nothing of them afterwards.
async fn measured(kind: Kind, rows: u64) -> anyhow::Result<Measured> {
    println!("\n{kind}");
    let cluster = Cluster::start(kind).await;
    let measured = measure::moves(&cluster, rows).await;
    // Removing takes a while, and is nobody's to wait for in the runtime.
    tokio::task::spawn_blocking(move || drop(cluster)).await?;
    measured.with_context(|| format!("with {kind}"))
}
