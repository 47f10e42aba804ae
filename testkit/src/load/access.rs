//! How an application reaches its database: with what the operator wrote for it and nothing else, or, where there is no
//! operator, with a password on this machine.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::{Api, Client as Kube};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::{Client, Config, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection may take, the login included.
const CONNECT: Duration = Duration::from_secs(5);

/// An address, and who to be there. Connections to a cluster are those of `sslmode=verify-full`.
#[derive(Clone)]
pub struct Access {
    /// The address that is connected to.
    pub address: SocketAddr,
    /// The name that the server's certificate must have.
    pub host: String,
    /// The database.
    pub database: String,
    /// The application's role.
    pub user: String,
    password: SecretString,
    tls: Option<MakeRustlsConnect>,
}

impl Access {
    /// From the Secret `<cluster>-app` and the Service `<cluster>`, whose address must be reachable from here.
    ///
    /// # Errors
    /// When one of them is missing, lacks a key, or cannot be used.
    pub async fn of_cluster(kube: &Kube, namespace: &str, cluster: &str) -> anyhow::Result<Self> {
        let service: Service = Api::namespaced(kube.clone(), namespace)
            .get(cluster)
            .await
            .with_context(|| format!("cannot read Service {namespace}/{cluster}"))?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        let address: IpAddr =
            address.parse().with_context(|| format!("Service {namespace}/{cluster} has no address"))?;
        let name = format!("{cluster}-app");
        let secret: Secret = Api::namespaced(kube.clone(), namespace)
            .get(&name)
            .await
            .with_context(|| format!("cannot read Secret {namespace}/{name}"))?;
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| {
            let bytes =
                data.get(key).with_context(|| format!("Secret {namespace}/{name} has no key {key}"))?;
            // The bytes stay out of the error: they may be the password's.
            String::from_utf8(bytes.0.clone())
                .map_err(|_| anyhow::anyhow!("key {key} of Secret {namespace}/{name} is no text"))
        };
        let port = text("port")?.parse().context("the port of the application's Secret is no number")?;
        Ok(Self {
            address: SocketAddr::new(address, port),
            host: text("host")?,
            database: text("dbname")?,
            user: text("user")?,
            password: text("password")?.into(),
            tls: Some(tls(&text("sslrootcert")?)?),
        })
    }

    /// To a server of this machine, without TLS.
    #[must_use]
    pub fn on_this_machine(port: u16, database: &str, user: &str, password: &str) -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            host: "localhost".to_owned(),
            database: database.to_owned(),
            user: user.to_owned(),
            password: password.to_owned().into(),
            tls: None,
        }
    }

    /// Connects, and tries again for a while: a Service leads to a server a moment after that is ready.
    ///
    /// # Errors
    /// The last one of [`Access::connect`], when patience ends.
    pub async fn connect_within(&self, patience: Duration) -> anyhow::Result<Client> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            match self.connect().await {
                Err(_) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                end => return end,
            }
        }
    }

    /// Connects. The connection lives as long as the client.
    ///
    /// # Errors
    /// When nobody answers within five seconds, the certificate is not the server's, or the login is refused.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = Config::new();
        config
            .hostaddr(self.address.ip())
            .port(self.address.port())
            .host(&self.host)
            .dbname(&self.database)
            .user(&self.user)
            .password(self.password.expose_secret())
            .ssl_mode(if self.tls.is_some() { SslMode::Require } else { SslMode::Disable })
            .application_name("dialog-load")
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .tcp_user_timeout(Duration::from_secs(10));
        // Whoever uses the client gets the error when the connection ends early.
        let connecting = async {
            match &self.tls {
                Some(tls) => config.connect(tls.clone()).await.map(|(client, connection)| {
                    tokio::spawn(connection);
                    client
                }),
                None => config.connect(NoTls).await.map(|(client, connection)| {
                    tokio::spawn(connection);
                    client
                }),
            }
        };
        let Ok(connected) = tokio::time::timeout(CONNECT, connecting).await else {
            bail!("no login at {} within {} s", self.address, CONNECT.as_secs());
        };
        connected.with_context(|| format!("cannot log in at {} as {}", self.address, self.user))
    }
}

/// Trusts the authority of the Secret and nobody else; a name that is not in the certificate is refused.
fn tls(authority: &str) -> anyhow::Result<MakeRustlsConnect> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.context("sslrootcert of the application's Secret")?)?;
    }
    if roots.is_empty() {
        bail!("sslrootcert of the application's Secret holds no certificate");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
