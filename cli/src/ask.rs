//! Asking a process of ours how it is, by the Unix socket in its data directory.

use std::io;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// What it says of itself.
///
/// # Errors
/// When nobody answers, or not in time, or something else.
pub(crate) fn ask<T: DeserializeOwned>(socket: &Path) -> Result<T, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(DEADLINE, get(socket)).await.unwrap_or(Err(AskError::Late)) })
}

async fn get<T: DeserializeOwned>(socket: &Path) -> Result<T, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(AskError::Nobody)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/status").header(header::HOST, "local").body(Body::empty())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let (status, body) = (response.status(), response.into_body().collect().await?.to_bytes());
        if status != StatusCode::OK {
            return Err(AskError::Refused(String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        outcome = connection => { outcome?; exchange.await }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("nothing answers there")]
    Nobody(#[source] io::Error),
    #[error("cannot prepare to ask")]
    Prepare(#[from] io::Error),
    #[error("no answer within {DEADLINE:?}")]
    Late,
    #[error("it says: {0}")]
    Refused(String),
    #[error("the question failed")]
    Http(#[from] hyper::Error),
    #[error("the question cannot be put")]
    Question(#[from] http::Error),
    #[error("the answer is not understood; is it another version?")]
    Answer(#[from] serde_json::Error),
}

/// How long a process may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
