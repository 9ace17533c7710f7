use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use alcazar_identity::{Revoked, rfc3339};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

use super::incoming::Places;
use super::seats::GivenUp;
use crate::revoked::until_revoked;
use crate::{Accepted, Acceptor, Clock, LiveCredentials, PeerIdentity, TlsStream};

/// Who calls: in the extensions of each request that came in through [`incoming`](super::incoming()).
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The address that the connection comes from.
    pub remote_addr: SocketAddr,
    /// Who the client is; `None` for an anonymous one.
    pub peer: Option<PeerIdentity>,
}

/// A connection that was accepted and verified; it ends when the client's certificate does or is revoked, and an
/// anonymous one after a minute.
#[derive(Debug)]
pub struct MtlsStream {
    io: Bounded<TlsStream<TcpStream>>,
    info: PeerInfo,
    /// The connection's place among those that may be open.
    _places: Option<Places>,
}

impl MtlsStream {
    pub(super) fn new(accepted: Accepted<TcpStream>, remote_addr: SocketAddr, acceptor: &Acceptor) -> Self {
        let end = Limit::for_peer(accepted.peer.as_ref(), acceptor.clock()());
        let info = PeerInfo { remote_addr, peer: accepted.peer };
        let io = Bounded::new(accepted.stream, end, acceptor.clock());
        let io = match info.peer.clone() {
            Some(peer) => io.until_revoked(peer, acceptor.credentials().clone()),
            None => io,
        };
        Self { io, info, _places: None }
    }

    /// The same, with places that are free again when it ends, and that it may have to give up.
    pub(super) fn holding(self, places: Places, given_up: GivenUp) -> Self {
        Self { io: self.io.until_given_up(given_up), _places: Some(places), ..self }
    }

    /// Who is at the other end.
    pub fn info(&self) -> &PeerInfo {
        &self.info
    }
}

impl Connected for MtlsStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

/// A stream that fails once a moment of the caller's clock has passed.
///
/// A connection must not outlive what proved its peer.
pub(super) struct Bounded<S> {
    io: S,
    /// What was read already, and comes first.
    first: Vec<u8>,
    end: End,
    revoked: Option<UntilRevoked>,
    /// Ready when somebody else needs its place more.
    given_up: Option<GivenUp>,
}

type UntilRevoked = Pin<Box<dyn Future<Output = Revoked> + Send + Sync>>;

/// When a connection ends, and why.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    at: SystemTime,
    why: &'static str,
}

impl Limit {
    pub(super) fn for_peer(peer: Option<&PeerIdentity>, now: SystemTime) -> Self {
        match peer {
            Some(peer) => Self { at: peer.validity().not_after(), why: CERTIFICATE_EXPIRED },
            // Strangers could hold as many connections as the system has, for ever.
            None => Self { at: now.checked_add(ANONYMOUS).unwrap_or(now), why: ANONYMOUS_TOO_LONG },
        }
    }
}

const GIVEN_UP: &str = "its holder has the most connections, and others wait for a place";
const CERTIFICATE_EXPIRED: &str = "the peer's certificate expired";
const ANONYMOUS_TOO_LONG: &str = "a connection without a certificate had its time";
/// Time enough to attest and get a certificate.
const ANONYMOUS: Duration = Duration::from_secs(60);

struct End {
    limit: Limit,
    clock: Clock,
    sleep: Pin<Box<Sleep>>,
}

impl<S> Bounded<S> {
    pub(super) fn new(io: S, limit: Limit, clock: &Clock) -> Self {
        let first_look = next_look(limit.at, clock());
        let end = End { limit, clock: Clock::clone(clock), sleep: Box::pin(sleep(first_look)) };
        Self { io, first: Vec::new(), end, revoked: None, given_up: None }
    }

    /// The same, failing too once the peer is revoked.
    pub(super) fn until_revoked(self, peer: PeerIdentity, credentials: LiveCredentials) -> Self {
        Self { revoked: Some(Box::pin(until_revoked(peer, credentials))), ..self }
    }

    /// The same, failing too once its place is another's.
    pub(super) fn until_given_up(self, given_up: GivenUp) -> Self {
        Self { given_up: Some(given_up), ..self }
    }

    /// The same, with bytes that were read already.
    pub(super) fn after(self, first: &[u8]) -> Self {
        Self { first: first.to_vec(), ..self }
    }
}

impl End {
    /// Ready once the moment has passed.
    fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = (self.clock)();
            if now > self.limit.at {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(Instant::now() + next_look(self.limit.at, now));
        }
    }
}

/// How long to sleep before looking at the clock again: it may be set, and the machine may be suspended.
fn next_look(end: SystemTime, now: SystemTime) -> Duration {
    let left = end.duration_since(now).unwrap_or_default() + Duration::from_millis(1);
    left.min(Duration::from_secs(60))
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.poll_passed(cx).is_ready() {
            let Limit { at, why } = self.end.limit;
            let reason = format!("{why} at {}", rfc3339(at));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)));
        }
        if let Some(until) = &mut self.revoked
            && let Poll::Ready(revoked) = until.as_mut().poll(cx)
        {
            self.revoked = Some(Box::pin(std::future::ready(revoked.clone())));
            tracing::warn!(target: "alcazar::revoked", reason = %revoked, "a connection was cut");
            let reason = format!("the peer is believed no more: {revoked}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason)));
        }
        if let Some(given_up) = &mut self.given_up
            && given_up.as_mut().poll(cx).is_ready()
        {
            self.given_up = Some(Box::pin(std::future::ready(())));
            tracing::debug!("a connection was closed: its holder has the most, and others wait");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, GIVEN_UP)));
        }
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.drain(..length).collect::<Vec<_>>());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl AsyncRead for MtlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for MtlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S> std::fmt::Debug for Bounded<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = rfc3339(self.end.limit.at);
        f.debug_struct("Bounded").field("end", &end).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_stranger_is_not_listened_to_for_ever() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let limit = Limit::for_peer(None, now);
        assert_eq!(limit.at, now + ANONYMOUS);
        let clock: Clock = Arc::new(move || now + ANONYMOUS + Duration::from_secs(1));
        let (_client, server) = tokio::io::duplex(64);
        let error = Bounded::new(server, limit, &clock).read_u8().await.unwrap_err();
        assert!(error.to_string().starts_with(ANONYMOUS_TOO_LONG), "{error}");
    }
}
