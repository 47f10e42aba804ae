//! The way to a node's server: under which name, at which address, with which certificates. What is asked there is
//! not decided here.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use secrecy::SecretString;

use super::{
    connection::Connection,
    connection_pool::{ConnectionKey, ConnectionPool},
    error::SqlError,
    target::{ClientTls, Target, Tls},
};
use crate::{
    api::{ClusterId, Node, names::SecretKind},
    snapshot::Pod,
};

/// Port of every server.
pub const PORT: u16 = 5432;

/// The way to the servers of one cluster.
pub struct NodeConnector<'a> {
    connections: &'a ConnectionPool,
    cluster: &'a ClusterId,
    domain: &'a str,
    database: &'a str,
    tls: Result<Tls, String>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The certificates are missing or cannot be used.
    #[error("{0}")]
    Certificates(String),
    /// The node has no pod with an address.
    #[error("{0} has no pod with an address yet")]
    NoAddress(Node),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] SqlError),
}

impl<'a> NodeConnector<'a> {
    /// With the certificates in the Secret of the superuser ([`SecretKind::Superuser`]), when it is there.
    #[must_use]
    pub fn new(
        connections: &'a ConnectionPool,
        (secret, cache): (Option<&Secret>, &mut TlsCache),
        cluster: &'a ClusterId,
        (domain, database): (&'a str, &'a str),
    ) -> Self {
        let name = cluster.secret(SecretKind::Superuser);
        let tls = secret
            .ok_or_else(|| format!("Secret {name} is not there yet"))
            .and_then(|secret| cache.tls(secret).map_err(|why| format!("Secret {name}: {why}")));
        Self { connections, cluster, domain, database, tls }
    }

    /// A session over the application's database, or over `postgres` as long as there is none.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connection(&self, node: Node, pod: Option<&Pod>) -> Result<Arc<Connection>, ConnectError> {
        let (key, target) = self.target(node, pod)?;
        let tls = self.tls.as_ref().map_err(|why| ConnectError::Certificates(why.clone()))?;
        Ok(self.connections.get_or_maintenance(&key, &target, tls).await?)
    }

    /// A session over the database `postgres`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn maintenance(&self, node: Node, pod: Option<&Pod>) -> Result<Arc<Connection>, ConnectError> {
        let (key, target) = self.target(node, pod)?;
        let tls = self.tls.as_ref().map_err(|why| ConnectError::Certificates(why.clone()))?;
        Ok(self.connections.get_maintenance(&key, &target, tls).await?)
    }

    /// Where a node's server is, and how it is connected to: for connections that are not kept.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn route(&self, node: Node, pod: Option<&Pod>) -> Result<(Target, &Tls), ConnectError> {
        let tls = self.tls.as_ref().map_err(|why| ConnectError::Certificates(why.clone()))?;
        Ok((self.target(node, pod)?.1, tls))
    }
    /// A session of the application's role over its database, which nobody else ever uses.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn owner(
        &self,
        node: Node,
        pod: Option<&Pod>,
        (role, password): (&str, &SecretString),
    ) -> Result<Connection, ConnectError> {
        let (_, target) = self.target(node, pod)?;
        let tls = self.tls.as_ref().map_err(|why| ConnectError::Certificates(why.clone()))?;
        Ok(target.connect_as(tls, role, password).await?)
    }

    /// The address of a node in pg_dist_node.
    #[must_use]
    pub fn address(&self, node: Node) -> String {
        self.cluster.address(node, self.domain)
    }

    fn target(&self, node: Node, pod: Option<&Pod>) -> Result<(ConnectionKey, Target), ConnectError> {
        let pod = pod.ok_or(ConnectError::NoAddress(node))?;
        let hostaddr =
            pod.address.as_ref().and_then(|ip| ip.parse().ok()).ok_or(ConnectError::NoAddress(node))?;
        let key = ConnectionKey { cluster: self.cluster.clone(), node, pod_uid: pod.uid.clone() };
        let target = Target {
            node: node.object_name(&self.cluster.name),
            hostaddr,
            host: self.address(node),
            port: PORT,
            database: self.database.to_owned(),
        };
        Ok((key, target))
    }
}

/// The certificates of one cluster, parsed: that costs more than a look at a server, so it is done once for each version
/// of the Secret.
#[derive(Default)]
pub struct TlsCache(Option<(String, ClientTls)>);

impl TlsCache {
    fn tls(&mut self, secret: &Secret) -> Result<Tls, String> {
        let version = secret.metadata.resource_version.clone().unwrap_or_default();
        if let Some((_, tls)) = self.0.as_ref().filter(|(of, _)| *of == version) {
            return Ok(Tls::Mutual(tls.clone()));
        }
        let pem = |key: &str| {
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            value.map(|value| value.0.as_slice()).ok_or_else(|| format!("the key {key} is missing"))
        };
        let tls = ClientTls::from_pem(pem("ca.crt")?, pem("tls.crt")?, pem("tls.key")?);
        let tls = tls.map_err(|error| error.to_string())?;
        self.0 = Some((version, tls.clone()));
        Ok(Tls::Mutual(tls))
    }
}
