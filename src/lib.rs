//! dialog-operator: a Kubernetes operator for a sharded PostgreSQL (Citus) cluster.
//!
//! A reconcile reads as one sentence: **observe** what is, **plan** the next step from that alone, **act** on it,
//! **report**. No state machine is stored: kill the operator at any instant, start it again, and the next look leads on.
//!
//! In reading order:
//!
//! - [`api`]: what a user writes, and `Desired`, the only form of it that a plan is made from.
//! - [`controller`]: what wakes a reconcile, the reconcile itself on one screen, and how soon the next one comes.
//! - [`snapshot`]: everything the planner may know, as plain data. What could not be seen is `Unknown` with its reason.
//! - `observe`: fills it from watch caches and from every server at once.
//! - [`plan`]: a pure function of `Desired` and `Snapshot`: steps to do now, holds that say what is waited for, problems
//!   that a person must solve. Everything hard is here, so everything hard is tested without a cluster.
//! - [`act`]: exactly those steps, one arm each, until the first failure.
//! - [`report`]: status, conditions, events, gauges. It always runs, also after a failure.
//! - [`resources`]: pure builders of Kubernetes objects. [`citus`]: the only SQL. [`kubernetes`]: the only client
//!   of its API. [`runtime`]: what any long-running program needs.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod act;
pub mod api;
pub mod citus;
pub mod context;
pub mod controller;
pub mod kubernetes;
pub mod metrics;
mod observe;
pub mod plan;
pub mod report;
pub mod resources;
pub mod runtime;
pub mod snapshot;
