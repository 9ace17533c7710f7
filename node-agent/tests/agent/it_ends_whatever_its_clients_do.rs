//! An agent that is told to end does so in seconds, whatever those do who have its streams open.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use alcazar_api::envoy::SECRET_URL;
use alcazar_api::envoy::discovery::DiscoveryRequest;
use alcazar_api::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use alcazar_api::sds;
use alcazar_service::{Shutdown, clock};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::support::{CaServer, Home, PATIENCE, soon};

/// A client that begins as HTTP/2 says and then neither reads nor writes, as a process that is stopped.
fn stopped_client(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").unwrap();
    // The server's settings: it has read the beginning.
    stream.read_exact(&mut [0; 9]).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_do_not_keep_an_agent_from_ending() {
    let ca = CaServer::start().await;
    ca.ca().register("shop.reviews", "reviews", &["socket:shop.reviews"]);
    let home = Home::new();
    let token = ca.ca().token();
    let agent = home.agent(ca.address, Some(token)).await;
    let socket = home.socket("shop.reviews");

    // Our own client, which follows its credentials on.
    let (credentials, driver) = soon(sds::connect(socket.clone(), clock::system())).await;
    let clients = Shutdown::new();
    clients.spawn("sds client", driver);
    // A stock client with a stream on which it never says anything again, nor ends it.
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    let channel = soon(endpoint.connect()).await.unwrap();
    let mut stock = SecretDiscoveryServiceClient::new(channel);
    let (requests, outgoing) = mpsc::channel(4);
    let request = DiscoveryRequest {
        resource_names: vec!["default".into()],
        type_url: SECRET_URL.into(),
        ..DiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
    let mut responses = soon(stock.stream_secrets(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    soon(responses.message()).await.unwrap().unwrap();
    // And clients of both sockets that are stopped where they are.
    let stopped = [socket, home.socket("agent")].map(|socket| stopped_client(&socket));

    agent.stop().await;
    assert!(soon(responses.message()).await.is_ok_and(|end| end.is_none()), "its stream is ended in order");
    drop((credentials, requests, stopped));
    clients.trigger("test");
    soon(clients.finished(PATIENCE)).await.unwrap();
}
