use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_stream::Stream;

use super::MtlsStream;
use crate::refusal::Causes;
use crate::{AcceptError, Acceptor};

/// The connections of a listener, each after its handshake.
///
/// Handshakes run beside each other, and end with the stream. A client that is refused, or hangs, costs
/// nobody but itself: its handshake is logged and forgotten. The stream never ends by itself and never yields
/// an error.
///
/// Who connects and says nothing holds nobody up for long: when all places for handshakes are taken and somebody
/// waits, the oldest handshake ends once it has had its grace. And there is a bound to the connections that are open.
pub fn incoming(listener: TcpListener, acceptor: Acceptor) -> Incoming {
    incoming_within(listener, acceptor, Bounds::default())
}

/// The same with other bounds.
pub fn incoming_within(listener: TcpListener, acceptor: Acceptor, bounds: Bounds) -> Incoming {
    Incoming {
        listener,
        acceptor,
        bounds,
        open: Arc::new(Semaphore::new(bounds.connections)),
        strangers: Arc::new(Semaphore::new(bounds.strangers)),
        handshakes: JoinSet::new(),
        begun: VecDeque::new(),
        waiting: None,
        pause: None,
    }
}

/// How many connections a listener has at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Handshakes that run at once; further connections wait for one to end.
    pub handshakes: usize,
    /// How long a handshake may take when somebody waits for its place.
    pub grace: Duration,
    /// Connections that are open, those in their handshake included; further ones are closed at once.
    pub connections: usize,
    /// Of them, those without a certificate.
    pub strangers: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { handshakes: 512, grace: Duration::from_secs(1), connections: 16_384, strangers: 2_048 }
    }
}

/// See [`incoming`].
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    acceptor: Acceptor,
    bounds: Bounds,
    /// A permit for each connection that may still be opened.
    open: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    handshakes: JoinSet<Option<MtlsStream>>,
    /// When which handshake began, the oldest first.
    begun: VecDeque<(Instant, AbortHandle)>,
    /// Somebody for whom there is no place; set along with the end of the oldest handshake's grace.
    waiting: Option<(TcpStream, SocketAddr, Pin<Box<Sleep>>)>,
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
        if let Some((_, _, grace)) = &mut self.waiting {
            // The next handshake to finish wakes the task too.
            if self.handshakes.len() >= self.bounds.handshakes {
                ready!(grace.as_mut().poll(cx));
                self.end_the_oldest();
            }
            if let Some((tcp, from, _)) = self.waiting.take() {
                self.begin(tcp, from);
            }
            return Poll::Ready(());
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        match ready!(self.listener.poll_accept(cx)) {
            Ok((tcp, from)) if self.handshakes.len() < self.bounds.handshakes => self.begin(tcp, from),
            Ok((tcp, from)) => {
                self.forget_finished();
                let began = self.begun.front().map_or_else(Instant::now, |(began, _)| *began);
                self.waiting = Some((tcp, from, Box::pin(sleep_until(began + self.bounds.grace))));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again in {PAUSE:?}");
                self.pause = Some(Box::pin(sleep(PAUSE)));
            }
        }
        Poll::Ready(())
    }

    fn begin(&mut self, tcp: TcpStream, from: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() else {
            tracing::warn!(target: "alcazar::refused", %from, connections = self.bounds.connections, "closed a connection: as many as there may be are open");
            return;
        };
        self.forget_finished();
        let (acceptor, strangers) = (self.acceptor.clone(), Arc::clone(&self.strangers));
        let handle = self.handshakes.spawn(async move {
            let stream = handshake(acceptor, tcp, from).await?;
            let stranger = match stream.info().peer {
                Some(_) => None,
                None => match strangers.try_acquire_owned() {
                    Ok(permit) => Some(permit),
                    Err(_full) => {
                        tracing::warn!(target: "alcazar::refused", %from, "closed a connection: as many without a certificate as there may be are open");
                        return None;
                    }
                },
            };
            Some(stream.holding(Places { _open: permit, _stranger: stranger }))
        });
        self.begun.push_back((Instant::now(), handle));
    }

    /// Those that are over need no place in the order; handshakes end about as they began.
    fn forget_finished(&mut self) {
        while self.begun.front().is_some_and(|(_, handshake)| handshake.is_finished()) {
            self.begun.pop_front();
        }
    }

    fn end_the_oldest(&mut self) {
        self.forget_finished();
        if let Some((_, handshake)) = self.begun.pop_front() {
            tracing::debug!("ended a handshake that had its time while others waited");
            handshake.abort();
        }
    }
}

/// What a connection holds while it is open.
#[derive(Debug)]
pub(super) struct Places {
    _open: OwnedSemaphorePermit,
    _stranger: Option<OwnedSemaphorePermit>,
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

/// How long to wait when the system has no more sockets.
const PAUSE: Duration = Duration::from_millis(500);
