//! The CA as a process: its listeners, and what it does by itself.

use std::{io, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use alcazar_api::{
    MAX_MESSAGE,
    ca::v1::{
        administration_server::AdministrationServer, adoption_server::AdoptionServer, bundles_server::BundlesServer,
        certificate_authority_server::CertificateAuthorityServer, jwt_server::JwtServer, ledger_server::LedgerServer,
        node_attestation_server::NodeAttestationServer,
        revocation_administration_server::RevocationAdministrationServer, revocation_server::RevocationServer,
        rotation_server::RotationServer, status_server::StatusServer,
    },
    istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
};
use alcazar_mtls::{Acceptor, Clients, grpc};
use alcazar_service::{Lane, Readiness, Shutdown, process};
use alcazar_store::StoreError;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::{
    ca::Ca,
    federation::{Endpoint, EndpointError},
    grpc::{
        AdministrationService, AdoptionService, AuthorityService, Bounds, BundlesService, IstioService, JwtService,
        LedgerService, RevocationAdministrationService, RevocationService, RotationService, StatusService, Traced,
    },
    kubernetes,
    records::family,
};

impl Ca {
    /// Where the operator's socket is.
    pub fn admin_socket(&self) -> PathBuf {
        self.0.config.data_dir.join(ADMIN_SOCKET)
    }

    /// Serves nodes on `listener` and the operator on the administration socket until the shutdown, then closes the store.
    /// It counts as not ready from the call on, until both are served.
    ///
    /// # Errors
    /// When a listener cannot be used.
    pub fn run(
        &self,
        listener: TcpListener,
        shutdown: Shutdown,
        readiness: Readiness,
    ) -> impl Future<Output = Result<(), RunError>> + Send + 'static {
        // At once and not at the first poll, so that nobody takes a CA for ready whose task has not begun.
        let ready = readiness.register("certificate authority");
        let part = readiness.part("hierarchy");
        let ca = self.clone();
        async move {
            shutdown.spawn("hierarchy of the CA", ca.clone().follow_hierarchy(part, shutdown.clone()));
            let outcome = ca.serve(listener, &shutdown, &readiness, || ready.ready()).await;
            shutdown.trigger("the certificate authority has ended");
            ca.close().await;
            outcome
        }
    }

    async fn serve(
        &self,
        listener: TcpListener,
        shutdown: &Shutdown,
        readiness: &Readiness,
        ready: impl FnOnce(),
    ) -> Result<(), RunError> {
        let operator = self.bind_admin()?;
        shutdown.spawn("serving certificate of the CA", self.clone().rotate_serving(shutdown.clone()));
        for family in [family::REGISTRATIONS, family::NODES] {
            shutdown.spawn("changes of other replicas", self.clone().follow_changes(family, shutdown.clone()));
        }
        shutdown.spawn("health of the store", self.clone().watch_store(readiness.part("store"), shutdown.clone()));
        shutdown.spawn("renewals without the store", self.clone().settle_renewals(shutdown.clone()));
        let replicas = readiness.part("replicas");
        shutdown.spawn("presence of this replica", self.clone().keep_presence(replicas, shutdown.clone()));
        let ledgers = readiness.part("ledgers of the replicas");
        shutdown.spawn("witness of the ledgers", self.clone().keep_witness(ledgers, shutdown.clone()));
        shutdown.spawn("trust state of the replicas", self.clone().follow_trust(shutdown.clone()));
        shutdown.spawn("replicas that join", self.clone().welcome_replicas(shutdown.clone()));
        shutdown.spawn("intermediate of this replica", self.clone().keep_given(shutdown.clone()));
        let issuance = readiness.part("issuance");
        shutdown.spawn("horizon of the CA", self.clone().watch_horizon(issuance, shutdown.clone()));
        let revocations = readiness.part("revocations");
        shutdown.spawn("revocations of the CA", self.clone().keep_revocations(revocations, shutdown.clone()));
        shutdown.spawn("heads of the ledger", self.clone().keep_heads(shutdown.clone()));
        shutdown.spawn("upkeep of the CA", self.clone().upkeep(shutdown.clone()));
        if let Some(secrets) = self.0.config.kubernetes.secrets.clone() {
            let (part, end) = (readiness.part("secrets"), shutdown.clone());
            shutdown.spawn("Secrets of service accounts", kubernetes::secrets::run(self.clone(), secrets, part, end));
        }
        if !self.0.callers.files().is_empty() {
            let (part, end) = (readiness.part("callers"), shutdown.clone());
            shutdown.spawn("roots of callers", self.clone().follow_roots_of_callers(part, end));
        }
        shutdown.spawn("pods of the cluster", self.clone().follow_pods(readiness.clone(), shutdown.clone()));
        // Certificates are issued without them, and they are tried again.
        if let Err(error) = self.look_after_jwt_svids().await {
            tracing::error!(reason = %process::chain(&error), "no JWT-SVIDs for now: their keys cannot be used");
        }
        shutdown.spawn("keys for JWT-SVIDs", self.clone().follow_jwt_keys(shutdown.clone()));
        if let Some(config) = &self.0.config.bundle_endpoint {
            let endpoint = Endpoint::bind(self, config).await?;
            shutdown.spawn("bundle endpoint", endpoint.run(shutdown.clone()));
        }
        if let Some(address) = self.0.config.revocation.listen {
            let listener = self.bind_crls(address).await.map_err(|source| RunError::Crls { address, source })?;
            shutdown.spawn("CRLs", self.clone().serve_crls(listener, shutdown.clone()));
        }
        shutdown.spawn("other trust domains", self.clone().follow_foreign_bundles(shutdown.clone()));
        for relation in self.0.federation.relations.clone() {
            shutdown.spawn("another trust domain", self.clone().follow_relation(relation, shutdown.clone()));
        }
        shutdown.spawn("rotations", self.clone().drive_rotations(shutdown.clone()));
        let listeners = Shutdown::new();
        shutdown.spawn("other clusters", self.clone().follow_clusters(shutdown.clone()));
        let acceptor =
            Acceptor::new(self.0.serving.subscribe(), Clients::Optional, grpc::ALPN, Arc::clone(&self.0.clock));
        let (dealer, lanes) = grpc::dealt(listener, &acceptor, lanes());
        let bounds = Bounds::new(&self.0.metrics.registry);
        let nodes = lanes.into_iter().map(|incoming| {
            let end = listeners.clone();
            let service = self.node_services(bounds.clone(), shutdown);
            Lane::start("alcazar-nodes", async move {
                service.serve_with_incoming_shutdown(incoming, end.cancelled()).await
            })
        });
        let nodes = nodes.collect::<Result<Vec<_>, _>>().map_err(RunError::Threads)?;
        let nodes = async {
            // Nobody new comes in once the end is asked for, while those who are there are answered.
            tokio::select! {
                () = dealer.run() => {}
                () = listeners.cancelled() => {}
            }
            futures::future::try_join_all(nodes).await
        };
        let operator = tonic::transport::Server::builder()
            .layer(Traced::Operator)
            .add_service(AdministrationServer::new(AdministrationService::new(self.clone())))
            .add_service(StatusServer::new(StatusService::new(self.clone(), readiness.clone())))
            .add_service(
                RevocationAdministrationServer::new(RevocationAdministrationService::new(self.clone()))
                    .max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(BundlesServer::new(BundlesService::new(self.clone())))
            .add_service(LedgerServer::new(LedgerService::new(self.clone())))
            .add_service(RotationServer::new(RotationService::new(self.clone())))
            .serve_with_incoming_shutdown(UnixListenerStream::new(operator), listeners.cancelled());
        let prints = self.fingerprints();
        tracing::info!(root = %prints.root.fingerprint, intermediate = %prints.intermediate.fingerprint, "the certificate authority serves");
        ready();
        let served = async { tokio::try_join!(nodes, operator) };
        tokio::pin!(served);
        // A disk that fails ends the replica as a person would, with its reason.
        let disk = self.clone().watch_disk(readiness.part("ledger"), shutdown.clone());
        let (disk, _not_ready) = tokio::select! {
            outcome = &mut served => return Ok(outcome.map(drop)?),
            ended = async { tokio::join!(disk, self.drain(readiness, shutdown)) } => ended,
        };
        listeners.trigger("this replica ends");
        served.await?;
        disk
    }

    /// What nodes and other callers can ask, once for each thread that serves them.
    fn node_services(&self, bounds: Bounds, shutdown: &Shutdown) -> Router<Stack<Bounds, Stack<Traced, Identity>>> {
        grpc::server()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 2)
            .timeout(LONGEST)
            .layer(Traced::Nodes)
            .layer(bounds)
            .add_service(CertificateAuthorityServer::new(AuthorityService::new(self.clone(), shutdown.clone())))
            .add_service(
                NodeAttestationServer::new(AuthorityService::new(self.clone(), shutdown.clone()))
                    .max_decoding_message_size(SMALL),
            )
            .add_service(
                RevocationServer::new(RevocationService::new(self.clone(), shutdown.clone()))
                    .max_decoding_message_size(SMALL),
            )
            .add_service(AdoptionServer::new(AdoptionService::new(self.clone(), shutdown.clone())))
            .add_service(
                IstioCertificateServiceServer::new(IstioService::new(self.clone())).max_decoding_message_size(SMALL),
            )
            .add_service(JwtServer::new(JwtService::new(self.clone())))
    }

    /// Keeps what is in memory of the store's records as the store has it, whoever changes it.
    async fn follow_changes(self, family: &'static str, shutdown: Shutdown) {
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.0.records.follow_changes(family) => outcome,
            };
            if let Err(error) = outcome {
                tracing::error!(reason = %process::chain(&error), family, "changes of other replicas cannot be followed; what is known serves on");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(FOLLOW_AGAIN) => {}
            }
        }
    }

    /// The data folder is ours alone and nobody else's CA runs in it, so a socket that is there is left over.
    fn bind_admin(&self) -> Result<UnixListener, RunError> {
        let path = self.admin_socket();
        let failed = |source| RunError::AdminSocket { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(listener)
    }

    /// Follows the pods of the cluster until the end, where the rights of callers depend on them.
    async fn follow_pods(self, readiness: Readiness, shutdown: Shutdown) {
        if let Some(pods) = self.0.callers.kubernetes().and_then(|plug| plug.pods()) {
            pods.run(readiness.part("pods of the cluster"), shutdown).await;
        }
    }

    /// Forgets what nobody needs, now and then until the end.
    async fn upkeep(self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(UPKEEP) => {}
            }
            if let Err(error) = self.forget_old_records().await {
                tracing::error!(reason = %process::chain(&error), "old records were not removed");
            }
        }
    }
}

