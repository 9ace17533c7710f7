//! What an operator's tools ask a process over HTTP: is it alive, is it ready, and if not, what is missing.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

use crate::{Readiness, Shutdown};

/// Serves `/healthz` and `/readyz` until the shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, readiness: Readiness, shutdown: Shutdown) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state((readiness, shutdown.clone()));
    let end = async move { shutdown.cancelled().await };
    axum::serve(listener, app).with_graceful_shutdown(end).await
}

#[derive(Debug, serde::Serialize)]
struct Ready {
    ready: bool,
    /// The parts that are not ready, by name.
    pending: Vec<String>,
}

async fn readyz(State((readiness, shutdown)): State<(Readiness, Shutdown)>) -> (StatusCode, Json<Ready>) {
    let mut pending = readiness.pending();
    if shutdown.is_cancelled() {
        pending.push("shutting down".to_owned());
    }
    let status = if pending.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready: pending.is_empty(), pending }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
        let guard = readiness.register("certificate");
        let ask = || readyz(State((readiness.clone(), shutdown.clone())));
        let (status, Json(body)) = ask().await;
        assert_eq!((status, body.pending), (StatusCode::SERVICE_UNAVAILABLE, vec!["certificate".to_owned()]));
        guard.ready();
        assert_eq!(ask().await.0, StatusCode::OK);
        shutdown.trigger("test");
        assert_eq!(ask().await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
