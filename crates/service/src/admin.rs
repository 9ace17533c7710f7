//! What an operator's tools ask a process over HTTP: is it alive, is it ready, if not what is wrong, and its metrics.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

use crate::{Health, Metrics, Readiness, Shutdown, metrics::Format};

/// What is served beside a process' own work.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Option<Metrics>,
    more: Router,
}

impl Admin {
    /// `/healthz` and `/readyz`.
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness, metrics: None, more: Router::new() }
    }

    /// And `/metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// And these pages, which must have paths of their own.
    #[must_use]
    pub fn with_routes(self, routes: Router) -> Self {
        Self { more: self.more.merge(routes), ..self }
    }

    /// Serves until the shutdown.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown) -> std::io::Result<()> {
        let health = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(readyz))
            .with_state((self.readiness, shutdown.clone()));
        let mut app = health.merge(self.more);
        if let Some(metrics) = self.metrics {
            app = app.merge(Router::new().route("/metrics", get(read)).with_state(metrics));
        }
        let end = async move { shutdown.cancelled().await };
        axum::serve(listener, app).with_graceful_shutdown(end).await
    }
}

/// Serves `/healthz` and `/readyz` until the shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, readiness: Readiness, shutdown: Shutdown) -> std::io::Result<()> {
    Admin::new(readiness).serve(listener, shutdown).await
}

#[derive(Debug, serde::Serialize)]
struct Ready {
    ready: bool,
    /// The parts that are not ready, by name.
    pending: Vec<String>,
    /// How each part is.
    parts: Vec<PartState>,
}

#[derive(Debug, PartialEq, serde::Serialize)]
struct PartState {
    name: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<(String, Health)> for PartState {
    fn from((name, health): (String, Health)) -> Self {
        let (state, reason) = match health {
            Health::Ready => ("ready", None),
            Health::Degraded(reason) => ("degraded", Some(reason)),
            Health::NotReady(reason) => ("not ready", Some(reason)),
        };
        Self { name, state, reason }
    }
}

async fn readyz(State((readiness, shutdown)): State<(Readiness, Shutdown)>) -> (StatusCode, Json<Ready>) {
    let mut pending = readiness.pending();
    if shutdown.is_cancelled() {
        pending.push("shutting down".to_owned());
    }
    let status = if pending.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let parts = readiness.parts().into_iter().map(PartState::from).collect();
    (status, Json(Ready { ready: pending.is_empty(), pending, parts }))
}

async fn read(State(metrics): State<Metrics>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::wanted(accept);
    ([(header::CONTENT_TYPE, format.content_type())], metrics.encode(format)).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn readiness_names_what_is_missing_and_why() {
        let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
        let guard = readiness.register("certificate");
        let store = readiness.part("store");
        let ask = || readyz(State((readiness.clone(), shutdown.clone())));
        let (status, Json(body)) = ask().await;
        assert_eq!((status, body.pending), (StatusCode::SERVICE_UNAVAILABLE, vec!["certificate".to_owned()]));
        guard.ready();
        store.degraded("the disk is nearly full");
        let (status, Json(body)) = ask().await;
        assert_eq!(status, StatusCode::OK);
        let reason = Some("the disk is nearly full".to_owned());
        assert_eq!(body.parts, [PartState { name: "store".into(), state: "degraded", reason }]);
        shutdown.trigger("test");
        assert_eq!(ask().await.0, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn metrics_and_further_pages_are_served_beside_health() {
        let (metrics, shutdown) = (Metrics::new(), Shutdown::new());
        metrics.gauge("alcazar_test", "A test").set(7);
        let routes = Router::new().route("/more", get(|| async { "more" }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admin = Admin::new(Readiness::new()).with_metrics(metrics).with_routes(routes);
        let end = shutdown.clone();
        shutdown.spawn("admin", async move { admin.serve(listener, end).await.unwrap() });
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = ask("/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.ends_with("# TYPE alcazar_test gauge\nalcazar_test 7\n"), "{answer}");
        assert!(ask("/more").await.ends_with("more"));
        assert!(ask("/healthz").await.ends_with("alive\n"));
        shutdown.trigger("test");
    }
}
