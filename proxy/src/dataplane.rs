//! The data plane: workers that share nothing but snapshots.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alcazar_service::Shutdown;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::task::JoinError;

use crate::config::Forward;
use crate::decision::OpenLogError;
use crate::decision::{DecisionLog, Decisions, Ids};
use crate::listen::{self, Addresses, ListenError, Sockets};
use crate::outbound::OwnerError;
use crate::plane::{Plane, Sources};
use crate::worker;

/// Listeners that are bound, and workers to be started.
#[derive(Debug)]
pub struct DataPlane {
    sockets: Vec<Sockets>,
    addresses: Addresses,
    drain: Duration,
}

impl DataPlane {
    /// Binds every listener, for `workers` threads. Nothing is accepted before [`DataPlane::run`].
    ///
    /// # Errors
    /// When a port cannot be had.
    pub fn bind(
        workers: usize,
        inbound: SocketAddr,
        outbound: Option<SocketAddr>,
        forwards: &[Forward],
        drain: Duration,
    ) -> Result<Self, ListenError> {
        let (sockets, addresses) = listen::bind(workers.clamp(1, MAX_WORKERS), inbound, outbound, forwards)?;
        Ok(Self { sockets, addresses, drain })
    }

    /// The same, which serves the application's side (the explicit proxy and the forwards) to one user alone.
    ///
    /// # Errors
    /// When this host cannot tell whose a connection is.
    pub fn of_user(self, uid: u32) -> Result<Self, OwnerError> {
        let sockets = self.sockets.into_iter().map(|sockets| sockets.of_user(uid)).collect::<Result<_, _>>()?;
        Ok(Self { sockets, ..self })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until the shutdown, then drains: no new connections, GOAWAY, and what is open may complete.
    ///
    /// # Errors
    /// When the decision log cannot be opened, or a worker ends by itself.
    pub async fn run(
        self,
        sources: Sources,
        decision_log: Option<&Path>,
        shutdown: Shutdown,
    ) -> Result<(), DataPlaneError> {
        let log = match decision_log {
            Some(path) => Some(DecisionLog::open(path, &shutdown).await.map_err(DataPlaneError::Log)?),
            None => None,
        };
        let start = random();
        let mut workers = Vec::with_capacity(self.sockets.len());
        for (number, sockets) in self.sockets.into_iter().enumerate() {
            // The low half names decisions; the whole, stirred by the number, seeds the choice of endpoints.
            let ids = Ids::new((start & 0xffff_ffff) as u32, number);
            let decisions = Decisions::new(ids, log.clone());
            let seed = start.wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let plane = Arc::new(Plane::new(sources.clone(), decisions, seed, shutdown.token()));
            let worker = worker::start(number, sockets, plane, self.drain, shutdown.clone());
            workers.push(worker.map_err(DataPlaneError::Thread)?);
        }
        drop((log, sources));
        for worker in workers {
            let joined = tokio::task::spawn_blocking(move || worker.join()).await.map_err(DataPlaneError::Join)?;
            if joined.is_err() {
                shutdown.trigger("a worker panicked");
                return Err(DataPlaneError::Panic);
            }
        }
        Ok(())
    }
}

/// Why the data plane ended.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// The decision log cannot be opened.
    #[error("decisions cannot be logged")]
    Log(#[source] OpenLogError),
    /// The system gives no thread.
    #[error("a worker cannot be started")]
    Thread(#[source] std::io::Error),
    /// A worker panicked.
    #[error("a worker panicked")]
    Panic,
    /// The runtime is going away.
    #[error("a worker cannot be waited for")]
    Join(#[source] JoinError),
}

/// Something that no other process has; not a secret.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        tracing::warn!("the system gives no randomness; decision ids may repeat those of another process");
    }
    u64::from_le_bytes(bytes)
}

const MAX_WORKERS: usize = 256;
