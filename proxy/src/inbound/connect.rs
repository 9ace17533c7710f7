//! Tunnels: to a TCP port decided once, to an HTTP port served as HTTP.

use std::sync::Arc;

use http::request::Parts;
use http::{Response, StatusCode};

use super::guard::{Asked, relay_while_allowed};
use super::{Inbound, Refused};
use crate::authority::Authority;
use crate::body::Body;
use crate::io;
use crate::life::Life;
use crate::mesh::Protocol;
use crate::message::BadRequest;
use crate::reply::Reply;
use crate::serve::serve_http;

impl Inbound {
    /// Answers `CONNECT <our address>:<port>`.
    pub(super) async fn connect(&self, head: &Parts) -> Result<Reply, Refused> {
        // Seen before the decision: whatever comes after it is noticed by the tunnel.
        let mut snapshots = self.plane.snapshots.clone();
        let snapshot = snapshots.borrow_and_update().clone();
        let target = head.uri.authority().ok_or(BadRequest::NoHost)?;
        let authority = Authority::parse(target.as_str()).map_err(BadRequest::from)?;
        let (number, port) = snapshot.workload.tunnel(&authority)?;
        if port.protocol == Protocol::Http {
            return Ok(self.tunnelled_http(number));
        }
        let asked = Asked::tcp(self.peer.clone(), number);
        asked.decide(&snapshot, &self.plane).map_err(Refused::Denied)?;
        let address = snapshot.workload.socket(number);
        let app = match io::connect(address).await {
            Ok(app) => app,
            Err(error) => return Ok(self.unreachable(&snapshot, address, &error)),
        };
        let plane = self.plane.clone();
        let response = Response::new(Body::empty());
        Ok(Reply::tunnel(response, move |io| relay_while_allowed(io, app, asked, snapshots, plane)))
    }

    /// Decides each request within; the tunnel's life is that of the connection it runs over.
    fn tunnelled_http(&self, number: u16) -> Reply {
        let within = Arc::new(Self { port: Some(number), ..self.clone() });
        let (shutdown, serving) = (self.plane.shutdown.clone(), self.plane.serving.clone());
        Reply::tunnel(Response::new(Body::empty()), move |io| async move {
            serve_http(io, within, Life::until(shutdown), &serving).await;
        })
    }

    pub(super) fn unreachable(
        &self,
        snapshot: &crate::mesh::Snapshot,
        address: std::net::SocketAddr,
        error: &std::io::Error,
    ) -> Reply {
        let workload = &snapshot.workload;
        tracing::warn!(%address, %error, "the application does not accept connections");
        let line = format!(
            "inbound proxy of {}/{}: the application does not accept connections on port {}",
            workload.namespace(),
            workload.name(),
            address.port()
        );
        Reply::text(StatusCode::SERVICE_UNAVAILABLE, line)
    }
}
