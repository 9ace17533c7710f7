//! The end of a replica in order: it says so first, and its callers go elsewhere.

use alcazar_service::{Part, Readiness, Shutdown};

use super::Phase;
use crate::ca::Ca;

impl Ca {
    /// Waits for the end. From then on this replica is not ready, and says so to the others. When this completes, its listeners are to
    /// close, and its connections are told to go; what is returned keeps it from being ready.
    pub(crate) async fn drain(&self, readiness: &Readiness, shutdown: &Shutdown) -> Part {
        shutdown.cancelled().await;
        let part = readiness.part("drain");
        part.not_ready("this replica ends");
        self.enter_phase(Phase::Draining).await;
        let delay = self.0.config.replicas.drain_delay;
        if !delay.is_zero() {
            tracing::info!(
                seconds = delay.as_secs(),
                "this replica ends; it serves on until load balancers have looked elsewhere"
            );
            tokio::time::sleep(delay).await;
        }
        part
    }
}
