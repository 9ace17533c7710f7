//! One status out of what the parts of the agent say of themselves.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use alcazar_identity::SocketName;
use alcazar_service::Shutdown;
use tokio::sync::watch;

use crate::registry::Registry;
use crate::status::{NarrowingStatus, NodeStatus, RegistrationStatus, Status};

/// Joins what the parts say of themselves.
pub(super) struct Show {
    pub(super) node: watch::Receiver<NodeStatus>,
    pub(super) workloads: watch::Receiver<Vec<Arc<RegistrationStatus>>>,
    pub(super) problems: watch::Receiver<BTreeMap<SocketName, String>>,
    pub(super) registry: watch::Receiver<Arc<Registry>>,
    pub(super) narrowed: watch::Receiver<Option<NarrowingStatus>>,
    pub(super) out: watch::Sender<Arc<Status>>,
}

impl Show {
    pub(super) async fn keep(mut self, path_of: impl Fn(&str) -> PathBuf + Send + 'static, shutdown: Shutdown) {
        loop {
            let now = self.now(&path_of);
            self.out.send_replace(Arc::new(now));
            let change = tokio::select! {
                change = self.node.changed() => change,
                change = self.workloads.changed() => change,
                change = self.problems.changed() => change,
                change = self.narrowed.changed() => change,
                () = shutdown.cancelled() => return,
            };
            if change.is_err() {
                return;
            }
        }
    }

    fn now(&mut self, path_of: impl Fn(&str) -> PathBuf) -> Status {
        let node = self.node.borrow_and_update().clone();
        let mut registrations = self.workloads.borrow_and_update().clone();
        let problems = self.problems.borrow_and_update().clone();
        let registry = self.registry.borrow().clone();
        let sockets: BTreeMap<_, _> =
            registry.sockets().map(|(name, served)| (served.registration().id(), name)).collect();
        for registration in &mut registrations {
            let Some(name) = sockets.get(registration.id.as_str()) else { continue };
            let registration = Arc::make_mut(registration);
            registration.socket = Some(path_of(name.as_str()));
            if let Some(problem) = problems.get(name) {
                registration.last_error = Some(problem.clone());
            }
        }
        Status { node, registrations, narrowing: self.narrowed.borrow_and_update().clone() }
    }
}
