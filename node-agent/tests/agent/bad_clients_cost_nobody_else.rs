//! What a local process can do to the shared socket, which everybody may open, and that others are served meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use alcazar_api::envoy::discovery::{DiscoveryRequest, DiscoveryResponse};
use alcazar_api::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use alcazar_api::envoy::{SECRET_URL, Status as RpcStatus};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use crate::support::{CaServer, Home, Running, soon};

async fn serving() -> (CaServer, Home, Running) {
    let ca = CaServer::start().await;
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    ca.ca().register("shop.reviews", "reviews", &[&uid]);
    let home = Home::new();
    let token = ca.ca().token();
    let mut agent = home.agent(ca.address, Some(token)).await;
    agent.registration("shop.reviews", |r| r.certificate.is_some()).await;
    (ca, home, agent)
}

async fn client(socket: &Path) -> SecretDiscoveryServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    SecretDiscoveryServiceClient::new(soon(endpoint.connect()).await.unwrap())
}

fn subscribe() -> DiscoveryRequest {
    let resource_names = vec!["default".to_owned()];
    DiscoveryRequest { resource_names, type_url: SECRET_URL.into(), ..DiscoveryRequest::default() }
}

/// That somebody who behaves is served.
async fn is_served(socket: &Path) {
    let response = soon(client(socket).await.fetch_secrets(subscribe())).await.unwrap().into_inner();
    assert_eq!(response.resources.len(), 1);
}

type Opened = (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>);

async fn open(client: &mut SecretDiscoveryServiceClient<Channel>) -> Result<Opened, tonic::Status> {
    let (requests, outgoing) = mpsc::channel(64);
    requests.send(subscribe()).await.unwrap();
    let responses = soon(client.stream_secrets(ReceiverStream::new(outgoing))).await?.into_inner();
    Ok((requests, responses))
}

#[tokio::test]
async fn who_says_nothing_or_what_is_not_http2_is_soon_gone() {
    let (_ca, home, agent) = serving().await;
    let socket = home.socket("agent");
    let mut clients = Vec::new();
    let huge = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 9], &[0; 1000]].concat();
    let noise: Vec<u8> = (0..5000_u32).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    for said in [&b""[..], b"PRI * HT", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", &noise, &huge] {
        for _ in 0..20 {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            // It may have been cut off in the middle of what it said.
            drop(stream.write_all(said).await);
            clients.push(stream);
        }
    }
    let begun = Instant::now();
    is_served(&socket).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "others do not wait for them");
    for mut stream in clients {
        // To the end, in whichever way: what is said before it are HTTP/2's own last words.
        drop(soon(stream.read_to_end(&mut Vec::new())).await);
    }
    is_served(&socket).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_of_one_user_are_too_many_and_another_socket_is_served() {
    let (ca, home, agent) = serving().await;
    let (socket, own) = (home.socket("agent"), home.socket("shop.own"));
    ca.change(|ca| ca.register("shop.own", "own", &["socket:shop.own"]));
    soon(async {
        while !own.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..50 {
        let client = client(&socket).await;
        let opening = (0..200).map(|_| {
            let mut client = client.clone();
            async move { open(&mut client).await }
        });
        for opened in join_all(opening).await {
            match opened {
                Ok(stream) => held.push(stream),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((held.len(), refused), (2048, 7952));
    // The owner of a workload's socket has a share of its own.
    is_served(&own).await;
    // Those that are there are served on, and room that was left is somebody's again.
    for (_, responses) in &mut held {
        assert!(soon(responses.message()).await.unwrap().is_some());
    }
    held.truncate(10);
    soon(async {
        while client(&socket).await.fetch_secrets(subscribe()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(held);
    agent.stop().await;
}

#[tokio::test]
async fn who_never_acknowledges_is_told_of_every_change() {
    let (ca, home, agent) = serving().await;
    let (_requests, mut responses) = open(&mut client(&home.socket("agent")).await).await.unwrap();
    let mut versions = Vec::new();
    for ttl in 1..=5 {
        versions.push(soon(responses.message()).await.unwrap().unwrap().version_info);
        ca.change(|ca| ca.registrations[0].ttl = 600 + ttl);
    }
    versions.dedup();
    assert_eq!(versions.len(), 5);
    agent.stop().await;
}

#[tokio::test]
async fn who_rejects_for_ever_is_answered_more_and_more_slowly() {
    let (_ca, home, agent) = serving().await;
    let socket = home.socket("agent");
    let (requests, mut responses) = open(&mut client(&socket).await).await.unwrap();
    let begun = Instant::now();
    for round in 0..7 {
        let response = soon(responses.message()).await.unwrap().unwrap();
        if round == 5 {
            assert!(begun.elapsed() < Duration::from_secs(1), "the first ones are answered at once");
        }
        // Each time it names something new, and so is owed an answer.
        let request = DiscoveryRequest {
            resource_names: vec!["default".to_owned(), format!("spiffe://td.example/{round}")],
            response_nonce: response.nonce,
            error_detail: Some(RpcStatus { message: "no".into(), ..RpcStatus::default() }),
            ..subscribe()
        };
        requests.send(request).await.unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    is_served(&socket).await;
    soon(responses.message()).await.unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(3), "a second, and then two");
    agent.stop().await;
}
