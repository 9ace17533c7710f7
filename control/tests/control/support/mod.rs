//! A control plane with real files, a real socket for its identity, and clients over real mutual TLS.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use alcazar_api::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use alcazar_api::envoy::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use alcazar_api::envoy::secret::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use alcazar_api::envoy::{SECRET_URL, Status as WireStatus, core::Node, pack};
use alcazar_api::sds::{DEFAULT, ROOT_CA, bundle_secret, svid_secret};
use alcazar_control::{Config, Control, Status, World};
use alcazar_identity::{Credentials, SvidKey, TrustBundle, X509Svid};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::{Readiness, Shutdown, clock};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Channel;
use tonic::{Request, Response, Streaming};

pub(crate) const CONTROL: &str = "spiffe://cluster.local/ns/alcazar-system/sa/alcazar-control";

/// What was logged in this process, one entry an event.
pub(crate) fn log() -> watch::Receiver<Vec<String>> {
    static LOG: LazyLock<Arc<watch::Sender<Vec<String>>>> = LazyLock::new(|| {
        let log = Arc::new(watch::Sender::new(Vec::new()));
        let entries = Arc::clone(&log);
        let writer = move || Entry(Arc::clone(&entries));
        tracing_subscriber::fmt().with_ansi(false).with_writer(writer).init();
        log
    });
    LOG.subscribe()
}

/// Each event is written in one piece.
struct Entry(Arc<watch::Sender<Vec<String>>>);

impl io::Write for Entry {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_modify(|log| log.push(String::from_utf8_lossy(bytes).into_owned()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: it takes too long"),
    }
}

/// A root that issues for everybody.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    bundle: TrustBundle,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).unwrap().der().clone();
        let bundle = TrustBundle::new("cluster.local".parse().unwrap(), 1, [der]).unwrap();
        Self { issuer: Issuer::new(params, key), bundle }
    }

    pub(crate) fn credentials(&self, id: &str) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut params = params();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let svid = X509Svid::new(vec![der], SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
        Credentials::new(svid, self.bundle.clone().into())
    }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (clock::now() - Duration::from_secs(120)).into();
    params.not_after = (clock::now() + Duration::from_secs(3600)).into();
    params
}

/// A running control plane.
pub(crate) struct Mesh {
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    pub(crate) world: watch::Receiver<Arc<World>>,
    pub(crate) status: watch::Receiver<Arc<Status>>,
    shutdown: Shutdown,
}

pub(crate) fn config(folder: &Path) -> Config {
    let yaml = format!(
        "mesh: {0}/mesh.yaml\naddresses: {0}/addresses.json\nlisten: 127.0.0.1:0\nsdsSocket: {0}/control.sock\n",
        folder.display()
    );
    alcazar_yaml::parse(&alcazar_yaml::SourceFile::new("control.yaml", yaml)).unwrap()
}

impl Mesh {
    pub(crate) async fn start(mesh: &str, policy: &str) -> Self {
        alcazar_mtls::install_default_provider();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("policies")).unwrap();
        fs::write(folder.path().join("mesh.yaml"), mesh).unwrap();
        fs::write(folder.path().join("policies/rbac.yaml"), policy).unwrap();
        let authority = Authority::new();
        let shutdown = Shutdown::new();
        serve_sds(&folder.path().join("control.sock"), authority.credentials(CONTROL), &shutdown);

