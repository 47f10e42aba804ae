//! The command line. Wiring only.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use dialog_operator::{
    api::{self, Desired},
    citus::ConnectionPool,
    context::Context,
    controller::{self, Operator},
    kubernetes::{
        ApiClient,
        caches::Caches,
        leader::{self, LeaseIdentity},
    },
    metrics::Metrics,
    plan::{Plan, PlanInput, View, foretold, plan},
    runtime::{
        http::{self, HttpState},
        shutdown,
        telemetry::{self, LogFormat},
    },
    snapshot::{OperatorConfig, Snapshot},
};
use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Name of the Lease.
const LEASE: &str = "dialog-operator";
/// Connections to servers that are kept open at most.
const MAX_CONNECTIONS: usize = 1000;
/// Whatever still runs after so long is dropped: Kubernetes kills after thirty seconds.
const SHUTDOWN: Duration = Duration::from_secs(9);

/// A Kubernetes operator for a sharded PostgreSQL (Citus) cluster.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator.
    Run(RunArguments),
    /// Print the CustomResourceDefinition as YAML.
    Crd,
    /// Print what would be done, and why, without a cluster.
    Plan {
        /// A file from `/debug/snapshot/<namespace>/<name>` of a running operator.
        file: PathBuf,
        /// Print instead which shards Citus would move if there were so many workers.
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=256))]
        workers: Option<u16>,
    },
}

#[derive(Args)]
struct RunArguments {
    /// Image of a new cluster whose spec names none.
    #[arg(long, env, default_value = "citusdata/citus:14.1.0")]
    default_image: String,
    /// DNS domain of the Kubernetes cluster.
    #[arg(long, env, default_value = "cluster.local")]
    cluster_domain: String,
    /// Namespaces to look after; all when there is none.
    #[arg(long = "namespaces", visible_alias = "namespace", env = "NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Namespace of the Lease; the operator's own pod knows it.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    lease_namespace: String,
    /// Address of the HTTP server for metrics and probes.
    #[arg(long, env, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// How a log line looks.
    #[arg(long, env, value_enum, default_value_t)]
    log_format: LogFormat,
    /// What is logged, such as `info,dialog_operator=debug`.
    #[arg(long = "log", env = "RUST_LOG", default_value = "info")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(arguments) => tokio::runtime::Runtime::new()?.block_on(run(arguments)),
        Command::Crd => {
            println!("{}", serde_saphyr::to_string(&api::crd())?);
            Ok(())
        }
        Command::Plan { file, workers } => {
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let PlanInput { desired, snapshot } = serde_json::from_str(&text)
                .with_context(|| format!("{} is not a snapshot", file.display()))?;
            match workers {
                None => print!("{}", render_plan(&plan(&desired, &snapshot))),
                Some(workers) => print!("{}", render_moves(desired, &snapshot, workers)?),
            }
            Ok(())
        }
    }
}

/// What would be in the way of so many workers, and what Citus would move.
fn render_moves(desired: Desired, snapshot: &Snapshot, workers: u16) -> anyhow::Result<String> {
    let desired = Desired { workers, ..desired };
    let plan = plan(&desired, snapshot);
    let moves = foretold::moves(View { desired: &desired, snapshot })?;
    Ok(problem_lines(&plan).map(|line| line + "\n").collect::<String>() + &moves.to_string())
}

fn problem_lines(plan: &Plan) -> impl Iterator<Item = String> {
    plan.problems.iter().map(|problem| format!("problem {}: {problem}", problem.reason()))
}

/// A plan for people.
fn render_plan(plan: &Plan) -> String {
    let mut lines: Vec<String> = problem_lines(plan).collect();
    lines.extend(plan.steps.iter().map(|planned| format!("step    {}: {}", planned.step, planned.why)));
    lines.extend(plan.waits.iter().map(|wait| format!("wait    {wait}")));
    if lines.is_empty() {
        lines.push("nothing to do, nothing to wait for".to_owned());
    }
    lines.join("\n") + "\n"
}

