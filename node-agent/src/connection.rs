//! A client's connection to a socket of the agent, which ends when the agent says so, whatever the client does.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use alcazar_service::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use crate::peer::Peer;

/// Whose connection it is, for those who serve it.
#[derive(Clone)]
pub(crate) struct PeerInfo {
    pub(crate) peer: Arc<Peer>,
}

/// HTTP/2 ends a connection with its client's help: one that is stopped, or does not read what it asked for, gives none.
pub(crate) struct Connection {
    stream: UnixStream,
    peer: Arc<Peer>,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection {
    /// A connection that fails from the moment on at which `cut` is triggered, or its process ends.
    pub(crate) fn new(stream: UnixStream, peer: Peer, cut: Shutdown) -> Self {
        Self { stream, peer: Arc::new(peer), cut: Box::pin(async move { cut.cancelled().await }) }
    }

    /// Fails once the connection is cut; where it is not, the task is woken when it is.
    fn poll_whole(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.peer.poll_ended(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the process that connected has ended"));
        }
        if self.cut.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        // It may be asked again.
        self.cut = Box::pin(std::future::ready(()));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the agent serves this socket no more"))
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        PeerInfo { peer: self.peer.clone() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_whole(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
