use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::refusal::{Refusal, Us};

/// A TLS connection, either side, after its handshake.
///
/// Reads and writes are the application's bytes. A refusal by the peer that arrives after the handshake
/// comes out of `read` as an [`io::Error`] that holds a [`Refusal`].
pub struct TlsStream<IO> {
    inner: tokio_rustls::TlsStream<IO>,
    us: Option<Arc<Us>>,
}

impl<IO> TlsStream<IO> {
    pub(crate) fn new(inner: tokio_rustls::TlsStream<IO>, us: Option<Arc<Us>>) -> Self {
        Self { inner, us }
    }

    /// The transport below.
    pub fn get_ref(&self) -> &IO {
        self.inner.get_ref().0
    }

    /// The transport below. Reading from it or writing to it breaks the connection.
    pub fn get_mut(&mut self) -> &mut IO {
        self.inner.get_mut().0
    }

    /// The key exchange that was agreed on, as TLS names it: `X25519MLKEM768`.
    pub fn key_exchange(&self) -> Option<String> {
        self.inner.get_ref().1.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()))
    }

    /// The cipher suite that was agreed on, as TLS names it: `TLS13_AES_128_GCM_SHA256`.
    pub fn cipher_suite(&self) -> Option<String> {
        self.inner.get_ref().1.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match ready!(Pin::new(&mut self.inner).poll_read(cx, buf)) {
            Ok(()) => Ok(()),
            Err(error) => Err(match Refusal::of(&error, self.us.as_deref()) {
                Some(refusal) => io::Error::new(io::ErrorKind::ConnectionAborted, refusal),
                None => error,
            }),
        })
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<IO> std::fmt::Debug for TlsStream<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("key_exchange", &self.key_exchange()).finish_non_exhaustive()
    }
}
