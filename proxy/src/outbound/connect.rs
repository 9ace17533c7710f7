//! Tunnels of the application: to a TCP port a tunnel through the mesh, to an HTTP port requests.

use std::sync::Arc;

use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};

use super::Outbound;
use super::endpoints::{self, AskMeshError};
use crate::authority::Authority;
use crate::balance::InFlight;
use crate::body::Body;
use crate::h2::{H2Stream, Received};
use crate::life::Life;
use crate::mesh::{Protocol, Route, Unknown};
use crate::message::{self, BadRequest};
use crate::plane::Plane;
use crate::relay::relay;
use crate::reply::Reply;
use crate::serve::serve_http;

impl Outbound {
    /// Answers `CONNECT <service>:<port>`.
    pub(super) async fn connect(&self, head: &Parts) -> Reply {
        let Some(target) = head.uri.authority().map(http::uri::Authority::as_str) else {
            return BadRequest::NoHost.into();
        };
        let authority = match Authority::parse(target) {
            Ok(authority) => authority,
            Err(why) => return BadRequest::from(why).into(),
        };
        let route = match self.plane.snapshot().services.route(&authority, None) {
            Ok(route) => route,
            Err(why) => return self.failed(StatusCode::BAD_GATEWAY, target, why),
        };
        if route.port().is_some_and(|port| port.protocol == Protocol::Http) {
            return self.tunnelled_http(route.number);
        }
        match open_route(&self.plane, &route).await {
            Ok(opened) => {
                let (mut far, in_flight) = (opened.stream, opened.in_flight);
                Reply::tunnel(Response::new(Body::empty()), move |mut io| async move {
                    match relay(&mut io, &mut far).await {
                        Ok(relayed) => tracing::debug!(?relayed, "a tunnel ended"),
                        Err(error) => tracing::debug!(%error, "a tunnel broke"),
                    }
                    drop(in_flight);
                })
            }
            // The other proxy says why: 403 with the decision's id, or that the application is not there.
            Err(OpenError::Refused(mut response)) => {
                message::clean_response(response.headers_mut(), &[]);
                Reply::new(*response)
            }
            Err(error) => self.unanswered(target, &error),
        }
    }

    /// gRPC clients ask for a tunnel and speak HTTP/2 in it: served as requests, so that they are multiplexed.
    fn tunnelled_http(&self, port: u16) -> Reply {
        let within = Arc::new(Self { plane: self.plane.clone(), tunnel: Some(port) });
        let (shutdown, serving) = (self.plane.shutdown.clone(), self.plane.serving.clone());
        Reply::tunnel(Response::new(Body::empty()), move |io| async move {
            serve_http(io, within, Life::until(shutdown), &serving).await;
        })
    }
}

/// A tunnel through the mesh.
pub(super) struct Opened {
    pub(super) stream: H2Stream,
    pub(super) in_flight: InFlight,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error(transparent)]
    Ask(#[from] AskMeshError),
    #[error("the other proxy refused it: {}", .0.status())]
    Refused(Box<Response<Body>>),
    #[error("the tunnel's target cannot be written")]
    Target(#[source] http::Error),
}

/// Opens a tunnel to a service.
pub(super) async fn open(plane: &Plane, authority: &Authority<'_>) -> Result<Opened, OpenError> {
    let route = plane.snapshot().services.route(authority, None)?;
    open_route(plane, &route).await
}

async fn open_route(plane: &Plane, route: &Route) -> Result<Opened, OpenError> {
    let unknown = || Unknown::Port { service: route.service.to_string(), port: route.number };
    let port = route.port().ok_or_else(unknown)?;
    let mut tries = 0;
    loop {
        let chosen = endpoints::connect(plane, &port.endpoints).await.map_err(AskMeshError::from)?;
        let target = std::net::SocketAddr::new(chosen.endpoint.address, port.target);
        let uri = Uri::builder().authority(target.to_string()).build().map_err(OpenError::Target)?;
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        match chosen.channel.connect(request).await {
            Ok((response, receive, send)) if response.status().is_success() => {
                return Ok(Opened { stream: H2Stream::new(receive, send), in_flight: chosen.in_flight });
            }
            Ok((response, receive, _send)) => {
                let response = response.map(|()| Body::h2(Received::new(receive)));
                return Err(OpenError::Refused(Box::new(response)));
            }
            Err(error) => {
                tries += 1;
                if error.unprocessed.is_none() || tries >= MAX_TRIES {
                    return Err(AskMeshError::Broken(error).into());
                }
            }
        }
    }
}

const MAX_TRIES: usize = 3;
