//! One listener for several runtimes: a connection stays where it was dealt to, from its handshake to its end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::incoming::{Bounds, Incoming, PAUSE, Room, is_of_the_connection};
use crate::Acceptor;

/// Deals the connections of a listener out to so many streams, each to be served on a runtime of its own: a request then
/// costs no wake-up of another thread.
///
/// The bounds hold for all of them together, those of handshakes for each its share. Nothing comes in while the dealer does not
/// [run](Dealer::run).
pub fn dealt(listener: TcpListener, acceptor: &Acceptor, lanes: usize) -> (Dealer, Vec<Incoming>) {
    let (lanes, bounds) = (lanes.max(1), Bounds::default());
    let bounds = Bounds { handshakes: bounds.handshakes.div_ceil(lanes), ..bounds };
    let room = Room::new(&bounds);
    let (lanes, incoming) = (0..lanes)
        .map(|_| {
            let (to, from) = mpsc::channel(WAITING);
            let incoming = Incoming::new(Dealt(from).into(), acceptor.clone(), bounds, room.clone());
            (Lane { to, open: Arc::default() }, incoming)
        })
        .unzip();
    (Dealer { listener, lanes, next: 0 }, incoming)
}

/// See [`dealt`].
#[derive(Debug)]
pub struct Dealer {
    listener: TcpListener,
    lanes: Vec<Lane>,
    next: usize,
}

#[derive(Debug)]
struct Lane {
    to: mpsc::Sender<Card>,
    open: Arc<InLane>,
}

/// Held by each connection of a lane.
#[derive(Debug, Default)]
pub(super) struct InLane;

/// A connection on its way.
type Card = (std::net::TcpStream, SocketAddr, Arc<InLane>);

impl Dealer {
    /// Deals until it is dropped.
    pub async fn run(mut self) {
        loop {
            match self.listener.accept().await {
                Ok((tcp, from)) => self.deal(tcp, from).await,
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again in {PAUSE:?}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn deal(&mut self, tcp: TcpStream, from: SocketAddr) {
        // What cannot be moved is gone already.
        let Ok(tcp) = tcp.into_std() else { return };
        // One is the lane's own.
        let chosen = fewest(self.lanes.iter().map(|lane| Arc::strong_count(&lane.open)), self.next);
        self.next = chosen + 1;
        if let Some(lane) = self.lanes.get(chosen) {
            // A lane that has ended takes its connections with it.
            drop(lane.to.send((tcp, from, Arc::clone(&lane.open))).await);
        }
    }
}

/// The place of the least; of several the first from `next` on.
fn fewest(open: impl ExactSizeIterator<Item = usize>, next: usize) -> usize {
    let lanes = open.len().max(1);
    let after = |place: usize| (place + lanes - next % lanes) % lanes;
    open.enumerate().min_by_key(|(place, open)| (*open, after(*place))).map_or(0, |(place, _)| place)
}

/// The end of a lane at which connections come out.
#[derive(Debug)]
pub(super) struct Dealt(mpsc::Receiver<Card>);

impl Dealt {
    /// Never ready again once the dealer has gone.
    pub(super) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr, Arc<InLane>)>> {
        match ready!(self.0.poll_recv(cx)) {
            Some((tcp, from, lane)) => Poll::Ready(TcpStream::from_std(tcp).map(|tcp| (tcp, from, lane))),
            None => Poll::Pending,
        }
    }
}

/// Connections that wait in a lane; further ones wait in the kernel.
const WAITING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emptiest_lane_is_next_and_lanes_take_turns() {
        for (open, next, expected) in [
            (&[1, 1, 1][..], 0, 0),
            (&[1, 1, 1], 1, 1),
            (&[1, 1, 1], 3, 0),
            (&[2, 1, 1], 0, 1),
            (&[2, 1, 1], 2, 2),
            (&[1, 2, 2], 2, 0),
            (&[], 5, 0),
        ] {
            assert_eq!(fewest(open.iter().copied(), next), expected, "{open:?} {next}");
        }
    }
}
