//! Around every request: a span that says which it is, the answer's `x-request-id`, and a line for what an operator does.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response};
use tonic::{Code, Status, transport::server::UdsConnectInfo};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field::Empty, info_span};

use super::trace::Trace;

/// What is told of the requests on a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Traced {
    /// Each decision is told where it is made.
    Nodes,
    /// What changes something is told here, with whoever asked.
    Operator,
}

impl<S> Layer<S> for Traced {
    type Service = TracedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TracedService { inner, listener: *self }
    }
}

/// See [`Traced`].
#[derive(Clone, Debug)]
pub(crate) struct TracedService<S> {
    inner: S,
    listener: Traced,
}

impl<S, B, R> Service<Request<B>> for TracedService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let trace = Trace::of(request.headers());
        let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let span = info_span!(
            target: "alcazar::request",
            "request",
            rpc,
            request_id = trace.request_id,
            trace_id = trace.trace_id,
            parent_id = trace.parent_id,
            what = Empty
        );
        let operator = match self.listener {
            Traced::Operator if changes_something(&rpc) => Some(operator(&request)),
            _ => None,
        };
        // The one that is ready goes; its copy waits to be.
        let waits = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waits);
        let served = async move {
            let mut outcome = inner.call(request).await;
            if let Ok(response) = &mut outcome {
                if let Some(who) = operator {
                    tell(&rpc, &who, Status::from_header_map(response.headers()));
                }
                if let Ok(id) = HeaderValue::from_str(&trace.request_id) {
                    response.headers_mut().insert("x-request-id", id);
                }
            }
            outcome
        };
        Box::pin(served.instrument(span))
    }
}

/// What the request at hand is about, in a few words, for the log and the audit file.
pub(crate) fn about(what: impl AsRef<str>) {
    Span::current().record("what", what.as_ref());
}

fn tell(act: &str, who: &str, status: Option<Status>) {
    match status.filter(|status| status.code() != Code::Ok) {
        None => tracing::info!(target: "alcazar::audit", act, who, outcome = "done", "the operator changed something"),
        Some(status) => {
            let (code, reason) = (format!("{:?}", status.code()), status.message());
            tracing::warn!(target: "alcazar::audit", act, who, outcome = "refused", code, reason, "what the operator wanted was not done");
        }
    }
}

/// Every RPC but those that only look.
fn changes_something(rpc: &str) -> bool {
    !["Get", "List", "Watch", "Export", "Verify"].iter().any(|look| rpc.starts_with(look))
}

fn operator<B>(request: &Request<B>) -> String {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer {
        Some(peer) => match peer.pid() {
            Some(pid) => format!("uid {} (process {pid})", peer.uid()),
            None => format!("uid {}", peer.uid()),
        },
        None => "somebody on the administration socket".into(),
    }
}
