//! A connection that hands out only what the scanner has vetted.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::gate::Verdict;
use super::scanner::STAND_IN_METHOD;
use super::{Gate, RefusedHead, Scan, Scanner};
use crate::io::Io;

/// Stands between a connection and hyper's HTTP/1 parser.
pub(crate) struct Strict<IO> {
    io: IO,
    gate: Arc<Gate>,
    scanner: Scanner,
    /// What was read and not handed out.
    buffer: BytesMut,
    /// So many bytes at the start of `buffer` may be handed out.
    vetted: usize,
    /// Where in `buffer` the newest message starts, while none of it was handed out.
    message: Option<usize>,
    end: Option<End>,
    /// Runs while a head is incomplete.
    slow: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
}

/// How reading ended, after a refusal.
#[derive(Clone, Copy)]
enum End {
    /// Another request stands in for the refused one, and is answered in its turn.
    StoodIn,
    /// The message's head was handed out before its body broke.
    Broken(RefusedHead),
}

/// What vetting needs next.
enum Step {
    Read,
    /// The service decides whether the protocol changes.
    Hold,
    Ended,
}

/// After a refusal: what the peer still sends is read and dropped, so that it sees the response and not a reset.
struct Linger {
    until: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<IO> Strict<IO> {
    pub(crate) fn new(io: IO, already_read: BytesMut, gate: Arc<Gate>) -> Self {
        Self {
            io,
            gate,
            scanner: Scanner::default(),
            buffer: already_read,
            vetted: 0,
            message: None,
            end: None,
            slow: None,
            linger: None,
        }
    }

    /// Vets as much of the buffer as can be.
    fn vet(&mut self) -> Step {
        loop {
            let unvetted = self.buffer.get(self.vetted..).unwrap_or_default();
            match self.scanner.scan(unvetted) {
                Ok(Scan::Skip(bytes)) if self.vetted == 0 => self.buffer.advance(bytes),
                // Blank lines behind vetted bytes: those go first.
                Ok(Scan::Skip(_) | Scan::More) => return Step::Read,
                Ok(Scan::Hold) => return Step::Hold,
                Ok(Scan::Head(bytes)) => {
                    self.message = Some(self.vetted);
                    self.vetted += bytes;
                }
                Ok(Scan::Body(bytes)) => self.vetted += bytes,
                Err(refused) => {
                    self.refuse(refused);
                    return Step::Ended;
                }
            }
        }
    }

    fn refuse(&mut self, refused: RefusedHead) {
        self.gate.refuse(refused);
        let start = if self.scanner.is_at_head() { Some(self.vetted) } else { self.message };
        let Some(start) = start else {
            self.buffer.truncate(self.vetted);
            self.end = Some(End::Broken(refused));
            return;
        };
        self.buffer.truncate(start);
        self.buffer.extend_from_slice(STAND_IN_METHOD.as_bytes());
        self.buffer.extend_from_slice(b" / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n");
        self.vetted = self.buffer.len();
        self.end = Some(End::StoodIn);
    }

    fn hand_out(&mut self, out: &mut ReadBuf<'_>) {
        let bytes = self.vetted.min(out.remaining());
        out.put_slice(self.buffer.get(..bytes).unwrap_or_default());
        self.buffer.advance(bytes);
        self.vetted -= bytes;
        self.message = self.message.and_then(|start| start.checked_sub(bytes));
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Strict<IO> {
    fn poll_vetted(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.vetted > 0 {
                self.hand_out(out);
                return Poll::Ready(Ok(()));
            }
            match self.end {
                // The response to the stand-in closes the connection.
                Some(End::StoodIn) => return Poll::Pending,
                Some(End::Broken(refused)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused)));
                }
                None => {}
            }
            let opaque = self.scanner.opaque();
            if self.buffer.is_empty() && opaque > 0 {
                return self.poll_opaque(cx, out, opaque);
            }
            match self.vet() {
                _ if self.vetted > 0 => {}
                Step::Ended => {}
                Step::Hold => match ready!(self.gate.poll_verdict(cx)) {
                    Verdict::Resume => self.scanner.resume(),
                    Verdict::Switch => self.scanner.switch(),
                },
                Step::Read => {
                    if self.is_too_slow(cx) {
                        self.refuse(RefusedHead::TooSlow);
                        continue;
                    }
                    self.buffer.reserve(READ);
                    let io = Pin::new(&mut self.io);
                    if ready!(tokio_util::io::poll_read_buf(io, cx, &mut self.buffer))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Reads the rest of a body, or of a chunk, straight into the caller's buffer.
    fn poll_opaque(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>, opaque: u64) -> Poll<io::Result<()>> {
        let limit = usize::try_from(opaque).unwrap_or(usize::MAX).min(out.remaining()).min(OPAQUE_READ);
        let mut part = ReadBuf::new(out.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let bytes = part.filled().len();
        out.advance(bytes);
        self.scanner.passed(bytes as u64);
        Poll::Ready(Ok(()))
    }

    /// A head that has begun must be complete in time.
    fn is_too_slow(&mut self, cx: &mut Context<'_>) -> bool {
        if self.buffer.is_empty() || !self.scanner.is_at_head() {
            self.slow = None;
            return false;
        }
        let slow = self.slow.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + HEAD_DEADLINE)));
        slow.as_mut().poll(cx).is_ready()
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let start = || Linger { until: Box::pin(sleep_until(Instant::now() + LINGER)), bytes: 0 };
        let linger = self.linger.get_or_insert_with(start);
        let mut scratch = [0; 4096];
        while linger.bytes < LINGER_BYTES && linger.until.as_mut().poll(cx).is_pending() {
            let mut dropped = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut dropped)) {
                Ok(()) if !dropped.filled().is_empty() => linger.bytes += dropped.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Strict<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_vetted(cx, out)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Strict<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        }
        if self.end.is_some() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: Io> Io for Strict<IO> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

const READ: usize = 8 * 1024;
const OPAQUE_READ: usize = 64 * 1024;
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;
