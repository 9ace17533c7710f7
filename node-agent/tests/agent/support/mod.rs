//! What the scenario tests share: a CA behind real gRPC and mutual TLS, and an agent that follows it.

pub(crate) mod ca;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_api::ca::v1::attest_node_request::Evidence;
use alcazar_api::ca::v1::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use alcazar_api::ca::v1::jwt_server::{Jwt, JwtServer};
use alcazar_api::ca::v1::revocation_server::{Revocation, RevocationServer};
use alcazar_mtls::grpc::{ALPN, PeerInfo, incoming, server};
use alcazar_mtls::{Acceptor, Clients};
use alcazar_node_agent::{
    Agent, AttestConfig, Config, CrlsConfig, RegistrationStatus, RunError, Status as AgentStatus,
};
use alcazar_service::{Readiness, Shutdown, clock};
use ca::{Ca, TRUST_DOMAIN};
use futures::{Stream, StreamExt};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

/// Nothing in these tests takes longer, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A CA on a port of its own.
pub(crate) struct CaServer {
    pub(crate) address: SocketAddr,
    service: Service,
    shutdown: Shutdown,
}

#[derive(Clone)]
struct Service {
    ca: Arc<Mutex<Ca>>,
    /// Counts changes that streams must tell.
    changes: watch::Sender<u64>,
}

impl CaServer {
    pub(crate) async fn start() -> Self {
        alcazar_mtls::install_default_provider();
        let service = Service { ca: Arc::new(Mutex::new(Ca::new(clock::now()))), changes: watch::Sender::new(0) };
        Self::serve(service, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn serve(service: Service, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = service.ca().own_credentials(clock::now());
        let acceptor = Acceptor::new(watch::channel(Arc::new(own)).1, Clients::Optional, ALPN, clock::system());
        let shutdown = Shutdown::new();
        let (end, grpc) = (shutdown.clone(), CertificateAuthorityServer::new(service.clone()));
        let (revocation, jwt) = (RevocationServer::new(service.clone()), JwtServer::new(service.clone()));
        shutdown.spawn("ca", async move {
            let serving = server().add_service(grpc).add_service(revocation).add_service(jwt);
            let serving = serving.serve_with_incoming(incoming(listener, acceptor));
            // Not gracefully: an outage asks nobody.
            tokio::select! {
                served = serving => served.unwrap(),
                () = end.cancelled() => {}
            }
        });
        Self { address, service, shutdown }
    }

    pub(crate) fn ca(&self) -> MutexGuard<'_, Ca> {
        self.service.ca()
    }

    /// Changes something that the streams tell.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Ca)) {
        change(&mut self.ca());
        self.service.changes.send_modify(|changes| *changes += 1);
    }

    /// Takes the CA away: its port answers nobody.
    pub(crate) async fn stop(&self) {
        self.shutdown.trigger("test");
        self.shutdown.finished(PATIENCE).await.unwrap();
        // Connections have tasks of their own; their streams end with this.
        self.service.changes.send_modify(|changes| *changes = GONE);
    }

    /// Brings it back where it was, knowing what it knew.
    pub(crate) async fn restart(self) -> Self {
        let service = Service { ca: self.service.ca, changes: watch::Sender::new(0) };
        Self::serve(service, self.address).await
    }
}

impl Service {
    fn ca(&self) -> MutexGuard<'_, Ca> {
        self.ca.lock().unwrap()
    }

    fn tell<T: Send + 'static>(&self, what: impl Fn(&Ca) -> T + Send + 'static) -> Updates<T> {
        let ca = self.ca.clone();
        let told = WatchStream::new(self.changes.subscribe()).map(move |changes| match changes {
            GONE => Err(Status::unavailable("the CA has gone")),
            _ => Ok(what(&ca.lock().unwrap())),
        });
        Box::pin(told)
    }

    /// The serial of the caller's certificate.
    fn caller<T>(&self, request: &Request<T>) -> Result<String, Status> {
        if *self.changes.borrow() == GONE {
            return Err(Status::unavailable("the CA has gone"));
        }
        let info = request.extensions().get::<PeerInfo>().unwrap();
        let peer = info.peer.as_ref().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        if *peer.id() != ca::node() {
            return Err(Status::permission_denied("not a node"));
        }
        Ok(peer.serial().to_owned())
    }
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl CertificateAuthority for Service {
    type WatchRegistrationsStream = Updates<v1::Registrations>;
    type WatchTrustBundlesStream = Updates<v1::TrustBundles>;

    async fn attest_node(&self, request: Request<v1::AttestNodeRequest>) -> Result<Response<v1::IssuedSvid>, Status> {
        let request = request.into_inner();
        let Some(Evidence::JoinToken(token)) = request.evidence else {
            return Err(Status::unauthenticated("an agent attests by its join token"));
        };
        self.ca().attest(&token, &request.csr, clock::now()).map(Response::new)
    }

    async fn renew_node(&self, request: Request<v1::RenewNodeRequest>) -> Result<Response<v1::IssuedSvid>, Status> {
        let serial = self.caller(&request)?;
        self.ca().renew(&serial, &request.into_inner().csr, clock::now()).map(Response::new)
    }

    async fn watch_registrations(
        &self,
        request: Request<v1::WatchRegistrationsRequest>,
    ) -> Result<Response<Self::WatchRegistrationsStream>, Status> {
        self.caller(&request)?;
        let tell =
            |ca: &Ca| v1::Registrations { registrations: ca.registrations.clone(), pods_unknown: ca.pods_unknown };
        Ok(Response::new(self.tell(tell)))
    }

    async fn issue_workloads(
        &self,
        request: Request<v1::IssueWorkloadsRequest>,
    ) -> Result<Response<v1::IssueWorkloadsResponse>, Status> {
        self.caller(&request)?;
        let results = self.ca().issue(&request.into_inner().items, clock::now());
        Ok(Response::new(v1::IssueWorkloadsResponse { results, bundles: None }))
    }

    async fn watch_trust_bundles(
        &self,
        request: Request<v1::WatchTrustBundlesRequest>,
    ) -> Result<Response<Self::WatchTrustBundlesStream>, Status> {
        self.caller(&request)?;
        Ok(Response::new(self.tell(|ca| (&ca.bundles()).into())))
    }
}

