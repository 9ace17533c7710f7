//! What one worker works with. Nothing in it is shared with other workers but snapshots.

use std::sync::Arc;
use std::time::Instant;

use alcazar_mtls::LiveCredentials;
use alcazar_service::clock::Clock;
use http::{Request, Response};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::balance::Loads;
use crate::body::Body;
use crate::decision::Decisions;
use crate::h1::{Apps, AskError};
use crate::h2::Channel;
use crate::io;
use crate::life::Life;
use crate::mesh::Snapshot;
use crate::pool::{Mesh, Pool};
use crate::tasks::Tasks;

/// One worker's state.
pub(crate) struct Plane {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) credentials: LiveCredentials,
    pub(crate) clock: Clock,
    pub(crate) decisions: Decisions,
    pub(crate) mesh: Mesh,
    pub(crate) loads: Loads,
    /// Connections that are served, and their streams.
    pub(crate) serving: Tasks,
    pub(crate) shutdown: CancellationToken,
    apps: Apps,
    apps_h2: Pool<std::net::SocketAddr>,
    /// Connections that we opened.
    asking: Tasks,
}

/// Where a worker's knowledge comes from.
#[derive(Clone)]
pub struct Sources {
    /// What we prove ourselves by, and whom we believe.
    pub credentials: LiveCredentials,
    /// What the control plane says.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Tells the time.
    pub clock: Clock,
}

impl Plane {
    pub(crate) fn new(sources: Sources, decisions: Decisions, seed: u64, shutdown: CancellationToken) -> Self {
        let Sources { credentials, snapshots, clock } = sources;
        let asking = Tasks::default();
        Self {
            mesh: Mesh::new(credentials.clone(), clock.clone(), asking.clone()),
            loads: Loads::new(seed),
            serving: Tasks::default(),
            apps: Apps::default(),
            apps_h2: Pool::default(),
            snapshots,
            credentials,
            clock,
            decisions,
            shutdown,
            asking,
        }
    }

    /// The snapshot of this moment.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Asks the application, by HTTP/1.1.
    pub(crate) async fn ask(
        &self,
        address: std::net::SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, AskError> {
        self.apps.send(address, request, &self.asking).await
    }

    /// Asks the application, by HTTP/2 in clear.
    pub(crate) async fn ask_h2(
        &self,
        address: std::net::SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, AskError> {
        let mut tries = 0;
        loop {
            let channel = self.apps_h2.channel(&address, None, || self.dial_app(address)).await?;
            match channel.send(request).await {
                Ok(response) => return Ok(response),
                Err(error) => match error.unprocessed {
                    Some(again) if tries < 2 => request = *again,
                    _ => return Err(AskError::NoResponseH2(error.error)),
                },
            }
            tries += 1;
        }
    }

    async fn dial_app(&self, address: std::net::SocketAddr) -> Result<Channel, AskError> {
        let stream = io::connect(address).await.map_err(|source| AskError::Connect { address, source })?;
        let started = Channel::start(stream, Life::unbounded(), &self.asking);
        match tokio::time::timeout(io::CONNECT_DEADLINE, started).await {
            Ok(channel) => channel.map_err(AskError::NoResponseH2),
            Err(_) => Err(AskError::Connect { address, source: std::io::ErrorKind::TimedOut.into() }),
        }
    }

    /// Lets go of what nobody uses any more.
    pub(crate) fn prune(&self) {
        self.decisions.tell_unexplained((self.clock)());
        self.apps.prune(Instant::now());
        self.apps_h2.prune(None);
        self.mesh.prune();
        let services = self.snapshot().services.clone();
        let listed: std::collections::HashSet<_> = services.mesh_addresses().collect();
        self.loads.retain(|address| listed.contains(address));
    }

    /// Waits for what is served, then for the connections that served it.
    pub(crate) async fn drained(&self) {
        self.serving.finished().await;
        self.apps.clear();
        self.apps_h2.clear();
        self.mesh.clear();
        self.asking.finished().await;
    }
}
