//! One HTTP call through the proxy that `http_proxy` names.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::uri::Authority;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longer than any answer of the sample takes; shorter than a viewer's patience.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes calls, each on a connection of its own: the sample calls seldom.
#[derive(Clone)]
pub(super) struct Callers {
    proxy: Option<Authority>,
}

impl Callers {
    pub(super) fn through(proxy: Option<Authority>) -> Self {
        Self { proxy }
    }

    /// Makes a call and says what came back, in words where nothing did.
    pub(super) async fn call(&self, method: Method, url: &str) -> Answer {
        match tokio::time::timeout(DEADLINE, self.try_call(method, url)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer { status: None, text: error.to_string() },
            Err(_) => Answer { status: None, text: format!("no answer within {DEADLINE:?}") },
        }
    }

    async fn try_call(&self, method: Method, url: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let proxy = self.proxy.as_ref().ok_or("http_proxy is not set: it says how to reach others")?;
        let stream = TcpStream::connect(proxy.as_str()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // With the URI in absolute form, as one asks a proxy.
        let request = Request::builder().method(method).uri(url);
        let host = url.parse::<http::Uri>()?.authority().map(Authority::to_string).unwrap_or_default();
        let request = request.header(header::HOST, host).body(Body::empty())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body: Bytes = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Answer {
                status: Some(status),
                text: String::from_utf8_lossy(&body).trim().to_owned(),
            })
        };
        // The connection moves the bytes; it ends when the proxy closes or the exchange is over.
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => Ok(answer?),
            outcome = &mut connection => { outcome?; Ok(exchange.await?) }
        }
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: Option<StatusCode>,
    pub(super) text: String,
}

impl Answer {
    /// The answer as JSON: the body itself where it is JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        let text = serde_json::from_str(&self.text).unwrap_or_else(|_| self.text.clone().into());
        match self.status {
            Some(StatusCode::OK) => text,
            Some(status) => serde_json::json!({ "status": status.as_u16(), "said": text }),
            None => serde_json::json!({ "failed": text }),
        }
    }
}
