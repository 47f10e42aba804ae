//! Who may log in where, and as whom: the access files and certificates that the operator makes, tried on real servers
//! with libpq (verify-full) and with rustls, which the operator itself uses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path, process::Command, sync::Arc};

use dialog_operator::{
    api::{Node, names::SecretKind},
    resources::InitdbPermission,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use testkit::postgres::{OnlyCitus, Parameters, Secrets, TestNode, coordinator_pod, own_address, skipped};

fn born(node: Node, secrets: &Secrets) -> TestNode {
    let mut node = TestNode::new(node, secrets);
    for kind in [SecretKind::Superuser, SecretKind::Node] {
        secrets.write(kind, &node.path(&kind.to_string()));
    }
    let strangers = Secrets::generate();
    strangers.write(SecretKind::Node, &node.path("stranger"));
    node.configure(&Parameters::new(), InitdbPermission::Allowed(None));
    node.start();
    node.until_ready();
    node
}

/// A network of one client, which this machine's servers are not in.
struct Elsewhere {
    name: String,
    server: &'static str,
}

impl Elsewhere {
    fn new() -> Option<Self> {
        let name = format!("dlg{}", std::process::id() % 100_000);
        let this = Self { server: "198.18.7.1", name };
        let (name, inside) = (&this.name, format!("{}i", this.name));
        let steps = [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name {inside}"),
            format!("link set {inside} netns {name}"),
            format!("addr add {}/30 dev {name}", this.server),
            format!("link set {name} up"),
            format!("-n {name} addr add 198.18.7.2/30 dev {inside}"),
            format!("-n {name} link set {inside} up"),
        ];
        steps.iter().all(|step| ip(step)).then_some(this)
    }
    fn log_in(&self, node: &TestNode, conninfo: &str, password: &str) -> String {
        node.log_in_from(&["ip", "netns", "exec", &self.name], conninfo, password)
    }
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).output().is_ok_and(|output| output.status.success())
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.name));
        ip(&format!("netns del {}", self.name));
    }
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

/// A client that is not on the loopback.
fn from_outside(conninfo: &str) -> Option<String> {
    let address = own_address()?;
    Some(conninfo.replace("hostaddr=127.0.0.1", &format!("hostaddr={address}")))
}

fn assert_refused(answer: &str, why: &str) {
    assert!(answer.contains("FATAL") || answer.contains("error"), "was let in: {answer}");
    assert!(answer.contains(why), "{why:?} is not why: {answer}");
}

