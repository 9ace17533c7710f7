//! An HTTP/2 stream as a stream of bytes, for tunnels.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Error, Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;

/// Both halves of a `CONNECT` stream.
///
/// `shutdown` ends our direction (END_STREAM). Dropped before that, it is reset, and a reset by the peer is an error
/// here: a tunnel that broke is never taken for one that ended.
pub(crate) struct H2Stream {
    receive: RecvStream,
    send: SendStream<Bytes>,
    unread: Bytes,
    received_all: bool,
    sent_all: bool,
}

impl H2Stream {
    pub(crate) fn new(receive: RecvStream, send: SendStream<Bytes>) -> Self {
        Self { receive, send, unread: Bytes::new(), received_all: false, sent_all: false }
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.received_all {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(broken)?,
                None => self.received_all = true,
            }
        }
        let bytes = self.unread.len().min(out.remaining());
        out.put_slice(self.unread.get(..bytes).unwrap_or_default());
        self.unread.advance(bytes);
        // The window opens as bytes are passed on, and no faster.
        self.receive.flow_control().release_capacity(bytes).map_err(broken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(MAX_WRITE));
        let capacity = loop {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(capacity)) => break capacity.min(bytes.len()),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        };
        let piece = Bytes::copy_from_slice(bytes.get(..capacity).unwrap_or_default());
        self.send.send_data(piece, false).map_err(broken)?;
        Poll::Ready(Ok(capacity))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task writes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_all {
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
            self.sent_all = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Io for H2Stream {
    fn abort(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Drop for H2Stream {
    fn drop(&mut self) {
        if !self.sent_all {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

const MAX_WRITE: usize = 64 * 1024;
