//! Steps that are said to a server: one arm a step, one call an arm. No SQL is written here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Executor;
use crate::{
    api::{Node, names::SecretKind, spec::TransferMode, words::several},
    citus::{self, Connection, NodeConnector, PORT, Schema, commands},
    plan::SqlStep,
    snapshot::{Failure, FailureReason, Leftover, Observed},
};

impl Executor<'_> {
    fn access(&self) -> Result<NodeConnector<'_>, Failure> {
        let cluster = &self.desired.cluster;
        let scope = self.context.caches.of(&cluster.namespace).ok_or_else(|| {
            let message = format!("namespace {} is not watched by this operator", cluster.namespace);
            Failure::new(FailureReason::Kubernetes, message)
        })?;
        let names = (self.snapshot.operator.cluster_domain.as_str(), self.desired.database.name.as_str());
        let secret = scope.secret(&cluster.namespace, &cluster.secret(SecretKind::Superuser));
        Ok(self.observed.with(|observed| {
            let certificates = (secret.as_deref(), &mut observed.tls);
            NodeConnector::new(&self.context.connections, certificates, cluster, names)
        }))
    }
    async fn connection(&self, node: Node) -> Result<Arc<Connection>, Failure> {
        Ok(self.access()?.connection(node, self.snapshot.pods.get(&node)).await?)
    }
    async fn coordinator(&self) -> Result<Arc<Connection>, Failure> {
        self.connection(Node::Coordinator).await
    }
}

pub(super) async fn run(executor: &Executor<'_>, step: &SqlStep) -> Result<Option<String>, Failure> {
    let started = Instant::now();
    let result = execute(executor, step).await;
    executor.context.metrics.sql(step.into(), started.elapsed());
    result
}

/// The last resort, as [`super::deadline`] says.
pub(super) fn deadline(step: &SqlStep) -> Duration {
    match step {
        SqlStep::ApplySchema { .. } | SqlStep::ForceRemove { .. } | SqlStep::BootstrapNode { .. } => {
            Duration::from_mins(6)
        }
        SqlStep::GrantRights { .. }
        | SqlStep::Reload { .. }
        | SqlStep::ResetAlterSystem { .. }
        | SqlStep::CheckParameter { .. }
        | SqlStep::SetCoordinatorHost { .. }
        | SqlStep::AddNode { .. }
        | SqlStep::CreateExtension { .. }
        | SqlStep::CreateOwner { .. }
        | SqlStep::RecoverTransactions
        | SqlStep::StartRebalance { .. }
        | SqlStep::PinGroups(_)
        | SqlStep::StopRebalance { .. }
        | SqlStep::SetShouldHaveShards { .. }
        | SqlStep::CleanUpOrphans
        | SqlStep::RemoveNode { .. }
        | SqlStep::ActivateNode { .. }
        | SqlStep::DeleteStaleCleanupRecords { .. }
        | SqlStep::DropLeftovers { .. } => Duration::from_mins(2),
    }
}

