//! A coordinator and two workers on this machine: with everybody's defaults, or as the operator makes them. Nothing is
//! measured here.

use dialog_operator::{
    api::{Node, names::SecretKind},
    citus::{ClientTls, Connection, Target, Tls, commands},
    resources::InitdbPermission,
};

use testkit::{
    load::access::Access,
    postgres::{DATABASE, OWNER, PASSWORD, Parameters, Secrets, Server, TestNode},
};

/// Which settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum Kind {
    /// Those of PostgreSQL and Citus, and the one without which no shard can leave a worker.
    #[strum(to_string = "PostgreSQL's and Citus' defaults, wal_level = logical")]
    Defaults,
    /// Those of `spec: {}`, with the start script and the certificates of a cluster of the operator.
    #[strum(to_string = "a cluster as the operator makes it of an empty spec")]
    Operators,
}

enum Running {
    Plain(Server),
    // In a box: it is much larger.
    Born(Box<TestNode>),
}

/// The servers of a measurement. They end with the value, and their data is removed.
pub struct Cluster {
    /// Which settings they have.
    pub kind: Kind,
    nodes: Vec<Running>,
    tls: Tls,
}

/// Of the nodes by their place: the coordinator, the worker that has everything, the one that joins.
pub const NODES: [Node; 3] = [Node::Coordinator, Node::Worker(0), Node::Worker(1)];

impl Cluster {
    /// Starts and prepares the servers; none is registered yet.
    pub async fn start(kind: Kind) -> Self {
        let mut cluster = Self { kind, nodes: Vec::new(), tls: Tls::Off };
        match kind {
            Kind::Defaults => {
                for node in NODES {
                    let server = Server::with_defaults(&node.to_string(), "wal_level = logical").await;
                    cluster.nodes.push(Running::Plain(server));
                }
            }
            Kind::Operators => {
                let secrets = Secrets::generate();
                for node in NODES {
                    let mut node = TestNode::new(node, &secrets);
                    node.configure(&Parameters::new(), InitdbPermission::Allowed(None));
                    node.start();
                    cluster.nodes.push(Running::Born(Box::new(node)));
                }
                for node in &mut cluster.nodes {
                    if let Running::Born(node) = node {
                        node.until_ready();
                    }
                }
                cluster.tls = operators_tls(&secrets);
            }
        }
        cluster
    }

    /// The port of a node.
    pub fn port(&self, place: usize) -> u16 {
        match &self.nodes[place] {
            Running::Plain(server) => server.port,
            Running::Born(node) => node.port,
        }
    }

    fn target(&self, place: usize, database: &str) -> Target {
        Target {
            node: NODES[place].to_string(),
            hostaddr: std::net::Ipv4Addr::LOCALHOST.into(),
            host: "localhost".to_owned(),
            port: self.port(place),
            database: database.to_owned(),
        }
    }

    /// A session of the operator.
    pub async fn session(&self, place: usize, database: &str) -> anyhow::Result<Connection> {
        Ok(self.target(place, database).connect(&self.tls).await?)
    }

    /// A session of the application's role on the coordinator.
    pub async fn owner(&self) -> anyhow::Result<Connection> {
        Ok(self.target(0, DATABASE).connect_as(&self.tls, OWNER, &PASSWORD.into()).await?)
    }

    /// What the operator does to a node before it can be a member.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        for place in 0..NODES.len() {
            commands::bootstrap_server(&self.session(place, "postgres").await?, DATABASE).await?;
            commands::create_extension(&self.session(place, DATABASE).await?, None).await?;
        }
        Ok(())
    }

    /// How an application reaches the coordinator: the same way in both kinds, with a password and without TLS.
    pub fn access(&self) -> Access {
        Access::on_this_machine(self.port(0), DATABASE, OWNER, PASSWORD)
    }
}

fn operators_tls(secrets: &Secrets) -> Tls {
    let contents = secrets.contents(SecretKind::Superuser);
    let part = |key: &str| contents.get(key).map(<[u8]>::to_vec).unwrap_or_default();
    let tls = ClientTls::from_pem(&part("ca.crt"), &part("tls.crt"), &part("tls.key"));
    tls.map_or(Tls::Off, Tls::Mutual)
}
