//! What any long-running program needs, and nothing about databases or Kubernetes objects: telemetry, the HTTP server,
//! shutdown.

pub mod http;
pub mod shutdown;
pub mod telemetry;
