//! Byte streams, whatever they run over.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;

/// A stream of bytes in both directions that can be ended as broken.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// When it is dropped from now on, the other end sees that it broke, not that it ended.
    fn abort(&mut self);
}

/// Any of them.
pub(crate) type BoxIo = Box<dyn Io>;

impl Io for BoxIo {
    fn abort(&mut self) {
        self.as_mut().abort();
    }
}

impl Io for TcpStream {
    fn abort(&mut self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "cannot reset a connection; it closes instead");
        }
    }
}

impl<IO: Io> Io for BufReader<IO> {
    fn abort(&mut self) {
        self.get_mut().abort();
    }
}

/// A stream of which some bytes were read already: they come first.
pub(crate) struct Rewound<IO> {
    first: Bytes,
    io: IO,
}

impl<IO> Rewound<IO> {
    pub(crate) fn new(first: impl Into<Bytes>, io: IO) -> Self {
        Self { first: first.into(), io }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewound<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let bytes = self.first.len().min(out.remaining());
        out.put_slice(self.first.get(..bytes).unwrap_or_default());
        self.first.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewound<IO> {
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
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO: Io> Io for Rewound<IO> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

/// Connects to an address within the time that a person would wait.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What the client speaks, by its first bytes.
pub(crate) enum Spoken {
    /// HTTP/2 with prior knowledge.
    H2,
    /// Anything else: HTTP/1, or nothing that we know.
    H1,
}

/// Reads until it is clear what is spoken; the bytes read come back with the answer.
pub(crate) async fn what_is_spoken<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<(Spoken, BytesMut)> {
    let mut read = BytesMut::with_capacity(FIRST_READ);
    loop {
        if read.starts_with(H2_PREFACE) {
            return Ok((Spoken::H2, read));
        }
        if !H2_PREFACE.starts_with(&read) {
            return Ok((Spoken::H1, read));
        }
        if io.read_buf(&mut read).await? == 0 {
            return Ok((Spoken::H1, read));
        }
    }
}

/// Moves bytes between a scratch buffer and a stream that may take fewer.
pub(crate) fn poll_write_all<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    pending: &mut BytesMut,
) -> Poll<io::Result<()>> {
    while !pending.is_empty() {
        let written = ready!(Pin::new(&mut *io).poll_write(cx, pending))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        pending.advance(written);
    }
    Poll::Ready(Ok(()))
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FIRST_READ: usize = 8 * 1024;
/// How long a connection may take to come about.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// A connection that the application has turned into something else.
pub(crate) struct Upgraded(TokioIo<hyper::upgrade::Upgraded>);

impl Upgraded {
    pub(crate) fn new(io: TokioIo<hyper::upgrade::Upgraded>) -> Self {
        Self(io)
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Io for Upgraded {
    /// The connection is inside hyper: closing is all that can be done.
    fn abort(&mut self) {}
}