#[test]
fn a_worker_lets_in_nodes_and_the_operator_and_nobody_else() {
    let secrets = Secrets::generate();
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
fn coordinator_admits_passwords_and_node_certificates() {
    let secrets = Secrets::generate();
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
    // kubectl port-forward ends on the loopback: a password, and TLS (psql's default is `prefer`).
    let forwarded = "host=localhost dbname=postgres user=dialogs";
    for mode in ["prefer", "require"] {
        let forwarded = format!("{forwarded} sslmode={mode}");
        assert_eq!(node.log_in(&forwarded, &password), "dialogs", "{mode}");
        assert_refused(&node.log_in(&forwarded, "wrong"), "password authentication failed");
        let as_superuser = forwarded.replace("user=dialogs", "user=postgres");
        assert_refused(&node.log_in(&as_superuser, &password), "requires a valid client certificate");
    }
    assert_refused(&node.log_in(&format!("{forwarded} sslmode=disable"), &password), "no pg_hba.conf entry");
    // A certificate is no password.
    let with_both = format!("{} user=dialogs", with_certificate(&node, "localhost", "node"));
    assert_refused(&node.log_in(&with_both, "wrong"), "password authentication failed");

    let to_itself = format!("{} user=dialogs", with_certificate(&node, &coordinator_pod(), "node"));
    let (Some(to_itself), Some(superuser)) = (
        from_outside(&to_itself),
        from_outside(&format!("{} user=postgres", with_certificate(&node, name, "superuser"))),
    ) else {
        eprintln!("this machine has no address but the loopback");
        return;
    };
    // The coordinator to itself, as any role: from its own address, by certificate alone.
    assert_eq!(node.log_in(&to_itself, ""), "dialogs");
    assert_eq!(node.log_in(&superuser, ""), "postgres");
    let by_password = from_outside(&format!("{} user=dialogs", verified(&node, name))).unwrap();
    assert_refused(&node.log_in(&by_password, &password), "requires a valid client certificate");
}

/// Jobs run as it: it has no password, and gets in with the certificate of a node alone.
#[test]
fn mover_role_logs_in_by_certificate_and_never_by_password() {
    let secrets = Secrets::generate();
    for node in [Node::Coordinator, Node::Worker(0)] {
        let node = born(node, &secrets);
        node.ask("create role dialog_mover login password 'secret'");
        let name = "talk.shop.svc.cluster.local";
        let certified = format!("{} user=dialog_mover", with_certificate(&node, name, "node"));
        let plain = format!("{} user=dialog_mover", verified(&node, name));
        for (certified, plain) in
            [Some((certified.clone(), plain.clone())), from_outside(&certified).zip(from_outside(&plain))]
                .into_iter()
                .flatten()
        {
            assert_eq!(node.log_in(&certified, ""), "dialog_mover");
            assert_refused(&node.log_in(&plain, "secret"), "requires a valid client certificate");
        }
    }
}

/// A client elsewhere, which this machine cannot be: its own addresses are the server's. A network namespace of its
/// own makes one.
#[test]
fn applications_log_in_from_elsewhere_with_a_password_and_tls() {
    let secrets = Secrets::generate();
    let node = born(Node::Coordinator, &secrets);
    node.ask("create role dialogs login password 'secret'; alter role postgres password 'secret'");
    let Some(elsewhere) = Elsewhere::new() else {
        eprintln!("no network namespace can be made here");
        return;
    };
    let application = format!("{} user=dialogs", verified(&node, "talk.shop.svc.cluster.local"))
        .replace("hostaddr=127.0.0.1", &format!("hostaddr={}", elsewhere.server));
    assert_eq!(elsewhere.log_in(&node, &application, "secret"), "dialogs");
    assert_refused(&elsewhere.log_in(&node, &application, "wrong"), "password authentication failed");
    let plain = application.replace("verify-full", "disable");
    assert_refused(&elsewhere.log_in(&node, &plain, "secret"), "no pg_hba.conf entry");
    let as_superuser = application.replace("user=dialogs", "user=postgres");
    assert_refused(&elsewhere.log_in(&node, &as_superuser, "secret"), "requires a valid client certificate");
}

#[test]
fn server_certificate_names_all_services_and_nothing_else() {
    let secrets = Secrets::generate();
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
        "talk-coordinator-0.talk-nodes.shop.svc.cluster.local",
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
    let secrets = Secrets::generate();
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
    let secrets = Secrets::generate();
    let [coordinator, first, second] =
        [Node::Coordinator, Node::Worker(0), Node::Worker(1)].map(|node| born(node, &secrets));
    for node in [&coordinator, &first, &second] {
        assert_eq!(node.ask("create extension citus"), "");
    }
    // Under the name by which the coordinator connects to itself, where somebody writes /etc/hosts for it.
    let itself = coordinator.ask("show citus.local_hostname");
    let host =
        coordinator.ask(&format!("select citus_set_coordinator_host('{itself}', {})", coordinator.port));
    assert_eq!(host, "");
    // The coordinator holds shards as well here, so that it connects to itself.
    let mut holders = vec![&first, &second];
    if itself == "localhost" {
        eprintln!("without root nobody can give the coordinator a name of its own: it holds no shards");
    } else if !skipped(OnlyCitus::ShardsOnTheCoordinator) {
        holders.insert(0, &coordinator);
        let sharing = coordinator.ask(&format!(
            "select citus_set_node_property('{itself}', {}, 'shouldhaveshards', true)",
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
    let application = "host=localhost user=dialogs dbname=postgres sslmode=require";
    let ask = |sql: &str| coordinator.ask_over_tcp(application, "secret", sql);
    assert_eq!(ask("create table talk.message (id bigint primary key, body text)"), "");
    assert_eq!(ask("select create_distributed_table('talk.message', 'id', shard_count => 6)"), "");
    assert_eq!(ask("insert into talk.message select i, 'text' from generate_series(1, 600) i"), "");
    assert_eq!(ask("select count(*) from talk.message"), "600");

    let first_of = |what: &str| {
        coordinator.ask(&format!("select {what} from citus_shards order by nodeport, shardid limit 1"))
    };
    let (shard, from) = (first_of("shardid"), first_of("nodeport"));
    let address = |port: &str| {
        let host = if port == coordinator.port.to_string() { &itself } else { "localhost" };
        format!("'{host}', {port}")
    };
    let to = holders.iter().map(|node| node.port.to_string()).find(|port| *port != from).unwrap();
    let (source, target) = (address(&from), address(&to));
    let moved = coordinator
        .ask(&format!("select citus_move_shard_placement({shard}, {source}, {target}, 'force_logical')"));
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
