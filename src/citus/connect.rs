//! How a connection is made: whom to, under which name, with which certificates. What is said over it is elsewhere.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::{
    Config,
    config::{SslMode, SslNegotiation},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    error::SqlError,
    meter::{Meter, Metered, Plain},
    session::Session,
};

/// The role of the operator.
const USER: &str = "postgres";
/// How long a server may take to accept a connection, the login included.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
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
    -c citus.max_cached_conns_per_worker=0 -c jit=off";

/// What holds for a session of the application's role, which may not set everything: nothing that is configured for it
/// or its database breaks or outlives what is run there. Citus keeps no connection of it, on which something stays set.
const OWNER_OPTIONS: &str = "-c search_path=public -c role=none -c default_transaction_read_only=off \
    -c default_transaction_isolation=read\\ committed -c default_transaction_deferrable=off -c idle_session_timeout=0 \
    -c statement_timeout=60s -c lock_timeout=5s -c idle_in_transaction_session_timeout=60s \
    -c client_min_messages=notice -c citus.max_cached_conns_per_worker=0";

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the node, for errors.
    pub node: String,
    /// The address that is connected to: the pod's, so that a DNS cache cannot lead elsewhere.
    pub hostaddr: IpAddr,
    /// The DNS name of the node's Service: the one that the server's certificate must have.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: String,
}

/// Whether and how a connection is encrypted.
#[derive(Clone, Debug)]
pub enum Tls {
    /// Not at all: for servers on the same machine, in tests.
    Off,
    /// TLS, and each side shows a certificate.
    Mutual(ClientTls),
}

/// The operator's side of TLS. Its Debug form shows nothing.
#[derive(Clone)]
pub struct ClientTls(MakeRustlsConnect);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

/// Certificates that cannot be used. The message never holds a key.
#[derive(Debug, thiserror::Error)]
#[error("the operator's certificates cannot be used: {what}: {why}")]
pub struct TlsError {
    what: &'static str,
    why: String,
}

impl ClientTls {
    /// From PEM: the authorities that sign servers, the client's certificate with its chain, and its key (PKCS#8, SEC1
    /// or PKCS#1).
    ///
    /// # Errors
    /// When one of them is missing or malformed, or the key is not the certificate's.
    pub fn from_pem(server_ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let error = |what| move |why: &dyn fmt::Display| TlsError { what, why: why.to_string() };
        let certificates = |what, pem| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
            let all = all.map_err(|why| error(what)(&why))?;
            if all.is_empty() { Err(error(what)(&"there is none in the PEM")) } else { Ok(all) }
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("certificate authority of the servers", server_ca)? {
            roots.add(authority).map_err(|why| error("certificate authority of the servers")(&why))?;
        }
        let chain = certificates("client certificate", certificate)?;
        // The parser's error could quote the PEM.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| error("client key")(&"it is no private key in PEM form"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| error("TLS")(&why))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|why| error("client certificate and key")(&why))?;
        Ok(Self(MakeRustlsConnect::new(config)))
    }

    pub(super) fn connector(&self) -> MakeRustlsConnect {
        self.0.clone()
    }
}

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
    /// [`SqlError::Unreachable`], [`SqlError::LoginRefused`], or [`SqlError::NoDatabase`].
    pub async fn connect(&self, tls: &Tls) -> Result<Session, SqlError> {
        self.connect_with(tls, "").await
    }

    /// The same with more options, which begin with a space.
    pub(super) async fn connect_with(&self, tls: &Tls, more: &str) -> Result<Session, SqlError> {
        self.log_in(tls, self.config(tls, more)).await
    }

    /// Connects as another role, with its password: for what must not have the rights of `postgres`.
    ///
    /// # Errors
    /// As [`Target::connect`]; [`SqlError::RoleRefused`] in place of [`SqlError::LoginRefused`].
    pub async fn connect_as(
        &self,
        tls: &Tls,
        role: &str,
        password: &SecretString,
    ) -> Result<Session, SqlError> {
        let mut config = self.config(tls, "");
        config.user(role).password(password.expose_secret()).options(OWNER_OPTIONS);
        match self.log_in(tls, config).await {
            Err(SqlError::LoginRefused { node, words }) => {
                Err(SqlError::RoleRefused { node, role: role.to_owned(), words })
            }
            session => session,
        }
    }

    async fn log_in(&self, tls: &Tls, config: Config) -> Result<Session, SqlError> {
        // tokio-postgres' own timeout ends with the TCP connection; a server that accepts and says nothing needs this one.
        let meter = Arc::new(Meter::default());
        let session = tokio::time::timeout(CONNECT_DEADLINE, async {
            let meter = Arc::clone(&meter);
            match tls {
                Tls::Off => config
                    .connect(Metered { connector: Plain, meter: Arc::clone(&meter) })
                    .await
                    .map(|(client, driver)| Session::start(self, tls, meter, client, driver)),
                Tls::Mutual(client_tls) => config
                    .connect(Metered { connector: client_tls.connector(), meter: Arc::clone(&meter) })
                    .await
                    .map(|(client, driver)| Session::start(self, tls, meter, client, driver)),
            }
        });
        match session.await {
            Ok(session) => session.map_err(|error| SqlError::connecting(&self.node, &error)),
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Pem {
        authority: String,
        certificate: String,
        key: String,
    }

    fn pem() -> Pem {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["postgres".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        Pem { authority: authority.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
    }

    #[test]
    fn certificates_of_the_operator_are_taken() {
        let pem = pem();
        let tls =
            ClientTls::from_pem(pem.authority.as_bytes(), pem.certificate.as_bytes(), pem.key.as_bytes());
        assert_eq!(format!("{:?}", tls.unwrap()), "ClientTls");
    }

    #[test]
    fn what_is_wrong_with_certificates_is_named_and_keys_are_not_shown() {
        let (one, other) = (pem(), pem());
        let try_with = |ca: &str, certificate: &str, key: &str| {
            let error =
                ClientTls::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains(key) || key.is_empty(), "{text}");
            text
        };
        assert!(try_with("", &one.certificate, &one.key).contains("certificate authority of the servers"));
        assert!(try_with(&one.authority, "rubbish", &one.key).contains("client certificate"));
        assert!(try_with(&one.authority, &one.certificate, "").contains("client key"));
        assert!(
            try_with(&one.authority, &one.certificate, &other.key).contains("client certificate and key")
        );
    }
}
