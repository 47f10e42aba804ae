//! Who may log in where, and as whom: the access files and certificates that the operator makes, tried on real servers
//! with libpq (verify-full) and with rustls, which the operator itself uses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod server;

use std::{fs, net::UdpSocket, path::Path, sync::Arc};

use dialog_operator::{
    api::{Node, names::SecretKind},
    resources::Initialise,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use server::{Parameters, Secrets, TestNode};

fn born(node: Node, secrets: &Secrets) -> TestNode {
    let mut node = TestNode::new(node, secrets);
    for kind in [SecretKind::Superuser, SecretKind::Node] {
        secrets.write(kind, &node.path(&kind.to_string()));
    }
    let strangers = Secrets::new();
    strangers.write(SecretKind::Node, &node.path("stranger"));
    node.configure(&Parameters::new(), Initialise::Allowed);
    node.start();
    node.until_ready();
    node
}

/// `sslmode=verify-full` with the client certificate in a directory of the node; `name` is checked, whatever it means.
fn with_certificate(node: &TestNode, name: &str, directory: &str) -> String {
    let directory = node.path(directory);
    let directory = directory.display();
    format!("{} sslcert={directory}/tls.crt sslkey={directory}/tls.key", verified(node, name))
}

fn verified(node: &TestNode, name: &str) -> String {
    let authority = node.path("node/ca.crt");
    format!(
        "host={name} hostaddr=127.0.0.1 dbname=postgres sslmode=verify-full sslrootcert={}",
        authority.display()
    )
}

/// An address of this machine that is not the loopback: a client that is not in the pod.
fn from_outside(conninfo: &str) -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only chooses an address.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then(|| conninfo.replace("hostaddr=127.0.0.1", &format!("hostaddr={address}")))
}

fn assert_refused(answer: &str, why: &str) {
    assert!(answer.contains("FATAL") || answer.contains("error"), "was let in: {answer}");
    assert!(answer.contains(why), "{why:?} is not why: {answer}");
}

#[test]
fn a_worker_lets_in_nodes_and_the_operator_and_nobody_else() {
    let secrets = Secrets::new();
    let node = born(Node::Worker(7), &secrets);
    node.ask("create role dialogs login password 'secret'");
    let name = "talk-worker-7.shop.svc.cluster.local";

    for (directory, role) in [("node", "postgres"), ("superuser", "postgres"), ("node", "dialogs")] {
        let conninfo = format!("{} user={role}", with_certificate(&node, name, directory));
        assert_eq!(node.log_in(&conninfo, ""), role, "with the certificate of {directory}");
    }
    let password = format!("{} user=dialogs", verified(&node, name));
    assert_refused(&node.log_in(&password, "secret"), "requires a valid client certificate");
    let plain = "host=localhost dbname=postgres user=dialogs sslmode=disable";
    assert_refused(&node.log_in(plain, "secret"), "no pg_hba.conf entry");
    // Of another cluster, and of this cluster's other authority.
    for directory in ["stranger", "server"] {
        let conninfo = format!("{} user=postgres", with_certificate(&node, name, directory));
        assert_refused(&node.log_in(&conninfo, ""), "unknown ca");
    }
}

#[test]
fn the_coordinator_lets_in_people_with_a_password_and_nodes_with_a_certificate() {
    let secrets = Secrets::new();
    let node = born(Node::Coordinator, &secrets);
    let contents = secrets.contents(SecretKind::App);
    let value = |key: &str| String::from_utf8(contents.get(key).unwrap().to_vec()).unwrap();
    let password = value("password");
    node.ask(&format!(
        "create role dialogs login password '{password}'; alter role postgres password '{password}'"
    ));
    let name = &value("host");

    for directory in ["node", "superuser"] {
        let conninfo = format!("{} user=postgres", with_certificate(&node, name, directory));
        assert_eq!(node.log_in(&conninfo, ""), "postgres");
    }
    assert_refused(
        &node.log_in(&format!("{} user=postgres", verified(&node, name)), &password),
        "requires a valid client certificate",
    );
    // The coordinator to itself, as any role.
    let to_itself = with_certificate(&node, "localhost", "node");
    assert_eq!(node.log_in(&format!("{to_itself} user=dialogs"), ""), "dialogs");
    // kubectl port-forward: psql's default is `prefer`.
    for mode in ["prefer", "disable"] {
        let forwarded = format!("host=localhost dbname=postgres user=dialogs sslmode={mode}");
        assert_eq!(node.log_in(&forwarded, &password), "dialogs", "{mode}");
        assert_refused(&node.log_in(&forwarded, "wrong"), "password authentication failed");
    }
    let application = format!("{} user=dialogs", verified(&node, name));
    let Some(application) = from_outside(&application) else {
        eprintln!("this machine has no address but the loopback");
        return;
    };
    assert_eq!(node.log_in(&application, &password), "dialogs");
    assert_refused(&node.log_in(&application, "wrong"), "password authentication failed");
    let plain = application.replace("verify-full", "disable");
    assert_refused(&node.log_in(&plain, &password), "no pg_hba.conf entry");
    let as_superuser = application.replace("user=dialogs", "user=postgres");
    assert_refused(&node.log_in(&as_superuser, &password), "requires a valid client certificate");
}

