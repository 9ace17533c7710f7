//! Two streams of bytes, joined: each direction ends by itself, and a fault on either side breaks both.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::{Io, poll_write_all};

/// Copies in both directions until both have ended.
///
/// An idle pair holds no buffer: reads go through one scratch buffer per thread, and only what the other side does
/// not take at once is kept.
///
/// # Errors
/// When either side breaks; both are then set to break.
pub(crate) async fn relay(a: &mut impl Io, b: &mut impl Io) -> io::Result<Relayed> {
    let (mut there, mut back) = (Direction::default(), Direction::default());
    let outcome = std::future::poll_fn(|cx| {
        let there_ended = there.poll(cx, a, b)?.is_ready();
        let back_ended = back.poll(cx, b, a)?.is_ready();
        if there_ended && back_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    match outcome {
        Ok(()) => Ok(Relayed { there: there.bytes, back: back.bytes }),
        Err(error) => {
            a.abort();
            b.abort();
            Err(error)
        }
    }
}

/// How many bytes went each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relayed {
    pub(crate) there: u64,
    pub(crate) back: u64,
}

#[derive(Default)]
struct Direction {
    state: State,
    /// Read and not written.
    pending: BytesMut,
    bytes: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Copying,
    Ending,
    Ended,
}

impl Direction {
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut impl Io, to: &mut impl Io) -> Poll<io::Result<()>> {
        // Others on this thread get their turn after so many reads.
        let mut budget = READS_PER_TURN;
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                }
                State::Copying => {
                    ready!(poll_write_all(to, cx, &mut self.pending))?;
                    if budget == 0 {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    budget -= 1;
                    match self.poll_copy(cx, from, to)? {
                        Poll::Ready(0) => {
                            self.pending = BytesMut::new();
                            self.state = State::Ending;
                        }
                        Poll::Ready(bytes) => self.bytes += bytes as u64,
                        Poll::Pending => {
                            // What was written must not wait in a buffer while we do.
                            self.pending = BytesMut::new();
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// One read, and a write of what it gave; the rest is kept in `pending`.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Poll<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH_SIZE, 0);
            let mut read = ReadBuf::new(scratch);
            match Pin::new(from).poll_read(cx, &mut read)? {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(()) if read.filled().is_empty() => return Ok(Poll::Ready(0)),
                Poll::Ready(()) => {}
            }
            let read = read.filled();
            let written = match Pin::new(to).poll_write(cx, read)? {
                Poll::Ready(written) => written,
                Poll::Pending => 0,
            };
            self.pending.extend_from_slice(read.get(written..).unwrap_or_default());
            Ok(Poll::Ready(read.len()))
        })
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const SCRATCH_SIZE: usize = 64 * 1024;
const READS_PER_TURN: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection over loopback.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let ((mut client, mut a), (mut b, mut server)) = (pair().await, pair().await);
        let relaying = async { relay(&mut a, &mut b).await.unwrap() };
        let talking = async {
            let asked = vec![7; 1_000_000];
            let answered = vec![8; 2_000_000];
            let (mut got, mut got_back) = (Vec::new(), Vec::new());
            client.write_all(&asked).await.unwrap_or_default();
            client.shutdown().await.unwrap();
            server.read_to_end(&mut got).await.unwrap();
            assert!(got == asked);
            let (written, read) = tokio::join!(
                async {
                    server.write_all(&answered).await.unwrap();
                    server.shutdown().await
                },
                client.read_to_end(&mut got_back)
            );
            written.unwrap();
            read.unwrap();
            assert!(got_back == answered);
        };
        // The first write is larger than what sockets buffer, so the relay must run meanwhile.
        let (relayed, ()) = tokio::join!(relaying, talking);
        assert_eq!(relayed, Relayed { there: 1_000_000, back: 2_000_000 });
    }

    #[tokio::test]
    async fn a_fault_on_one_side_is_a_fault_on_the_other() {
        let ((client, mut a), (mut b, mut server)) = (pair().await, pair().await);
        client.set_zero_linger().unwrap();
        drop(client);
        assert!(relay(&mut a, &mut b).await.is_err());
        drop((a, b));
        let error = server.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
