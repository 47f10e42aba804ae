//! What the snapshot holds of a node's own PostgreSQL. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One node's PostgreSQL, seen over its own database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
// SQL gives it: a name that is changed on one side only must not become a field that is never filled.
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Postgres {
    /// `system_identifier` of `pg_control_system()`.
    pub system_identifier: String,
    /// `server_version`, such as `15.18`.
    pub version: String,
    /// `server_version_num / 10000`.
    pub major: u32,
    /// `pg_postmaster_start_time()`.
    pub started_at: Timestamp,
    /// `wal_level` it runs with.
    pub wal_level: String,
    /// `current_setting('dialog.config_hash')`: the configuration that is loaded.
    pub config_hash: Option<String>,
    /// `dialog.config_hash` in pg_file_settings: the configuration that the kubelet has brought.
    pub file_config_hash: Option<String>,
    /// `current_setting('dialog.startup_hash')`: the start script and configuration that the server was started with.
    pub startup_hash: Option<String>,
    /// The server runs with its last good configuration, because it did not start with this one.
    pub rejected: Option<RejectedConfiguration>,
    /// Names of settings with `pending_restart`.
    pub pending_restart: BTreeSet<String>,
    /// Values of the settings that the operator or the user sets, as `current_setting()` shows them.
    pub settings: BTreeMap<String, String>,
    /// Entries of postgresql.auto.conf (`ALTER SYSTEM`), which override the configuration file.
    pub auto_conf: BTreeMap<String, String>,
    /// `<provider> <locale>` that the server was initialised with: `libc C`, `builtin C.UTF-8`.
    pub locale: Option<String>,
    /// The application's database exists.
    pub database: bool,
    /// Version of the citus extension in it (`pg_extension.extversion`), when it is there.
    pub extension: Option<String>,
    /// `default_version` of the citus extension that is installed in the image.
    pub available_extension: Option<String>,
    /// `groupid` of pg_dist_local_group; 0 on a coordinator, and on a worker that never was one.
    pub group_id: Option<i32>,
    /// Rows in the node's own copy of pg_dist_node.
    pub dist_node_rows: i64,
    /// Placements of the node's own group whose tables are not there: an emptied node that looks healthy.
    pub missing_tables: i64,
    /// What moves need only while they run and is there now: a dead move's, unless one runs or pg_dist_cleanup lists it.
    /// The first thousand.
    pub leftovers: Vec<Leftover>,
    /// How many there are.
    pub leftovers_in_all: i64,
    /// What is pinned for the roles that work for the operator is so (`ALTER ROLE postgres SET search_path = pg_catalog`,
    /// no timeouts, ...), and the one that runs jobs is no superuser.
    pub role_pinned: bool,
    /// The application's role may create in its database and in `public`; `None` as long as it does not exist.
    pub owner_may_create: Option<bool>,
    /// Transactions of Citus that have been prepared here for more than a second, and are neither committed nor undone.
    pub prepared_transactions: i64,
    /// Bytes free and in all on the data volume (`citus_local_disk_space_stats()`).
    pub disk: Option<Disk>,
}

impl Postgres {
    /// It has a group, or a copy of pg_dist_node: it is, or was, a member of a cluster.
    #[must_use]
    pub fn holds_metadata(&self) -> bool {
        self.group_id.unwrap_or(0) != 0 || self.dist_node_rows > 0
    }
}

/// Something of a move, by the name that Citus gives to such things. A replication slot only when nobody uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Leftover {
    pub kind: LeftoverKind,
    pub name: String,
}

/// What a move leaves on a node when it dies; in the order in which these can be dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, strum::Display,
)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum LeftoverKind {
    Subscription,
    /// Owner of a subscription.
    Role,
    Publication,
    #[default]
    Slot,
}

/// What a server said to a value that only it can judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ParameterCheck {
    /// It takes it.
    Accepted,
    /// It does not.
    Rejected {
        /// In its words.
        message: String,
        /// That was a while ago: what it named and was not there may be made by now.
        retry_due: bool,
    },
}

/// Space on a volume, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Disk {
    pub free: i64,
    pub total: i64,
}

/// A configuration that a server did not start with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedConfiguration {
    /// Its `dialog.config_hash`.
    pub config_hash: String,
    /// What the server said when it ended.
    pub message: String,
}
