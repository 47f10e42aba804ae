//! Where things are in a node's container. Names only.

/// Where the volume is; the data directory is `pgdata` in it.
pub(super) const DATA: &str = "/var/lib/dialog";
/// Where the server's socket is, and the mark that it has become ready.
pub(super) const RUN: &str = "/run/dialog";
/// Where the ConfigMap is.
pub(super) const CONFIG: &str = "/etc/dialog/config";
/// Where the certificate of the server is.
pub(super) const SERVER_TLS: &str = "/etc/dialog/server";
/// Where the certificate is with which the node logs in to others.
pub(super) const NODE_TLS: &str = "/etc/dialog/node";
/// Name of the start script among what the ConfigMap has.
pub(super) const START_SCRIPT: &str = "start.sh";
