//! Tunnels that last: a new policy that forbids one ends it.

use std::net::SocketAddr;
use std::sync::Arc;

use alcazar_policy::{Host, Http, NormalizedPath, Protocol, Request};
use http::HeaderMap;
use tokio::sync::watch;

use super::Peer;
use crate::decision::{Denied, HeaderView};
use crate::io::Io;
use crate::mesh::Snapshot;
use crate::plane::Plane;
use crate::relay::relay;

/// What was asked for by whom: all that a decision needs, to decide again later.
pub(super) struct Asked {
    peer: Arc<Peer>,
    port: u16,
    /// `None`: a connection of TCP.
    http: Option<AskedHttp>,
}

/// What an HTTP request asked for, before its protocol changed.
pub(super) struct AskedHttp {
    pub(super) host: Option<String>,
    pub(super) path: String,
    pub(super) method: String,
    pub(super) headers: HeaderMap,
}

impl Asked {
    pub(super) fn tcp(peer: Arc<Peer>, port: u16) -> Self {
        Self { peer, port, http: None }
    }

    pub(super) fn http(peer: Arc<Peer>, port: u16, http: AskedHttp) -> Self {
        Self { peer, port, http: Some(http) }
    }

    /// Where it goes.
    pub(super) fn destination(&self, snapshot: &Snapshot) -> SocketAddr {
        snapshot.workload.socket(self.port)
    }

    /// Decides by this snapshot.
    pub(super) fn decide(&self, snapshot: &Snapshot, plane: &Plane) -> Result<(), Denied> {
        let destination = self.destination(snapshot);
        let decide =
            |protocol| plane.decisions.decide(snapshot, &request(&self.peer, destination, protocol), (plane.clock)());
        let Some(http) = &self.http else { return decide(Protocol::Tcp) };
        // It was normal when it was decided first; what is not any more is denied.
        let Ok(path) = NormalizedPath::parse(&http.path, Default::default()) else {
            return Err(plane.decisions.deny());
        };
        let host = http.host.as_deref().and_then(|host| Host::normalize(host).ok());
        let headers = HeaderView(&http.headers);
        decide(Protocol::Http(Http { host: host.as_ref(), path: &path, method: &http.method, headers: &headers }))
    }
}

/// What policy is asked.
pub(super) fn request<'a>(peer: &'a Peer, destination: SocketAddr, protocol: Protocol<'a>) -> Request<'a> {
    Request {
        source: Some(peer.id()),
        trust_domain: &peer.home,
        source_ip: peer.ip,
        destination,
        sni: peer.server_name.as_deref(),
        protocol,
    }
}

/// Relays until both directions have ended, one breaks, or policy forbids it.
///
/// `snapshots` has seen the snapshot by which the tunnel was allowed.
pub(super) async fn relay_while_allowed(
    mut a: impl Io,
    mut b: impl Io,
    asked: Asked,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    plane: Arc<Plane>,
) {
    let outcome = {
        let relaying = relay(&mut a, &mut b);
        let mut relaying = std::pin::pin!(relaying);
        loop {
            tokio::select! {
                outcome = relaying.as_mut() => break Some(outcome),
                forbidden = forbidden(&asked, &mut snapshots, &plane) => if forbidden { break None },
            }
        }
    };
    match outcome {
        Some(Ok(relayed)) => tracing::debug!(?relayed, "a tunnel ended"),
        Some(Err(error)) => tracing::debug!(%error, "a tunnel broke"),
        None => {
            a.abort();
            b.abort();
            tell_closed(&asked);
        }
    }
}

/// Completes when a new policy forbids what was allowed by the snapshot that `snapshots` has seen.
pub(super) async fn until_forbidden(asked: Asked, mut snapshots: watch::Receiver<Arc<Snapshot>>, plane: Arc<Plane>) {
    while !forbidden(&asked, &mut snapshots, &plane).await {}
    tell_closed(&asked);
}

fn tell_closed(asked: &Asked) {
    let (source, port) = (asked.peer.id(), asked.port);
    tracing::info!(target: "alcazar::decision", %source, port, "a connection was closed: a new policy forbids it");
}

/// Waits for the next snapshot and decides by it.
async fn forbidden(asked: &Asked, snapshots: &mut watch::Receiver<Arc<Snapshot>>, plane: &Plane) -> bool {
    if snapshots.changed().await.is_err() {
        // No more snapshots: the process ends.
        std::future::pending::<()>().await;
    }
    let snapshot = snapshots.borrow_and_update().clone();
    let gone = snapshot.workload.port(asked.port).is_none();
    gone || asked.decide(&snapshot, plane).is_err()
}
