//! The asking side of HTTP/2: one connection, many requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Error, Ping, PingPong, Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pump::pump;
use super::{CONNECTION_WINDOW, MAX_FRAME, MAX_HEADERS, MAX_SEND_BUFFER, MAX_STREAMS, Received, STREAM_WINDOW};
use crate::body::Body;
use crate::life::Life;
use crate::tasks::Tasks;

/// A connection to a server, shared by all who ask it something.
///
/// It ends when nobody holds it any more and what was in flight is complete.
#[derive(Clone)]
pub(crate) struct Channel {
    send: SendRequest<Bytes>,
    leaving: Arc<AtomicBool>,
    tasks: Tasks,
}

impl Channel {
    /// Starts HTTP/2 on a connection, driven by a task of its own.
    ///
    /// # Errors
    /// When the peer does not speak it.
    pub(crate) async fn start<IO>(io: IO, life: Life, tasks: &Tasks) -> Result<Self, Error>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (send, mut connection) = builder().handshake::<_, Bytes>(io).await?;
        let leaving = Arc::new(AtomicBool::new(false));
        let mut pings = connection.ping_pong();
        // In TLS 1.3 a server judges us after the handshake: with its first answer we know that it takes us.
        if let Some(pings) = &mut pings {
            tokio::select! {
                ended = &mut connection => return Err(ended.err().unwrap_or(Reason::NO_ERROR.into())),
                pong = pings.ping(Ping::opaque()) => { pong?; }
            }
        }
        let driver = drive(connection, pings, life, leaving.clone());
        tasks.spawn(driver);
        Ok(Self { send, leaving, tasks: tasks.clone() })
    }

    /// Whether new requests should go elsewhere.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Sends a request; its body follows as the server takes it, while the response may come already.
    ///
    /// # Errors
    /// With the request, where the server surely did not process it and it can be sent again.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, SendError> {
        let mut send = match self.send.clone().ready().await {
            Ok(send) => send,
            Err(error) => return Err(self.unsent(error, request)),
        };
        let (head, body) = request.into_parts();
        let ended = body.is_end_stream();
        let again = ended.then(|| head.clone());
        let (response, stream) = match send.send_request(Request::from_parts(head, ()), ended) {
            Ok(sent) => sent,
            Err(error) => return Err(self.refused(error, again)),
        };
        drop(send);
        if !ended {
            self.tasks.spawn(pump(body, stream));
        }
        match response.await {
            Ok(response) => Ok(response.map(|receive| Body::h2(Received::new(receive)))),
            Err(error) => Err(self.refused(error, again)),
        }
    }

    /// Opens a tunnel: the response, and both directions of the stream.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub(crate) async fn connect(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<()>, RecvStream, SendStream<Bytes>), SendError> {
        let mut send = match self.send.clone().ready().await {
            Ok(send) => send,
            Err(error) => return Err(self.unsent(error, request)),
        };
        let (head, _) = request.into_parts();
        let again = Some(head.clone());
        let (response, stream) = match send.send_request(Request::from_parts(head, ()), false) {
            Ok(sent) => sent,
            Err(error) => return Err(self.refused(error, again)),
        };
        match response.await {
            Ok(response) => {
                let (head, receive) = response.into_parts();
                Ok((Response::from_parts(head, ()), receive, stream))
            }
            Err(error) => Err(self.refused(error, again)),
        }
    }

    fn unsent(&self, error: Error, request: Request<Body>) -> SendError {
        self.leaving.store(true, Ordering::Release);
        SendError { error, unprocessed: Some(Box::new(request)) }
    }

    fn refused(&self, error: Error, again: Option<http::request::Parts>) -> SendError {
        let went_away = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        if went_away {
            self.leaving.store(true, Ordering::Release);
        }
        let again = again.filter(|_| went_away || refused).map(|head| Request::from_parts(head, Body::empty()));
        SendError { error, unprocessed: again.map(Box::new) }
    }
}

/// A request that got no response.
#[derive(Debug, thiserror::Error)]
#[error("the request got no response")]
pub(crate) struct SendError {
    #[source]
    pub(crate) error: Error,
    /// The request, where the server did not process it (it never left, or GOAWAY or REFUSED_STREAM said so).
    pub(crate) unprocessed: Option<Box<Request<Body>>>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body")
    }
}

/// Drives a connection until it ends, or its life does.
async fn drive<IO>(
    mut connection: Connection<IO, Bytes>,
    mut pings: Option<PingPong>,
    mut life: Life,
    leaving: Arc<AtomicBool>,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin,
{
    let end_at = life.end_at();
    let mut cut = std::pin::pin!(life.cut());
    let mut draining = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to a server broke");
                }
                break;
            }
            _ = life.drain(), if !draining => {
                draining = true;
                leaving.store(true, Ordering::Release);
            }
            () = Life::end(end_at) => break,
            _ = &mut cut => break,
            () = alive(&mut pings) => {
                tracing::debug!("a server does not answer pings; the connection ends");
                break;
            }
        }
    }
    leaving.store(true, Ordering::Release);
}

/// Completes when the server stops answering.
async fn alive(pings: &mut Option<PingPong>) {
    let Some(pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        // An error is the connection's, which ends by itself.
        match tokio::time::timeout(PING_DEADLINE, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_max_send_streams(INITIAL_STREAMS)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .enable_push(false);
    builder
}

/// What we may open before the server's settings have come.
const INITIAL_STREAMS: usize = 100;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_DEADLINE: Duration = Duration::from_secs(10);