/// One arm a step; what it has to tell beyond that it is done.
#[allow(clippy::too_many_lines)] // one arm a step
async fn execute(executor: &Executor<'_>, step: &SqlStep) -> Result<Option<String>, Failure> {
    match step {
        SqlStep::ForceRemove { workers } => return force_remove(executor, workers).await.map(Some),
        SqlStep::BootstrapNode { node, extension } => {
            bootstrap_node(executor, *node, extension.as_deref()).await
        }
        SqlStep::GrantRights { node, owner } => {
            let connection = executor.connection(*node).await?;
            Ok(commands::grant_rights(&connection, owner, &executor.desired.database.name).await?)
        }
        SqlStep::Reload { node } => Ok(commands::reload(&*executor.connection(*node).await?).await?),
        SqlStep::ResetAlterSystem { node, names } => {
            // Loaded at once: afterwards nothing shows that the server still has the old values.
            let connection = executor.connection(*node).await?;
            commands::reset_alter_system(&connection, names).await?;
            Ok(commands::reload(&connection).await?)
        }
        SqlStep::CheckParameter { node, name, value } => {
            let answer = commands::try_parameter(&*executor.connection(*node).await?, name, value).await?;
            executor.observed.with(|observed| {
                observed.parameter_checks.insert(format!("{name}={value}"), (answer, Instant::now()))
            });
            Ok(())
        }
        SqlStep::CreateExtension { name } => {
            let made = commands::create_extension_of_spec(&*executor.coordinator().await?, name).await;
            made.map_err(|error| {
                let failure = Failure::from(error);
                if failure.cause.is_refusal() {
                    Failure { reason: FailureReason::Extension, ..failure }
                } else {
                    failure
                }
            })
        }
        SqlStep::CreateOwner { owner, secret_uid } => {
            let password = executor.application_password().await?;
            let database = &executor.desired.database.name;
            let coordinator = executor.coordinator().await?;
            commands::create_owner(&coordinator, owner, &password, database).await?;
            commands::record_owner_secret(&coordinator, database, secret_uid).await?;
            // The same password once more: somebody has changed the role's.
            let citus = executor.snapshot.citus.known();
            let again = citus.is_some_and(|citus| citus.owner_secret.as_ref() == Some(secret_uid));
            executor.observed.with(|observed| observed.reach.password_was_set(again));
            Ok(())
        }
        SqlStep::ApplySchema { hash } => apply_schema(executor, hash).await,
        SqlStep::RecoverTransactions => {
            let recovered = commands::recover_transactions(&*executor.coordinator().await?).await?;
            if recovered > 0 {
                tracing::info!(recovered, "prepared transactions were recovered");
            }
            Ok(())
        }
        SqlStep::StartRebalance { drain, strategy, transfer_mode, parallel_colocated, .. } => {
            start(executor, *drain, (strategy, *transfer_mode, *parallel_colocated)).await
        }
        SqlStep::PinGroups(pins) => Ok(commands::pin_groups(&*executor.coordinator().await?, pins).await?),
        SqlStep::StopRebalance { job } => {
            Ok(commands::stop_rebalance(&*executor.coordinator().await?, *job).await.map(drop)?)
        }
        SqlStep::SetCoordinatorHost { address } => {
            Ok(commands::set_coordinator_host(&*executor.coordinator().await?, address, PORT).await?)
        }
        SqlStep::AddNode { address, .. } => {
            Ok(commands::add_node(&*executor.coordinator().await?, address, PORT).await.map(drop)?)
        }
        SqlStep::SetShouldHaveShards { address, should, .. } => {
            let coordinator = executor.coordinator().await?;
            Ok(commands::set_should_have_shards(&coordinator, address, PORT, *should).await?)
        }
        SqlStep::CleanUpOrphans => {
            let warnings = commands::cleanup_orphans(&*executor.coordinator().await?).await?;
            if !warnings.is_empty() {
                tracing::info!(
                    warnings = warnings.join(" "),
                    "citus_cleanup_orphaned_resources left something"
                );
            }
            Ok(())
        }
        SqlStep::RemoveNode { address, .. } => {
            Ok(commands::remove_node(&*executor.coordinator().await?, address, PORT).await?)
        }
        SqlStep::ActivateNode { address, .. } => {
            Ok(commands::activate_node(&*executor.coordinator().await?, address, PORT).await?)
        }
        SqlStep::DeleteStaleCleanupRecords { records } => {
            Ok(commands::delete_stale_cleanup_records(&*executor.coordinator().await?, records)
                .await
                .map(drop)?)
        }
        SqlStep::DropLeftovers { node, leftovers } => drop_leftovers(executor, *node, leftovers).await,
    }
    .map(|()| None)
}

async fn start(
    executor: &Executor<'_>,
    drain: bool,
    (strategy, transfer_mode, parallel_colocated): (&str, TransferMode, bool),
) -> Result<(), Failure> {
    let options = commands::RebalanceOptions { strategy, transfer_mode, parallel_colocated };
    let coordinator = executor.coordinator().await?;
    let job = if drain {
        commands::start_drain(&coordinator, &options).await?
    } else {
        commands::start_rebalance(&coordinator, &options).await?
    };
    tracing::info!(job, "citus_rebalance_start answered");
    if drain && job.is_none() {
        let message = format!(
            "Citus plans no move away from the workers that are to go (strategy {strategy}): where may their shards be?"
        );
        return Err(Failure::new(FailureReason::Postgres, message));
    }
    Ok(())
}

