//! The rules that the API server runs at `kubectl apply` (CEL), and the list of parameters that the operator owns.
//! Each rule names its field in its message; the same list is checked again in `Desired::try_from`.

use kube::core::{Message, Rule};

/// Longest name of a DialogCluster: with `-worker-255-0` a pod name stays a DNS label, with room for a volume's suffix.
pub const MAX_NAME: usize = 40;

/// Longest name of a parameter: twice what PostgreSQL's own `NAMEDATALEN` leaves for a name.
pub const MAX_PARAMETER_NAME: usize = 127;

/// Pattern of a parameter's value: one line, so that it cannot add a second setting to postgresql.conf.
pub const ONE_LINE: &str = r"^[^\n\r\x00]*$";

/// Parameters that the operator owns, by name.
pub const OWNED: &[&str] = &[
    "wal_level",
    "allow_alter_system",
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "listen_addresses",
    "port",
    "unix_socket_directories",
    "unix_socket_permissions",
    "dynamic_library_path",
    "jit_provider",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "restore_command",
    "recovery_end_command",
    "primary_conninfo",
    "restart_after_crash",
    "logging_collector",
    "log_directory",
    "log_destination",
    "max_prepared_transactions",
    "synchronous_standby_names",
    "default_transaction_read_only",
    "fsync",
    "full_page_writes",
    "citus.node_conninfo",
    "citus.local_hostname",
    "citus.shard_replication_factor",
    "citus.defer_shard_delete_interval",
    "citus.recover_2pc_interval",
    "citus.use_secondary_nodes",
    "citus.cluster_name",
    "citus.enable_metadata_sync",
    "citus.superuser",
];

/// Families of parameters that the operator owns, by the beginning of their names.
pub const OWNED_PREFIXES: &[&str] =
    &["include", "ssl", "archive_", "recovery_target", "citus.max_background_task_executors", "dialog."];

/// Whether the operator owns this parameter.
#[must_use]
pub fn is_owned(parameter: &str) -> bool {
    OWNED.contains(&parameter) || OWNED_PREFIXES.iter().any(|prefix| parameter.starts_with(prefix))
}

/// Whether a parameter's name is one that can stand in postgresql.conf: lower case, so that it is there only once.
#[must_use]
pub fn is_parameter_name(parameter: &str) -> bool {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let rest = |c: char| first(c) || c.is_ascii_digit() || c == '.';
    parameter.starts_with(first) && parameter.len() <= MAX_PARAMETER_NAME && parameter.chars().all(rest)
}

fn rule(rule: impl Into<String>, message: impl Into<String>) -> Rule {
    Rule { rule: rule.into(), message: Some(Message::Message(message.into())), ..Rule::default() }
}

/// `metadata.name` is at most [`MAX_NAME`] characters and a DNS-1035 label.
#[must_use]
pub fn name_is_short() -> Rule {
    rule(
        format!(
            "size(self.metadata.name) <= {MAX_NAME} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
        ),
        format!(
            "metadata.name: must be a DNS-1035 label (a-z, 0-9 and -, starting with a letter) of at most {MAX_NAME} characters: pods, volumes and addresses are named after it"
        ),
    )
}

/// `metadata.name` does not end like one of the objects the operator makes for another cluster.
#[must_use]
pub fn name_leaves_room() -> Rule {
    rule(
        "!self.metadata.name.matches('-(nodes|coordinator|worker-[0-9]+)$')",
        "metadata.name: must not end in -nodes, -coordinator or -worker-<n>: objects of another cluster are named like that",
    )
}

/// The field cannot change once it is set.
#[must_use]
pub fn immutable(field: &str) -> Rule {
    rule("self == oldSelf", format!("{field}: cannot be changed after the cluster is made"))
}

/// A field that, when it is there, is not the empty string.
#[must_use]
pub fn not_empty(field: &str) -> Rule {
    rule("self != ''", format!("{field}: must not be empty; leave it out for the default"))
}

/// The class of a volume is chosen once.
#[must_use]
pub fn storage_class_is_fixed() -> Rule {
    rule(
        "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "storage.storageClassName: cannot be changed after the cluster is made: the data is on the volumes of the first class",
    )
}

/// The size of a volume is a quantity above zero.
#[must_use]
pub fn is_positive_quantity() -> Rule {
    rule(
        "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
        "storage.size: must be a quantity above zero, such as 10Gi",
    )
}

/// No name of a parameter is a bad one; the message names the first three. (All of them, or how many there are, is
/// beyond the API server's cost limit for a message: it reckons that a text it makes may be of any length.)
fn no_parameter(bad: &str, problem: &str, advice: &str) -> Rule {
    let also = |at: usize| format!("(size(found) > {at} ? ', ' + found[{at}] : '')");
    // Found once, by a list of one: a map has another order each time it is looked through.
    Rule {
        message: Some(Message::Expression(format!(
            "[self.filter(name, {bad})].map(found, 'postgres.parameters: {problem} ' + found[0] + {} + {} + ': {advice}')[0]",
            also(1),
            also(2)
        ))),
        ..rule(format!("!self.exists(name, {bad})"), "")
    }
}

/// Parameter names are written in lower case, so that one setting cannot be there twice.
fn parameters_are_lower_case() -> Rule {
    no_parameter(
        &format!("!name.matches('^[a-z_][a-z0-9_.]{{0,{}}}$')", MAX_PARAMETER_NAME - 1),
        "this is not the name of a parameter:",
        "names are written in lower case (a-z, 0-9, _ and .), such as work_mem",
    )
}

/// No parameter is one that the operator owns: a rule each, so that every refused one is named in the error.
#[must_use]
pub fn parameters() -> Vec<Rule> {
    let one = |name: &&str| {
        rule(
            format!("!('{name}' in self)"),
            format!("postgres.parameters: the operator owns {name}: remove it"),
        )
    };
    let family = |prefix: &&str| {
        no_parameter(&format!("name.startsWith('{prefix}')"), "the operator owns", "remove it")
    };
    std::iter::once(parameters_are_lower_case())
        .chain(OWNED.iter().map(one))
        .chain(OWNED_PREFIXES.iter().map(family))
        .collect()
}

/// The database is not one that every PostgreSQL server has.
#[must_use]
pub fn database_name_is_free() -> Rule {
    rule(
        "!(self in ['postgres', 'template0', 'template1'])",
        "database.name: postgres, template0 and template1 belong to the server",
    )
}

/// The extensions are not those that every node has.
#[must_use]
pub fn extensions_are_free() -> Rule {
    rule(
        "!self.exists(name, name in ['citus', 'citus_columnar', 'plpgsql'])",
        "database.extensions: citus, citus_columnar and plpgsql are the operator's and the server's: remove them",
    )
}

/// The application's role is not the superuser, a reserved one, or the one that runs jobs (`citus::MOVER`).
#[must_use]
pub fn owner_is_free() -> Rule {
    rule(
        "!(self in ['postgres', 'public', 'none', 'dialog_mover']) && !self.startsWith('pg_')",
        "database.owner: postgres, public, none and names that start with pg_ belong to the server, dialog_mover to the operator",
    )
}
