//! What any long-running program on Kubernetes needs, and nothing about databases: telemetry, the HTTP server, leader
//! election, shutdown, and the one door to the Kubernetes API.

pub mod door;
mod field_owners;
pub mod http;
pub mod leader;
pub mod shutdown;
pub mod telemetry;
