use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::app::tcp;
use crate::common::client::{self, raw, read_head};
use crate::common::{FRONTEND, Mesh, SOON, Wanted, policy};
use crate::smuggled_requests_are_refused::tunnel;

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

/// Changes to HTTP/2 in clear for whoever asks for it, as some servers do; remembers the heads and the paths it got.
async fn h2c_application() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_by_app = seen.clone();
    let serve = move |mut stream: TcpStream| {
        let seen = seen_by_app.clone();
        async move {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            seen.lock().unwrap().push(head.clone());
            if !head.lines().any(|line| line.starts_with("upgrade:") && line.contains("h2c")) {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
                return drop(stream.write_all(answer.as_bytes()).await);
            }
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                seen.lock().unwrap().push(format!("undecided: {}", request.uri().path()));
                respond.send_response(http::Response::new(()), true).unwrap();
            }
        }
    };
    (tcp(serve).await, seen)
}

const OTHER_WISHES: [&str; 5] = ["h2c", "H2C", "h2c, websocket", "websocket, h2c", "websocket\r\nUpgrade: h2c"];

#[tokio::test]
async fn nobody_gets_past_the_decisions_by_h2c() {
    let (app, seen) = h2c_application().await;
    let mesh = Mesh::start(&Wanted { policy: policy::allow(FRONTEND, "/public"), ..Wanted::new(app) });

    // A peer that speaks to the mesh port itself, by extended CONNECT.
    let connected = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[b"alcazar/h2"]).await;
    let sender = client::h2(connected.stream).await;
    let public = || Request::get("http://reviews.shop/public").body(()).unwrap();
    assert_eq!(client::h2_get(&sender, public()).await.0, 200);
    for wish in OTHER_WISHES.iter().filter(|wish| !wish.contains('\r')) {
        let mut request = public();
        *request.method_mut() = http::Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(*wish));
        request.headers_mut().insert("http2-settings", "AAMAAABkAAQAAP__".parse().unwrap());
        let (status, why) = client::h2_get(&sender, request).await;
        assert_eq!(status, 501, "{wish}: {why}");
        assert!(why.contains("websocket alone"), "{why}");
    }
    assert_eq!(seen.lock().unwrap().len(), 1, "{seen:?}");

    // By HTTP/1.1, as an application and within a tunnel: the wish is dropped, and what follows is decided.
    for wish in OTHER_WISHES {
        let upgrade = format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {wish}\r\nHTTP2-Settings: AAMAAABk");
        for by_tunnel in [false, true] {
            let to = if by_tunnel { "" } else { "http://reviews.shop" };
            let requests = format!(
                "GET {to}/public HTTP/1.1\r\nHost: reviews.shop\r\n{upgrade}\r\n\r\n\
                 GET {to}/admin HTTP/1.1\r\nHost: reviews.shop\r\nConnection: close\r\n\r\n"
            );
            let answer = match by_tunnel {
                false => raw(mesh.outbound(), requests.as_bytes()).await,
                true => {
                    let mut tunnel = tunnel(&mesh, app).await;
                    let (first, _) = requests.split_once("\r\n\r\n").unwrap();
                    tunnel.write_all(format!("{first}\r\n\r\n").as_bytes()).await.unwrap();
                    read_head(&mut tunnel).await
                }
            };
            let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
            let expected: &[&str] = if by_tunnel { &["200"] } else { &["200", "403"] };
            assert_eq!(statuses, expected, "{wish} {by_tunnel}: {answer}");
        }
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 1 + 2 * OTHER_WISHES.len(), "{seen:?}");
    for head in seen {
        assert!(head.starts_with("get /public ") && !head.contains("upgrade") && !head.contains("http2"), "{head}");
    }
    drop(sender);
    mesh.stop().await;
}

#[tokio::test]
async fn an_application_changes_to_what_it_was_asked_for_or_to_nothing() {
    for (upgrade, asked, status) in [
        ("Upgrade: WebSocket\r\n", true, "101"),
        ("Upgrade: h2c\r\n", true, "502"),
        ("Upgrade: websocket, h2c\r\n", true, "502"),
        ("Upgrade: websocket\r\nUpgrade: h2c\r\n", true, "502"),
        ("", true, "502"),
        ("Upgrade: websocket\r\n", false, "502"),
    ] {
        let app = tcp(move |mut stream: TcpStream| async move {
            read_head(&mut stream).await;
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{upgrade}\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            crate::common::app::echo(stream).await;
        });
        let mesh = Mesh::start(&Wanted::new(app.await));
        let mut stream = TcpStream::connect(mesh.outbound()).await.unwrap();
        let asks = if asked { UPGRADE } else { "" };
        let request = format!("GET http://reviews.shop/chat HTTP/1.1\r\nHost: reviews.shop\r\n{asks}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{upgrade:?} {asked}: {head}");
        drop(stream);
        mesh.stop().await;
    }
}
