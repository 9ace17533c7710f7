//! Choosing an endpoint, and another when the first cannot be reached.

use std::sync::Arc;
use std::time::Instant;

use alcazar_service::process::chain;
use http::{Request, Response};

use crate::balance::{InFlight, choose};
use crate::body::Body;
use crate::h2::{Channel, SendError};
use crate::mesh::Endpoint;
use crate::plane::Plane;
use crate::pool::DialError;

/// A connection to one of several endpoints.
pub(super) struct Chosen {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) channel: Channel,
    pub(super) in_flight: InFlight,
}

/// Why no endpoint can be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoEndpoint {
    #[error("no workload serves it")]
    None,
    #[error("no workload that serves it can be reached")]
    Unreachable(#[source] DialError),
    #[error("the server is not who it should be, or refuses this caller")]
    Refused(#[source] DialError),
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskMeshError {
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    #[error("the connection broke before there was a response")]
    Broken(#[source] SendError),
}

/// Connects to one of `endpoints`: those with less in flight first, others when one cannot be connected to.
pub(super) async fn connect(plane: &Plane, endpoints: &[Arc<Endpoint>]) -> Result<Chosen, NoEndpoint> {
    let mut tried = Vec::new();
    let mut last = NoEndpoint::None;
    while tried.len() < MAX_TRIES {
        let Some(endpoint) = pick(plane, endpoints, &tried) else { break };
        let load = plane.loads.of(endpoint.mesh_address);
        match plane.mesh.channel(endpoint).await {
            Ok(channel) => {
                load.connected();
                return Ok(Chosen { endpoint: endpoint.clone(), channel, in_flight: load.begin() });
            }
            Err(error) => {
                load.failed(Instant::now());
                tried.push(endpoint.mesh_address);
                last = failed(endpoint, error);
            }
        }
    }
    Err(last)
}

/// Sends a request to one of `endpoints`. One that was surely not processed is sent again.
pub(super) async fn ask(
    plane: &Plane,
    endpoints: &[Arc<Endpoint>],
    mut request: Request<Body>,
) -> Result<Response<Body>, AskMeshError> {
    let mut tries = 0;
    loop {
        let chosen = connect(plane, endpoints).await?;
        match chosen.channel.send(request).await {
            Ok(response) => return Ok(response.map(|body| body.counted(chosen.in_flight))),
            Err(mut error) => {
                tries += 1;
                match error.unprocessed.take() {
                    Some(again) if tries < MAX_TRIES => request = *again,
                    _ => return Err(AskMeshError::Broken(error)),
                }
            }
        }
    }
}

fn pick<'e>(
    plane: &Plane,
    endpoints: &'e [Arc<Endpoint>],
    tried: &[std::net::SocketAddr],
) -> Option<&'e Arc<Endpoint>> {
    // One endpoint is the usual case: nothing to weigh.
    if let [only] = endpoints {
        return (!tried.contains(&only.mesh_address)).then_some(only);
    }
    let now = Instant::now();
    let load = |at: usize, failing_too: bool| {
        let endpoint = endpoints.get(at).filter(|endpoint| !tried.contains(&endpoint.mesh_address))?;
        let load = plane.loads.of(endpoint.mesh_address);
        (failing_too || !load.is_failing(now)).then(|| load.in_flight())
    };
    let random = |n| plane.loads.random(n);
    let healthy = choose(endpoints.len(), |at| load(at, false), random);
    // When all have failed just now, one of them must be tried all the same.
    let chosen = healthy.or_else(|| choose(endpoints.len(), |at| load(at, true), random))?;
    endpoints.get(chosen)
}

fn failed(endpoint: &Endpoint, error: DialError) -> NoEndpoint {
    let (workload, address, expected) = (&endpoint.workload, endpoint.mesh_address, &endpoint.identity);
    match error {
        DialError::Tls(_) | DialError::Alpn | DialError::H2(_) => {
            let reason = chain(&error);
            tracing::warn!(
                target: "alcazar::refused", workload, %address, %expected, reason, "no connection to a server of the mesh"
            );
            NoEndpoint::Refused(error)
        }
        DialError::Connect(_) | DialError::Deadline => {
            tracing::warn!(workload, %address, error = %chain(&error), "a server of the mesh cannot be reached");
            NoEndpoint::Unreachable(error)
        }
    }
}

const MAX_TRIES: usize = 3;
