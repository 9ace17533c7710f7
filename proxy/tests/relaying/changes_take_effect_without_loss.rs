use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::app::{self, App};
use crate::common::client::{self, Client, connect};
use crate::common::{FRONTEND, Mesh, REVIEWS, SOON, Wanted, any, eventually, frontend_snapshot, policy};

#[tokio::test]
async fn a_policy_acts_at_once_on_connections_that_live() {
    let app = App::start(&[]).await;
    let tcp = app::tcp(app::echo).await;
    let wanted = Wanted { tcp: Some(tcp), policy: policy::allow_all(FRONTEND), ..Wanted::new(app.address) };
    let mesh = Mesh::start(&wanted);
    let mut client = Client::new(mesh.outbound()).await;
    let mut tunnel = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap();
    let mut got = [0; 2];
    assert_eq!(client.get("http://reviews.shop/a").await.status(), 200);
    tunnel.write_all(b"hi").await.unwrap();
    tunnel.read_exact(&mut got).await.unwrap();

    // Another policy that allows both: nothing is dropped.
    mesh.reviews.enforce(policy::allow_all(FRONTEND));
    assert_eq!(client.get("http://reviews.shop/a").await.status(), 200);
    tunnel.write_all(b"ho").await.unwrap();
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ho");

    // One that forbids TCP, and one path: the tunnel ends, the connection of requests stays.
    mesh.reviews.enforce(policy::allow(FRONTEND, "/b"));
    let end = tokio::time::timeout(SOON, tunnel.read(&mut got)).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    assert_eq!(client.get("http://reviews.shop/a").await.status(), 403);
    assert_eq!(client.get("http://reviews.shop/b").await.status(), 200);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_load_and_no_request_fails() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted { workers: 2, ..Wanted::new(app.address) });
    let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let outbound = mesh.outbound();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (served, stop) = (served.clone(), stop.clone());
            tokio::spawn(async move {
                let mut client = Client::new(outbound).await;
                while !stop.load(Ordering::SeqCst) {
                    let response = client.get("http://reviews.shop/").await;
                    assert_eq!(response.status(), 200, "{:?}", response.body());
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let more = |than: usize| {
        let served = served.clone();
        async move { eventually("requests go on", || async { served.load(Ordering::SeqCst) > than + 50 }).await }
    };
    more(0).await;
    for _ in 0..5 {
        mesh.reviews.credentials.send_replace(Arc::new(mesh.ca.credentials(REVIEWS)));
        more(served.load(Ordering::SeqCst)).await;
        mesh.frontend.credentials.send_replace(Arc::new(mesh.ca.credentials(FRONTEND)));
        more(served.load(Ordering::SeqCst)).await;
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    // The application was told the identity by the newest certificate.
    let leaf = mesh.frontend.credentials.borrow().svid().chain()[0].clone();
    let forwarded = app.last().headers["x-forwarded-client-cert"].clone();
    let hash = alcazar_identity::Fingerprint::of(&leaf).to_string();
    assert!(forwarded.to_str().unwrap().contains(&hash));
    mesh.stop().await;
}

#[tokio::test]
async fn a_request_that_is_open_while_certificates_rotate_completes() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let application = app::tcp(move |mut stream: tokio::net::TcpStream| {
        let mut gone = gone.clone();
        async move {
            client::read_head(&mut stream).await;
            gone.wait_for(|go| *go).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlate").await.unwrap();
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(application));
    let outbound = mesh.outbound();
    let open = tokio::spawn(async move { Client::new(outbound).await.get("http://reviews.shop/").await });
    tokio::time::sleep(client::WHILE).await;
    mesh.reviews.credentials.send_replace(Arc::new(mesh.ca.credentials(REVIEWS)));
    mesh.frontend.credentials.send_replace(Arc::new(mesh.ca.credentials(FRONTEND)));
    tokio::time::sleep(client::WHILE).await;
    go.send(true).unwrap();
    let response = open.await.unwrap();
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"late"[..]));
    mesh.stop().await;
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_certificate_that_proved_it() {
    let app = App::start(&[]).await;
    let tcp = app::tcp(app::echo).await;
    let wanted = Wanted { tcp: Some(tcp), policy: policy::allow_all(FRONTEND), ..Wanted::new(app.address) };
    let mesh = Mesh::start(&wanted);
    let short = mesh.ca.credentials_for(FRONTEND, Duration::from_secs(3));
    mesh.frontend.credentials.send_replace(Arc::new(short));
    let mut tunnel = connect(mesh.outbound(), "reviews.shop:5432").await.unwrap();
    let mut got = [0; 2];
    tunnel.write_all(b"hi").await.unwrap();
    tunnel.read_exact(&mut got).await.unwrap();
    // The next certificate is there in time, but this tunnel was proved by the old one.
    mesh.frontend.credentials.send_replace(Arc::new(mesh.ca.credentials(FRONTEND)));
    let end = tokio::time::timeout(SOON, tunnel.read(&mut got)).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    assert_eq!(Client::new(mesh.outbound()).await.get("http://reviews.shop/").await.status(), 200);
    mesh.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_passed_over() {
    let app = App::start(&[]).await;
    let wanted = Wanted::new(app.address);
    let mesh = Mesh::start(&wanted);
    let away = std::net::TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let services = [wanted.service(&[away, mesh.reviews.addresses.inbound])];
    mesh.frontend.snapshots.send_replace(Arc::new(frontend_snapshot(&services)));
    let mut client = Client::new(mesh.outbound()).await;
    for n in 0..50 {
        assert_eq!(client.get("http://reviews.shop/").await.status(), 200, "{n}");
    }
    mesh.frontend.snapshots.send_replace(Arc::new(frontend_snapshot(&[wanted.service(&[away])])));
    assert_eq!(client.get("http://reviews.shop/").await.status(), 503);
    mesh.frontend.snapshots.send_replace(Arc::new(frontend_snapshot(&[wanted.service(&[])])));
    let response = client.get("http://reviews.shop/").await;
    assert_eq!(response.status(), 503);
    assert!(String::from_utf8_lossy(response.body()).contains("no workload serves it"));
    mesh.stop().await;
}

#[tokio::test]
async fn the_end_lets_what_is_open_complete() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let application = app::tcp(move |mut stream: tokio::net::TcpStream| {
        let mut gone = gone.clone();
        async move {
            client::read_head(&mut stream).await;
            gone.wait_for(|go| *go).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlate").await.unwrap();
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(application));
    let outbound = mesh.outbound();
    let open = tokio::spawn(async move { Client::new(outbound).await.get("http://reviews.shop/").await });
    tokio::time::sleep(client::WHILE).await;
    mesh.reviews.shutdown.trigger("test");
    mesh.frontend.shutdown.trigger("test");
    tokio::time::sleep(client::WHILE).await;
    go.send(true).unwrap();
    assert_eq!(open.await.unwrap().body()[..], b"late"[..]);
    mesh.stop().await;
    assert!(tokio::net::TcpStream::connect(outbound).await.is_err());
}

#[tokio::test]
async fn an_application_that_closes_kept_connections_loses_no_request() {
    let application = app::tcp(|mut stream: tokio::net::TcpStream| async move {
        client::read_head(&mut stream).await;
        // It says nothing of closing, and closes.
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(application));
    let mut client = Client::new(mesh.outbound()).await;
    for n in 0..100 {
        assert_eq!(client.get("http://reviews.shop/").await.status(), 200, "{n}");
    }
    mesh.stop().await;
}

/// A server of the mesh that refuses the first stream of each kind unprocessed, then answers.
async fn refusing(acceptor: alcazar_mtls::Acceptor, seen: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let accepted = acceptor.accept(stream).await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(accepted.stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let refuse = seen.fetch_add(1, Ordering::SeqCst) == 0 || request.method() == http::Method::POST;
                    if refuse {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        drop(respond.send_response(http::Response::new(()), true));
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_request_that_was_refused_unprocessed_is_sent_again_unless_its_body_has_left() {
    let app = App::start(&[]).await;
    let wanted = Wanted::new(app.address);
    let mesh = Mesh::start(&wanted);
    let (_kept, live) = tokio::sync::watch::channel(Arc::new(mesh.ca.credentials(REVIEWS)));
    let clock = alcazar_service::clock::system();
    let acceptor = alcazar_mtls::Acceptor::new(live, alcazar_mtls::Clients::Required, &[b"alcazar/h2"], clock);
    let seen = Arc::new(AtomicUsize::new(0));
    let refusing = refusing(acceptor, seen.clone()).await;
    mesh.frontend.snapshots.send_replace(Arc::new(frontend_snapshot(&[wanted.service(&[refusing])])));
    let mut client = Client::new(mesh.outbound()).await;
    assert_eq!(client.get("http://reviews.shop/").await.status(), 200);
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    let mut post = client::get("http://reviews.shop/", &[]);
    *post.method_mut() = http::Method::POST;
    *post.body_mut() = "body".into();
    assert_eq!(client.send(post).await.status(), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    mesh.stop().await;
}
