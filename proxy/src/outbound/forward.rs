//! Requests of the application: resolved to a service, sent to one of its endpoints.

use alcazar_service::process::chain;
use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::{Method, Request, StatusCode, Version};

use super::Outbound;
use super::connect::OpenError;
use super::endpoints::{self, AskMeshError, NoEndpoint};
use crate::authority::Authority;
use crate::body::Body;
use crate::h2::H2Stream;
use crate::hop;
use crate::inbound::switching;
use crate::mesh::{Protocol, Route, Unknown};
use crate::message::{self, BadRequest};
use crate::method;
use crate::relay::relay;
use crate::reply::Reply;

impl Outbound {
    /// Forwards a request into the mesh.
    pub(super) async fn forward(&self, mut head: Parts, body: Body) -> Reply {
        let client_speaks = head.version;
        let checked = method::check(&head.method).and_then(|()| message::take_upgrade(&mut head, &body));
        let upgrade = match checked {
            Ok(upgrade) => upgrade,
            Err(why) => return why.into(),
        };
        let (written, route) = match self.route(&head) {
            Ok(found) => found,
            Err(Unrouted::Bad(why)) => return why.into(),
            Err(Unrouted::Unknown(what, why)) => return self.failed(StatusCode::BAD_GATEWAY, &what, why),
        };
        let Some(port) = route.port() else {
            return self.failed(StatusCode::BAD_GATEWAY, &written, "the service has no such port");
        };
        if port.protocol == Protocol::Tcp {
            return self.failed(StatusCode::BAD_GATEWAY, &written, "the port does not speak HTTP; use CONNECT");
        }
        head.uri = match message::absolute(&written, message::path_and_query(&head.uri)) {
            Ok(uri) => uri,
            Err(error) => return BadRequest::Target(error).into(),
        };
        hop::strip(&mut head.headers);
        head.headers.remove(HOST);
        head.version = Version::HTTP_2;

        if upgrade {
            return self.upgrade(head, &route, &written, client_speaks).await;
        }
        match endpoints::ask(&self.plane, &port.endpoints, Request::from_parts(head, body)).await {
            Ok(mut response) => {
                message::clean_response(response.headers_mut(), &[]);
                Reply::new(response)
            }
            Err(error) => self.unanswered(&written, &error.into()),
        }
    }

    /// The service that a request is for, and its authority as the other proxy gets it.
    fn route(&self, head: &Parts) -> Result<(String, Route), Unrouted> {
        if let Some(scheme) = head.uri.scheme_str().filter(|scheme| *scheme != "http") {
            return Err(BadRequest::Scheme(scheme.to_owned()).into());
        }
        let written = message::authority(head)?.ok_or(BadRequest::NoHost)?;
        let authority = Authority::parse(written).map_err(BadRequest::from)?;
        let route = self.plane.snapshot().services.route(&authority, self.tunnel);
        let route = route.map_err(|why| Unrouted::Unknown(written.to_owned(), why))?;
        let written = match (authority.port(), self.tunnel) {
            // The tunnel named the port; to the other proxy there is no tunnel.
            (None, Some(port)) => format!("{}:{port}", authority.host()),
            _ => written.to_owned(),
        };
        Ok((written, route))
    }

    /// A change of protocol travels as extended CONNECT (RFC 8441).
    async fn upgrade(&self, mut head: Parts, route: &Route, written: &str, client_speaks: Version) -> Reply {
        head.method = Method::CONNECT;
        head.headers.remove(CONTENT_LENGTH);
        head.extensions.insert(::h2::ext::Protocol::from_static(message::WEBSOCKET));
        let endpoints = route.port().map(|port| port.endpoints.as_slice()).unwrap_or_default();
        let chosen = match endpoints::connect(&self.plane, endpoints).await {
            Ok(chosen) => chosen,
            Err(error) => return self.unanswered(written, &AskMeshError::from(error).into()),
        };
        let (response, receive, send) = match chosen.channel.connect(Request::from_parts(head, Body::empty())).await {
            Ok(opened) => opened,
            Err(error) => return self.unanswered(written, &AskMeshError::Broken(error).into()),
        };
        if response.status() != StatusCode::OK {
            let mut response = response.map(|()| Body::h2(crate::h2::Received::new(receive)));
            message::clean_response(response.headers_mut(), &[]);
            return Reply::new(response);
        }
        let (mut far, in_flight) = (H2Stream::new(receive, send), chosen.in_flight);
        let mut response = switching(response.map(|()| Body::empty()), client_speaks);
        *response.version_mut() = client_speaks;
        Reply::tunnel(response, move |mut io| async move {
            if let Err(error) = relay(&mut io, &mut far).await {
                tracing::debug!(%error, "a tunnel broke");
            }
            drop(in_flight);
        })
    }

    /// There is no response: which proxy, what, and why.
    pub(super) fn unanswered(&self, written: &str, error: &OpenError) -> Reply {
        let status = match error {
            OpenError::Ask(AskMeshError::NoEndpoint(NoEndpoint::None | NoEndpoint::Unreachable(_))) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_GATEWAY,
        };
        tracing::warn!(service = written, error = %chain(error), "a request got no response from the mesh");
        self.failed(status, written, error)
    }
}

/// Why a request leads nowhere.
#[derive(Debug, thiserror::Error)]
enum Unrouted {
    #[error(transparent)]
    Bad(#[from] BadRequest),
    #[error("{0}: {1}")]
    Unknown(String, #[source] Unknown),
}
