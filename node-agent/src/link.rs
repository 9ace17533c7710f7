//! The standing connection to the CA: registrations and trust bundles, followed through every outage.

use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_identity::{Credentials, Revocations, SpiffeId, TrustBundles};
use alcazar_mtls::Clock;
use alcazar_service::Shutdown;
use alcazar_service::process::chain;
use futures::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::adoption::Reissue;
use crate::authority::{Authority, CallError, Session};
use crate::chance;
use crate::issued::{ReplyError, read_bundles};
use crate::registered::Registered;
use crate::schedule::{Failures, Later, reconnect_after};
use crate::status::NodeStatus;

/// Follows the CA as the node.
pub(crate) struct Link {
    pub(crate) node: SpiffeId,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) identity: watch::Receiver<Option<Arc<Credentials>>>,
    /// By which the CA itself is judged, when a connection is made.
    pub(crate) revoked: watch::Receiver<Arc<Revocations>>,
    pub(crate) clock: Clock,
    pub(crate) status: watch::Sender<NodeStatus>,
    pub(crate) out: Heard,
    pub(crate) doubt: Arc<Notify>,
}

/// What comes in over the link.
pub(crate) struct Heard {
    /// The connection to use for requests; `None` while the node has no identity.
    pub(crate) session: watch::Sender<Option<Arc<dyn Session>>>,
    /// The registrations of this node; `None` until the CA has said them.
    pub(crate) registrations: watch::Sender<Option<Arc<Registered>>>,
    /// What the CA says to be believed.
    pub(crate) said: watch::Sender<Option<Arc<TrustBundles>>>,
    /// What the CA says to be revoked, unchecked.
    pub(crate) revocations: watch::Sender<Option<Arc<v1::SignedRevocations>>>,
    /// What the CA says of CRLs, unchecked; `None`: nobody wants them.
    pub(crate) crls: Option<watch::Sender<Option<Arc<v1::Crls>>>>,
    /// What it says to be issued anew.
    pub(crate) reissue: watch::Sender<Arc<Reissue>>,
}

impl Link {
    pub(crate) async fn keep(self, shutdown: Shutdown) {
        let mut node = self.identity.clone();
        let mut failures = None;
        let mut doubted: Option<Instant> = None;
        loop {
            let Some(identity) = node.borrow_and_update().clone() else {
                self.out.session.send_replace(None);
                tokio::select! {
                    change = node.changed() => if change.is_err() { return },
                    () = shutdown.cancelled() => return,
                }
                continue;
            };
            // After a rotation there is a new connection: none outlives the certificate that opened it.
            let revoked = self.revoked.borrow().clone();
            let session = self.authority.session(Arc::new((*identity).clone().with_revocations(revoked)));
            self.out.session.send_replace(Some(session.clone()));
            let error = tokio::select! {
                error = self.follow(session, &mut failures) => error,
                change = node.changed() => if change.is_ok() { continue } else { return },
                () = shutdown.cancelled() => return,
            };
            failures = Some(Failures::another(failures, (self.clock)()).told(error.later()));
            self.tell(&error);
            if error.is_final() && doubted.is_none_or(|at| at.elapsed() > DOUBT_EVERY) {
                doubted = Some(Instant::now());
                self.doubt.notify_one();
            }
            let pause = failures.as_ref().map_or(Duration::ZERO, |failed| reconnect_after(failed, chance::jitter()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                change = node.changed() => if change.is_err() { return },
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Follows both streams; ends with the first that ends.
    async fn follow(&self, session: Arc<dyn Session>, failures: &mut Option<Failures>) -> LinkError {
        let outcome: Result<(), LinkError> = async {
            let (mut registrations, mut bundles, mut revocations) =
                tokio::try_join!(session.registrations(), session.bundles(), session.revocations())?;
            let mut reissues = match session.reissues().await {
                Ok(reissues) => reissues,
                // A CA of an earlier version: it rotates nothing.
                Err(error) if error.is_final() => futures::stream::pending().boxed(),
                Err(error) => return Err(error.into()),
            };
            let mut crls = match &self.out.crls {
                None => futures::stream::pending().boxed(),
                Some(_) => match session.crls().await {
                    Ok(crls) => crls,
                    // A CA of an earlier version: it tells none.
                    Err(error) if error.is_final() => futures::stream::pending().boxed(),
                    Err(error) => return Err(error.into()),
                },
            };
            loop {
                tokio::select! {
                    said = registrations.next() => {
                        let said = said.ok_or(LinkError::Ended)??;
                        *failures = None;
                        self.tell_up();
                        let earlier = self.out.registrations.borrow().clone();
                        let said = Registered::read(said, &self.node, earlier.as_deref());
                        self.out.registrations.send_replace(Some(Arc::new(said)));
                    }
                    said = revocations.next() => {
                        let said = said.ok_or(LinkError::Ended)??;
                        self.out.revocations.send_replace(Some(Arc::new(said)));
                    }
                    said = crls.next() => {
                        let said = Arc::new(said.ok_or(LinkError::Ended)??);
                        if let Some(crls) = &self.out.crls {
                            crls.send_replace(Some(said));
                        }
                    }
                    said = reissues.next() => {
                        let said = Arc::new(Reissue::read(&said.ok_or(LinkError::Ended)??));
                        self.out.reissue.send_if_modified(|held| {
                            let other = *held != said;
                            if other {
                                *held = said;
                            }
                            other
                        });
                    }
                    said = bundles.next() => {
                        let said = said.ok_or(LinkError::Ended)??;
                        match self.checked(&said) {
                            Ok(said) => {
                                self.out.said.send_replace(Some(Arc::new(said)));
                            }
                            Err(error) => tracing::error!(target: "alcazar::refused", reason = chain(&error), "the CA's trust bundles cannot be used; the ones held stay"),
                        }
                    }
                }
            }
        }
        .await;
        outcome.err().unwrap_or(LinkError::Ended)
    }

    fn checked(&self, said: &v1::TrustBundles) -> Result<TrustBundles, ReplyError> {
        let bundles = read_bundles(said)?;
        // Without the roots of our own trust domain nobody here could verify anybody.
        bundles.get(self.node.trust_domain()).ok_or(ReplyError::NoBundle)?;
        Ok(bundles)
    }

    fn tell(&self, error: &LinkError) {
        let reason = chain(error);
        let before = self.status.borrow().ca_error.clone();
        if before.as_ref() != Some(&reason) {
            self.status.send_modify(|status| status.ca_error = Some(reason.clone()));
            tracing::warn!(
                reason,
                "the CA cannot be followed; what is held stays in use, and the agent goes on trying"
            );
        }
    }

    fn tell_up(&self) {
        if self.status.borrow().ca_error.is_some() {
            tracing::info!("the CA can be followed again");
        }
        self.status.send_if_modified(|status| status.ca_error.take().is_some());
    }
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the CA ended the stream")]
    Ended,
    #[error(transparent)]
    Call(#[from] CallError),
}

impl LinkError {
    fn later(&self) -> Option<Later> {
        match self {
            Self::Ended => None,
            Self::Call(error) => error.later(),
        }
    }

    fn is_final(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_final())
    }
}

/// How often, at most, refused calls make the node renew out of turn.
const DOUBT_EVERY: Duration = Duration::from_secs(60);
