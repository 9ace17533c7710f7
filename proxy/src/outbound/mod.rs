//! The side that the application asks: an explicit proxy into the mesh, and nowhere else.

mod accept;
mod connect;
mod endpoints;
mod forward;
mod owner;

use std::sync::Arc;

use http::{Request, StatusCode};

pub(crate) use accept::{accept, forward_tcp};
pub(crate) use owner::OwnerCheck;
pub use owner::{AnswerError, OwnerError};

use crate::body::Body;
use crate::message::{BadRequest, is_tunnel};
use crate::plane::Plane;
use crate::reply::{Reply, Service};

/// Serves the requests of the application.
#[derive(Clone)]
pub(crate) struct Outbound {
    plane: Arc<Plane>,
    /// Within a tunnel: the port that its target named, for requests that name none.
    tunnel: Option<u16>,
}

impl Outbound {
    pub(crate) fn new(plane: Arc<Plane>) -> Self {
        Self { plane, tunnel: None }
    }

    /// A response of ours: which proxy, what and why in one line.
    fn failed(&self, status: StatusCode, what: &str, why: impl std::fmt::Display) -> Reply {
        let snapshot = self.plane.snapshot();
        let workload = &snapshot.workload;
        let (namespace, name) = (workload.namespace(), workload.name());
        Reply::text(status, format!("outbound proxy of {namespace}/{name}: {what}: {why}"))
    }
}

impl Service for Outbound {
    async fn call(&self, request: Request<Body>) -> Reply {
        let (head, body) = request.into_parts();
        match (is_tunnel(&head), self.tunnel) {
            (true, Some(_)) => BadRequest::NestedTunnel.into(),
            (true, None) => self.connect(&head).await,
            (false, _) => self.forward(head, body).await,
        }
    }
}
