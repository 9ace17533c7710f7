//! Requests: resolved, normalised, decided, forwarded to the application.

use alcazar_policy::{EncodedSlash, Http, NormalizedPath, Protocol as Spoken};
use alcazar_service::process::chain;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TE, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::guard::{Asked, AskedHttp, relay_while_allowed, request, until_forbidden};
use super::{Inbound, Refused};
use crate::authority::Authority;
use crate::body::Body;
use crate::h1::AskError;
use crate::hop;
use crate::io::Upgraded;
use crate::mesh::{Misdirected, Port, Protocol, Snapshot};
use crate::message::{self, BadRequest};
use crate::reply::{DECISION, Reply};
use crate::xfcc::FORWARDED_CLIENT_CERT;

impl Inbound {
    /// Decides a request and forwards what is allowed.
    pub(super) async fn forward(&self, mut head: Parts, body: Body) -> Result<Reply, Refused> {
        let mut snapshots = self.plane.snapshots.clone();
        let snapshot = snapshots.borrow_and_update().clone();
        let client_speaks = head.version;
        let upgrade = message::take_upgrade(&mut head, &body)?;
        let target = self.target(&snapshot, &head)?;
        let path = message::path_and_query(&head.uri);
        let path = NormalizedPath::parse(path.as_str(), EncodedSlash::default()).map_err(BadRequest::from)?;

        // What the connection is about goes first: rules see what the application will see.
        hop::strip(&mut head.headers);
        hop::join_cookies(&mut head.headers);
        head.headers.remove(FORWARDED_CLIENT_CERT);
        if let Some(host) = &target.host {
            head.headers.insert(HOST, host.clone());
        }
        self.decide(&snapshot, &head, &target, &path)?;
        head.headers.insert(FORWARDED_CLIENT_CERT, self.peer.forwarded.clone());

        let h2 = target.port.h2 || message::is_grpc(&head.headers);
        let forwarded =
            PathAndQuery::try_from(path.forward().as_ref()).map_err(|error| BadRequest::Target(error.into()))?;
        if upgrade {
            if h2 {
                return Err(BadRequest::UpgradeOverH2.into());
            }
            let asked = self.asked(&target, &head, &path);
            head.uri = Uri::from(forwarded);
            return Ok(self.upgrade(&snapshot, head, asked, snapshots, client_speaks).await);
        }
        let address = snapshot.workload.socket(target.number);
        let response = if h2 {
            // gRPC streams last: a new policy ends them.
            let asked = self.asked(&target, &head, &path);
            to_h2(&mut head, &target, forwarded).map_err(BadRequest::Target)?;
            let forbidden = until_forbidden(asked, snapshots, self.plane.clone());
            let response = self.plane.ask_h2(address, Request::from_parts(head, body)).await;
            response.map(|response| response.map(|body| body.until(Box::pin(forbidden))))
        } else {
            to_h1(&mut head, forwarded);
            self.plane.ask(address, Request::from_parts(head, body)).await
        };
        Ok(match response {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => self.unasked(&snapshot, address),
            Ok(mut response) => {
                message::clean_response(response.headers_mut(), &OURS);
                Reply::new(response)
            }
            Err(error) => self.no_response(&snapshot, address, error),
        })
    }

    /// Which of the application's ports a request is for, and the `Host` that the application gets.
    fn target(&self, snapshot: &Snapshot, head: &Parts) -> Result<Target, Refused> {
        let written = message::authority(head)?;
        let authority = written.map(Authority::parse).transpose().map_err(BadRequest::from)?;
        let host = written.map(HeaderValue::from_str).transpose().map_err(|_| BadRequest::Host)?;
        let (number, port) = match (self.port, &authority) {
            // Within a tunnel the port is settled, and the host is what the client wrote, as rules may match it.
            (Some(number), _) => {
                let port = snapshot.workload.port(number);
                (number, port.ok_or_else(|| Misdirected::Port("the tunnel".to_owned(), number))?)
            }
            (None, Some(authority)) => snapshot.workload.route(authority)?,
            (None, None) => return Err(BadRequest::NoHost.into()),
        };
        if port.protocol == Protocol::Tcp {
            return Err(Refused::NotHttp(number));
        }
        Ok(Target { number, port, host })
    }

    fn decide(
        &self,
        snapshot: &Snapshot,
        head: &Parts,
        target: &Target,
        path: &NormalizedPath<'_>,
    ) -> Result<(), Refused> {
        let host = target.host.as_ref().and_then(|host| host.to_str().ok()).map(Authority::parse);
        let host = host.transpose().map_err(BadRequest::from)?;
        let http = Http {
            host: host.as_ref().map(Authority::host),
            path,
            method: head.method.as_str(),
            headers: &crate::decision::HeaderView(&head.headers),
        };
        let asked = request(&self.peer, snapshot.workload.socket(target.number), Spoken::Http(http));
        let decided = self.plane.decisions.decide(snapshot, &asked, (self.plane.clock)());
        decided.map_err(Refused::Denied)
    }

