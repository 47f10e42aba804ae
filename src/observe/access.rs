//! The way to a node's server: under which name, at which address, with which certificates. What is asked there is
//! not decided here.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use secrecy::SecretString;

use super::memory::Handle;
use crate::{
    api::{ClusterId, Node, names::SecretKind},
    citus::{ClientTls, Session, SessionKey, Sessions, SqlError, Target, Tls},
    kubernetes::caches::Scope,
    snapshot::Pod,
};

/// Port of every server.
pub const PORT: u16 = 5432;

/// The way to the servers of one cluster.
pub struct Access<'a> {
    sessions: &'a Sessions,
    cluster: &'a ClusterId,
    domain: &'a str,
    database: &'a str,
    tls: Result<Tls, String>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
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

impl<'a> Access<'a> {
    /// With the certificates in the Secret of the superuser, as the cache has it.
    #[must_use]
    pub fn new(
        sessions: &'a Sessions,
        scope: &Scope,
        memory: &Handle,
        cluster: &'a ClusterId,
        (domain, database): (&'a str, &'a str),
    ) -> Self {
        let name = cluster.secret(SecretKind::Superuser);
        let secret = scope.secrets.get(&ObjectRef::new(&name).within(&cluster.namespace));
        let tls = secret
            .ok_or_else(|| format!("Secret {name} is not there yet"))
            .and_then(|secret| certificates(&secret, memory).map_err(|why| format!("Secret {name}: {why}")));
        Self { sessions, cluster, domain, database, tls }
    }

    /// A session over the application's database, or over `postgres` as long as there is none.
    ///
    /// # Errors
    /// See [`NoWay`].
    pub async fn session(&self, node: Node, pod: Option<&Pod>) -> Result<Arc<Session>, NoWay> {
        let (key, target) = self.target(node, pod)?;
        let tls = self.tls.as_ref().map_err(|why| NoWay::Certificates(why.clone()))?;
        Ok(self.sessions.get_or_maintenance(&key, &target, tls).await?)
    }

    /// A session over the database `postgres`.
    ///
    /// # Errors
    /// See [`NoWay`].
    pub async fn maintenance(&self, node: Node, pod: Option<&Pod>) -> Result<Arc<Session>, NoWay> {
        let (key, target) = self.target(node, pod)?;
        let tls = self.tls.as_ref().map_err(|why| NoWay::Certificates(why.clone()))?;
        Ok(self.sessions.get_maintenance(&key, &target, tls).await?)
    }

    /// Where a node's server is, and how it is connected to: for connections that are not kept.
    ///
    /// # Errors
    /// See [`NoWay`].
    pub fn way(&self, node: Node, pod: Option<&Pod>) -> Result<(Target, &Tls), NoWay> {
        let tls = self.tls.as_ref().map_err(|why| NoWay::Certificates(why.clone()))?;
        Ok((self.target(node, pod)?.1, tls))
    }
    /// A session of the application's role over its database, which nobody else ever uses.
    ///
    /// # Errors
    /// See [`NoWay`].
    pub async fn owner(
        &self,
        node: Node,
        pod: Option<&Pod>,
        (role, password): (&str, &SecretString),
    ) -> Result<Session, NoWay> {
        let (_, target) = self.target(node, pod)?;
        let tls = self.tls.as_ref().map_err(|why| NoWay::Certificates(why.clone()))?;
        Ok(target.connect_as(tls, role, password).await?)
    }

    /// The address of a node in pg_dist_node.
    #[must_use]
    pub fn address(&self, node: Node) -> String {
        self.cluster.address(node, self.domain)
    }

    fn target(&self, node: Node, pod: Option<&Pod>) -> Result<(SessionKey, Target), NoWay> {
        let pod = pod.ok_or(NoWay::NoAddress(node))?;
        let hostaddr = pod.address.as_ref().and_then(|ip| ip.parse().ok()).ok_or(NoWay::NoAddress(node))?;
        let key = SessionKey { cluster: self.cluster.clone(), node, pod_uid: pod.uid.clone() };
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

/// Parsing keys costs more than a look at a server: it is done once for each version of the Secret.
fn certificates(secret: &Secret, memory: &Handle) -> Result<Tls, String> {
    let version = secret.resource_version().unwrap_or_default();
    let kept = memory.with(|memory| memory.tls.clone()).filter(|(of, _)| *of == version);
    if let Some((_, tls)) = kept {
        return Ok(Tls::Mutual(tls));
    }
    let pem = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        value.map(|value| value.0.as_slice()).ok_or_else(|| format!("the key {key} is missing"))
    };
    let tls = ClientTls::from_pem(pem("ca.crt")?, pem("tls.crt")?, pem("tls.key")?);
    let tls = tls.map_err(|error| error.to_string())?;
    memory.with(|memory| memory.tls = Some((version, tls.clone())));
    Ok(Tls::Mutual(tls))
}
