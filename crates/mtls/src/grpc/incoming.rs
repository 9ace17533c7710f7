use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

use super::dealer::{Dealt, InLane};
use super::handshakes::Handshakes;
use super::seats::{GivenUp, Seat, Seats, origin};
use super::{MtlsStream, PeerInfo};
use crate::refusal::Causes;
use crate::{AcceptError, Acceptor};

/// The connections of a listener, each after its handshake.
///
/// Handshakes run beside each other, and end with the stream. A client that is refused, or hangs, costs
/// nobody but itself: its handshake is logged and forgotten. The stream never ends by itself and never yields
/// an error.
///
/// Who connects and says nothing holds nobody up for long: when all places for handshakes are taken, the address that has the
/// most of them loses its oldest to another's, and where it is that address itself that waits, the oldest handshake ends once it has
/// had its grace. And there is a bound to the connections that are open: when it is
/// reached, who has the most of them loses its oldest to a newcomer.
pub fn incoming(listener: TcpListener, acceptor: Acceptor) -> Incoming {
    incoming_within(listener, acceptor, Bounds::default())
}

/// The same with other bounds.
pub fn incoming_within(listener: TcpListener, acceptor: Acceptor, bounds: Bounds) -> Incoming {
    Incoming::new(Door::Listener(listener), acceptor, bounds, Room::new(&bounds))
}

/// How many connections a listener has at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Handshakes that run at once; further connections wait for one to end.
    pub handshakes: usize,
    /// How long a handshake may take when somebody waits for its place.
    pub grace: Duration,
    /// Open connections of those who have a certificate: each identity is a holder.
    pub connections: usize,
    /// Open connections of those who have none: each address is a holder.
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
    door: Door,
    acceptor: Acceptor,
    bounds: Bounds,
    room: Room,
    handshakes: Handshakes<Option<MtlsStream>>,
    /// Those for whom there is no place, which are of the addresses that have the most places.
    waiting: VecDeque<Guest>,
    /// The end of the oldest handshake's grace, while somebody waits.
    grace: Pin<Box<Sleep>>,
    /// Set while the system has no more sockets to give.
    pause: Option<Pin<Box<Sleep>>>,
}

/// Where connections come in.
#[derive(Debug)]
pub(super) enum Door {
    Listener(TcpListener),
    Dealt(Dealt),
}

impl From<Dealt> for Door {
    fn from(dealt: Dealt) -> Self {
        Self::Dealt(dealt)
    }
}

/// Somebody at the door.
#[derive(Debug)]
struct Guest {
    tcp: TcpStream,
    from: SocketAddr,
    lane: Option<Arc<InLane>>,
}

impl Door {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Guest>> {
        Poll::Ready(match self {
            Self::Listener(listener) => {
                ready!(listener.poll_accept(cx)).map(|(tcp, from)| Guest { tcp, from, lane: None })
            }
            Self::Dealt(dealt) => {
                ready!(dealt.poll_accept(cx)).map(|(tcp, from, lane)| Guest { tcp, from, lane: Some(lane) })
            }
        })
    }
}

/// What there is room for.
#[derive(Debug, Clone)]
pub(super) struct Room {
    known: Seats,
    strangers: Seats,
}

impl Room {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self { known: Seats::new(bounds.connections), strangers: Seats::new(bounds.strangers) }
    }

    /// A seat for whoever it is.
    fn take(&self, info: &PeerInfo) -> Option<(Seat, GivenUp)> {
        match &info.peer {
            Some(peer) => self.known.take(peer.id().as_str()),
            None => self.strangers.take(&origin(info.remote_addr.ip()).to_string()),
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<MtlsStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Asked after accepting, so that a handshake which was just begun can wake this task.
            let accepting = self.poll_accept(cx);
            match self.handshakes.poll_next(cx) {
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
    pub(super) fn new(door: Door, acceptor: Acceptor, bounds: Bounds, room: Room) -> Self {
        let (handshakes, waiting, grace) = (Handshakes::default(), VecDeque::new(), Box::pin(sleep(Duration::ZERO)));
        Self { door, acceptor, bounds, room, handshakes, waiting, grace, pause: None }
    }

    /// Sees to one who waits, or to one who comes.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting.is_empty() && self.poll_place(cx).is_ready() {
            if let Some(guest) = self.waiting.pop_front() {
                self.begin(guest);
            }
            return Poll::Ready(());
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        match ready!(self.door.poll_accept(cx)) {
            Ok(guest) => self.receive(guest),
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again in {PAUSE:?}");
                self.pause = Some(Box::pin(sleep(PAUSE)));
            }
        }
        Poll::Ready(())
    }

    /// Ready when there is a place for whoever waits: the next handshake to finish wakes the task too.
    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.handshakes.len() < self.bounds.handshakes {
            return Poll::Ready(());
        }
        let Some(began) = self.handshakes.oldest() else { return Poll::Pending };
        let until = began + self.bounds.grace;
        if self.grace.deadline() != until {
            self.grace.as_mut().reset(until);
        }
        ready!(self.grace.as_mut().poll(cx));
        self.handshakes.end_the_oldest();
        Poll::Ready(())
    }

    /// Begins the handshake of somebody who comes, or lets it wait.
    fn receive(&mut self, guest: Guest) {
        let is_free = self.waiting.is_empty() && self.handshakes.len() < self.bounds.handshakes;
        if is_free || self.handshakes.make_room(origin(guest.from.ip())) {
            self.begin(guest);
        } else if self.waiting.len() < WAITING {
            self.waiting.push_back(guest);
        }
        // Else it is closed: nobody has more than its own address has, here and in the queue.
    }

    fn begin(&mut self, Guest { tcp, from, lane }: Guest) {
        let (acceptor, room) = (self.acceptor.clone(), self.room.clone());
        self.handshakes.begin(origin(from.ip()), async move {
            let stream = handshake(acceptor, tcp, from).await?;
            let Some((seat, given_up)) = room.take(stream.info()) else {
                tracing::warn!(target: "alcazar::refused", %from, "closed a connection: as many of its kind as there may be are open");
                return None;
            };
            Some(stream.holding(Places { _seat: seat, _lane: lane }, given_up))
        });
    }
}

/// What a connection holds while it is open.
#[derive(Debug)]
pub(super) struct Places {
    _seat: Seat,
    _lane: Option<Arc<InLane>>,
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
pub(super) fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Connections that wait for a handshake.
const WAITING: usize = 1024;
/// How long to wait when the system has no more sockets.
pub(super) const PAUSE: Duration = Duration::from_millis(500);
