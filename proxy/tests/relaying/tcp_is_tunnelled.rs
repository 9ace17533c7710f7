use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::common::app::{self, App};
use crate::common::client::{self, connect};
use crate::common::{FRONTEND, Mesh, SOON, Wanted, policy};

async fn wanted(serve: fn(TcpStream) -> Pin<Box<dyn Future<Output = ()> + Send>>) -> Wanted {
    let app = App::start(&[]).await;
    let tcp = app::tcp(serve).await;
    Wanted { tcp: Some(tcp), forward: true, policy: policy::allow_all(FRONTEND), ..Wanted::new(app.address) }
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_direction_ends_by_itself() {
    let mesh = Mesh::start(&wanted(|stream| Box::pin(app::echo(stream))).await);
    let mut stream = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap();
    let mut forwarded = TcpStream::connect(mesh.frontend.addresses.forwards[0]).await.unwrap();
    for stream in [&mut stream, &mut forwarded] {
        for size in [1, 1000, 300_000] {
            let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let mut got = vec![0; size];
            let (read, write) = stream.split();
            let (mut read, mut write) = (read, write);
            let (written, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
            written.unwrap();
            read.unwrap();
            assert!(sent == got);
        }
        stream.shutdown().await.unwrap();
        assert_eq!(tokio::time::timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
    }
    mesh.stop().await;
}

#[tokio::test]
async fn an_application_that_answers_at_the_end_is_heard() {
    let mesh = Mesh::start(&wanted(|stream| Box::pin(app::count(stream))).await);
    let mut stream = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap();
    stream.write_all(&vec![1; 5_000_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "5000000 bytes");
    mesh.stop().await;
}

#[tokio::test]
async fn what_breaks_on_one_side_breaks_on_the_other() {
    async fn reset(mut stream: TcpStream) {
        stream.write_all(b"x").await.unwrap();
        drop(stream.read(&mut [0; 16]).await);
        stream.set_zero_linger().unwrap();
    }
    let mesh = Mesh::start(&wanted(|stream| Box::pin(reset(stream))).await);
    let mut stream = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap();
    let mut got = [0; 16];
    assert_eq!(stream.read(&mut got).await.unwrap(), 1);
    stream.write_all(b"y").await.unwrap();
    let error = tokio::time::timeout(SOON, stream.read(&mut got)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    mesh.stop().await;
}

#[tokio::test]
async fn a_client_that_resets_is_reset_at_the_application() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = App::start(&[]).await;
    let tcp = app::tcp(move |mut stream: TcpStream| {
        let tell = tell.clone();
        async move {
            let mut got = Vec::new();
            tell.send(stream.read_to_end(&mut got).await.map_err(|error| error.kind())).unwrap();
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted { tcp: Some(tcp), policy: policy::allow_all(FRONTEND), ..Wanted::new(app.address) });
    let mut stream = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap();
    stream.write_all(b"half of it").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    let end = tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap();
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    mesh.stop().await;
}

#[tokio::test]
async fn a_tunnel_that_is_denied_or_leads_nowhere_says_so() {
    let wanted = wanted(|stream| Box::pin(app::echo(stream))).await;
    let mesh = Mesh::start(&Wanted { policy: policy::allow(FRONTEND, "/*"), ..wanted });
    let denied = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap_err();
    assert!(denied.starts_with("HTTP/1.1 403 ") && denied.contains("x-alcazar-decision: "), "{denied}");
    for (to, status) in [("reviews.shop:1", "502"), ("example.com:5432", "502"), ("127.0.0.1:22", "502")] {
        let refused = connect(mesh.outbound(), to).await.unwrap_err();
        assert!(refused.starts_with(&format!("HTTP/1.1 {status} ")), "{to}: {refused}");
    }
    // A forward cannot answer: its connection is reset.
    let mut forwarded = TcpStream::connect(mesh.frontend.addresses.forwards[0]).await.unwrap();
    let end = tokio::time::timeout(SOON, forwarded.read(&mut [0; 16])).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    mesh.stop().await;
}

#[tokio::test]
async fn a_tunnel_to_an_http_port_is_served_as_requests() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted { policy: policy::allow(FRONTEND, "/open"), ..Wanted::new(app.address) });
    let mut stream = connect(mesh.outbound(), "reviews.shop:80").await.unwrap();
    let requests = "GET /open HTTP/1.1\r\nHost: reviews.shop\r\n\r\n\
                    GET /closed HTTP/1.1\r\nHost: reviews.shop\r\nConnection: close\r\n\r\n";
    let answer = client::raw_over(&mut stream, requests.as_bytes()).await;
    assert!(answer.contains("HTTP/1.1 200") && answer.contains("HTTP/1.1 403"), "{answer}");
    assert_eq!(app.count(), 1);
    mesh.stop().await;
}

/// An HTTP/2 stream as bytes, for tests.
pub(crate) fn stream_of(
    send: h2::SendStream<Bytes>,
    receive: h2::RecvStream,
) -> impl AsyncRead + AsyncWrite + Send + Unpin {
    Tunnel { send, receive, unread: Bytes::new() }
}

struct Tunnel {
    send: h2::SendStream<Bytes>,
    receive: h2::RecvStream,
    unread: Bytes,
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match std::task::ready!(self.receive.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(data)) => {
                    self.receive.flow_control().release_capacity(data.len()).unwrap();
                    self.unread = data;
                }
            }
        }
        let bytes = self.unread.len().min(out.remaining());
        out.put_slice(&self.unread[..bytes]);
        self.unread.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Small enough not to wait for windows.
        let sent = self.send.send_data(Bytes::copy_from_slice(bytes), false);
        Poll::Ready(sent.map(|()| bytes.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
