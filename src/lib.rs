//! dialog-operator: a Kubernetes operator for a sharded PostgreSQL (Citus) cluster.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
