//! The SPIFFE Workload API: what go-spiffe and its like speak.
//!
//! ```text
//!   View of what the caller may see ──messages──▶ X509SVIDResponse, bundles          pure
//!   Follow ─▶ Push: a message now and at every change ─▶ stream                      what it took counts by time
//!   FetchJWTSVID ─▶ Tokens: kept, renewed at half life, one request at a time ─▶ CA
//! ```
//!
//! **Source**: SPIFFE Workload Endpoint, SPIFFE Workload API.

mod allowance;
mod claims;
mod messages;
mod push;
mod service;
#[cfg(test)]
mod tests;
mod token;
mod tokens;

use alcazar_api::spiffe::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

pub(crate) use service::WorkloadApi;
pub(crate) use tokens::Tokens;

/// The service behind the standard's guard.
pub(crate) fn server(
    service: WorkloadApi,
    longest_request: usize,
) -> InterceptedService<SpiffeWorkloadApiServer<WorkloadApi>, SecurityHeader> {
    let server = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(longest_request);
    InterceptedService::new(server, SecurityHeader)
}

/// Refuses whoever does not say that a Workload API is what it means to call: a program that was tricked into passing on somebody
/// else's request does not.
///
/// **Source**: SPIFFE Workload Endpoint §4.2.
#[derive(Clone, Copy)]
pub(crate) struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match request.metadata().get(HEADER) {
            Some(value) if value == "true" => Ok(request),
            _ => Err(Status::invalid_argument(format!("the request's metadata must have {HEADER}: true"))),
        }
    }
}

const HEADER: &str = "workload.spiffe.io";
