use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::app::App;
use crate::common::client::{self, raw, raw_over, read_head};
use crate::common::{FRONTEND, Mesh, Wanted};

/// Requests that two servers could read differently. `{}` is where another request hides.
const SMUGGLED: &[(&str, &str)] = &[
    (
        "length and encoding",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
    ),
    (
        "encoding and length",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{hidden}",
    ),
    (
        "two lengths",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n{hidden}",
    ),
    ("a list of lengths", "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: 0, 0\r\n\r\n{hidden}"),
    ("a signed length", "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nContent-Length: +3\r\n\r\nabc{hidden}"),
    (
        "white space before the colon",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}",
    ),
    (
        "another coding",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}",
    ),
    (
        "two codings",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{hidden}",
    ),
    (
        "a coding in HTTP/1.0",
        "POST {url} HTTP/1.0\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
    ),
    (
        "a folded field",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n{hidden}",
    ),
    ("a bare LF", "GET {url} HTTP/1.1\r\nHost: reviews.shop\nX: y\r\n\r\n{hidden}"),
    ("bare LFs alone", "GET {url} HTTP/1.1\nHost: reviews.shop\n\n{hidden}"),
    ("a bare CR", "GET {url} HTTP/1.1\r\nHost: reviews.shop\r\nX: a\rContent-Length: 9\r\n\r\n{hidden}"),
    ("NUL in a value", "GET {url} HTTP/1.1\r\nHost: reviews.shop\r\nX: a\0b\r\n\r\n{hidden}"),
    ("NUL in a name", "GET {url} HTTP/1.1\r\nHost: reviews.shop\r\nX\0: a\r\n\r\n{hidden}"),
    ("a field without a colon", "GET {url} HTTP/1.1\r\nHost: reviews.shop\r\nX\r\n\r\n{hidden}"),
    (
        "a chunk of a bad size",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n{hidden}",
    ),
    (
        "a chunk that lies",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n{hidden}",
    ),
    (
        "a chunk that ends with LF",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n{hidden}",
    ),
    (
        "a chunk too large",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nabc\r\n{hidden}",
    ),
    (
        "framing in trailers",
        "POST {url} HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n{hidden}",
    ),
    ("HTTP/0.9", "GET {url}\r\n{hidden}"),
    ("another version", "GET {url} HTTP/1.2\r\nHost: reviews.shop\r\n\r\n{hidden}"),
    ("no Host", "GET {url} HTTP/1.1\r\n\r\n{hidden}"),
    ("two Hosts", "GET {url} HTTP/1.1\r\nHost: reviews.shop\r\nHost: example.com\r\n\r\n{hidden}"),
    ("user information", "GET {url} HTTP/1.1\r\nHost: me@reviews.shop\r\n\r\n{hidden}"),
    ("a Host that is a path", "GET {url} HTTP/1.1\r\nHost: reviews.shop/x\r\n\r\n{hidden}"),
    ("two spaces", "GET  {url} HTTP/1.1\r\nHost: reviews.shop\r\n\r\n{hidden}"),
    ("a fragment", "GET {url}#y HTTP/1.1\r\nHost: reviews.shop\r\n\r\n{hidden}"),
    ("our own stand-in", "ALCAZAR-REFUSED {url} HTTP/1.1\r\nHost: reviews.shop\r\n\r\n{hidden}"),
];

const HIDDEN: &str = "GET http://reviews.shop/hidden HTTP/1.1\r\nHost: reviews.shop\r\n\r\n";

fn request(template: &str, url: &str) -> String {
    template.replace("{url}", url).replace("{hidden}", HIDDEN)
}

#[tokio::test]
async fn outbound_answers_400_and_closes_and_forwards_nothing() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    for (what, template) in SMUGGLED {
        let answer = raw(mesh.outbound(), request(template, "http://reviews.shop/x").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{what}: {answer}");
        assert_eq!(app.count(), 0, "{what} was forwarded");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn inbound_does_the_same_within_a_tunnel() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    for (what, template) in SMUGGLED {
        let mut tunnel = tunnel(&mesh, app.address).await;
        let answer = raw_over(&mut tunnel, request(template, "/x").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
        assert_eq!(app.count(), 0, "{what} was forwarded");
    }
    mesh.stop().await;
}

/// An HBONE tunnel to the application's HTTP port.
pub(crate) async fn tunnel(
    mesh: &Mesh,
    app: std::net::SocketAddr,
) -> impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {
    let connected = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[b"h2"]).await;
    let mut sender = client::h2(connected.stream).await.ready().await.unwrap();
    let request = http::Request::connect(app.to_string()).body(()).unwrap();
    let (response, send) = sender.send_request(request, false).unwrap();
    let (head, receive) = response.await.unwrap().into_parts();
    assert_eq!(head.status, 200);
    crate::tcp_is_tunnelled::stream_of(send, receive)
}

#[tokio::test]
async fn earlier_requests_are_answered_before_the_refusal() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let good = "GET http://reviews.shop/good HTTP/1.1\r\nHost: reviews.shop\r\n\r\n";
    let bad = "GET http://reviews.shop/bad HTTP/1.1\r\nHost: reviews.shop\r\nX : y\r\n\r\n";
    let answer = raw(mesh.outbound(), format!("{good}{good}{bad}{good}").as_bytes()).await;
    let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "400"], "{answer}");
    assert_eq!(app.count(), 2);
    mesh.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let head = "GET http://reviews.shop/x HTTP/1.1\r\nHost: reviews.shop\r\n";
    for (what, fields) in [
        ("many fields", "X: y\r\n".repeat(101)),
        ("a long value", format!("X: {}\r\n", "y".repeat(70_000))),
        ("a line without an end", "y".repeat(70_000)),
    ] {
        let answer = raw(mesh.outbound(), format!("{head}{fields}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
    }
    let answer = raw(mesh.outbound(), &vec![b'A'; 200_000]).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(app.count(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn a_chunk_that_breaks_late_breaks_the_request() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
    let head =
        "POST http://reviews.shop/x HTTP/1.1\r\nHost: reviews.shop\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // The head and the first chunk are on their way when the second one turns out to be wrong.
    tokio::time::sleep(client::WHILE).await;
    let answer = raw_over(&mut stream, format!("zz\r\n{HIDDEN}").as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(app.count(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn bytes_after_a_refused_tunnel_are_not_taken_for_a_tunnel() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
    let connect = "CONNECT nowhere.shop:1 HTTP/1.1\r\nHost: nowhere.shop:1\r\n\r\n";
    stream.write_all(format!("{connect}{HIDDEN}").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 502 "));
    let rest =
        raw_over(&mut stream, b"GET http://reviews.shop/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 2, "{rest}");
    assert_eq!(app.count(), 2);
    mesh.stop().await;
}
