//! The configuration files of a node's server, and their hashes. What never changes is not here but on the command line
//! of the start script, where no file can override it.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{BuildContext, paths::NODE_TLS, text_hash};
use crate::api::{Desired, Node};

/// The start script of every node.
pub(super) const START_SCRIPT: &str = include_str!("start.sh");

/// What `archive_command` of every server runs, for each segment of WAL. As long as there are no backups it succeeds and
/// does nothing: that the command is never another one is what keeps WAL from being sent elsewhere.
pub(super) const ARCHIVE_SCRIPT: &str =
    "# Run by archive_command with the path and the name of a finished segment of WAL.\nexit 0\n";

/// How nodes log in to each other. Without the timeouts a host that dies leaves cached connections hanging for up to
/// 15 minutes. The last one bounds what a pod costs that came back under another address: nobody answers under the old
/// one, and Citus neither keeps connect_timeout nor gives up a cancel request before this (with 15 s every restart of
/// a worker held up some writes for 17 s, and the first move for 10 s).
const NODE_CONNINFO_OPTIONS: &str =
    "connect_timeout=5 keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=5000";

/// Defaults that the user may override. Where nothing else is said they make moves fast: 16 moves take 100 s with
/// PostgreSQL's own defaults and 8 s with these.
const DEFAULTS: &[(&str, &str)] = &[
    // One logical replication worker is started in each such interval: that, not the data, is most of a small move.
    ("wal_retrieve_retry_interval", "100ms"),
    ("max_worker_processes", "64"),
    ("max_logical_replication_workers", "32"),
    ("max_sync_workers_per_subscription", "8"),
    ("max_replication_slots", "64"),
    ("max_wal_senders", "64"),
    // How long a new rebalance may wait before its first move.
    ("citus.background_task_queue_interval", "1s"),
    // Conditions and events quote the server: in one language, whatever the image's is.
    ("lc_messages", "C"),
    // A client that was cut off says nothing when it ends, and its session would keep its locks for more than two hours
    // (the kernel's default). Of a move that died these are the locks before which all writers of its shard wait.
    // No tcp_user_timeout here: Linux also ends a connection by it whose client only reads slowly.
    ("tcp_keepalives_idle", "10s"),
    ("tcp_keepalives_interval", "5s"),
    ("tcp_keepalives_count", "3"),
];

/// Under which name a node connects to itself.
const LOCAL_HOSTNAME: &str = "citus.local_hostname";

/// What the operator owns and the user cannot override. Values that are Citus' defaults stand here as well, so that
/// an `ALTER SYSTEM` that changes one is noticed.
const OWNED: &[(&str, &str)] = &[
    // In the file, so that standbys can come one day without a restart, and an ALTER SYSTEM of it is noticed.
    ("synchronous_standby_names", ""),
    // A node connects to itself under this name, and checks that its certificate has it. The coordinator has another.
    (LOCAL_HOSTNAME, "localhost"),
    ("citus.shard_replication_factor", "1"),
    ("citus.defer_shard_delete_interval", "15s"),
    ("citus.recover_2pc_interval", "60s"),
    ("citus.use_secondary_nodes", "never"),
];

/// Moves at the same time in a whole cluster. What bounds them is the number for each worker: Citus counts a task against
/// its nodes before it looks at this limit, and once it is reached never takes that back (`GetRunnableBackgroundTask`,
/// `IncrementParallelTaskCountForNodesInvolved`), so that fewer and fewer run. It binds only where half the workers times that number are more.
pub const MAX_MOVES: u16 = 32;

/// Libraries that may be named as the output plugin of a replication slot: PostgreSQL's default, and the decoder of
/// Citus, without which no shard can be split. Known from PostgreSQL 15.19, 16.15, 17.11 and 18.6 on; an older server
/// would not start with it, so it stands in a file of its own, which the start script adds where the server knows it.
const OUTPUT_PLUGINS: (&str, &[&str]) = ("output_plugin_libraries", &["pgoutput", "test_decoding", "citus"]);

