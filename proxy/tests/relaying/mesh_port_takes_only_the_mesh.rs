use std::sync::Arc;

use alcazar_identity::Credentials;
use alcazar_mtls::{Connector, Expected};
use alcazar_service::clock;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::common::app::App;
use crate::common::client::{self, Client, raw, raw_over};
use crate::common::{Ca, FRONTEND, Mesh, SOON, Wanted, policy};

#[tokio::test]
async fn plaintext_is_told_what_this_port_is() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let inbound = mesh.reviews.addresses.inbound;
    let answer = raw(inbound, b"GET / HTTP/1.1\r\nHost: reviews.shop\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("mutual TLS"), "{answer}");
    assert_eq!(raw(inbound, b"\0\0\0\x01 something else").await, "");
    assert_eq!(app.count(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn strangers_and_the_anonymous_are_refused() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let stranger = Ca::new().credentials(FRONTEND);
    let expired = mesh.ca.credentials_for(FRONTEND, std::time::Duration::ZERO);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    for credentials in [stranger, expired] {
        // They believe our root, so that only their own certificate is wrong.
        let credentials = Credentials::new(credentials.svid().clone(), mesh.ca.bundles());
        let (_sender, live) = watch::channel(Arc::new(credentials));
        let connector = Connector::new(live, &[b"alcazar/h2"], clock::system());
        let stream = TcpStream::connect(mesh.reviews.addresses.inbound).await.unwrap();
        // In TLS 1.3 the refusal comes with the first read.
        if let Ok(mut connected) = connector.connect(stream, &Expected::Any).await {
            drop(connected.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
            let read = tokio::time::timeout(SOON, connected.stream.read(&mut [0; 64])).await.unwrap();
            assert!(read.is_err(), "{read:?}");
        }
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_protocol_is_agreed_on_or_there_is_none() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let mut none = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[]).await;
    assert_eq!(raw_over(&mut none.stream, b"GET / HTTP/1.1\r\nHost: reviews.shop\r\n\r\n").await, "");
    mesh.stop().await;
}

#[tokio::test]
async fn hbone_has_tunnels_alone_and_a_tunnel_to_an_http_port_is_decided_per_request() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted { policy: policy::allow(FRONTEND, "/open"), ..Wanted::new(app.address) });
    let connected = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[b"h2"]).await;
    let sender = client::h2(connected.stream).await;
    let request = Request::get("http://reviews.shop/open").body(()).unwrap();
    let (status, body) = client::h2_get(&sender, request).await;
    assert_eq!((status, body.as_str()), (400, "tunnels alone are served to this client\n"));

    let port = app.address.port();
    for (target, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("127.0.0.2:{port}"), 421),
        (format!("reviews.shop:{port}"), 421),
        ("127.0.0.1:1".to_owned(), 421),
    ] {
        let mut sender = sender.clone().ready().await.unwrap();
        let request = Request::connect(target.as_str()).body(()).unwrap();
        let (response, send) = sender.send_request(request, false).unwrap();
        let (head, receive) = response.await.unwrap().into_parts();
        assert_eq!(head.status, status, "{target}");
        if status == 200 {
            let mut tunnel = crate::tcp_is_tunnelled::stream_of(send, receive);
            let requests = "GET /open HTTP/1.1\r\nHost: whatever\r\n\r\nGET /closed HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n";
            let answer = raw_over(&mut tunnel, requests.as_bytes()).await;
            assert!(answer.contains("HTTP/1.1 200") && answer.contains("HTTP/1.1 403"), "{answer}");
            assert_eq!(app.last().headers["host"], "whatever");
        }
    }
    assert_eq!(app.count(), 1);
    drop(sender);
    mesh.stop().await;
}

#[tokio::test]
async fn a_request_for_somebody_else_is_misdirected() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let connected = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[b"alcazar/h2"]).await;
    let sender = client::h2(connected.stream).await;
    for (authority, status) in [
        ("reviews.shop", 200),
        ("reviews", 200),
        ("Reviews.Shop.svc:80", 200),
        ("reviews.shop:81", 421),
        ("ratings.shop", 421),
        ("127.0.0.1", 421),
    ] {
        let request = Request::get(format!("http://{authority}/")).body(()).unwrap();
        assert_eq!(client::h2_get(&sender, request).await.0, status, "{authority}");
    }
    drop(sender);
    mesh.stop().await;
}

#[tokio::test]
async fn a_server_that_is_somebody_else_gets_nothing() {
    let app = App::start(&[]).await;
    let expected = "spiffe://td/ns/shop/sa/ratings".to_owned();
    let mesh = Mesh::start(&Wanted { expected, ..Wanted::new(app.address) });
    let response = Client::new(mesh.outbound()).await.get("http://reviews.shop/").await;
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    assert_eq!(response.status(), 502, "{body}");
    assert!(body.contains("the server is not who it should be"), "{body}");
    assert_eq!(app.count(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn who_connects_and_says_nothing_does_not_stay() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let begun = tokio::time::Instant::now();
    let mut silent = TcpStream::connect(mesh.reviews.addresses.inbound).await.unwrap();
    let read = tokio::time::timeout(SOON, silent.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "{:?}", begun.elapsed());
    mesh.stop().await;
}
