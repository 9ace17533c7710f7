use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::common::app::App;
use crate::common::client::{self, connect};
use crate::common::{FRONTEND, Mesh, SOON, Wanted, any, policy};

/// A gRPC-like server in clear HTTP/2: echoes each message as it comes, then says how it went in trailers.
async fn grpc_app() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        assert_eq!(request.headers()["te"], "trailers");
                        assert_eq!(request.headers()["content-type"], "application/grpc");
                        let caller = request.headers()["x-forwarded-client-cert"].clone();
                        let response = Response::builder().header("x-caller", caller).body(()).unwrap();
                        let mut send = respond.send_response(response, false).unwrap();
                        let mut body = request.into_body();
                        while let Some(data) = body.data().await {
                            let data = data.unwrap();
                            body.flow_control().release_capacity(data.len()).unwrap();
                            send.send_data(data, false).unwrap();
                        }
                        let sent = body.trailers().await.unwrap().unwrap_or_default();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        trailers.extend(sent);
                        send.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

async fn converse(sender: h2::client::SendRequest<Bytes>) {
    let mut sender = sender.ready().await.unwrap();
    let request = Request::post("http://reviews.shop:9000/shop.Reviews/Follow")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut send) = sender.send_request(request, false).unwrap();
    // The response begins before the request has a body: both directions are open at once.
    let (head, mut body) = tokio::time::timeout(SOON, response).await.unwrap().unwrap().into_parts();
    assert_eq!(head.status, 200);
    assert!(head.headers["x-caller"].to_str().unwrap().ends_with(FRONTEND));
    for n in 0..10 {
        let message = Bytes::from(format!("message {n}"));
        send.send_data(message.clone(), false).unwrap();
        let echoed = tokio::time::timeout(SOON, body.data()).await.unwrap().unwrap().unwrap();
        body.flow_control().release_capacity(echoed.len()).unwrap();
        assert_eq!(echoed, message);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-client", "done".parse().unwrap());
    send.send_trailers(trailers).unwrap();
    assert!(tokio::time::timeout(SOON, body.data()).await.unwrap().is_none());
    let trailers = tokio::time::timeout(SOON, body.trailers()).await.unwrap().unwrap().unwrap();
    assert_eq!((&trailers["grpc-status"], &trailers["x-client"]), (&"0".parse().unwrap(), &"done".parse().unwrap()));
}

#[tokio::test]
async fn messages_and_trailers_pass_as_they_come() {
    let app = App::start(&[]).await;
    let grpc = grpc_app().await;
    let wanted =
        Wanted { grpc: Some(grpc), policy: policy::allow(FRONTEND, "/shop.Reviews/*"), ..Wanted::new(app.address) };
    let mesh = Mesh::start(&wanted);
    // With prior knowledge, and through a tunnel as gRPC's own http_proxy does.
    converse(client::h2(TcpStream::connect(mesh.outbound()).await.unwrap()).await).await;
    converse(client::h2(connect(mesh.outbound(), "reviews.shop:9000").await.unwrap()).await).await;

    let denied = Request::post("http://reviews.shop:9000/shop.Admin/Drop").header("content-type", "application/grpc");
    let sender = client::h2(TcpStream::connect(mesh.outbound()).await.unwrap()).await;
    assert_eq!(client::h2_get(&sender, denied.body(()).unwrap()).await.0, 403);
    drop(sender);
    mesh.stop().await;
}

#[tokio::test]
async fn a_stream_that_a_new_policy_forbids_is_reset() {
    let app = App::start(&[]).await;
    let grpc = grpc_app().await;
    let wanted = Wanted { grpc: Some(grpc), policy: policy::allow_all(FRONTEND), ..Wanted::new(app.address) };
    let mesh = Mesh::start(&wanted);
    let mut sender = client::h2(TcpStream::connect(mesh.outbound()).await.unwrap()).await.ready().await.unwrap();
    let request = Request::post("http://reviews.shop:9000/shop.Reviews/Follow")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut send) = sender.send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    mesh.reviews.enforce(policy::allow(FRONTEND, "/shop.Reviews/*"));
    send.send_data(Bytes::from("still allowed"), false).unwrap();
    assert!(tokio::time::timeout(SOON, body.data()).await.unwrap().unwrap().is_ok());
    mesh.reviews.enforce(policy::allow(FRONTEND, "/other"));
    assert!(tokio::time::timeout(SOON, body.data()).await.unwrap().unwrap().is_err());
    drop((sender, send, body));
    mesh.stop().await;
}
