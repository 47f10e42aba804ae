//! How statements that write are bounded on the server as well: in a transaction, or outside of one. What they say is
//! elsewhere.

use std::time::Duration;

use tokio_postgres::{Client, Transaction};

use super::{connection::Call, error::SqlError};

/// Runs a statement that may not be in a transaction, with a server-side timeout that fits the call's deadline.
pub(super) async fn execute_outside_transaction(
    client: &Client,
    call: &Call<'_>,
    statement: &str,
) -> Result<(), SqlError> {
    let limit = format!("SET statement_timeout = '{}s'", call.seconds());
    call.wait(client.batch_execute(&limit)).await?;
    let done = call.wait(client.batch_execute(statement)).await;
    // Back to what the session was started with; when that fails the session is broken and thrown away.
    done.and(call.wait(client.batch_execute("RESET statement_timeout")).await)
}

/// Begins a transaction whose server-side timeouts fit the call's deadline. It is rolled back when it is dropped.
pub(super) async fn begin<'a>(
    client: &'a mut Client,
    call: &Call<'_>,
    lock: Duration,
    statement: Duration,
) -> Result<Transaction<'a>, SqlError> {
    let transaction = call.wait(client.transaction()).await?;
    call.wait(transaction.batch_execute(&limits(lock, statement))).await?;
    Ok(transaction)
}

/// The server-side timeouts of one transaction.
pub(super) fn limits(lock: Duration, statement: Duration) -> String {
    format!(
        "SET LOCAL lock_timeout = '{}ms'; SET LOCAL statement_timeout = '{}ms'",
        lock.as_millis(),
        statement.as_millis()
    )
}

/// For transactions in which roles are made, here or (Citus passes SET LOCAL on first) on workers: no log shows the
/// verifier of a password.
pub(super) const SUPPRESS_STATEMENT_LOGGING: &str =
    "SET LOCAL citus.propagate_set_commands = 'local'; SET LOCAL log_statement = 'none';
    SET LOCAL log_min_error_statement = 'panic'; SET LOCAL log_min_duration_statement = -1;
    SET LOCAL log_min_duration_sample = -1; SET LOCAL log_transaction_sample_rate = 0;
    SET LOCAL citus.log_remote_commands = off";
