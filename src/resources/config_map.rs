//! The ConfigMap of a node: its configuration files, the start script, and the permission to initialise.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::Value;

use super::{
    BuildContext, Manifest, configuration,
    meta::{Component, owned, render, string_map},
    paths::START_SCRIPT,
};
use crate::api::{Node, names::keys};

/// Key of the permission to initialise, and the word with which its value begins when it permits. After it there may be
/// the locale to initialise with.
const INITIALISE: (&str, &str) = ("initialise", "allowed");

/// Why the start script starts no server: its exit code. Any other code is of the server, or of a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::FromRepr, strum::EnumIter)]
#[repr(i32)]
pub enum StartFailure {
    /// The volume is empty, and this node was initialised before: data was lost.
    VolumeEmpty = 10,
    /// The data is of another major version of PostgreSQL.
    OtherMajorVersion = 11,
    /// There is something on the volume that is no whole server.
    NotWhole = 12,
    /// The volume cannot be read.
    Unreadable = 13,
}

/// Whether the start script may make a new, empty database server on an empty volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitdbPermission<'a> {
    /// It may: this node was never a node before. With `<provider> <locale>` that the cluster was born with; the first
    /// nodes come to that by themselves.
    Allowed(Option<&'a str>),
    /// It may not: an empty volume is a lost volume, and the start script says so.
    Forbidden,
}

/// The ConfigMap of a node, with `parameters` in place of those of the spec (which may not be the node's turn yet).
#[must_use]
pub fn config_map(
    inputs: &BuildContext,
    node: Node,
    parameters: &BTreeMap<String, String>,
    initialise: InitdbPermission<'_>,
) -> Manifest {
    let cluster = &inputs.desired.cluster;
    let mut data = string_map([
        ("postgresql.conf", &configuration::postgresql_conf(inputs, node, parameters)),
        ("pg_hba.conf", configuration::pg_hba_conf(node)),
        ("pg_ident.conf", configuration::PG_IDENT_CONF),
        ("output_plugin_libraries.conf", &configuration::output_plugins_conf(inputs, node, parameters)),
        (START_SCRIPT, configuration::START_SCRIPT),
        ("archive.sh", configuration::ARCHIVE_SCRIPT),
        ("boot-hash", &configuration::startup_hash(inputs, node, parameters)),
    ]);
    if let InitdbPermission::Allowed(locale) = initialise {
        let (key, allowed) = INITIALISE;
        let value = locale.map_or_else(|| allowed.to_owned(), |locale| format!("{allowed} {locale}"));
        data.extend(string_map([(key, &value)]));
    }
    // A map of texts is always JSON.
    let written = serde_json::to_string(parameters).unwrap_or_default();
    render(&ConfigMap {
        metadata: ObjectMeta {
            annotations: Some(string_map([(keys::PARAMETERS, &written)])),
            ..owned(inputs, node.object_name(&cluster.name), Component::Node(node))
        },
        data: Some(data),
        ..ConfigMap::default()
    })
}

/// Whether a ConfigMap of a node, live or rendered, permits to initialise.
#[must_use]
pub fn may_initialise(map: &Value) -> bool {
    let (key, value) = INITIALISE;
    let found = map.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
    found.and_then(|found| found.split_whitespace().next()) == Some(value)
}

/// The parameters in a live ConfigMap of a node; `None` when it does not say.
#[must_use]
pub fn parameters_of(live: &Value) -> Option<BTreeMap<String, String>> {
    let written = live.get("metadata")?.get("annotations")?.get(keys::PARAMETERS)?.as_str()?;
    serde_json::from_str(written).ok()
}
