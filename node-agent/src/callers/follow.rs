use std::sync::Arc;

use futures::FutureExt;
use futures::future::select_all;
use tokio::sync::watch;

use super::Asking;
use crate::caller::Caller;
use crate::crls::Crls;
use crate::registry::{Held, NotAdmitted, Registry, Served};
use crate::sds::View;

/// A registration, and the channel of what is held for it.
type Followed = (Arc<Served>, watch::Receiver<Arc<Held>>);

/// What one caller may see, live: the registrations that it matches, and what is held for each.
pub(crate) struct Follow {
    asking: Asking,
    registry: watch::Receiver<Arc<Registry>>,
    crls: watch::Receiver<Arc<Crls>>,
    /// The registry by which `served` was chosen.
    seen: Arc<Registry>,
    caller: Caller,
    served: Vec<Followed>,
    view: View,
    /// Something is different, and nobody has looked yet whether the caller may see it.
    stale: bool,
}

impl Follow {
    /// Starts to follow for a caller.
    pub(crate) async fn start(
        asking: Asking,
        mut registry: watch::Receiver<Arc<Registry>>,
        mut crls: watch::Receiver<Arc<Crls>>,
    ) -> Result<Self, NotAdmitted> {
        let seen = registry.borrow_and_update().clone();
        let (caller, served) = asking.admitted(&seen).await?;
        let (served, view) = followed(served, &mut crls);
        Ok(Self { asking, registry, crls, seen, caller, served, view, stale: false })
    }

    /// Who it is, as it was seen last.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whether the log may have a line that the caller causes: with how many it does not have since the last one.
    pub(crate) fn line(&self) -> Option<u64> {
        self.asking.callers.line(self.asking.peer.user())
    }

    /// What may be seen: as of the last change that [`Follow::changed`] told.
    pub(crate) fn view(&self) -> View {
        self.view.clone()
    }

    /// The registrations that the caller matches, and what is held for each; its default one first.
    pub(crate) fn registrations(&self) -> impl Iterator<Item = (&Arc<Served>, Arc<Held>)> {
        self.served.iter().map(|(served, _)| served).zip(self.view.iter().map(|(_, held)| held.clone()))
    }

    /// Waits until something may be different. A future that is dropped loses nothing.
    ///
    /// # Errors
    /// When the caller is nobody's workload any more.
    pub(crate) async fn changed(&mut self) -> Result<(), NotAdmitted> {
        if !self.stale {
            self.wait().await;
            self.stale = true;
        }
        let now = self.registry.borrow_and_update().clone();
        // Who was known by its process may execute something else by now: nothing new is shown before somebody has looked.
        if !Arc::ptr_eq(&now, &self.seen) || !self.asking.needs(&now, &self.caller).is_none() {
            let (caller, served) = self.asking.admitted(&now).await?;
            (self.served, self.view) = followed(served, &mut self.crls);
            (self.caller, self.seen) = (caller, now);
        } else {
            self.view = view(&mut self.served, &mut self.crls);
        }
        self.stale = false;
        Ok(())
    }

    /// Takes in what is different by now, if anything is.
    ///
    /// # Errors
    /// When the caller is nobody's workload any more.
    pub(crate) async fn catch_up(&mut self) -> Result<(), NotAdmitted> {
        self.stale = self.stale || self.wait().now_or_never().is_some();
        if self.stale { self.changed().await } else { Ok(()) }
    }

    async fn wait(&mut self) {
        let Self { registry, crls, served, .. } = self;
        let held = select_all(served.iter_mut().map(|(_, held)| held.changed().boxed()));
        let crls = async {
            if crls.changed().await.is_err() {
                // The agent is going, or has none in all its life.
                std::future::pending().await
            }
        };
        let registry_alive = tokio::select! {
            () = crls => return,
            change = registry.changed() => change.is_ok(),
            // A closed channel is a registration that went: the registry is about to say so.
            (change, _, _) = held => match change {
                Ok(()) => return,
                Err(_) => registry.changed().await.is_ok(),
            },
        };
        if !registry_alive {
            // The agent is going; what was served stays as it is until the socket closes.
            std::future::pending().await
        }
    }
}

/// The channels of what is held for some registrations, and what is held now.
fn followed(served: Vec<Arc<Served>>, crls: &mut watch::Receiver<Arc<Crls>>) -> (Vec<Followed>, View) {
    let follow = |served: Arc<Served>| {
        let held = served.follow();
        (served, held)
    };
    let mut followed: Vec<_> = served.into_iter().map(follow).collect();
    let view = view(&mut followed, crls);
    (followed, view)
}

fn view(served: &mut [Followed], crls: &mut watch::Receiver<Arc<Crls>>) -> View {
    let held =
        |(served, held): &mut Followed| (served.registration().spiffe_id().clone(), held.borrow_and_update().clone());
    View::new(served.iter_mut().map(held)).with_crls(crls.borrow_and_update().clone())
}
