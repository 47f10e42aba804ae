//! The only SQL of the program: typed calls to PostgreSQL and Citus, their rows, and their errors by meaning. Nothing
//! here decides anything, and nothing outside of here writes SQL.
//!
//! The way in is [`NodeConnector`], over [`ConnectionPool`]: one connection a node, kept from one reconcile to the next. [`observe_node`],
//! [`observe_citus`], [`observe_contents`], [`lock_holders`] and [`blockers`] read, and write nothing; [`commands`] writes, one function a step of a plan. Every call has a
//! deadline, and no call leaves a transaction open.
//!
//! What differs between versions of PostgreSQL and Citus (a function's arguments, a setting) is looked up in the
//! catalogs of the server at hand, never concluded from its version.

mod blocking_sessions;
mod catalog;
mod cleanup;
mod code;
pub mod commands;
mod connect;
mod connection;
mod connection_pool;
mod connector;
mod contents;
mod error;
mod failure;
mod force_remove;
mod fragments;
mod joining;
mod membership;
mod messages;
mod meter;
mod node;
mod obstacles;
mod pinning;
mod quote;
mod reach;
mod roles;
mod schema;
mod spread;
mod statements;
mod target;
mod task;
mod transaction;

pub use blocking_sessions::{BlockersQuestion, blockers, lock_holders};
pub use catalog::{CatalogQuestion, observe_citus};
pub use commands::OWNER_SECRET;
pub use connection::Connection;
pub use connection_pool::{ConnectionKey, ConnectionPool};
pub use connector::{ConnectError, NodeConnector, PORT, TlsCache};
pub use contents::{ContentsQuestion, observe_contents, observe_copies};
pub use error::{ServerMessage, SqlError, SqlErrorKind};
pub use node::{NodeQuestion, check_connection, observe_node};
pub use obstacles::PINNING;
pub use reach::{ask_each_worker, has_no_connection_left, witness};
pub use roles::MOVER;
pub use schema::{APPLIED_HASH, BUILT_IN_SCHEMA, Schema, apply as apply_schema};
pub use target::{ClientTls, Target, Tls, TlsError};
