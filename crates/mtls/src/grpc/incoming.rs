use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

use super::MtlsStream;
use crate::refusal::Causes;
use crate::{AcceptError, Acceptor};

/// The connections of a listener, each after its handshake.
///
/// Handshakes run beside each other, and end with the stream. A client that is refused, or hangs, costs
/// nobody but itself: its handshake is logged and forgotten. The stream never ends by itself and never yields
/// an error.
pub fn incoming(listener: TcpListener, acceptor: Acceptor) -> Incoming {
    Incoming { listener, acceptor, handshakes: JoinSet::new(), pause: None }
}

/// See [`incoming`].
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    acceptor: Acceptor,
    handshakes: JoinSet<Option<MtlsStream>>,
    /// Set while the system has no more sockets to give.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<MtlsStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Asked after accepting, so that a handshake which was just begun can wake this task.
            let accepting = self.poll_accept(cx);
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(stream)))) => return Poll::Ready(Some(Ok(stream))),
                // Refused, or a handshake that panicked: either is over.
                Poll::Ready(Some(Ok(None) | Err(_))) => {}
                Poll::Ready(None) | Poll::Pending => {
                    ready!(accepting);
                }
            }
        }
    }
}

impl Incoming {
    /// Begins one handshake, when a connection is waiting and there is room for it.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.handshakes.len() >= MAX_HANDSHAKES {
            // The next one to finish wakes the task.
            return Poll::Pending;
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        match ready!(self.listener.poll_accept(cx)) {
            Ok((tcp, from)) => {
                let acceptor = self.acceptor.clone();
                self.handshakes.spawn(async move { handshake(acceptor, tcp, from).await });
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again in {PAUSE:?}");
                self.pause = Some(Box::pin(sleep(PAUSE)));
            }
        }
        Poll::Ready(())
    }
}

async fn handshake(acceptor: Acceptor, tcp: TcpStream, from: SocketAddr) -> Option<MtlsStream> {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%from, %error, "a client hung up");
        return None;
    }
    match acceptor.accept(tcp).await {
        Ok(accepted) => Some(MtlsStream::new(accepted, from, &acceptor)),
        Err(error) => {
            let reason = Causes(&error).to_string();
            match error {
                // Port scans and health checks of load balancers: not worth a person's eye.
                AcceptError::Io { .. } => tracing::debug!(%from, reason, "a handshake came to nothing"),
                _ => tracing::warn!(target: "alcazar::refused", %from, reason, "refused a client"),
            }
            None
        }
    }
}

/// Whether an error is that of one connection and not of the listener (accept(2)).
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// As many handshakes as run at once; further connections wait in the listener's queue.
const MAX_HANDSHAKES: usize = 256;
/// How long to wait when the system has no more sockets.
const PAUSE: Duration = Duration::from_millis(500);
