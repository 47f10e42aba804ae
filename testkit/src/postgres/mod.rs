//! PostgreSQL of this machine: which one, and servers of two kinds. A [`Server`] is a bare one with Citus, for
//! SQL; a [`TestNode`] is what a pod runs, for the start script and logins. No expectation lives here.

mod installation;
mod node;
mod server;

pub use installation::{INSTALLATION, OnlyCitus, as_server_user, skipped};
pub use node::{Parameters, Secrets, TestNode, code, coordinator_pod, desired, own_address, parameters};
pub use server::{Cluster, DATABASE, OWNER, PASSWORD, Server, Signal, run_statements};
