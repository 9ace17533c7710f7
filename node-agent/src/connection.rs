//! A client's connection to a socket of the agent, which ends when the agent says so, whatever the client does.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alcazar_service::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

use crate::peer::Peer;
use crate::seats::{GivenUp, Seat};

/// Whose connection it is, for those who serve it.
#[derive(Clone)]
pub(crate) struct PeerInfo {
    pub(crate) peer: Arc<Peer>,
    pub(crate) seat: Arc<Seat>,
}

/// HTTP/2 ends a connection with its client's help: one that is stopped, or does not read what it asked for, gives none.
pub(crate) struct Connection {
    stream: UnixStream,
    info: PeerInfo,
    /// Ready when it is cut, and why.
    cut: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    quiet: Quiet,
}

/// How long a client that does nothing may go on with it.
struct Quiet {
    timer: Pin<Box<Sleep>>,
    /// What is missing of the beginning of HTTP/2.
    missing: usize,
    /// Looks at which there was no stream, one after the other.
    idle: u32,
}

impl Connection {
    /// A connection that fails from the moment on at which `cut` is triggered, its seat is another's, or its process ends.
    pub(crate) fn new(stream: UnixStream, peer: Peer, (seat, given_up): (Seat, GivenUp), cut: Shutdown) -> Self {
        let info = PeerInfo { peer: Arc::new(peer), seat: Arc::new(seat) };
        let cut = Box::pin(async move {
            tokio::select! {
                () = cut.cancelled() => "the agent serves this socket no more",
                () = given_up => "others need the room that it takes, and it does nothing",
            }
        });
        let quiet = Quiet { timer: Box::pin(sleep(PREFACE_TIME)), missing: PREFACE, idle: 0 };
        Self { stream, info, cut, quiet }
    }

    /// Fails once the connection is to end; where it is not, the task is woken when it is.
    fn poll_whole(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ended = |kind, why: &str| Err(io::Error::new(kind, why));
        if self.info.peer.poll_ended(cx).is_ready() {
            return ended(io::ErrorKind::ConnectionAborted, "the process that connected has ended");
        }
        if let Poll::Ready(why) = self.cut.as_mut().poll(cx) {
            // It may be asked again.
            self.cut = Box::pin(std::future::ready(why));
            return ended(io::ErrorKind::ConnectionAborted, why);
        }
        while self.quiet.timer.as_mut().poll(cx).is_ready() {
            if self.quiet.missing > 0 {
                return ended(io::ErrorKind::TimedOut, "it does not begin to speak HTTP/2");
            }
            self.quiet.idle = if self.info.seat.was_used() { 0 } else { self.quiet.idle + 1 };
            if self.quiet.idle >= IDLE_LOOKS {
                return ended(io::ErrorKind::TimedOut, "it asks for nothing");
            }
            self.quiet.timer.as_mut().reset(Instant::now() + LOOK);
        }
        Ok(())
    }
}

impl Quiet {
    fn heard(&mut self, bytes: usize) {
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(bytes);
            if self.missing == 0 {
                self.timer.as_mut().reset(Instant::now() + LOOK);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_whole(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.quiet.heard(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_whole(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_whole(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_whole(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The 24 bytes with which HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: usize = 24;
const PREFACE_TIME: Duration = Duration::from_secs(5);
/// How often it is looked whether a connection is used; after so many looks without a stream it ends: half an hour.
const LOOK: Duration = Duration::from_secs(300);
const IDLE_LOOKS: u32 = 6;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::peer::User;
    use crate::seats::{Holder, Limits, Seats};

    fn connection() -> (Connection, UnixStream, Seats) {
        let (here, there) = UnixStream::pair().unwrap();
        let seats = Seats::new(Limits { connections: 2, each: 2, streams: 2 });
        let peer = Peer::of(&here).unwrap();
        let seat = seats.take(Holder { socket: None, user: User::Outside(1) }).unwrap();
        (Connection::new(here, peer, seat, Shutdown::new()), there, seats)
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_gone_in_seconds_and_who_asks_for_nothing_in_half_an_hour() {
        let (mut silent, mut client, _seats) = connection();
        let begun = Instant::now();
        client.write_all(&[b'P'; PREFACE - 1]).await.unwrap();
        silent.read_exact(&mut [0; PREFACE - 1]).await.unwrap();
        let error = silent.read(&mut [0]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, 5), "{error}");

        let (mut idle, mut client, _seats) = connection();
        client.write_all(&[b'P'; PREFACE]).await.unwrap();
        idle.read_exact(&mut [0; PREFACE]).await.unwrap();
        let seat = idle.connect_info().seat;
        let stream = seat.stream().unwrap();
        let begun = Instant::now();
        assert!(tokio::time::timeout(Duration::from_secs(86_400), idle.read(&mut [0])).await.is_err());
        drop(stream);
        let quiet = Instant::now();
        let error = idle.read(&mut [0]).await.unwrap_err();
        let minutes = quiet.elapsed().as_secs() / 60;
        assert!(error.kind() == io::ErrorKind::TimedOut && (30..=35).contains(&minutes), "{error} {minutes}");
        assert!(begun.elapsed() > Duration::from_secs(86_400));
    }

    #[tokio::test]
    async fn a_seat_that_is_given_up_ends_its_connection() {
        let (mut first, _client, seats) = connection();
        let _others = [1, 1].map(|uid| seats.take(Holder { socket: None, user: User::Outside(uid) }).unwrap());
        let error = first.read(&mut [0]).await.unwrap_err();
        assert!(error.to_string().contains("others need the room"), "{error}");
    }
}