async fn bootstrap_node(executor: &Executor<'_>, node: Node, extension: Option<&str>) -> Result<(), Failure> {
    let (access, pod) = (executor.access()?, executor.snapshot.pods.get(&node));
    commands::bootstrap_server(&*access.maintenance(node, pod).await?, &executor.desired.database.name)
        .await?;
    let connection = access.connection(node, pod).await?;
    Ok(commands::create_extension(&connection, extension).await?)
}

/// Citus writes down what a move will make before it makes it. So what was seen on the node, and is not written down
/// *now*, is of no move that runs.
async fn drop_leftovers(executor: &Executor<'_>, node: Node, leftovers: &[Leftover]) -> Result<(), Failure> {
    let names: Vec<&str> = leftovers.iter().map(|left| left.name.as_str()).collect();
    let listed = commands::listed_for_cleanup(&*executor.coordinator().await?, &names).await?;
    let dead: Vec<Leftover> = leftovers.iter().filter(|left| !listed.contains(&left.name)).cloned().collect();
    Ok(commands::drop_leftovers(&*executor.connection(node).await?, &dead).await?)
}

/// Answers with what went, for people.
async fn force_remove(executor: &Executor<'_>, workers: &[(Node, String)]) -> Result<String, Failure> {
    let names: Vec<String> =
        workers.iter().map(|(node, _)| node.object_name(&executor.desired.cluster.name)).collect();
    let addresses: Vec<(&str, u16)> = workers.iter().map(|(_, address)| (address.as_str(), PORT)).collect();
    let lost = commands::force_remove(&*executor.coordinator().await?, &addresses).await?;
    let rows = lost.rows_about.map_or_else(
        || "an unknown number of rows".to_owned(),
        |rows| format!("about {}", several(rows, "row")),
    );
    let shards: Vec<String> = lost.shards.iter().map(ToString::to_string).collect();
    Ok(format!(
        "the data of {} was given up: {rows} in {} of {}, which exist again, empty: {}",
        names.join(", "),
        several(lost.shards.len(), "shard"),
        lost.tables.join(", "),
        shards.join(" ")
    ))
}

async fn apply_schema(executor: &Executor<'_>, hash: &str) -> Result<(), Failure> {
    let sql = match &executor.snapshot.schema_sql {
        Observed::Known(schema) if schema.hash == hash => schema,
        Observed::Known(_) => {
            return Err(Failure::new(FailureReason::Conflict, "the schema has changed since it was planned"));
        }
        Observed::Unknown(why) => return Err(Failure::new(FailureReason::Kubernetes, why.clone())),
    };
    let schema = Schema {
        sql: &sql.sql,
        hash: &sql.hash,
        shard_count: executor.desired.shard_count,
        database: &executor.desired.database.name,
    };
    let (access, pod) = (executor.access()?, executor.snapshot.pods.get(&Node::Coordinator));
    let maintenance = access.maintenance(Node::Coordinator, pod).await?;
    let password = executor.application_password().await?;
    let owner = access.owner(Node::Coordinator, pod, (&executor.desired.database.owner, &password)).await?;
    Ok(citus::apply_schema(&maintenance, owner, &schema).await?)
}

/// Best effort: a restart does not depend on it.
pub(super) async fn checkpoint(executor: &Executor<'_>, node: Node) {
    let checkpoint = async {
        let connection = executor.connection(node).await?;
        commands::checkpoint(&connection).await.map_err(Failure::from)
    };
    match tokio::time::timeout(super::CHECKPOINT_DEADLINE, checkpoint).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => {
            tracing::info!(error = failure.message, %node, "no checkpoint before the restart");
        }
        Err(_) => {
            tracing::info!(%node, "the checkpoint before the restart takes long; the restart does not wait for it");
        }
    }
}

impl Executor<'_> {
    async fn application_password(&self) -> Result<secrecy::SecretString, Failure> {
        let data = self.secret_data(SecretKind::App).await?;
        let password = data.get("password").and_then(|value| String::from_utf8(value.0.clone()).ok());
        password.map(Into::into).ok_or_else(|| {
            let name = self.desired.cluster.secret(SecretKind::App);
            Failure::new(
                FailureReason::Secret,
                format!("Secret {name} has no usable key 'password': put it back"),
            )
        })
    }
}
