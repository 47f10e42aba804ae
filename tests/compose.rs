//! The cluster without Kubernetes has the operator's settings, and its registration does what it says. The file itself
//! cannot be run where there is no Docker: what is in it is compared, and its script run over this machine's servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path};

use dialog_operator::{
    api::Node,
    resources::{InitdbPermission, settings},
};
use serde_json::Value;
use testkit::postgres::{INSTALLATION, Parameters, Secrets, TestNode, as_server_user, desired};

const NODES: [&str; 3] = ["citus", "citus_worker_1", "citus_worker_2"];

fn infrastructure() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("infrastructure")
}

fn compose() -> Value {
    let text = fs::read_to_string(infrastructure().join("docker-compose.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// `-c name=value` in a service's command.
fn given(service: &Value) -> BTreeMap<String, String> {
    let words: Vec<&str> =
        service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[0], "postgres");
    words[1..]
        .chunks(2)
        .map(|pair| {
            assert_eq!(pair[0], "-c", "{pair:?}");
            let (name, value) = pair[1].split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

#[test]
fn every_node_has_the_operators_settings() {
    let mut expected = settings(&desired(), Node::Coordinator);
    // No certificates and no standbys here; and a server that does not know the last one.
    for name in ["citus.node_conninfo", "synchronous_standby_names", "output_plugin_libraries"] {
        assert!(expected.remove(name).is_some(), "{name} is no setting of the operator any more");
    }
    // Of the command line in the start script.
    for (name, value) in [("wal_level", "logical"), ("shared_preload_libraries", "citus")] {
        expected.insert(name.to_owned(), value.to_owned());
    }
    for node in NODES {
        assert_eq!(given(&compose()["services"][node]), expected, "{node}");
    }
}

#[test]
fn every_node_is_made_alike() {
    let compose = compose();
    let services = &compose["services"];
    for node in NODES {
        let service = &services[node];
        assert_eq!(service["image"], "citusdata/citus:14.1.0", "{node}");
        assert_eq!(service["environment"], services["citus"]["environment"], "{node}");
        assert_eq!(service["stop_signal"], "SIGINT", "{node}");
        assert_eq!(services["register"]["depends_on"][node]["condition"], "service_healthy");
        // PGDATA of this image is a directory below its volume, named after the major version.
        assert_eq!(service["volumes"][0], format!("{node}:/var/lib/postgresql"));
        assert!(compose["volumes"].as_object().unwrap().contains_key(node));
    }
    for port in services["citus"]["ports"].as_array().unwrap() {
        assert!(
            port.as_str().unwrap().starts_with("127.0.0.1:"),
            "without passwords only on the loopback: {port}"
        );
    }
    let mount = services["register"]["volumes"][0].as_str().unwrap();
    let schema = infrastructure().join(mount.split(':').next().unwrap());
    assert!(schema.exists(), "{}", schema.display());
}

/// The script of the service `register`, twice, over three servers of this machine.
#[test]
fn the_registration_can_be_repeated() {
    let secrets = Secrets::generate();
    let nodes = [Node::Coordinator, Node::Worker(0), Node::Worker(1)].map(|node| {
        let mut node = TestNode::new(node, &secrets);
        node.configure(&Parameters::new(), InitdbPermission::Allowed(None));
        node.start();
        node.until_ready();
        node.ask("create database dialogs");
        node.ask_in("dialogs", "create extension citus");
        node
    });
    let service = &compose()["services"]["register"];
    let mut script = service["command"][0].as_str().unwrap().replace("$$", "$");
    for (name, node) in NODES.into_iter().zip(&nodes) {
        script = script.replace(&format!("'{name}', 5432"), &format!("'localhost', {}", node.port));
    }
    script = script.replace("nodename = 'citus'", "nodename = 'localhost'");
    fs::copy(infrastructure().join("citus/schema.sql"), nodes[0].path("run/schema.sql")).unwrap();
    nodes[0].give_to_server_user();
    script = script.replace("/schema.sql", nodes[0].path("run/schema.sql").to_str().unwrap());
    let entrypoint: Vec<&str> =
        service["entrypoint"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    for run in ["first", "second"] {
        let output = as_server_user(entrypoint[0])
            .args(&entrypoint[1..])
            .arg(&script)
            .env("PATH", format!("{}:{}", INSTALLATION.bin.display(), std::env::var("PATH").unwrap()))
            .env("PGHOST", nodes[0].path("run"))
            .env("PGPORT", nodes[0].port.to_string())
            .env("PGUSER", service["environment"]["PGUSER"].as_str().unwrap())
            .env("PGDATABASE", service["environment"]["PGDATABASE"].as_str().unwrap())
            .current_dir("/")
            .output()
            .unwrap();
        assert!(output.status.success(), "{run}: {output:?}");
    }
    let ask = |sql: &str| nodes[0].ask_in("dialogs", sql);
    assert_eq!(ask("select count(*) from pg_dist_node where isactive"), "3");
    assert_eq!(ask("select shard_count from citus_tables where table_name = 'dialogs'::regclass"), "32");
    let spread =
        ask("select string_agg(n::text, ' ') from (select count(*) n from citus_shards group by nodeport) s");
    assert_eq!(spread, "16 16");
}
