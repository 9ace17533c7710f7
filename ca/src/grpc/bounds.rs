//! What requests may take of memory while nobody has looked at them.
//!
//! gRPC reads a whole message before anybody is asked who sent it. So each request is counted with the bytes that came of it, from
//! its first frame to its answer: for the sender and for all of its kind. What goes past a bound is told to come back, or cut
//! off; and a message has to arrive within a while.

use std::{
    collections::HashMap,
    future::ready,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready as or_wait},
    time::Duration,
};

use alcazar_mtls::grpc::PeerInfo;
use alcazar_service::{Metrics, metrics::Counter};
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use tokio::time::Sleep;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::admission::{origin, with_hint};

/// The layer that counts.
#[derive(Clone)]
pub(crate) struct Bounds(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    turned_away: Counter,
}

/// How much there may be of one kind of senders.
#[derive(Clone, Copy)]
struct Bound {
    /// Of one request.
    message: usize,
    /// Of one sender, and of all: requests and bytes.
    sender: Taken,
    all: Taken,
    /// Within which a message has to arrive.
    patience: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    requests: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Stranger,
    Known,
}

#[derive(Default)]
struct State {
    strangers: Taken,
    known: Taken,
    by_sender: HashMap<(Kind, Box<str>), Taken>,
}

impl Kind {
    fn bound(self) -> Bound {
        match self {
            // A chain of machine certificates, a request and a token need less; others than nodes send a few kilobytes.
            Self::Stranger => Bound {
                message: 256 << 10,
                sender: Taken { requests: 4096, bytes: 4 << 20 },
                all: Taken { requests: 8192, bytes: 16 << 20 },
                patience: Duration::from_secs(10),
            },
            Self::Known => Bound {
                message: 4 << 20,
                sender: Taken { requests: 4096, bytes: 16 << 20 },
                all: Taken { requests: 65_536, bytes: 128 << 20 },
                patience: Duration::from_secs(30),
            },
        }
    }
}

impl Taken {
    fn fits(self, more: Self, bound: Self) -> bool {
        self.requests + more.requests <= bound.requests && self.bytes + more.bytes <= bound.bytes
    }

    fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.bytes += more.bytes;
    }

    fn give(&mut self, back: Self) {
        self.requests = self.requests.saturating_sub(back.requests);
        self.bytes = self.bytes.saturating_sub(back.bytes);
    }
}

impl State {
    fn all(&mut self, kind: Kind) -> &mut Taken {
        match kind {
            Kind::Stranger => &mut self.strangers,
            Kind::Known => &mut self.known,
        }
    }

    /// Whether there is room for it, which is taken.
    fn take(&mut self, sender: &(Kind, Box<str>), more: Taken) -> bool {
        let bound = sender.0.bound();
        let own = self.by_sender.get(sender).copied().unwrap_or_default();
        if !own.fits(more, bound.sender) || !self.all(sender.0).fits(more, bound.all) {
            return false;
        }
        self.all(sender.0).add(more);
        self.by_sender.entry(sender.clone()).or_default().add(more);
        true
    }

    fn give(&mut self, sender: &(Kind, Box<str>), back: Taken) {
        self.all(sender.0).give(back);
        if let Some(own) = self.by_sender.get_mut(sender) {
            own.give(back);
            if *own == Taken::default() {
                self.by_sender.remove(sender);
            }
        }
    }
}

impl Bounds {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let turned_away = metrics.counter(
            "alcazar_ca_requests_turned_away",
            "Requests that were not read, because their sender, or all of its kind, had as many under way as may be",
        );
        Self(Arc::new(Shared { state: Mutex::default(), turned_away }))
    }

    /// A place for one request.
    fn enter(&self, info: Option<&PeerInfo>) -> Option<Arc<Held>> {
        let sender = match info {
            Some(PeerInfo { peer: Some(peer), .. }) => (Kind::Known, peer.id().as_str().into()),
            info => (Kind::Stranger, origin(info.map(|info| info.remote_addr.ip()))),
        };
        if !self.state().take(&sender, Taken { requests: 1, bytes: 0 }) {
            self.0.turned_away.inc();
            return None;
        }
        Some(Arc::new(Held { bounds: self.clone(), sender, bytes: Mutex::new(0) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request has taken, until the last part of it is gone.
struct Held {
    bounds: Bounds,
    sender: (Kind, Box<str>),
    bytes: Mutex<usize>,
}

impl Held {
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if *held + bytes > self.sender.0.bound().message {
            return Err(Status::out_of_range("the message is too large"));
        }
        if !self.bounds.state().take(&self.sender, Taken { requests: 0, bytes }) {
            self.bounds.0.turned_away.inc();
            return Err(full());
        }
        *held += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.bounds.state().give(&self.sender, Taken { requests: 1, bytes });
    }
}

fn full() -> Status {
    with_hint(Code::ResourceExhausted, "too many requests are under way", COME_BACK)
}

impl<S> Layer<S> for Bounds {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, bounds: self.clone() }
    }
}

/// A service whose requests are counted.
#[derive(Clone)]
pub(crate) struct Bounded<S> {
    inner: S,
    bounds: Bounds,
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(held) = self.bounds.enter(request.extensions().get::<PeerInfo>()) else {
            return Box::pin(ready(Ok(full().into_http())));
        };
        let late = Box::pin(tokio::time::sleep(held.sender.0.bound().patience));
        let counting = Arc::clone(&held);
        let answer = self.inner.call(request.map(|body| Body::new(Counted { body, held: counting, late })));
        Box::pin(async move {
            let answer = answer.await;
            drop(held);
            answer
        })
    }
}

/// A message on its way in.
struct Counted {
    body: Body,
    held: Arc<Held>,
    late: Pin<Box<Sleep>>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let taken = frame.data_ref().map_or(Ok(()), |data| self.held.take(data.len()));
                Poll::Ready(Some(taken.map(|()| frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => {
                or_wait!(self.late.as_mut().poll(cx));
                Poll::Ready(Some(Err(Status::deadline_exceeded("the message did not arrive in time"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// When to come back.
const COME_BACK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
