use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::envoy::SECRET_URL;
use alcazar_api::envoy::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use alcazar_api::envoy::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use alcazar_api::envoy::pack;
use alcazar_api::envoy::secret::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use alcazar_api::mesh::{POLICY_URL, SERVICE_URL, WORKLOAD_URL, v1};
use alcazar_api::sds;
use alcazar_identity::Credentials;
use alcazar_mtls::{Acceptor, Clients, grpc, install_default_provider};
use alcazar_policy::WorkloadPolicy;
use alcazar_proxy::{Config, ControlPlane, Proxy};
use alcazar_service::{Readiness, Shutdown, clock};
use http::Request as HttpRequest;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::common::app::App;
use crate::common::{Ca, FRONTEND, REVIEWS, SOON, Wanted, any, client, eventually, policy};

const CONTROL: &str = "spiffe://td/ns/alcazar-system/sa/alcazar-control";
const NAME: &str = "shop/reviews-v1";

/// An agent that gives the same certificate to all.
struct Agent(Credentials);

#[tonic::async_trait]
impl SecretDiscoveryService for Agent {
    type DeltaSecretsStream = tokio_stream::Empty<Result<DeltaDiscoveryResponse, Status>>;
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn stream_secrets(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (responses, outgoing) = mpsc::channel(8);
        let svid = sds::svid_secret(sds::DEFAULT, self.0.svid());
        let bundle = sds::bundle_secret(sds::ROOT_CA, self.0.bundles().get(self.0.svid().id().trust_domain()).unwrap());
        tokio::spawn(async move {
            let mut requests = requests.into_inner();
            while let Some(Ok(request)) = requests.next().await {
                if !request.response_nonce.is_empty() {
                    continue;
                }
                let asked = [&svid, &bundle].into_iter().filter(|secret| request.resource_names.contains(&secret.name));
                let response = DiscoveryResponse {
                    version_info: "1".to_owned(),
                    nonce: "1".to_owned(),
                    type_url: SECRET_URL.to_owned(),
                    resources: asked.map(|secret| pack(SECRET_URL, secret)).collect(),
                    ..DiscoveryResponse::default()
                };
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// One stream of a proxy, in the hands of the test.
struct Stream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u32,
}

impl Stream {
    async fn next(&mut self) -> DeltaDiscoveryRequest {
        tokio::time::timeout(SOON, self.requests.message()).await.unwrap().unwrap().unwrap()
    }

    /// Sends a response and returns the answer to it.
    async fn push(&mut self, url: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryRequest {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let response = DeltaDiscoveryResponse {
            type_url: url.to_owned(),
            nonce: nonce.clone(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        let answer = self.next().await;
        assert_eq!((answer.type_url.as_str(), answer.response_nonce), (url, nonce));
        DeltaDiscoveryRequest { response_nonce: String::new(), ..answer }
    }
}

/// A control plane that hands each stream to the test.
struct Control(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Control {
    type StreamAggregatedResourcesStream = tokio_stream::Empty<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = request.extensions().get::<grpc::PeerInfo>().and_then(|info| info.peer.clone()).unwrap();
        assert_eq!(peer.id().as_str(), REVIEWS);
        let (responses, outgoing) = mpsc::channel(8);
        self.0.send(Stream { requests: request.into_inner(), responses, nonce: 0 }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

fn resource(name: &str, version: &str, url: &str, message: &impl prost::Message) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(pack(url, message)),
        ..Resource::default()
    }
}

fn own_policy(version: &str, policy: &WorkloadPolicy) -> Resource {
    resource(NAME, version, POLICY_URL, &v1::Policy::from(policy))
}

async fn serve_agent(directory: &tempfile::TempDir, credentials: Credentials) -> PathBuf {
    let path = directory.path().join("agent.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let agent = SecretDiscoveryServiceServer::new(Agent(credentials));
    tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(agent).serve_with_incoming(listener).await.unwrap();
    });
    path
}

async fn serve_control(credentials: Credentials) -> (String, mpsc::Receiver<Stream>) {
    let (streams, handed) = mpsc::channel(4);
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, live) = watch::channel(Arc::new(credentials));
    let acceptor = Acceptor::new(live, Clients::Required, grpc::ALPN, clock::system());
    let service = AggregatedDiscoveryServiceServer::new(Control(streams));
    tokio::spawn(async move {
        let _kept = sender;
        grpc::server().add_service(service).serve_with_incoming(grpc::incoming(listener, acceptor)).await.unwrap();
    });
    (address, handed)
}

#[tokio::test]
async fn it_serves_what_it_is_told_and_keeps_it_when_told_nonsense() {
    install_default_provider();
    let (ca, app, directory) = (Ca::new(), App::start(&[]).await, tempfile::tempdir().unwrap());
    let wanted = Wanted::new(app.address);
    let sds_socket = serve_agent(&directory, ca.credentials(REVIEWS)).await;
    let (address, mut streams) = serve_control(ca.credentials(CONTROL)).await;
    let config = Config {
        workload: NAME.parse().unwrap(),
        sds_socket,
        control: ControlPlane { address, identity: None },
        inbound: any(),
        outbound: Some(any()),
        outbound_user: None,
        forwards: vec![],
        decision_log: None,
        workers: Some(1),
        admin: Some(any()),
        drain: Duration::from_secs(5),
    };
    let proxy = Proxy::bind(config).await.unwrap();
    let (inbound, status) = (proxy.addresses().inbound, proxy.status());
    let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
    let running = tokio::spawn(proxy.run(shutdown.clone(), readiness.clone()));

    // It says who it is and asks for what is its own, and for all services.
    let mut stream = tokio::time::timeout(SOON, streams.recv()).await.unwrap().unwrap();
    let asked = [stream.next().await, stream.next().await, stream.next().await];
    assert_eq!(asked[0].node.as_ref().unwrap().id, NAME);
    let names = |request: &DeltaDiscoveryRequest| request.resource_names_subscribe.join(",");
    let asked: Vec<_> = asked.iter().map(|request| (request.type_url.as_str(), names(request))).collect();
    let own = NAME.to_owned();
    assert_eq!(asked, [(WORKLOAD_URL, own.clone()), (POLICY_URL, own), (SERVICE_URL, "*".to_owned())]);

    // Without a policy nothing is accepted.
    let ack = stream.push(WORKLOAD_URL, vec![resource(NAME, "w1", WORKLOAD_URL, &wanted.reviews())], &[]).await;
    assert_eq!(ack.error_detail, None);
    assert_eq!(stream.push(SERVICE_URL, vec![], &[]).await.error_detail, None);
    assert_eq!(readiness.pending(), [format!("configuration of {NAME}")]);
    let early = client::mesh(inbound, ca.credentials(FRONTEND), &[b"alcazar/h2"]);
    assert!(tokio::time::timeout(client::WHILE, early).await.is_err());

    let policy = own_policy("p1", &policy::allow(FRONTEND, "/open"));
    assert_eq!(stream.push(POLICY_URL, vec![policy], &[]).await.error_detail, None);
    tokio::time::timeout(SOON, readiness.wait()).await.unwrap();
    let sender = client::h2(client::mesh(inbound, ca.credentials(FRONTEND), &[b"alcazar/h2"]).await.stream).await;
    let ask = async |path: &str| {
        let request = HttpRequest::get(format!("http://reviews.shop{path}")).body(()).unwrap();
        client::h2_get(&sender, request).await.0
    };
    assert_eq!((ask("/open").await, ask("/closed").await), (200, 403));

    // What cannot be used is refused with a reason, and what was good stays.
    let bad = v1::Workload { address: "nowhere".to_owned(), ..wanted.reviews() };
    let nack = stream.push(WORKLOAD_URL, vec![resource(NAME, "w2", WORKLOAD_URL, &bad)], &[]).await;
    assert!(nack.error_detail.unwrap().message.contains("\"nowhere\" is not an IP address"));
    let foreign = resource("shop/other", "x", POLICY_URL, &v1::Policy::default());
    assert!(stream.push(POLICY_URL, vec![foreign], &[]).await.error_detail.is_some());
    let wrong_type = resource(NAME, "x", SERVICE_URL, &v1::Policy::default());
    assert!(stream.push(POLICY_URL, vec![wrong_type], &[]).await.error_detail.is_some());
    assert_eq!((ask("/open").await, ask("/closed").await), (200, 403));
    assert!(status.borrow().connected && status.borrow().last_error.is_some());

    // After a lost stream the next one tells what is known; meanwhile it serves on.
    drop(stream);
    let mut stream = tokio::time::timeout(SOON, streams.recv()).await.unwrap().unwrap();
    assert_eq!(ask("/open").await, 200);
    let known = |request: DeltaDiscoveryRequest| request.initial_resource_versions;
    assert_eq!(known(stream.next().await), HashMap::from([(NAME.to_owned(), "w1".to_owned())]));
    assert_eq!(known(stream.next().await), HashMap::from([(NAME.to_owned(), "p1".to_owned())]));
    assert!(known(stream.next().await).is_empty());

    // Taken away is denied, not forgotten.
    stream.push(POLICY_URL, vec![], &[NAME]).await;
    eventually("every request is denied", async || ask("/open").await == 403).await;
    stream.push(POLICY_URL, vec![own_policy("p2", &WorkloadPolicy::off())], &[]).await;
    eventually("every request is allowed", async || ask("/closed").await == 200).await;

    drop(sender);
    shutdown.trigger("the test ends");
    tokio::time::timeout(SOON, running).await.unwrap().unwrap().unwrap();
    shutdown.finished(SOON).await.unwrap();
}