async fn run(arguments: RunArguments) -> anyhow::Result<()> {
    telemetry::start(arguments.log_format, &arguments.log)?;
    // An error means that somebody installed a provider before, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let client = kube::Client::try_default().await.context("no way to a Kubernetes API")?;
    let (stop, end) = (shutdown::on_signal()?, CancellationToken::new());
    let tasks = TaskTracker::new();
    let metrics = Arc::<Metrics>::default();
    let api = ApiClient::new(client.clone(), Arc::clone(&metrics));
    let candidate =
        LeaseIdentity { namespace: arguments.lease_namespace, name: LEASE.to_owned(), identity: identity() };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = candidate.identity, "starting");
    let reporter = Reporter { controller: LEASE.to_owned(), instance: Some(candidate.identity.clone()) };
    // The Lease is given back when `end` is cancelled: after the last step, not before.
    let (guard, election) = leader::elect(api.clone(), candidate, end.clone());
    let mut election = tokio::spawn(election);
    let operator = Arc::new(Operator::new(Context {
        caches: Caches::start(&client, &arguments.namespaces, &tasks, &end),
        client: api,
        connections: ConnectionPool::new(MAX_CONNECTIONS),
        leader: guard,
        metrics,
        recorder: Recorder::new(client, reporter),
        operator: OperatorConfig {
            default_image: arguments.default_image,
            cluster_domain: arguments.cluster_domain,
        },
        stop: stop.clone(),
    }));
    let pages = tokio::spawn(http::serve(listener, http_state(&operator), end.clone()));
    let mut controller = tokio::spawn(controller::run(operator));

    // Without its queues or its election this process is of no use: another one takes over.
    let election = tokio::select! {
        biased;
        () = stop.cancelled() => election,
        ended = &mut controller => anyhow::bail!("the controller has ended: {ended:?}"),
        ended = &mut election => anyhow::bail!("the election has ended: {ended:?}"),
    };
    let ended = tokio::time::timeout(SHUTDOWN, async {
        let _ = controller.await;
        end.cancel();
        let _ = election.await;
        let _ = pages.await;
        tasks.close();
        tasks.wait().await;
    });
    if ended.await.is_err() {
        tracing::warn!(seconds = SHUTDOWN.as_secs(), "something did not end in time and was aborted");
    }
    Ok(())
}

fn http_state(operator: &Arc<Operator>) -> Arc<HttpState> {
    let (caches, snapshots) = (Arc::clone(operator), Arc::clone(operator));
    Arc::new(HttpState {
        metrics: Arc::clone(&operator.context().metrics),
        waiting: Box::new(move || caches.context().caches.unsynced()),
        snapshot: Box::new(move |namespace, name| {
            let (desired, snapshot) = snapshots.snapshot(namespace, name)?;
            serde_json::to_string_pretty(&PlanInput { desired, snapshot: snapshot.as_ref() }).ok()
        }),
    })
}

/// Who this process is: the pod, and which of its lives.
fn identity() -> String {
    let host =
        std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_else(|_| LEASE.to_owned());
    format!("{host}-{:08x}", rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dialog_operator::plan::{Problem, SqlStep, WaitingOn};

    #[test]
    fn a_plan_is_told_with_its_reasons() {
        let mut plan = Plan::default();
        assert_eq!(render_plan(&plan), "nothing to do, nothing to wait for\n");
        plan.step(SqlStep::RecoverTransactions, "before each job");
        plan.wait(WaitingOn::JobRunning { job: 4 });
        plan.problem(Problem::StrategyUnknown {
            strategy: "luck".into(),
            message: "no such strategy".into(),
        });
        assert_eq!(
            render_plan(&plan),
            "problem StrategyUnknown: spec.rebalance.strategy: luck: no such strategy. Use a row of pg_dist_rebalance_strategy.\n\
             step    recovering prepared transactions: before each job\n\
             wait    rebalance job 4 is running\n"
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
