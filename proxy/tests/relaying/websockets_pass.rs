use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::app::tcp;
use crate::common::client::read_head;
use crate::common::{FRONTEND, Mesh, SOON, Wanted, policy};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\n";

/// Accepts every change of protocol to websocket, then echoes.
async fn echo(mut stream: TcpStream) {
    let head = read_head(&mut stream).await.to_ascii_lowercase();
    assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
    assert!(head.contains("x-forwarded-client-cert: by=") && head.contains("sec-websocket-key: "), "{head}");
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(answer.as_bytes()).await.unwrap();
    crate::common::app::echo(stream).await;
}

#[tokio::test]
async fn the_protocol_changes_and_a_new_policy_ends_it() {
    let mesh = Mesh::start(&Wanted { policy: policy::allow(FRONTEND, "/chat"), ..Wanted::new(tcp(echo).await) });
    let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
    let request = format!("GET http://reviews.shop/chat HTTP/1.1\r\nHost: reviews.shop\r\n{UPGRADE}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    let mut got = [0; 4];
    for message in [b"ping", b"pong"] {
        stream.write_all(message).await.unwrap();
        tokio::time::timeout(SOON, stream.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(&got, message);
    }
    mesh.reviews.enforce(policy::allow(FRONTEND, "/other"));
    let end = tokio::time::timeout(SOON, stream.read(&mut got)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");

    let mut denied = TcpStream::connect(mesh.outbound()).await.unwrap();
    denied.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut denied).await.starts_with("HTTP/1.1 403 "));
    drop(denied);
    mesh.stop().await;
}

#[tokio::test]
async fn a_request_with_a_body_keeps_it_and_its_method() {
    let app = crate::common::app::App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    for request in [
        format!("POST http://reviews.shop/x HTTP/1.1\r\nHost: a\r\n{UPGRADE}Content-Length: 4\r\n\r\nbody"),
        "GET http://reviews.shop/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
            .to_owned(),
    ] {
        // Another request follows: the first has not changed the protocol.
        let next = "GET http://reviews.shop/next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = crate::common::client::raw(mesh.outbound(), format!("{request}{next}").as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    }
    let seen = app.seen.lock().unwrap().clone();
    let seen: Vec<_> = seen.iter().map(|s| (s.method.as_str(), s.target.as_str(), &s.body[..])).collect();
    let next = ("GET", "/next", &b""[..]);
    assert_eq!(seen, [("POST", "/x", &b"body"[..]), next, ("GET", "/x", b""), next]);
    assert!(!app.seen.lock().unwrap().iter().any(|seen| seen.headers.contains_key("upgrade")));
    mesh.stop().await;
}
