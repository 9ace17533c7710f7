//! What is served on a socket of the agent.

use alcazar_api::envoy::secret::secret_discovery_service_server::SecretDiscoveryServiceServer;
use alcazar_identity::SocketName;
use alcazar_mtls::Clock;
use alcazar_service::Shutdown;
use tonic::service::Routes;

use crate::adoption::Clients;
use crate::callers::{Callers, Doors};
use crate::sds::SdsService;
use crate::workload_api::{self, Tokens, WorkloadApi};

/// What all sockets serve from.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) doors: Doors,
    pub(crate) clients: Clients,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Clock,
}

impl Offer {
    /// The services of one socket, which end with it. `socket`: the workload's own that it is; `None`: the shared one.
    pub(crate) fn services(&self, socket: Option<SocketName>, shutdown: Shutdown) -> Services {
        Services { callers: self.doors.callers(socket), offer: self.clone(), shutdown }
    }
}

/// The services of one socket.
pub(crate) struct Services {
    pub(crate) callers: Callers,
    offer: Offer,
    shutdown: Shutdown,
}

impl Services {
    pub(crate) fn routes(self) -> Routes {
        let Self { callers, offer, shutdown } = self;
        let sds = SdsService::new(callers.clone(), offer.clients.clone(), shutdown.clone());
        let workload_api = WorkloadApi::new(callers, offer, shutdown);
        Routes::new(SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(MAX_REQUEST))
            .add_service(workload_api::server(workload_api, MAX_REQUEST))
    }
}

/// Requests are names, and tokens to be validated.
const MAX_REQUEST: usize = 256 * 1024;
