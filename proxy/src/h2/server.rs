//! The serving side of HTTP/2.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Error, Reason, RecvStream};
use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pump::pump;
use super::{
    CONNECTION_WINDOW, H2Stream, MAX_FRAME, MAX_HEADERS, MAX_SEND_BUFFER, MAX_STREAMS, Received, STREAM_WINDOW,
};
use crate::body::Body;
use crate::life::{Drain, Life};
use crate::reply::Service;
use crate::tasks::Tasks;

/// Serves one connection until the peer goes or its life ends: first by GOAWAY, so that what is in flight completes.
///
/// # Errors
/// When the peer breaks the protocol, or the transport breaks.
pub(crate) async fn serve<IO, S>(io: IO, service: Arc<S>, mut life: Life, tasks: &Tasks) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    let handshake = builder().handshake::<_, Bytes>(io);
    let mut connection = match tokio::time::timeout(PREFACE_DEADLINE, handshake).await {
        Ok(connection) => connection?,
        Err(_) => return Ok(()),
    };
    let end_at = life.end_at();
    let mut cut = std::pin::pin!(life.cut());
    let mut draining = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(accepted) => {
                    let (request, respond) = accepted?;
                    let service = service.clone();
                    tasks.spawn(async move { stream(request, respond, service).await });
                }
                None => return Ok(()),
            },
            why = life.drain(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                if why != Drain::Shutdown {
                    tracing::debug!(?why, "a connection takes no more requests");
                }
            }
            () = Life::end(end_at) => return abort(connection).await,
            // Not a word more to somebody who is not who it was believed to be.
            _ = &mut cut => return Ok(()),
        }
    }
}

/// Ends a connection at once; the peer learns that this is no fault.
async fn abort<IO>(mut connection: Connection<IO, Bytes>) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    connection.abrupt_shutdown(Reason::NO_ERROR);
    let closed = poll_fn(|cx| connection.poll_closed(cx));
    match tokio::time::timeout(ABORT_DEADLINE, closed).await {
        Ok(closed) => closed,
        Err(_) => Ok(()),
    }
}

/// Serves one stream.
async fn stream<S: Service>(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, service: Arc<S>) {
    let (head, receive) = request.into_parts();
    let is_head = head.method == Method::HEAD;
    // The bytes of a CONNECT are the tunnel's.
    let (body, tunnelled) = match head.method == Method::CONNECT {
        true => (Body::empty(), Some(receive)),
        false => (Body::h2(Received::new(receive)), None),
    };
    let reply = tokio::select! {
        reply = service.call(Request::from_parts(head, body)) => reply,
        // The client gave up: so do we.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let (head, body) = reply.response.into_parts();
    // What we answer ourselves has a body whatever was asked; to HEAD it is not sent.
    let ended = reply.tunnel.is_none() && (is_head || body.is_end_stream());
    let send = match respond.send_response(Response::from_parts(head, ()), ended) {
        Ok(send) => send,
        Err(error) => {
            tracing::debug!(%error, "a response could not be sent");
            return;
        }
    };
    match (reply.tunnel, tunnelled) {
        (Some(tunnel), Some(receive)) => tunnel(Box::new(H2Stream::new(receive, send))).await,
        _ if !ended => pump(body, send).await,
        _ => {}
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
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .enable_connect_protocol();
    builder
}

const PREFACE_DEADLINE: Duration = Duration::from_secs(10);
const ABORT_DEADLINE: Duration = Duration::from_secs(1);
