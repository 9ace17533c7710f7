//! The asking side of HTTP/1: the application's ports, over connections that are kept.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use crate::body::Body;
use crate::io::connect;
use crate::tasks::Tasks;

/// Connections to applications, of one worker.
#[derive(Clone, Default)]
pub(crate) struct Apps {
    idle: Arc<Mutex<HashMap<SocketAddr, Vec<Idle>>>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

impl Apps {
    /// Sends a request, over a kept connection where there is one.
    ///
    /// A kept connection may have been closed by the application just now: what did not leave, or is safe to repeat,
    /// is sent again over a fresh one.
    ///
    /// # Errors
    /// When the application does not accept a connection, or gives no response.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        mut request: Request<Body>,
        tasks: &Tasks,
    ) -> Result<Response<Body>, AskError> {
        while let Some(mut sender) = self.kept(address) {
            let again = is_repeatable(&request).then(|| head_of(&request));
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.leased(address, sender, response)),
                Err(mut error) => {
                    let retried = error.take_message().or(again.filter(|_| gave_nothing(error.error())));
                    request = retried.ok_or_else(|| AskError::NoResponse(error.into_error()))?;
                }
            }
        }
        let mut sender = self.fresh(address, tasks).await?;
        match sender.send_request(request).await {
            Ok(response) => Ok(self.leased(address, sender, response)),
            Err(error) => Err(AskError::NoResponse(error)),
        }
    }

    /// Closes the connections that nobody used for a while.
    pub(crate) fn prune(&self, now: Instant) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, kept| {
            kept.retain(|kept| now.duration_since(kept.since) < KEPT_FOR && !kept.sender.is_closed());
            !kept.is_empty()
        });
    }

    /// Closes all that are idle.
    pub(crate) fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The connection that was used last: the older ones can then grow old.
    fn kept(&self, address: SocketAddr) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(&address)?;
        kept.retain(|kept| !kept.sender.is_closed());
        let ready = kept.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(kept.remove(ready).sender)
    }

    async fn fresh(&self, address: SocketAddr, tasks: &Tasks) -> Result<SendRequest<Body>, AskError> {
        let stream = connect(address).await.map_err(|source| AskError::Connect { address, source })?;
        let mut builder = Builder::new();
        builder.max_headers(MAX_FIELDS);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(AskError::NoResponse)?;
        tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the application broke");
            }
        });
        Ok(sender)
    }

    fn leased(
        &self,
        address: SocketAddr,
        sender: SendRequest<Body>,
        response: Response<hyper::body::Incoming>,
    ) -> Response<Body> {
        let lease = Lease { apps: self.clone(), address, sender };
        response.map(|incoming| Body::h1(incoming).leased(lease))
    }
}

/// A connection in use by one response.
pub(crate) struct Lease {
    apps: Apps,
    address: SocketAddr,
    sender: SendRequest<Body>,
}

impl Lease {
    /// The response is complete: the connection can serve another.
    pub(crate) fn give_back(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut idle = self.apps.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.entry(self.address).or_default();
        if kept.len() < MAX_KEPT {
            kept.push(Idle { sender: self.sender, since: Instant::now() });
        }
    }
}

/// Why the application gave no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It does not accept connections.
    #[error("the application does not accept connections at {address}")]
    Connect { address: SocketAddr, source: io::Error },
    /// It accepted, and then gave none.
    #[error("the application gave no response")]
    NoResponse(#[source] hyper::Error),
    /// The same, over HTTP/2.
    #[error("the application gave no response")]
    NoResponseH2(#[source] ::h2::Error),
}

/// RFC 9110 §9.2.2: what may be sent again although it may have been processed.
fn is_repeatable(request: &Request<Body>) -> bool {
    let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    request.body().is_end_stream() && idempotent.contains(request.method())
}

fn head_of(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Whether the connection ended before a byte of a response.
fn gave_nothing(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed()
}

const KEPT_FOR: Duration = Duration::from_secs(30);
const MAX_KEPT: usize = 256;
const MAX_FIELDS: usize = 256;