    /// What is asked for, to be decided again when the policy changes.
    fn asked(&self, target: &Target, head: &Parts, path: &NormalizedPath<'_>) -> Asked {
        let http = AskedHttp {
            host: target.host.as_ref().and_then(|host| host.to_str().ok()).map(str::to_owned),
            path: path.as_str().to_owned(),
            method: head.method.to_string(),
            headers: head.headers.clone(),
        };
        Asked::http(self.peer.clone(), target.number, http)
    }

    /// Asks the application to change the protocol; if it does, the streams are joined.
    async fn upgrade(
        &self,
        snapshot: &Snapshot,
        mut head: Parts,
        asked: Asked,
        snapshots: tokio::sync::watch::Receiver<std::sync::Arc<Snapshot>>,
        client_speaks: Version,
    ) -> Reply {
        let address = asked.destination(snapshot);
        head.version = Version::HTTP_11;
        head.headers.remove(TE);
        // There is no body; a length would have the application wait for one, or take the tunnel for it.
        head.headers.remove(CONTENT_LENGTH);
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, HeaderValue::from_static(message::WEBSOCKET));
        let mut response = match self.plane.ask(address, Request::from_parts(head, Body::empty())).await {
            Ok(response) => response,
            Err(error) => return self.no_response(snapshot, address, error),
        };
        let changed = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if changed && !message::names_websocket(response.headers()) {
            return self.unasked(snapshot, address);
        }
        message::clean_response(response.headers_mut(), &OURS);
        if !changed {
            return Reply::new(response);
        }
        let app = hyper::upgrade::on(&mut response);
        let response = switching(response, client_speaks);
        let plane = self.plane.clone();
        Reply::tunnel(response, move |io| async move {
            if let Some(app) = upgraded(app).await {
                relay_while_allowed(io, app, asked, snapshots, plane).await;
            }
        })
    }

    /// The application changed to a protocol that nobody asked it for.
    fn unasked(&self, snapshot: &Snapshot, address: std::net::SocketAddr) -> Reply {
        let workload = &snapshot.workload;
        let (namespace, name) = (workload.namespace(), workload.name());
        let why = "the application changed to a protocol that it was not asked for";
        tracing::warn!(%address, "{why}");
        Reply::text(StatusCode::BAD_GATEWAY, format!("inbound proxy of {namespace}/{name}: {why}"))
    }

    fn no_response(&self, snapshot: &Snapshot, address: std::net::SocketAddr, error: AskError) -> Reply {
        if let AskError::Connect { source, .. } = &error {
            return self.unreachable(snapshot, address, source);
        }
        let workload = &snapshot.workload;
        tracing::warn!(%address, error = %chain(&error), "a request got no response from the application");
        let line = format!("inbound proxy of {}/{}: {error}", workload.namespace(), workload.name());
        Reply::text(StatusCode::BAD_GATEWAY, line)
    }
}

/// Where a request goes.
struct Target {
    number: u16,
    port: Port,
    host: Option<HeaderValue>,
}

/// The response by which each protocol says that the bytes are now something else.
pub(crate) fn switching(mut response: Response<Body>, client_speaks: Version) -> Response<Body> {
    if client_speaks == Version::HTTP_2 {
        *response.status_mut() = StatusCode::OK;
    } else {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(message::WEBSOCKET));
    }
    *response.body_mut() = Body::empty();
    response
}

async fn upgraded(app: OnUpgrade) -> Option<Upgraded> {
    match app.await {
        Ok(app) => Some(Upgraded::new(TokioIo::new(app))),
        Err(error) => {
            tracing::debug!(%error, "the application ended before the protocol changed");
            None
        }
    }
}

fn to_h1(head: &mut Parts, path: PathAndQuery) {
    head.uri = Uri::from(path);
    head.version = Version::HTTP_11;
    // It speaks of the connection, and this one has no use for it.
    head.headers.remove(TE);
}

fn to_h2(head: &mut Parts, target: &Target, path: PathAndQuery) -> Result<(), http::Error> {
    let authority = target.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    head.uri = message::absolute(authority, path)?;
    head.version = Version::HTTP_2;
    head.headers.remove(HOST);
    Ok(())
}

/// Fields of responses that only our proxies set.
const OURS: [http::HeaderName; 1] = [DECISION];
