//! Bodies on their way through: streamed frame by frame, never gathered.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use crate::balance::InFlight;
use crate::h1::Lease;
use crate::h2::Received;

/// The body of a request or a response, wherever it comes from.
pub(crate) struct Body {
    source: Source,
    /// Held until the body has ended or is dropped.
    guards: Guards,
}

enum Source {
    Empty,
    Full(Bytes),
    H1(hyper::body::Incoming),
    H2(Received),
}

#[derive(Default)]
struct Guards {
    in_flight: Option<InFlight>,
    lease: Option<Lease>,
    forbidden: Option<Forbidden>,
}

/// Completes when the body may no longer pass.
pub(crate) type Forbidden = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Body {
    pub(crate) fn empty() -> Self {
        Source::Empty.into()
    }

    pub(crate) fn h1(incoming: hyper::body::Incoming) -> Self {
        Source::H1(incoming).into()
    }

    pub(crate) fn h2(received: Received) -> Self {
        Source::H2(received).into()
    }

    /// Counts as in flight until it has ended.
    pub(crate) fn counted(mut self, in_flight: InFlight) -> Self {
        self.guards.in_flight = Some(in_flight);
        self
    }

    /// Gives the connection it comes over back once it has ended.
    pub(crate) fn leased(mut self, lease: Lease) -> Self {
        self.guards.lease = Some(lease);
        if self.is_end_stream() {
            self.ended();
        }
        self
    }

    /// Breaks off when it may no longer pass.
    pub(crate) fn until(mut self, forbidden: Forbidden) -> Self {
        self.guards.forbidden = Some(forbidden);
        self
    }

    fn ended(&mut self) {
        self.guards.in_flight = None;
        self.guards.forbidden = None;
        if let Some(lease) = self.guards.lease.take() {
            lease.give_back();
        }
    }
}

impl From<Source> for Body {
    fn from(source: Source) -> Self {
        Self { source, guards: Guards::default() }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Source::Full(bytes).into() }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(forbidden) = &mut self.guards.forbidden
            && forbidden.as_mut().poll(cx).is_ready()
        {
            self.guards = Guards::default();
            return Poll::Ready(Some(Err(BodyError::Forbidden)));
        }
        let polled = match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::H1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::H1),
            Source::H2(received) => received.poll_frame(cx).map_err(BodyError::H2),
        };
        match &polled {
            Poll::Ready(None) => self.ended(),
            Poll::Ready(Some(Ok(_))) if self.is_end_stream() => self.ended(),
            Poll::Ready(Some(Err(_))) => self.guards = Guards::default(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(_) => false,
            Source::H1(incoming) => incoming.is_end_stream(),
            Source::H2(received) => received.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::H1(incoming) => incoming.size_hint(),
            // A Content-Length says it where it is known.
            Source::H2(received) if received.is_end_stream() => SizeHint::with_exact(0),
            Source::H2(_) => SizeHint::default(),
        }
    }
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// On an HTTP/1 connection.
    #[error("the body broke off")]
    H1(#[source] hyper::Error),
    /// On an HTTP/2 stream.
    #[error("the body broke off")]
    H2(#[source] ::h2::Error),
    /// A new policy forbids what an old one allowed.
    #[error("a new policy forbids it")]
    Forbidden,
}

/// What a frame carries.
pub(crate) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Part {
    /// `None` for a frame of a kind that is not known.
    pub(crate) fn of(frame: Frame<Bytes>) -> Option<Self> {
        match frame.into_data() {
            Ok(data) => Some(Self::Data(data)),
            Err(frame) => frame.into_trailers().ok().map(Self::Trailers),
        }
    }
}
