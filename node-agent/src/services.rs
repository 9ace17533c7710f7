//! What is served on a socket of the agent.

use alcazar_api::envoy::secret::secret_discovery_service_server::SecretDiscoveryServiceServer;
use alcazar_service::Shutdown;
use tonic::service::Routes;

use crate::adoption::Clients;
use crate::callers::Callers;
use crate::sds::SdsService;

/// The services of one socket, which end with it.
pub(crate) struct Services {
    pub(crate) callers: Callers,
    pub(crate) clients: Clients,
    pub(crate) shutdown: Shutdown,
}

impl Services {
    pub(crate) fn routes(self) -> Routes {
        let sds = SdsService::new(self.callers, self.clients, self.shutdown);
        Routes::new(SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(MAX_REQUEST))
    }
}

/// Requests are names.
const MAX_REQUEST: usize = 256 * 1024;
