use std::sync::Arc;

use futures::FutureExt;
use futures::future::select_all;
use tokio::sync::watch;

use crate::registry::{Held, NotAdmitted, Registry, Served};
use crate::sds::View;
use crate::selector::Caller;

/// A registration, and the channel of what is held for it.
type Followed = (Arc<Served>, watch::Receiver<Arc<Held>>);

/// What one caller may see, live: the registrations that it matches, and what is held for each.
pub(crate) struct Follow {
    caller: Caller,
    registry: watch::Receiver<Arc<Registry>>,
    /// The registry by which `served` was chosen.
    seen: Arc<Registry>,
    served: Vec<Followed>,
}

impl Follow {
    /// Starts to follow for a caller.
    pub(crate) fn new(caller: Caller, mut registry: watch::Receiver<Arc<Registry>>) -> Result<Self, NotAdmitted> {
        let seen = registry.borrow_and_update().clone();
        let served = admitted(&seen, &caller)?;
        Ok(Self { caller, registry, seen, served })
    }

    /// What may be seen now.
    pub(crate) fn view(&self) -> View {
        let held =
            self.served.iter().map(|(served, held)| (served.registration().spiffe_id().clone(), held.borrow().clone()));
        View::new(held)
    }

    /// The registrations that the caller matches, and what is held for each; its default one first.
    pub(crate) fn registrations(&self) -> impl Iterator<Item = (&Arc<Served>, Arc<Held>)> {
        self.served.iter().map(|(served, held)| (served, held.borrow().clone()))
    }

    /// Waits until something may be different.
    ///
    /// # Errors
    /// When the caller is nobody's workload any more.
    pub(crate) async fn changed(&mut self) -> Result<(), NotAdmitted> {
        let Self { registry, served, .. } = self;
        let held = select_all(served.iter_mut().map(|(_, held)| held.changed().boxed()));
        let registry_alive = tokio::select! {
            change = registry.changed() => change.is_ok(),
            // A closed channel is a registration that went: the registry is about to say so.
            (change, _, _) = held => match change {
                Ok(()) => return Ok(()),
                Err(_) => registry.changed().await.is_ok(),
            },
        };
        if !registry_alive {
            // The agent is going; what was served stays as it is until the socket closes.
            return std::future::pending().await;
        }
        let now = self.registry.borrow_and_update().clone();
        if !Arc::ptr_eq(&now, &self.seen) {
            self.served = admitted(&now, &self.caller)?;
            self.seen = now;
        }
        Ok(())
    }
}

/// The registrations of a caller, and the channels of what is held for them.
fn admitted(registry: &Registry, caller: &Caller) -> Result<Vec<Followed>, NotAdmitted> {
    let served = registry.admit(caller)?;
    let follow = |served: Arc<Served>| {
        let held = served.follow();
        (served, held)
    };
    Ok(served.into_iter().map(follow).collect())
}
