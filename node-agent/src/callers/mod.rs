//! Who is at the other end of a socket, and what it may see: asked once for each RPC, of whichever service.

mod follow;

use std::sync::Arc;

use tokio::sync::watch;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

pub(crate) use follow::Follow;

use crate::registry::{NotAdmitted, Registry};
use crate::selector::{Caller, SocketName};

/// The callers of one Unix socket.
#[derive(Clone)]
pub(crate) struct Callers {
    /// The workload's own socket that this is; `None`: the shared one.
    socket: Option<SocketName>,
    registry: watch::Receiver<Arc<Registry>>,
}

impl Callers {
    pub(crate) fn new(socket: Option<SocketName>, registry: watch::Receiver<Arc<Registry>>) -> Self {
        Self { socket, registry }
    }

    /// Who calls, and what it may see, live.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` where the kernel does not say who calls, or no registration matches.
    pub(crate) fn follow<T>(&self, request: &Request<T>) -> Result<(Caller, Follow), Status> {
        let info = request.extensions().get::<UdsConnectInfo>();
        let Some(peer) = info.and_then(|info| info.peer_cred) else {
            tracing::warn!(target: "alcazar::refused", "a caller on a Unix socket whose peer credentials the kernel does not give");
            return Err(Status::permission_denied("the caller is not known"));
        };
        let caller = Caller { socket: self.socket.clone(), uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
        let follow = Follow::new(caller.clone(), self.registry.clone()).map_err(|refused| denied(&caller, &refused))?;
        Ok((caller, follow))
    }
}

/// Nobody's workload, or nobody's any more.
pub(crate) fn denied(caller: &Caller, refused: &NotAdmitted) -> Status {
    let closest = refused.closest().unwrap_or("none");
    tracing::warn!(target: "alcazar::refused", %caller, closest, "no registration matches a caller");
    // The caller learns nothing of other workloads; the operator's log has it.
    Status::permission_denied("no registration matches the caller; the agent's log says what was seen")
}