/// Timeouts are for those who log in, and nobody logs in to a worker. What they would end there is Citus' work on the
/// account of a table's owner, such as the building of indexes in a move.
const CLIENT_TIMEOUTS: &[&str] =
    &["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"];

/// One more, which servers know from PostgreSQL 17 on: written only where the user does.
const TRANSACTION_TIMEOUT: &str = "transaction_timeout";

/// Settings of a node's configuration files as the spec asks for them: the operator's own, and the user's over its
/// defaults. The coordinator's name for itself is not there yet.
#[must_use]
pub fn settings(desired: &Desired, node: Node) -> BTreeMap<String, String> {
    settings_with(desired, node, &desired.parameters)
}

/// The same with other parameters than the spec's: those a node had before, or those that one node is to try.
fn settings_with(
    desired: &Desired,
    node: Node,
    parameters: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: &str| settings.insert(name.to_owned(), value.to_owned());
    for (name, value) in DEFAULTS {
        set(name, value);
    }
    for (name, value) in parameters {
        set(name, value);
    }
    for (name, value) in OWNED {
        set(name, value);
    }
    set("citus.max_background_task_executors", &MAX_MOVES.to_string());
    set("citus.max_background_task_executors_per_node", &desired.rebalance.max_moves_per_node.to_string());
    set("citus.node_conninfo", &node_conninfo());
    let (libraries, ours) = OUTPUT_PLUGINS;
    set(libraries, &with_added(ours, parameters.get(libraries)));
    if node.is_worker() {
        let asked = |name: &&str| parameters.contains_key(*name);
        for name in CLIENT_TIMEOUTS.iter().copied().chain([TRANSACTION_TIMEOUT].iter().copied().filter(asked))
        {
            set(name, "0");
        }
    }
    settings
}

/// A list with what the user's has besides.
fn with_added(ours: &[&str], users: Option<&String>) -> String {
    let users = users.map(String::as_str).unwrap_or_default();
    let added = users.split(',').map(str::trim).filter(|name| !name.is_empty() && !ours.contains(name));
    let all: Vec<&str> = ours.iter().copied().chain(added).collect();
    all.join(", ")
}

fn node_conninfo() -> String {
    format!(
        "sslmode=verify-full sslrootcert={NODE_TLS}/ca.crt sslcert={NODE_TLS}/tls.crt sslkey={NODE_TLS}/tls.key \
         {NODE_CONNINFO_OPTIONS}"
    )
}

/// `'value'`, such that the server reads `value`.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn lines(settings: impl IntoIterator<Item = (String, String)>) -> String {
    let mut text =
        "# Written by dialog-operator from the DialogCluster; changes made here are lost.\n".to_owned();
    for (name, value) in settings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {}", quoted(&value));
    }
    text
}

fn without_hash(inputs: &BuildContext, node: Node, parameters: &BTreeMap<String, String>) -> String {
    let mut settings = settings_with(inputs.desired, node, parameters);
    if node == Node::Coordinator {
        let name = inputs.desired.cluster.pod_address(node, &inputs.operator.cluster_domain);
        settings.insert(LOCAL_HOSTNAME.to_owned(), name);
    }
    settings.remove(OUTPUT_PLUGINS.0);
    lines(settings)
}

/// output_plugin_libraries.conf: the setting that not every server knows.
pub(super) fn output_plugins_conf(
    inputs: &BuildContext,
    node: Node,
    parameters: &BTreeMap<String, String>,
) -> String {
    lines(settings_with(inputs.desired, node, parameters).remove_entry(OUTPUT_PLUGINS.0))
}

/// postgresql.conf. Its last line is the hash by which pg_file_settings shows that the kubelet has brought it, and
/// `current_setting('dialog.config_hash')` that it is loaded.
pub(super) fn postgresql_conf(
    inputs: &BuildContext,
    node: Node,
    parameters: &BTreeMap<String, String>,
) -> String {
    let text = without_hash(inputs, node, parameters);
    format!("{text}dialog.config_hash = '{}'\n", config_hash(inputs, node, parameters))
}