        let control = Control::open(config(folder.path())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (world, status, readiness) = (control.world(), control.status(), Readiness::new());
        let held = readiness.register("started");
        let running = control.run(listener, shutdown.clone(), readiness.clone());
        let all = readiness.clone();
        shutdown.spawn("control", async move {
            running.await.unwrap();
        });
        // The control plane has registered its own part once its identity is asked for.
        let pending = || all.pending().iter().any(|part| part.starts_with("control"));
        soon("control registers", async {
            while !pending() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        held.ready();
        soon("control is ready", all.wait()).await;
        Self { folder, address, authority, world, status, shutdown }
    }

    /// Ends everything, and sees that it ends.
    pub(crate) async fn stop(self) {
        self.shutdown.trigger("the test is over");
        self.shutdown.finished(Duration::from_secs(20)).await.unwrap();
    }

    /// Replaces a file as an editor does.
    pub(crate) fn save(&self, file: &str, text: &str) {
        let path = self.folder.path().join(file);
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub(crate) async fn client(&self, id: &str) -> Client {
        Client::connect(self.address, self.authority.credentials(id)).await.unwrap()
    }

    /// Waits until that is so of the status.
    pub(crate) async fn status_becomes(&mut self, what: &str, is: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let status = soon(what, self.status.wait_for(is)).await.unwrap();
        Arc::clone(&status)
    }
}

/// An ADS client that says everything itself.
pub(crate) struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    pub(crate) fn channel(address: SocketAddr, credentials: Credentials) -> Channel {
        let (_sender, live) = watch::channel(Arc::new(credentials));
        let connector = Connector::new(live, grpc::ALPN, clock::system());
        grpc::channel(address, connector, Expected::id(CONTROL.parse().unwrap()))
    }

    pub(crate) async fn connect(address: SocketAddr, credentials: Credentials) -> Result<Self, tonic::Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(Self::channel(address, credentials));
        let (requests, outgoing) = mpsc::channel(8);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn subscribe(&self, url: &str, names: &[&str]) {
        self.send(subscription(url, names)).await;
    }

    /// The next response.
    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, tonic::Status> {
        match soon("a response", self.responses.message()).await? {
            Some(response) => Ok(response),
            None => Err(tonic::Status::ok("the stream ended")),
        }
    }

    /// The next response in short, acknowledged.
    pub(crate) async fn take(&mut self) -> String {
        let response = self.next().await.unwrap();
        self.answer(&response, None).await;
        shown(&response)
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let error_detail =
            refusal.map(|reason| WireStatus { code: 3, message: reason.to_owned(), ..WireStatus::default() });
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(answer).await;
    }
}

pub(crate) fn subscription(url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(crate) fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), ..Node::default() })
}

/// `Policy +shop/a -shop/b`
pub(crate) fn shown(response: &DeltaDiscoveryResponse) -> String {
    let kind = response.type_url.rsplit('.').next().unwrap();
    let changed = response.resources.iter().map(|resource| format!(" +{}", resource.name));
    let removed = response.removed_resources.iter().map(|name| format!(" -{name}"));
    changed.chain(removed).fold(kind.to_owned(), |text, part| text + &part)
}

/// A clock for measuring, so that a test says how long something took.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn read(&self) -> Duration {
        self.0.elapsed()
    }
}

/// An agent that gives one identity and keeps the stream open.
struct Agent {
    secrets: DiscoveryResponse,
    shutdown: Shutdown,
}

fn serve_sds(socket: &Path, credentials: Credentials, shutdown: &Shutdown) {
    let bundle = credentials.bundles().get(&"cluster.local".parse().unwrap()).unwrap();
    let secrets = [svid_secret(DEFAULT, credentials.svid()), bundle_secret(ROOT_CA, bundle)];
    let secrets = DiscoveryResponse {
        version_info: "1".to_owned(),
        nonce: "1".to_owned(),
        type_url: SECRET_URL.to_owned(),
        resources: secrets.iter().map(|secret| pack(SECRET_URL, secret)).collect(),
        ..DiscoveryResponse::default()
    };
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let end = shutdown.clone();
    let agent = Agent { secrets, shutdown: shutdown.clone() };
    shutdown.spawn("agent", async move {
        tonic::transport::Server::builder()
            .add_service(SecretDiscoveryServiceServer::new(agent))
            .serve_with_incoming_shutdown(incoming, async move { end.cancelled().await })
            .await
            .unwrap();
    });
}

#[tonic::async_trait]
impl SecretDiscoveryService for Agent {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, tonic::Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, tonic::Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, tonic::Status> {
        let (responses, outgoing) = mpsc::channel(1);
        responses.send(Ok(self.secrets.clone())).await.unwrap();
        let (mut requests, shutdown) = (request.into_inner(), self.shutdown.clone());
        self.shutdown.spawn("agent's stream", async move {
            loop {
                tokio::select! {
                    request = requests.message() => if !matches!(request, Ok(Some(_))) { break },
                    () = shutdown.cancelled() => break,
                }
            }
            drop(responses);
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }
}