#[test]
fn the_server_certificate_has_the_names_of_all_services_and_no_other() {
    let secrets = Secrets::new();
    let node = born(Node::Coordinator, &secrets);
    for name in [
        "localhost",
        "talk",
        "talk.shop",
        "talk.shop.svc",
        "talk.shop.svc.cluster.local",
        "talk-coordinator.shop.svc.cluster.local",
        "talk-worker-255.shop.svc.cluster.local",
        "talk-worker-0-0.talk-nodes.shop.svc.cluster.local",
    ] {
        let conninfo = format!("{} user=postgres", with_certificate(&node, name, "superuser"));
        assert_eq!(node.log_in(&conninfo, ""), "postgres", "{name}");
    }
    for name in ["other", "talk.other.svc", "talk-worker-0.other.svc.cluster.local", "example.org"] {
        let conninfo = format!("{} user=postgres", with_certificate(&node, name, "superuser"));
        assert_refused(&node.log_in(&conninfo, ""), "does not match host name");
    }
}

fn pem(directory: &Path, key: &str) -> Vec<u8> {
    fs::read(directory.join(key)).unwrap()
}

#[tokio::test]
async fn rustls_takes_the_certificates_as_well() {
    let secrets = Secrets::new();
    let node = born(Node::Worker(3), &secrets);
    let directory = node.path("superuser");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem(&directory, "ca.crt")).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(&pem(&directory, "tls.crt")).unwrap()],
                PrivateKeyDer::from_pem_slice(&pem(&directory, "tls.key")).unwrap(),
            )
            .unwrap();
    let connect = |name: &str| {
        let mut postgres = tokio_postgres::Config::new();
        postgres
            .host(name)
            .hostaddr("127.0.0.1".parse().unwrap())
            .port(node.port)
            .user("postgres")
            .dbname("postgres")
            .ssl_mode(tokio_postgres::config::SslMode::Require);
        let tls = tokio_postgres_rustls::MakeRustlsConnect::new(config.clone());
        async move { postgres.connect(tls).await }
    };
    for name in ["talk-worker-3.shop.svc.cluster.local", "localhost"] {
        let (client, connection) = connect(name).await.unwrap();
        let connection = tokio::spawn(connection);
        let row =
            client.query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[]).await.unwrap();
        assert!(row.get::<_, bool>(0));
        drop(client);
        connection.await.unwrap().unwrap();
    }
    let error = connect("talk-worker-3.other.svc.cluster.local").await.err().unwrap();
    assert!(format!("{error:?}").contains("NotValidForName"), "{error:?}");
}

/// Everything Citus does between nodes goes through these files: metadata, queries as the application's role, the
/// coordinator's connections to itself, and the subscription of a shard move.
#[test]
fn citus_works_through_them() {
    let secrets = Secrets::new();
    let [coordinator, first, second] =
        [Node::Coordinator, Node::Worker(0), Node::Worker(1)].map(|node| born(node, &secrets));
    for node in [&coordinator, &first, &second] {
        assert_eq!(node.ask("create extension citus"), "");
    }
    assert_eq!(
        coordinator.ask(&format!("select citus_set_coordinator_host('localhost', {})", coordinator.port)),
        ""
    );
    // The coordinator holds shards as well here, so that it connects to itself.
    let mut holders = vec![&first, &second];
    if !server::cannot_show("shards on the coordinator, and how it connects to itself") {
        holders.insert(0, &coordinator);
        let sharing = coordinator.ask(&format!(
            "select citus_set_node_property('localhost', {}, 'shouldhaveshards', true)",
            coordinator.port
        ));
        assert_eq!(sharing, "");
    }
    for node in [&first, &second] {
        let added = coordinator.ask(&format!("select citus_add_node('localhost', {})", node.port));
        assert!(added.parse::<i32>().is_ok(), "{added}");
    }
    coordinator.ask("create role dialogs login password 'secret'");
    coordinator.ask("create schema talk authorization dialogs");
    let application = "host=localhost user=dialogs dbname=postgres sslmode=disable";
    let ask = |sql: &str| coordinator.ask_over_tcp(application, "secret", sql);
    assert_eq!(ask("create table talk.message (id bigint primary key, body text)"), "");
    assert_eq!(ask("select create_distributed_table('talk.message', 'id', shard_count => 6)"), "");
    assert_eq!(ask("insert into talk.message select i, 'text' from generate_series(1, 600) i"), "");
    assert_eq!(ask("select count(*) from talk.message"), "600");

    let shard = coordinator.ask("select shardid from citus_shards order by nodeport, shardid limit 1");
    let from = coordinator.ask("select nodeport from citus_shards order by nodeport, shardid limit 1");
    let to = holders.iter().map(|node| node.port).find(|port| port.to_string() != from).unwrap();
    let moved = coordinator.ask(&format!(
        "select citus_move_shard_placement({shard}, 'localhost', {from}, 'localhost', {to}, 'force_logical')"
    ));
    assert!(!moved.contains("ERROR"), "{moved}");
    assert_eq!(ask("select count(*) from talk.message"), "600");
    // Asked over the very connections that Citus opens.
    let confined = coordinator.ask(
        "select bool_and(success and result = 't') from run_command_on_workers($$ select ssl and client_dn is not null \
         from pg_stat_ssl where pid = pg_backend_pid() $$)",
    );
    assert_eq!(confined, "t");
    let health = coordinator.ask("select bool_and(result) from citus_check_cluster_node_health()");
    assert_eq!(health, "t");
}