#[tonic::async_trait]
impl Jwt for Service {
    async fn issue_jwt_svids(
        &self,
        request: Request<v1::IssueJwtSvidsRequest>,
    ) -> Result<Response<v1::IssueJwtSvidsResponse>, Status> {
        self.caller(&request)?;
        let results = self.ca().issue_tokens(&request.into_inner().items, clock::now());
        Ok(Response::new(v1::IssueJwtSvidsResponse { results }))
    }
}

#[tonic::async_trait]
impl Revocation for Service {
    type WatchRevocationsStream = Updates<v1::SignedRevocations>;

    async fn watch_revocations(
        &self,
        request: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        self.caller(&request)?;
        Ok(Response::new(self.tell(|ca| v1::SignedRevocations { lists: ca.revoked.clone() })))
    }

    type WatchCrlsStream = Updates<v1::Crls>;

    async fn watch_crls(&self, _: Request<v1::WatchCrlsRequest>) -> Result<Response<Self::WatchCrlsStream>, Status> {
        Err(Status::unimplemented("this CA tells no CRLs"))
    }
}

/// An agent, and the directories that outlive it.
pub(crate) struct Home {
    directory: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("sockets/{name}.sock"))
    }

    /// Lets other users pass through to the sockets.
    pub(crate) fn open_to_all(&self) {
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    }

    pub(crate) async fn agent(&self, ca: SocketAddr, token: Option<String>) -> Running {
        let config = Config {
            trust_domain: TRUST_DOMAIN.parse().unwrap(),
            cluster: "east".into(),
            node: "vm-1".into(),
            ca_address: ca.to_string(),
            join_token: token,
            join_token_file: None,
            attest: AttestConfig::default(),
            seal: None,
            data_dir: self.directory.path().join("data"),
            sockets_dir: self.directory.path().join("sockets"),
            admin: None,
            files: Vec::new(),
            kubernetes: None,
            narrow: None,
            crls: CrlsConfig::Auto,
        };
        let agent = Agent::open(config, clock::system()).await.unwrap();
        let (status, readiness, shutdown) = (agent.status(), Readiness::new(), Shutdown::new());
        let (ready, end) = (readiness.clone(), shutdown.clone());
        let (over, outcome) = oneshot::channel();
        shutdown.spawn("agent", async move { drop(over.send(agent.run(end, ready).await)) });
        Running { status, outcome, shutdown }
    }
}

/// An agent at work.
pub(crate) struct Running {
    pub(crate) status: watch::Receiver<Arc<AgentStatus>>,
    outcome: oneshot::Receiver<Result<(), RunError>>,
    shutdown: Shutdown,
}

impl Running {
    pub(crate) async fn until(&mut self, so: impl FnMut(&Arc<AgentStatus>) -> bool) -> Arc<AgentStatus> {
        soon(self.status.wait_for(so)).await.unwrap().clone()
    }

    /// Waits until this registration is so.
    pub(crate) async fn registration(
        &mut self,
        id: &str,
        so: impl Fn(&RegistrationStatus) -> bool,
    ) -> Arc<RegistrationStatus> {
        let find = |status: &AgentStatus| status.registrations.iter().find(|r| r.id == id && so(r)).cloned();
        let status = self.until(|status| find(status).is_some()).await;
        find(&status).unwrap()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.trigger("test");
        self.shutdown.finished(PATIENCE).await.unwrap();
        self.outcome.await.unwrap().unwrap();
    }
}

/// What comes of a future, which must not take for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}

/// Says that a scenario needs something that is not here; in CI everything has to be.
#[allow(clippy::disallowed_methods, reason = "whether this is CI, is told by the environment")]
pub(crate) fn passed_over(needs: &str) {
    assert!(std::env::var_os("CI").is_none(), "needs {needs}");
    eprintln!("passed over: needs {needs}");
}

/// What the CA's counter says when it has gone.
const GONE: u64 = u64::MAX;
