//! What a service answers, whatever the request came over.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};

use crate::body::Body;
use crate::io::BoxIo;

/// Answers requests; the seam between protocols and what is done with requests.
pub(crate) trait Service: Send + Sync + 'static {
    fn call(&self, request: Request<Body>) -> impl Future<Output = Reply> + Send;
}

/// A response, and what happens on the connection (or the stream) once a response has turned it into a tunnel.
pub(crate) struct Reply {
    pub(crate) response: Response<Body>,
    pub(crate) tunnel: Option<Tunnel>,
}

/// Gets the bytes of both directions, and runs until it is done with them.
pub(crate) type Tunnel = Box<dyn FnOnce(BoxIo) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Reply {
    pub(crate) fn new(response: Response<Body>) -> Self {
        Self { response, tunnel: None }
    }

    /// `200` (or `101`), then the tunnel.
    pub(crate) fn tunnel<F, T>(response: Response<Body>, tunnel: F) -> Self
    where
        F: FnOnce(BoxIo) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        Self { response, tunnel: Some(Box::new(move |io| Box::pin(tunnel(io)))) }
    }

    /// A response of our own: one line of text.
    pub(crate) fn text(status: StatusCode, line: impl Into<String>) -> Self {
        let mut line = line.into();
        line.push('\n');
        Self::new(whole(status, line.into()))
    }

    /// The response to a request that policy denies. The log has the rest, under the same id.
    pub(crate) fn denied(id: &str) -> Self {
        let mut response = whole(StatusCode::FORBIDDEN, Bytes::from_static(b"RBAC: access denied"));
        if let Ok(id) = HeaderValue::from_str(id) {
            response.headers_mut().insert(DECISION, id);
        }
        Self::new(response)
    }
}

/// Says how long it is, for whom it reaches by another protocol further on.
fn whole(status: StatusCode, text: Bytes) -> Response<Body> {
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

/// Carries the decision's id; only our proxies set it.
pub(crate) const DECISION: HeaderName = HeaderName::from_static("x-alcazar-decision");

const TEXT: HeaderValue = HeaderValue::from_static("text/plain");
