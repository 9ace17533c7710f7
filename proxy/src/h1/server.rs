//! The serving side of HTTP/1, behind the strict reader.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::body::Body;
use crate::head::{Gate, RefusedHead, STAND_IN_METHOD, Strict};
use crate::io::{Io, Rewound};
use crate::life::Life;
use crate::reply::{Reply, Service, Tunnel};
use crate::tasks::Tasks;

/// Serves one connection until the client goes or its life ends.
///
/// # Errors
/// When the client breaks the protocol, or the transport breaks.
pub(crate) async fn serve<IO, S>(
    io: IO,
    already_read: BytesMut,
    service: Arc<S>,
    mut life: Life,
    tasks: &Tasks,
) -> hyper::Result<()>
where
    IO: Io + 'static,
    S: Service,
{
    let gate = Arc::new(Gate::default());
    let strict = Strict::new(io, already_read, gate.clone());
    let answer = service_fn(|request| answer::<IO, S>(request, service.clone(), gate.clone(), tasks.clone()));
    let connection = builder().serve_connection(TokioIo::new(strict), answer).with_upgrades();
    let mut connection = pin!(connection);
    let end_at = life.end_at();
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = life.drain(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = Life::end(end_at) => return Ok(()),
        }
    }
}

async fn answer<IO: Io + 'static, S: Service>(
    mut request: Request<Incoming>,
    service: Arc<S>,
    gate: Arc<Gate>,
    tasks: Tasks,
) -> Result<Response<Body>, Infallible> {
    if request.method().as_str() == STAND_IN_METHOD {
        return Ok(refuse(gate.refused()));
    }
    // The same question as the scanner asks: it lets nothing pass until it has the answer.
    let may_switch = request.method() == Method::CONNECT
        || (request.headers().contains_key(UPGRADE) && request.version() == Version::HTTP_11);
    let upgrade = may_switch.then(|| hyper::upgrade::on(&mut request));
    let Reply { mut response, tunnel } = service.call(request.map(Body::h1)).await;
    *response.version_mut() = Version::HTTP_11;
    match (upgrade, tunnel) {
        (Some(upgrade), Some(tunnel)) => {
            gate.decide(true);
            tasks.spawn(switch::<IO>(upgrade, tunnel));
        }
        (Some(_), None) => gate.decide(false),
        (None, _) => {}
    }
    // A body that broke while it was passed on is the client's fault, whatever became of the request.
    match gate.refused() {
        Some(refused) if !may_switch && response.status().is_server_error() => Ok(refuse(Some(refused))),
        _ => Ok(response),
    }
}

/// Hands the connection to the tunnel once the response is on its way.
async fn switch<IO: Io + 'static>(upgrade: OnUpgrade, tunnel: Tunnel) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "a connection ended before it became a tunnel");
            return;
        }
    };
    match upgraded.downcast::<TokioIo<Strict<IO>>>() {
        Ok(parts) => tunnel(Box::new(Rewound::new(parts.read_buf, parts.io.into_inner()))).await,
        Err(_) => tracing::error!("a connection changed its type on the way to a tunnel"),
    }
}

fn refuse(why: Option<RefusedHead>) -> Response<Body> {
    let (status, line) = match why {
        Some(RefusedHead::TooSlow) => (StatusCode::REQUEST_TIMEOUT, RefusedHead::TooSlow.to_string()),
        Some(why @ (RefusedHead::TooLong | RefusedHead::TooManyFields)) => (StatusCode::BAD_REQUEST, why.to_string()),
        Some(why) => (StatusCode::BAD_REQUEST, why.to_string()),
        None => (StatusCode::BAD_REQUEST, "the request is malformed".to_owned()),
    };
    tracing::warn!(target: "alcazar::refused", reason = %line, "a malformed request was refused");
    let mut response = Reply::text(status, line).response;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    // Dates are the application's; deadlines and limits for heads are the strict reader's.
    builder.auto_date_header(false).max_headers(MAX_FIELDS).header_read_timeout(None).keep_alive(true);
    builder
}

/// More than the scanner lets pass.
const MAX_FIELDS: usize = 128;
