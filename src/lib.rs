//! dialog-operator: a Kubernetes operator for a sharded PostgreSQL (Citus) cluster.
//!
//! A reconcile reads as one sentence: observe what is, plan the next step from that alone, act on it, report.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod act;
pub mod api;
pub mod citus;
pub mod controller;
pub mod observe;
pub mod plan;
pub mod report;
pub mod resources;
pub mod runtime;
