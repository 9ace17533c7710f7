use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::app;
use crate::common::client::{WHILE, read_head};
use crate::common::{Mesh, SOON, Wanted, eventually};

const LARGE: usize = 64 << 20;
/// Windows and socket buffers on the way; far less than a body.
const ON_THE_WAY: usize = 32 << 20;

/// Writes as much as is taken, and counts it.
async fn write_counting(stream: &mut (impl AsyncWriteExt + Unpin), total: usize, count: Arc<AtomicUsize>) {
    let piece = vec![7; 64 * 1024];
    let mut left = total;
    while left > 0 {
        let bytes = piece.len().min(left);
        if stream.write_all(&piece[..bytes]).await.is_err() {
            return;
        }
        count.fetch_add(bytes, Ordering::SeqCst);
        left -= bytes;
    }
}

/// Waits until the count no longer grows. That nothing happens is no event: it is seen by looking twice. A machine that
/// stands still for as long would make the test see less than there is, and never fail it.
async fn stalled(count: &AtomicUsize) -> usize {
    loop {
        let before = count.load(Ordering::SeqCst);
        tokio::time::sleep(WHILE).await;
        if before == count.load(Ordering::SeqCst) && before > 0 {
            return before;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_an_application_that_does_not_read() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let application = app::tcp(move |mut stream: TcpStream| {
        let mut gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            gone.wait_for(|go| *go).await.unwrap();
            let mut read = 0;
            let mut piece = vec![0; 64 * 1024];
            while read < LARGE {
                read += stream.read(&mut piece).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nread").await.unwrap();
            drop(stream.read(&mut piece).await);
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(application));
    let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
    let head = format!("POST http://reviews.shop/ HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let writing = tokio::spawn(async move {
        write_counting(&mut write, LARGE, count).await;
        write
    });
    let held = tokio::time::timeout(SOON, stalled(&written)).await.unwrap();
    assert!(held < ON_THE_WAY, "{held} bytes were taken for an application that reads none");
    go.send(true).unwrap();
    assert!(read_head(&mut read).await.starts_with("HTTP/1.1 200"));
    drop(writing.await.unwrap());
    assert_eq!(written.load(Ordering::SeqCst), LARGE);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_waits_for_a_client_that_does_not_read() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let application = app::tcp(move |mut stream: TcpStream| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            write_counting(&mut stream, LARGE, count).await;
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(application));
    let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
    stream.write_all(b"GET http://reviews.shop/ HTTP/1.1\r\nHost: reviews.shop\r\n\r\n").await.unwrap();
    let held = tokio::time::timeout(SOON, stalled(&written)).await.unwrap();
    assert!(held < ON_THE_WAY, "{held} bytes were taken for a client that reads none");
    read_head(&mut stream).await;
    let mut read = 0;
    let mut piece = vec![0; 64 * 1024];
    while read < LARGE {
        let bytes = tokio::time::timeout(SOON, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(bytes > 0 && piece[..bytes].iter().all(|b| *b == 7));
        read += bytes;
    }
    drop(stream);
    mesh.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_the_request_at_the_application() {
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (heard, count) = (begun.clone(), ended.clone());
    let application = app::tcp(move |mut stream: TcpStream| {
        let (heard, count) = (heard.clone(), count.clone());
        async move {
            read_head(&mut stream).await;
            heard.fetch_add(1, Ordering::SeqCst);
            // No answer: only the end of the connection ends this.
            drop(stream.read(&mut [0; 16]).await);
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(application));
    let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
    stream.write_all(b"GET http://reviews.shop/ HTTP/1.1\r\nHost: reviews.shop\r\n\r\n").await.unwrap();
    eventually("the application has the request", || async { begun.load(Ordering::SeqCst) == 1 }).await;
    assert_eq!(ended.load(Ordering::SeqCst), 0);
    drop(stream);
    eventually("the application hears of it", || async { ended.load(Ordering::SeqCst) == 1 }).await;
    mesh.stop().await;
}
