//! Which proxies are connected, and how much of the configuration each has taken.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alcazar_identity::SpiffeId;
use tokio::sync::watch;

use crate::resource::{Kind, Version};

/// What the control plane knows of its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Counts the configurations that were put into force, from 1.
    pub generation: u64,
    /// The connected clients, in the order in which they came.
    pub proxies: BTreeMap<StreamId, ProxyStatus>,
}

/// One stream of one client; never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

/// One client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyStatus {
    /// What it calls itself, `<namespace>/<workload>`; empty until it says.
    pub node: String,
    /// Who it proved to be.
    pub spiffe_id: SpiffeId,
    /// Where it connects from.
    pub remote: SocketAddr,
    /// The last generation whose every change it has answered; 0 for none yet.
    pub answered: u64,
    /// What it has been given, by kind, of the kinds that it subscribed to.
    pub given: BTreeMap<Kind, usize>,
    /// What it refuses.
    pub refused: Vec<RefusedResource>,
}

/// A resource that a client does not accept; it keeps the content before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedResource {
    /// What kind of resource.
    pub kind: Kind,
    /// `<namespace>/<name>`.
    pub name: String,
    /// The content that it refuses; `None` for the resource's removal.
    pub version: Option<Version>,
    /// Why, in the client's words.
    pub reason: String,
}

impl Status {
    /// The client that calls itself `node`, the one that came last if there are several.
    pub fn proxy(&self, node: &str) -> Option<&ProxyStatus> {
        self.proxies.values().rev().find(|proxy| proxy.node == node)
    }

    /// Whether that client has taken all of the present configuration.
    pub fn is_up_to_date(&self, node: &str) -> bool {
        self.proxy(node).is_some_and(|proxy| proxy.answered == self.generation && proxy.refused.is_empty())
    }
}

/// Where streams write their status.
#[derive(Clone)]
pub(crate) struct Board {
    status: Arc<watch::Sender<Arc<Status>>>,
    streams: Arc<AtomicU64>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let status = Status { generation: 1, ..Status::default() };
        Self { status: Arc::new(watch::Sender::new(Arc::new(status))), streams: Arc::default() }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    pub(crate) fn generation(&self, generation: u64) {
        self.change(|status| status.generation = generation);
    }

    /// A place for one stream, which is cleared when the stream ends.
    pub(crate) fn place(&self, spiffe_id: SpiffeId, remote: SocketAddr) -> Place {
        let id = StreamId(self.streams.fetch_add(1, Ordering::Relaxed));
        let proxy = ProxyStatus {
            node: String::new(),
            spiffe_id,
            remote,
            answered: 0,
            given: BTreeMap::new(),
            refused: Vec::new(),
        };
        self.change(|status| drop(status.proxies.insert(id, proxy)));
        Place { board: self.clone(), id }
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }
}

/// One stream's place on the board.
pub(crate) struct Place {
    board: Board,
    id: StreamId,
}

impl Place {
    /// Writes what changed; nobody is woken when nothing did.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ProxyStatus)) {
        self.board.status.send_if_modified(|status| {
            let Some(before) = status.proxies.get(&self.id) else { return false };
            let mut after = before.clone();
            change(&mut after);
            let is_changed = after != *before;
            if is_changed {
                Arc::make_mut(status).proxies.insert(self.id, after);
            }
            is_changed
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.board.change(|status| drop(status.proxies.remove(&self.id)));
    }
}