/// How many threads serve nodes: one for each processor.
fn lanes() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Why the CA ended by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// The operator's socket.
    #[error("cannot listen on the administration socket {}", path.display())]
    AdminSocket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The pages of the CRLs.
    #[error("cannot listen on {address} for those who read CRLs")]
    Crls {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The bundle endpoint.
    #[error("the certificate authority cannot serve")]
    BundleEndpoint(#[from] EndpointError),
    /// The ledger stopped, and a start is what helps.
    #[error(
        "the ledger stopped after a failure of the disk ({reason}): nothing can be put on record, so nothing is issued; look at the disk and start again"
    )]
    Ledger {
        /// What the disk said.
        reason: String,
    },
    /// The store on this disk stopped, and a start is what helps.
    #[error("the store stopped after a failure of the disk; look at the disk and start again")]
    Store(#[source] StoreError),
    /// The threads that serve nodes.
    #[error("the system has no threads for those that serve nodes")]
    Threads(#[source] io::Error),
    /// A listener failed.
    #[error("the certificate authority cannot serve")]
    Serve(#[from] tonic::transport::Error),
}

/// The name of the operator's socket in the data folder.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// What the CA takes of a client before it looks at it.
const WINDOW: u32 = 256 << 10;
/// Messages of services that are sent one request, or nothing at all.
const SMALL: usize = 64 << 10;
/// Nobody waits longer for an answer, or for the first of several.
const LONGEST: Duration = Duration::from_secs(60);
const FOLLOW_AGAIN: Duration = Duration::from_secs(2);
const UPKEEP: Duration = Duration::from_secs(600);
