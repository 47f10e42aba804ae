//! The HTTP server: `/metrics`, `/healthz`, `/readyz`, and for people on this machine `/debug/snapshot/<namespace>/<name>`.
//! It only reads; what is ready, and what a snapshot is, others know.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The latest snapshot of a cluster as JSON, by namespace and name.
pub type SnapshotOf = dyn Fn(&str, &str) -> Option<String> + Send + Sync;

/// What the server shows.
pub struct HttpState {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Names of the caches that are not filled yet, for `/readyz`.
    pub waiting: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The latest snapshot of a cluster as JSON, by namespace and name.
    pub snapshot: Box<SnapshotOf>,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    pages: Arc<HttpState>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let service = router(pages).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(pages: Arc<HttpState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/debug/snapshot/{namespace}/{name}", get(snapshot))
        .with_state(pages)
}

async fn metrics(State(pages): State<Arc<HttpState>>) -> Response {
    match pages.metrics.render() {
        Ok(page) => {
            let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, format)], page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(pages): State<Arc<HttpState>>) -> Response {
    let waiting = (pages.waiting)();
    if waiting.is_empty() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("caches not synced yet: {}", waiting.join(", ")))
        .into_response()
}

/// A snapshot holds no secret, but names and parameters that are nobody else's business: only callers on this
/// machine, which `kubectl port-forward` is, may read it.
async fn snapshot(
    State(pages): State<Arc<HttpState>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from this machine: use kubectl port-forward").into_response();
    }
    match (pages.snapshot)(&namespace, &name) {
        Some(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        None => (StatusCode::NOT_FOUND, "this operator has not reconciled such a cluster").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn ready_only_after_the_caches_are_filled() {
        static CACHES_SYNCED: AtomicBool = AtomicBool::new(false);
        let pages = HttpState {
            metrics: Arc::default(),
            waiting: Box::new(|| {
                if CACHES_SYNCED.load(Ordering::SeqCst) { vec![] } else { vec!["Pod".to_owned()] }
            }),
            snapshot: Box::new(|namespace, name| Some(format!("{{\"{namespace}\":\"{name}\"}}"))),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::new(pages), stop.clone()));

        let answer = fetch(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("synced yet: Pod"), "{answer}");
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        CACHES_SYNCED.store(true, Ordering::SeqCst);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let answer = fetch(address, "/metrics").await;
        assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
        let answer = fetch(address, "/debug/snapshot/market/shop").await;
        assert!(answer.ends_with(r#"{"market":"shop"}"#), "{answer}");

        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
