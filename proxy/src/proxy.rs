//! The process: credentials from the agent, configuration from the control plane, bytes by the data plane.

use std::str::FromStr;
use std::sync::Arc;

use alcazar_api::sds;
use alcazar_identity::{Credentials, SpiffeId};
use alcazar_mtls::{Connector, Expected, LiveCredentials, grpc};
use alcazar_service::{Readiness, Shutdown, admin, clock};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ads::{Ads, State, Status};
use crate::config::Config;
use crate::dataplane::{DataPlane, DataPlaneError, random};
use crate::listen::{Addresses, ListenError};
use crate::mesh::Snapshot;
use crate::outbound::OwnerError;
use crate::plane::Sources;

/// A proxy in front of one workload, with its ports bound.
#[derive(Debug)]
pub struct Proxy {
    config: Config,
    data_plane: DataPlane,
    admin: Option<TcpListener>,
    control: grpc::Target,
    status: watch::Sender<Status>,
}

impl Proxy {
    /// Binds all ports. Nothing is accepted before [`Proxy::run`] has credentials and configuration.
    ///
    /// # Errors
    /// When a port cannot be had (which one, and for what), or the control plane's address is none.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        let control = grpc::Target::from_str(&config.control.address)
            .map_err(|source| BindError::Control { address: config.control.address.clone(), source })?;
        let workers = config.workers.unwrap_or_else(cores);
        for forward in &config.forwards {
            check_forward(&forward.to)?;
        }
        let data_plane = DataPlane::bind(workers, config.inbound, config.outbound, &config.forwards, config.drain)?;
        let data_plane = match config.outbound_user {
            Some(uid) => data_plane.of_user(uid)?,
            None => data_plane,
        };
        let admin = match config.admin {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| BindError::Admin { address, source })?)
            }
            None => None,
        };
        Ok(Self { config, data_plane, admin, control, status: watch::Sender::new(Status::default()) })
    }

    /// Where it listens: with the ports that the system chose, where 0 was asked for.
    pub fn addresses(&self) -> &Addresses {
        self.data_plane.addresses()
    }

    /// How it follows the control plane. To be taken before [`Proxy::run`].
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Serves until the shutdown, then drains. Ready when credentials, workload, policy and services are applied.
    ///
    /// # Errors
    /// When the data plane fails.
    pub async fn run(self, shutdown: Shutdown, readiness: Readiness) -> Result<(), RunError> {
        let name = self.config.workload.to_string();
        let has_credentials = readiness.register(format!("certificate of {name}"));
        let has_snapshot = readiness.register(format!("configuration of {name}"));
        if let Some(listener) = self.admin {
            let (readiness, end) = (readiness.clone(), shutdown.clone());
            shutdown.spawn("admin", async move {
                if let Err(error) = admin::serve(listener, readiness, end).await {
                    tracing::error!(%error, "the admin listener failed");
                }
            });
        }

        let outbound = self.data_plane.addresses().applications(self.config.outbound_user);
        let Some(credentials) = credentials(&self.config, outbound, &shutdown).await else { return Ok(()) };
        has_credentials.ready();

        let identity = control_identity(&self.config, &credentials.borrow())?;
        let connector = Connector::new(credentials.clone(), grpc::ALPN, clock::system());
        let channel = grpc::channel(self.control, connector, Expected::id(identity));
        let (ads, mut snapshots) = Ads::new(channel, State::new(self.config.workload.clone()), self.status, random());
        shutdown.spawn("control plane", ads.run(shutdown.clone()));
        let snapshots: watch::Receiver<Arc<Snapshot>> = tokio::select! {
            snapshots = snapshots.recv() => match snapshots {
                Some(snapshots) => snapshots,
                None => return Ok(()),
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        has_snapshot.ready();
        tracing::info!(
            workload = name,
            inbound = %self.data_plane.addresses().inbound,
            outbound = ?self.data_plane.addresses().outbound,
            "the proxy serves"
        );
        let sources = Sources { credentials, snapshots, clock: clock::system() };
        let log = self.config.decision_log.as_deref();
        self.data_plane.run(sources, log, shutdown).await.map_err(RunError::DataPlane)
    }
}

/// The agent's credentials, kept fresh from then on; `None` at the shutdown.
async fn credentials(config: &Config, outbound: sds::Outbound, shutdown: &Shutdown) -> Option<LiveCredentials> {
    let (credentials, driver) = tokio::select! {
        connected = sds::connect_as(outbound, config.sds_socket.clone(), clock::system()) => connected,
        () = shutdown.cancelled() => return None,
    };
    let end = shutdown.clone();
    shutdown.spawn("credentials", async move {
        tokio::select! {
            () = driver => {}
            () = end.cancelled() => {}
        }
    });
    Some(credentials)
}

fn control_identity(config: &Config, credentials: &Credentials) -> Result<SpiffeId, RunError> {
    match &config.control.identity {
        Some(identity) => Ok(identity.clone()),
        None => SpiffeId::workload(credentials.svid().id().trust_domain(), "alcazar-system", "alcazar-control")
            .map_err(RunError::Identity),
    }
}

fn check_forward(to: &str) -> Result<(), BindError> {
    let wrong = |why: &str| BindError::Forward { to: to.to_owned(), why: why.to_owned() };
    let authority = crate::authority::Authority::parse(to).map_err(|error| wrong(&error.to_string()))?;
    authority.port().map(drop).ok_or_else(|| wrong("there is no port"))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Why a proxy could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A port is taken, or is not ours to take.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot be told whose a connection is.
    #[error("outboundUser cannot be held to on this host")]
    Owner(#[from] OwnerError),
    /// The same, for the admin port.
    #[error("cannot listen on {address} for health checks (admin)")]
    Admin {
        /// Which.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Not `host:port`.
    #[error("{address:?} is not the control plane's address")]
    Control {
        /// What was configured.
        address: String,
        /// Why.
        source: <grpc::Target as FromStr>::Err,
    },
    /// Not `host:port`.
    #[error("a forward cannot lead to {to:?}: {why}")]
    Forward {
        /// What was configured.
        to: String,
        /// Why.
        why: String,
    },
}

/// Why a proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data plane failed.
    #[error("the data plane failed")]
    DataPlane(#[source] DataPlaneError),
    /// Never with a trust domain that parsed.
    #[error("the control plane's identity cannot be told")]
    Identity(#[source] alcazar_identity::ParseSpiffeIdError),
}
