//! What the control plane said, checked and indexed: immutable, and swapped as a whole.

mod directory;
mod workload;

use std::sync::Arc;

use alcazar_policy::Compiled;

pub use directory::{Directory, Endpoint, InvalidService, Route, Service, ServicePort, Unknown};
pub use workload::{InvalidWorkload, Misdirected, Port, Protocol, Workload};

/// All that the data plane needs to know besides its credentials.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// In front of whom we stand.
    pub workload: Arc<Workload>,
    /// Who may call it.
    pub policy: Arc<Compiled>,
    /// Whom it can call.
    pub services: Arc<Directory>,
}

/// The port that a name without one means.
pub(crate) const DEFAULT_PORT: u16 = 80;
