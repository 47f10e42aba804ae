//! The Kubernetes API and nothing about databases: the one client, the watch caches, leader election. What is written,
//! and whether, is decided elsewhere.

pub mod caches;
pub(crate) mod client;
mod field_ownership;
pub mod leader;
mod trim;
mod warnings;

pub use client::{ApiClient, ApiError, ObjectKey};
