//! How a connection is made: as whom, and with which settings for all that is said over it. What is said is elsewhere.

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::{
    Config,
    config::{SslMode, SslNegotiation},
};

use super::{
    connection::Connection,
    error::SqlError,
    meter::{Meter, Metered, Plain},
    target::{CONNECT_DEADLINE, Target, Tls},
};

/// The role of the operator.
const USER: &str = "postgres";
/// What holds for every statement of a session, whatever is configured on the server or for the role.
///
/// - It is the role's own, and may write, whatever the database says.
/// - The path leads to nothing that another role could have made (a function that a cast prefers, for example).
/// - The server's own timeouts are the second guard behind the deadlines of this program.
/// - Citus' words are recognised by their English.
/// - Nothing is compiled: over many tables that takes seconds, and saves none.
/// - Citus keeps no connection to a worker open between two statements: the first membership call after a restart of
///   that worker would fail with it.
const OPTIONS: &str = "-c search_path=pg_catalog -c role=none -c session_replication_role=origin -c row_security=on \
    -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed \
    -c default_transaction_deferrable=off -c idle_session_timeout=0 -c statement_timeout=60s -c lock_timeout=5s \
    -c idle_in_transaction_session_timeout=60s -c client_min_messages=notice -c lc_messages=C -c log_duration=off \
    -c citus.max_cached_conns_per_worker=0 -c jit=off -c quote_all_identifiers=off";

/// What holds for a session of the application's role, which may not set everything: nothing that is configured for it
/// or its database breaks or outlives what is run there. Citus keeps no connection of it, on which something stays set.
const OWNER_OPTIONS: &str = "-c search_path=public -c role=none -c default_transaction_read_only=off \
    -c default_transaction_isolation=read\\ committed -c default_transaction_deferrable=off -c idle_session_timeout=0 \
    -c statement_timeout=60s -c lock_timeout=5s -c idle_in_transaction_session_timeout=60s \
    -c client_min_messages=notice -c citus.max_cached_conns_per_worker=0";

impl Target {
    fn config(&self, tls: &Tls, more: &str) -> Config {
        let mut config = Config::new();
        config
            .host(&self.host)
            .hostaddr(self.hostaddr)
            .port(self.port)
            .dbname(&self.database)
            .user(USER)
            .application_name("dialog-operator")
            .options(format!("{OPTIONS}{more}"))
            .connect_timeout(CONNECT_DEADLINE)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15))
            // Where there is no TLS, `Plain` is in its place.
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(match tls {
                Tls::Off => SslNegotiation::Direct,
                Tls::Mutual(_) => SslNegotiation::Postgres,
            });
        config
    }

    /// Connects as `postgres`.
    ///
    /// # Errors
    /// [`SqlError::Unreachable`], [`SqlError::AuthenticationFailed`], or [`SqlError::DatabaseMissing`].
    pub async fn connect(&self, tls: &Tls) -> Result<Connection, SqlError> {
        self.connect_with(tls, "").await
    }

    /// The same with more options, which begin with a space.
    pub(super) async fn connect_with(&self, tls: &Tls, more: &str) -> Result<Connection, SqlError> {
        self.log_in(tls, self.config(tls, more)).await
    }

    /// Connects as another role, with its password: for what must not have the rights of `postgres`.
    ///
    /// # Errors
    /// As [`Target::connect`]; [`SqlError::RoleRefused`] in place of [`SqlError::AuthenticationFailed`].
    pub async fn connect_as(
        &self,
        tls: &Tls,
        role: &str,
        password: &SecretString,
    ) -> Result<Connection, SqlError> {
        let mut config = self.config(tls, "");
        config.user(role).password(password.expose_secret()).options(OWNER_OPTIONS);
        match self.log_in(tls, config).await {
            Err(SqlError::AuthenticationFailed { node, words }) => {
                Err(SqlError::RoleRefused { node, role: role.to_owned(), words })
            }
            connection => connection,
        }
    }

    async fn log_in(&self, tls: &Tls, config: Config) -> Result<Connection, SqlError> {
        // tokio-postgres' own timeout ends with the TCP connection; a server that accepts and says nothing needs this one.
        let meter = Arc::new(Meter::default());
        let connection = tokio::time::timeout(CONNECT_DEADLINE, async {
            let meter = Arc::clone(&meter);
            match tls {
                Tls::Off => config
                    .connect(Metered { connector: Plain, meter: Arc::clone(&meter) })
                    .await
                    .map(|(client, driver)| Connection::start(self, tls, meter, client, driver)),
                Tls::Mutual(client_tls) => config
                    .connect(Metered { connector: client_tls.connector(), meter: Arc::clone(&meter) })
                    .await
                    .map(|(client, driver)| Connection::start(self, tls, meter, client, driver)),
            }
        });
        match connection.await {
            Ok(connection) => connection.map_err(|error| SqlError::connecting(&self.node, &error)),
            Err(_) => Err(SqlError::Unreachable {
                node: self.node.clone(),
                why: format!(
                    "no login at {}:{} within {} s",
                    self.hostaddr,
                    self.port,
                    CONNECT_DEADLINE.as_secs()
                ),
            }),
        }
    }
}
