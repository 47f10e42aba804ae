//! SQL from outside the cluster: as an administrator with the superuser's certificate, or as anybody with a password.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use dialog_operator::api::{ClusterId, Node, names::SecretKind};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_postgres::{Client, Config, NoTls, config::SslMode, types::FromSqlOwned};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{cluster::Cluster, wait};

/// With what somebody tries to get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// No TLS.
    Nothing,
    /// TLS, and no certificate.
    NoCertificate,
    /// TLS, and the superuser's certificate.
    Certificate,
}

/// PostgreSQL's own words, or the connection's.
pub fn words(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{}: {}", error.severity(), error.message());
    }
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

/// The only value of the only row.
pub async fn value<T: FromSqlOwned>(client: &Client, sql: &str) -> T {
    let row = client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {}", words(&error)));
    row.get(0)
}

/// Statements that must succeed.
pub async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {}", words(&error)));
}

impl Cluster {
    fn id(&self) -> ClusterId {
        ClusterId { namespace: self.namespace.clone(), name: self.name.clone(), uid: String::new() }
    }

    async fn secret(&self, kind: SecretKind) -> BTreeMap<String, Vec<u8>> {
        let api: Api<Secret> = self.api();
        let secret = api.get(&self.id().secret(kind)).await.unwrap();
        secret.data.unwrap().into_iter().map(|(key, value)| (key, value.0)).collect()
    }

    async fn tls(&self, shows: Shows) -> MakeRustlsConnect {
        let secret = self.secret(SecretKind::Superuser).await;
        let certificates = |key: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(&secret[key]).collect::<Result<_, _>>().unwrap()
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("ca.crt") {
            roots.add(authority).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let key = PrivateKeyDer::from_pem_slice(&secret["tls.key"]).unwrap();
        MakeRustlsConnect::new(match shows {
            Shows::Certificate => config.with_client_auth_cert(certificates("tls.crt"), key).unwrap(),
            _ => config.with_no_client_auth(),
        })
    }

    /// Address of a node's pod now.
    async fn address(&self, node: Node) -> IpAddr {
        let pod = self.pod(node).await;
        pod.status.and_then(|status| status.pod_ip).expect("the pod has an address").parse().unwrap()
    }

    /// Tries to log in at a node.
    pub async fn log_in(
        &self,
        node: Node,
        user: &str,
        password: Option<&str>,
        shows: Shows,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config.hostaddr(self.address(node).await).host(self.id().address(node, "cluster.local"));
        self.connect(config, user, password, shows).await
    }

    async fn connect(
        &self,
        mut config: Config,
        user: &str,
        password: Option<&str>,
        shows: Shows,
    ) -> Result<Client, tokio_postgres::Error> {
        config.port(5432).user(user).connect_timeout(Duration::from_secs(5));
        if config.get_dbname().is_none() {
            config.dbname("dialogs");
        }
        // As nodes do: a peer that is not reached is given up, and hears nothing of it even when it is reached again.
        config.application_name("story").tcp_user_timeout(Duration::from_secs(5));
        if let Some(password) = password {
            config.password(password);
        }
        if user == "postgres" {
            // The path of this role leads to pg_catalog alone: a person who wants another one says so.
            config.options("-c search_path=public");
        }
        let (client, driver) = if shows == Shows::Nothing {
            let (client, driver) = config.ssl_mode(SslMode::Disable).connect(NoTls).await?;
            (client, tokio::spawn(async move { driver.await.map_err(drop) }))
        } else {
            let tls = self.tls(shows).await;
            let (client, driver) = config.ssl_mode(SslMode::Require).connect(tls).await?;
            (client, tokio::spawn(async move { driver.await.map_err(drop) }))
        };
        drop(driver);
        Ok(client)
    }

    /// A superuser's connection to a node.
    pub async fn admin(&self, node: Node) -> Client {
        let client = self.log_in(node, "postgres", None, Shows::Certificate).await;
        client.unwrap_or_else(|error| panic!("as postgres at {node}: {}", words(&error)))
    }

    /// A superuser's connection to another database of a node.
    pub async fn admin_over(&self, database: &str, node: Node) -> Client {
        let mut config = Config::new();
        config.hostaddr(self.address(node).await).host(self.id().address(node, "cluster.local"));
        config.dbname(database);
        let client = self.connect(config, "postgres", None, Shows::Certificate).await;
        client.unwrap_or_else(|error| panic!("as postgres at {node} over {database}: {}", words(&error)))
    }

    /// Address of a node, as others know it.
    pub fn address_of(&self, node: Node) -> String {
        self.id().address(node, "cluster.local")
    }

    /// A superuser's connection to a node that may be away.
    pub async fn log_in_as_admin(&self, node: Node) -> Result<Client, String> {
        let pods: Api<Pod> = self.api();
        let pod = pods.get_opt(&node.pod_name(&self.name)).await.map_err(|error| error.to_string())?;
        let address = pod.and_then(|pod| pod.status?.pod_ip).ok_or("no pod with an address")?;
        let mut config = Config::new();
        config.hostaddr(address.parse().unwrap()).host(self.id().address(node, "cluster.local"));
        let client = self.connect(config, "postgres", None, Shows::Certificate).await;
        client.map_err(|error| words(&error))
    }

    /// A superuser's connection to the coordinator.
    pub async fn coordinator(&self) -> Client {
        self.admin(Node::Coordinator).await
    }

    /// The application's connection, by its own Secret and through its own Service.
    pub async fn application(&self) -> Client {
        self.access().await.connect().await.unwrap()
    }

    /// Shards of distributed tables by worker.
    pub async fn shards(&self) -> BTreeMap<String, i64> {
        let client = self.coordinator().await;
        let rows = client.query(
            "SELECT split_part(n.nodename, '.', 1), count(p.shardid) FROM pg_dist_node n
             LEFT JOIN pg_dist_placement p ON p.groupid = n.groupid WHERE n.groupid <> 0 GROUP BY 1",
            &[],
        );
        rows.await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Fails unless the counts of shards differ by at most one.
    pub async fn assert_even(&self, workers: usize) {
        let shards = self.shards().await;
        assert_eq!(shards.len(), workers, "{shards:?}");
        let (least, most) = (shards.values().min().unwrap(), shards.values().max().unwrap());
        assert!(most - least <= 1 && shards.values().sum::<i64>() == 32, "{shards:?}");
    }

    /// Fails unless, soon, nothing of a move is left on any node.
    pub async fn assert_nothing_is_left_behind(&self, workers: u16) {
        let nodes = std::iter::once(Node::Coordinator).chain((0..workers).map(Node::Worker));
        let catalogs = ["pg_replication_slots", "pg_subscription", "pg_publication", "pg_prepared_xacts"];
        let left = nodes.flat_map(|node| catalogs.map(|catalog| (node, catalog)));
        for (node, catalog) in left.chain([(Node::Coordinator, "pg_dist_cleanup")]) {
            let admin = self.admin(node).await;
            wait::eventually("moves leave nothing behind", Duration::from_mins(2), async || {
                let rows: i64 = value(&admin, &format!("SELECT count(*) FROM {catalog}")).await;
                if rows == 0 { Ok(()) } else { Err(format!("{node}: {rows} rows of {catalog}")) }
            })
            .await;
        }
    }

    /// Messages in the cluster.
    pub async fn rows(&self) -> i64 {
        value(&self.coordinator().await, "SELECT count(*) FROM dialogs").await
    }
}

/// Transaction ids that a server has given out: each change of data takes one.
pub async fn transactions(client: &Client) -> i64 {
    value(client, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").await
}