/// Hash of the configuration files of a node: the value of `dialog.config_hash`.
#[must_use]
pub fn config_hash(inputs: &BuildContext, node: Node, parameters: &BTreeMap<String, String>) -> String {
    let (conf, plugins) =
        (without_hash(inputs, node, parameters), output_plugins_conf(inputs, node, parameters));
    text_hash::hex(&[&conf, &plugins, pg_hba_conf(node), PG_IDENT_CONF])
}

/// Hash of all a server is started with: its configuration and the start script; the value of `dialog.startup_hash`.
#[must_use]
pub fn startup_hash(inputs: &BuildContext, node: Node, parameters: &BTreeMap<String, String>) -> String {
    text_hash::hex(&[&config_hash(inputs, node, parameters), START_SCRIPT])
}

/// pg_hba.conf of a node.
pub(super) fn pg_hba_conf(node: Node) -> &'static str {
    match node {
        Node::Coordinator => COORDINATOR_HBA,
        Node::Worker(_) => WORKER_HBA,
    }
}

/// Who the certificates of nodes and of the operator may log in as, where a line says `map=nodes`: the superuser, and
/// the role that moves shards, which has no password.
pub(super) const PG_IDENT_CONF: &str = "\
# map  certificate      role
nodes  dialog-node      postgres
nodes  dialog-operator  postgres
nodes  dialog-node      dialog_mover
nodes  dialog-operator  dialog_mover
";

/// The coordinator: people and applications log in here, with a password; nodes and the operator with a certificate.
///
/// pg_hba has no fall-through, so a certificate and a password exclude each other for the same role and address. It
/// works because no other node connects to the coordinator as an application's role, and the coordinator connects to
/// itself from its pod's own address: `citus.local_hostname` is there the name that the kubelet writes into the pod's
/// /etc/hosts. (Its Service would not do: what comes back through a virtual address may have another one on it.)
/// `samehost` means the loopback as well, so the loopback's lines come first.
///
/// Nothing is let in without TLS, not even on the loopback: a sidecar that hands connections on comes from there, too.
const COORDINATOR_HBA: &str = "\
# Inside the pod, over a socket that only the server's own user can open.
local    all  postgres      trust
# Nodes, the operator and administrators, by certificate.
hostssl  all  postgres      all           cert map=nodes
hostssl  all  dialog_mover  all           cert map=nodes
# kubectl port-forward ends inside the pod: a password.
hostssl  all  all           127.0.0.1/32  scram-sha-256
hostssl  all  all           ::1/128       scram-sha-256
# The coordinator to itself, as the role that runs a query. An ident map of PostgreSQL 15 cannot say 'any role', so
# the certificate alone must do: its authority signs nodes and the operator, and nobody else.
hostssl  all  all           samehost      trust clientcert=verify-ca
# Applications and people, from anywhere, with TLS.
hostssl  all  all           all           scram-sha-256
";

/// A worker: nodes and the operator only. Connections come as the role that runs the query, so any role may, with a
/// certificate of the authority that signs nodes and the operator, and nobody else. `all` also means the walsenders
/// of a shard move: logical replication connects to a database.
const WORKER_HBA: &str = "\
# Inside the pod, over a socket that only the server's own user can open.
local    all  postgres       trust
# Nodes and the operator, as the role that runs the query: its authority signs nobody else.
hostssl  all  all       all  trust clientcert=verify-ca
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_extended_and_never_shortened() {
        let with = |users: &str| with_added(&["pgoutput", "citus"], Some(&users.to_owned()));
        assert_eq!(with_added(&["pgoutput", "citus"], None), "pgoutput, citus");
        assert_eq!(with("wal2json"), "pgoutput, citus, wal2json");
        assert_eq!(with("citus,wal2json , decoderbufs"), "pgoutput, citus, wal2json, decoderbufs");
        assert_eq!(with(""), "pgoutput, citus");
    }

    #[test]
    fn a_value_is_what_the_server_reads() {
        assert_eq!(quoted("it's"), "'it''s'");
        assert_eq!(quoted(r"C:\x"), r"'C:\\x'");
        assert_eq!(quoted(""), "''");
    }
}
