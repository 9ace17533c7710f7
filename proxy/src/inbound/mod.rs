//! The side in front of the application: mutual TLS, a decision for each request, forwarding.

mod accept;
mod connect;
mod forward;
mod guard;
mod slots;

use std::net::IpAddr;
use std::sync::Arc;

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_mtls::PeerIdentity;
use http::header::HeaderValue;
use http::{Request, StatusCode};

pub(crate) use accept::accept;
pub(crate) use forward::switching;

use crate::body::Body;
use crate::decision::Denied;
use crate::mesh::Misdirected;
use crate::message::{BadRequest, is_tunnel};
use crate::method;
use crate::plane::Plane;
use crate::reply::{Reply, Service};

/// Who is at the other end of a connection, and what is said about it with each request.
pub(crate) struct Peer {
    identity: PeerIdentity,
    /// Our own trust domain; the peer may be of another.
    home: TrustDomain,
    ip: IpAddr,
    server_name: Option<String>,
    /// The value of `x-forwarded-client-cert`.
    forwarded: HeaderValue,
    /// HBONE: nothing but CONNECT.
    tunnels_only: bool,
}

impl Peer {
    fn id(&self) -> &SpiffeId {
        self.identity.id()
    }
}

/// Serves the requests of one peer.
#[derive(Clone)]
pub(crate) struct Inbound {
    plane: Arc<Plane>,
    peer: Arc<Peer>,
    /// Within a tunnel to a port that speaks HTTP.
    port: Option<u16>,
}

impl Service for Inbound {
    async fn call(&self, request: Request<Body>) -> Reply {
        let (head, body) = request.into_parts();
        if let Err(why) = method::check(&head.method) {
            return self.refuse(why.into());
        }
        let answered = match (is_tunnel(&head), self.port) {
            (true, Some(_)) => Err(BadRequest::NestedTunnel.into()),
            (true, None) => self.connect(&head).await,
            (false, None) if self.peer.tunnels_only => Err(BadRequest::TunnelsOnly.into()),
            (false, _) => self.forward(head, body).await,
        };
        answered.unwrap_or_else(|why| self.refuse(why))
    }
}

impl Inbound {
    /// Tells the caller; the log has who it was. What policy denies was logged with its decision.
    fn refuse(&self, why: Refused) -> Reply {
        match why {
            Refused::Denied(denied) => Reply::denied(&denied.id),
            Refused::Bad(_) | Refused::Misdirected(_) | Refused::NotHttp(_) => {
                let (source, reason) = (self.peer.id(), why.to_string());
                tracing::warn!(target: "alcazar::refused", %source, reason, "a request was refused");
                Reply::text(why.status(), reason)
            }
        }
    }
}

/// Why a request is not forwarded.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Bad(#[from] BadRequest),
    #[error(transparent)]
    Misdirected(#[from] Misdirected),
    #[error("port {0} does not speak HTTP; use CONNECT")]
    NotHttp(u16),
    #[error("policy denies it, decision {}", .0.id)]
    Denied(Denied),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Bad(why) => why.status(),
            Self::Misdirected(_) | Self::NotHttp(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Denied(_) => StatusCode::FORBIDDEN,
        }
    }
}
