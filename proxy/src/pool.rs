//! Connections to other proxies and to applications that speak HTTP/2: one per worker and peer, dialled once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use alcazar_identity::{Credentials, SpiffeId};
use alcazar_mtls::{ConnectError, Connector, LiveCredentials};
use alcazar_service::clock::Clock;
use tokio::io::BufReader;

use crate::h2::Channel;
use crate::io::{self, CONNECT_DEADLINE};
use crate::life::Life;
use crate::mesh::Endpoint;
use crate::tasks::Tasks;

/// One channel for each key, shared by all who ask for it.
pub(crate) struct Pool<K> {
    slots: Mutex<HashMap<K, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    held: Mutex<Option<Held>>,
    /// Held while dialling, so that many who wait cause one connection.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Held {
    channel: Channel,
    /// What it was proved with; a connection between proxies is replaced when this changes.
    credentials: Option<Arc<Credentials>>,
}

impl<K: Hash + Eq + Clone> Pool<K> {
    /// The channel to `key`, dialled if there is none, or none that was proved with `credentials`.
    ///
    /// When dialling fails, a channel of older credentials that still works serves on.
    pub(crate) async fn channel<E, F>(
        &self,
        key: &K,
        credentials: Option<&Arc<Credentials>>,
        dial: impl FnOnce() -> F,
    ) -> Result<Channel, E>
    where
        F: Future<Output = Result<Channel, E>>,
    {
        let slot = self.slot(key);
        if let Some(channel) = slot.fresh(credentials) {
            return Ok(channel);
        }
        let _one = slot.dialling.lock().await;
        if let Some(channel) = slot.fresh(credentials) {
            return Ok(channel);
        }
        match dial().await {
            Ok(channel) => {
                slot.hold(Held { channel: channel.clone(), credentials: credentials.cloned() });
                Ok(channel)
            }
            Err(error) => slot.usable().ok_or(error),
        }
    }

    /// Lets go of channels that take no more requests or are not of these credentials, and of slots without one.
    pub(crate) fn prune(&self, credentials: Option<&Arc<Credentials>>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.fresh(credentials).is_some());
    }

    /// Lets go of all: each ends when what is in flight on it is complete.
    pub(crate) fn clear(&self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots.values() {
            slot.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        slots.clear();
    }

    fn slot(&self, key: &K) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get(key) {
            Some(slot) => slot.clone(),
            None => slots.entry(key.clone()).or_default().clone(),
        }
    }
}

impl<K> Default for Pool<K> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl Slot {
    fn fresh(&self, credentials: Option<&Arc<Credentials>>) -> Option<Channel> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_mut().filter(|held| !held.channel.is_leaving())?;
        let same = match (&mut held.credentials, credentials) {
            (Some(held), Some(now)) if Arc::ptr_eq(held, now) => true,
            // Somebody was revoked: what the connection stands on is the same.
            (Some(held), Some(now)) if held.prove_the_same_as(now) => {
                *held = Arc::clone(now);
                true
            }
            (None, None) => true,
            _ => false,
        };
        same.then(|| held.channel.clone())
    }

    fn usable(&self) -> Option<Channel> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().filter(|held| !held.channel.is_leaving()).map(|held| held.channel.clone())
    }

    /// The channel that was held before ends once what is in flight on it is complete.
    fn hold(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }
}

/// Connections to other proxies.
pub(crate) struct Mesh {
    pool: Pool<(SocketAddr, SpiffeId)>,
    credentials: LiveCredentials,
    connector: Connector,
    clock: Clock,
    tasks: Tasks,
}

impl Mesh {
    pub(crate) fn new(credentials: LiveCredentials, clock: Clock, tasks: Tasks) -> Self {
        let connector =
            Connector::new(credentials.clone(), &[ALPN_ALCAZAR], clock.clone()).with_deadline(CONNECT_DEADLINE);
        Self { pool: Pool::default(), credentials, connector, clock, tasks }
    }

    /// The channel to an endpoint's proxy, which has proved to be who the endpoint says.
    ///
    /// # Errors
    /// When it cannot be reached, or is somebody else.
    pub(crate) async fn channel(&self, endpoint: &Endpoint) -> Result<Channel, DialError> {
        let credentials = self.credentials.borrow().clone();
        let key = (endpoint.mesh_address, endpoint.identity.clone());
        self.pool.channel(&key, Some(&credentials), || self.dial(endpoint, &credentials)).await
    }

    pub(crate) fn prune(&self) {
        let credentials = self.credentials.borrow().clone();
        self.pool.prune(Some(&credentials));
    }

    pub(crate) fn clear(&self) {
        self.pool.clear();
    }

    /// A server that goes over to another certificate between the handshake and our first word takes its leave, and waits for a new
    /// connection: nothing was asked on this one.
    async fn dial(&self, endpoint: &Endpoint, credentials: &Credentials) -> Result<Channel, DialError> {
        let mut again = 0;
        loop {
            match self.dial_once(endpoint, credentials).await {
                Err(error) if error.is_leave() && again < LEAVES => again += 1,
                outcome => return outcome,
            }
        }
    }

    async fn dial_once(&self, endpoint: &Endpoint, credentials: &Credentials) -> Result<Channel, DialError> {
        let stream = io::connect(endpoint.mesh_address).await.map_err(DialError::Connect)?;
        // TLS reads in small pieces; the system is asked in large ones.
        let stream = BufReader::with_capacity(READ_BUFFER, stream);
        let connected = self.connector.connect(stream, &endpoint.expected).await.map_err(DialError::Tls)?;
        if connected.alpn.as_deref() != Some(ALPN_ALCAZAR) {
            return Err(DialError::Alpn);
        }
        let now = (self.clock)();
        let not_after = connected.peer.validity().not_after().min(credentials.svid().validity().not_after());
        let life = Life::unbounded().not_after(not_after, now);
        let life = life.while_believed(connected.peer, self.credentials.clone());
        let started = Channel::start(connected.stream, life, &self.tasks);
        match tokio::time::timeout(CONNECT_DEADLINE, started).await {
            Ok(channel) => channel.map_err(DialError::H2),
            Err(_) => Err(DialError::Deadline),
        }
    }
}

/// Why there is no connection to a proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody listens, or nobody answers.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// It is not whom we expect, or refuses us.
    #[error("no mutual TLS")]
    Tls(#[source] ConnectError),
    /// It speaks TLS, but not our protocol.
    #[error("the server does not speak the mesh's protocol")]
    Alpn,
    /// TLS stands, HTTP/2 does not. A server that refuses our certificate is heard of here.
    #[error("the connection broke before it could be used")]
    H2(#[source] ::h2::Error),
    /// It does not answer.
    #[error("the server does not answer")]
    Deadline,
}

impl DialError {
    /// Whether the server has taken its leave, and nothing is wrong.
    fn is_leave(&self) -> bool {
        matches!(self, Self::H2(error) if error.reason() == Some(::h2::Reason::NO_ERROR))
    }
}

/// How often a server may take its leave before it is given up.
const LEAVES: usize = 2;
/// HTTP requests and tunnels, between our proxies.
pub(crate) const ALPN_ALCAZAR: &[u8] = b"alcazar/h2";
/// HBONE: tunnels alone.
pub(crate) const ALPN_HBONE: &[u8] = b"h2";
/// A TLS record has at most 16 KiB.
pub(crate) const READ_BUFFER: usize = 32 * 1024;
