//! The life of an intermediate that another replica gave: renewed in time, left where it is shared, and left at once where it is
//! revoked.

use std::time::Duration;

use alcazar_identity::Fingerprint;
use alcazar_service::{Shutdown, process};
use tokio::time::Instant;

use super::{
    HeldIntermediate, JoinError, ReplicaState, Shares,
    sharing::{Leaves, Stands, Wants, asks, to_sign_under},
};
use crate::{
    ca::Ca,
    hierarchy::{HierarchyError, blocking},
    records::RecordError,
    rotation::{Anchor, Kind, Phase},
};

impl Ca {
    /// Looks after what this replica signs with, as far as the other replicas are needed for it, or it is revoked, until the end.
    pub(crate) async fn keep_given(self, shutdown: Shutdown) {
        let (mut hierarchy, mut revocations) = (self.0.hierarchy.subscribe(), self.follow_revocations());
        let mut asked: Option<(Wants, Instant)> = None;
        loop {
            let wants = match self.0.config.store.is_shared() || self.revoked_issuer().is_some() {
                true => self.wants().await,
                false => Ok(Wants::Nothing),
            };
            match wants {
                Ok(Wants::Nothing) => self.follow_to_the_next_root(&shutdown).await,
                Ok(wants) if asked.is_none_or(|(before, at)| before != wants || at.elapsed() >= ASK_AGAIN) => {
                    asked = Some((wants, Instant::now()));
                    let outcome = tokio::select! {
                        () = shutdown.cancelled() => return,
                        outcome = self.go_over(wants) => outcome,
                    };
                    match outcome {
                        Ok(()) => {}
                        Err(error) if wants == Wants::ItsOwn => {
                            tracing::debug!(reason = %process::chain(&error), "nobody gives this replica an intermediate of its own yet");
                        }
                        Err(error) => {
                            tracing::error!(target: "alcazar::rotation", reason = %process::chain(&error), "no replica gives this one the intermediate that it needs; the present one goes on while it can");
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(reason = %process::chain(&error), "what this replica signs with could not be looked at");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                _ = hierarchy.changed() => {}
                _ = revocations.changed() => {}
            }
        }
    }

    /// While the root is rotated: gets an intermediate under the one that it goes to, from whoever has that root's key. Nothing signs with
    /// it before the rotation says so, and the rotation waits for every replica that has none.
    async fn follow_to_the_next_root(&self, shutdown: &Shutdown) {
        if !self.0.config.store.is_shared() {
            return;
        }
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = self.get_ready_for_the_next_root() => outcome,
        };
        if let Err(error) = outcome {
            tracing::warn!(target: "alcazar::rotation", reason = %process::chain(&error), "this replica has no intermediate under the root that the rotation goes to yet; it asks again");
        }
    }

    async fn get_ready_for_the_next_root(&self) -> Result<(), JoinError> {
        let Some((root, brought)) = self.next_root().await? else { return Ok(()) };
        tracing::info!(target: "alcazar::rotation", %root, "this replica needs an intermediate under the root that the rotation goes to");
        let shared = if brought { Shares::Any } else { Shares::No };
        let given = match self.obtain_intermediate(root, shared).await {
            // Of a root that is kept offline a person brings the first, which the others share.
            Err(JoinError::Unanswered { fault: None }) if brought => return Ok(()),
            outcome => outcome?,
        };
        tracing::info!(target: "alcazar::rotation", intermediate = %given.fingerprint, %root, "this replica is ready to sign under the next root");
        self.tell_presence().await?;
        Ok(())
    }

    /// The root that a rotation goes to, where it is trusted, and nothing here is under it; and whether a person brought it.
    async fn next_root(&self) -> Result<Option<(Fingerprint, bool)>, JoinError> {
        let rotation = self.0.records.rotation().await?.map(|found| found.record.rotation);
        let Some(rotation) = rotation.filter(|rotation| rotation.kind == Kind::Root && !rotation.is_over()) else {
            return Ok(None);
        };
        let hierarchy = self.hierarchy();
        let to = rotation.to().and_then(Anchor::fingerprint);
        let Some(root) = hierarchy.roots().iter().find(|root| Some(root.fingerprint) == to).cloned() else {
            return Ok(None);
        };
        // What is plugged in here is a person's to exchange.
        let plugged = self.0.files.plugged.folder()?.is_some();
        if plugged || hierarchy.root().fingerprint == root.fingerprint {
            return Ok(None);
        }
        let here = self.authorities().await?.intermediates;
        let has = here.iter().any(|info| info.is_signed_by(&root));
        Ok((!has).then_some((root.fingerprint, rotation.brought.is_some())))
    }

    /// What is to be asked of the others.
    async fn wants(&self) -> Result<Wants, HierarchyError> {
        let (hierarchy, now) = (self.hierarchy(), (self.0.clock)());
        let info = hierarchy.intermediate().info();
        let signing = HeldIntermediate { intermediate: info.fingerprint, root: hierarchy.root().fingerprint };
        let revoked = self.revoked_intermediate(signing.intermediate).is_some();
        let trust = self.trust_state().await?.record;
        let leaves = match self.rotated_to(signing.intermediate).await? {
            _ if revoked || !trust.trusts(signing.root) => Leaves::Must,
            Some(next) => Leaves::For(next),
            None => Leaves::No,
        };
        let roots = self.roots_to_sign_under().await?;
        let (files, present, among) = (self.0.files.clone(), hierarchy.signing().clone(), roots.clone());
        let look = move || {
            let can = among.iter().any(|root| files.can_certify(*root, now));
            Ok((can, files.plugged.folder()?.is_some(), files.condition(&present, now)?))
        };
        let (condition, plugged) = match blocking(look).await? {
            // It makes one itself.
            (true, _, _) if leaves != Leaves::No => return Ok(Wants::Another),
            (_, plugged, condition) => (condition, plugged),
        };
        // What a person plugged in is a person's to exchange.
        if plugged {
            return Ok(Wants::Nothing);
        }
        // While the root above what signs is trusted, no other is gone over to.
        let stays = trust.trusts(signing.root) && roots.contains(&signing.root);
        let roots = if stays { vec![signing.root] } else { roots };
        let known = self.0.presences.known();
        let others: Vec<_> = known.iter().filter(|state| state.signs_elsewhere(now)).map(|s| &s.presence).collect();
        let stands = Stands { condition, signing, not_after: info.validity.not_after(), leaves };
        Ok(asks(&stands, &others, &roots, |other| self.revoked_intermediate(other).is_none()))
    }

    /// What the replica whose intermediate this is goes to, while it rotates it.
    async fn rotated_to(&self, intermediate: Fingerprint) -> Result<Option<Fingerprint>, RecordError> {
        let Some(found) = self.0.records.rotation().await? else { return Ok(None) };
        let rotation = found.record.rotation;
        let goes = rotation.kind == Kind::Intermediate && rotation.phase > Phase::Prepare && !rotation.is_over();
        let left = rotation.from().and_then(Anchor::fingerprint) == Some(intermediate);
        let others = !rotation.is_driven_by(self.replica().as_str());
        Ok(rotation.to().and_then(Anchor::fingerprint).filter(|_| goes && left && others))
    }

    async fn roots_to_sign_under(&self) -> Result<Vec<Fingerprint>, HierarchyError> {
        let trust = self.trust_state().await?.record;
        let trusted = trust.infos()?.iter().map(|root| root.fingerprint).collect();
        Ok(to_sign_under(trusted, self.hierarchy().root().fingerprint, self.root_to_sign_by().await?.as_ref()))
    }

    async fn go_over(&self, wants: Wants) -> Result<(), JoinError> {
        let (files, now, roots) = (self.0.files.clone(), (self.0.clock)(), self.roots_to_sign_under().await?);
        let rotation = self.root_to_sign_by().await?;
        let here = blocking(move || Ok(roots.into_iter().find(|root| files.can_certify(*root, now)))).await?;
        let given = match (here, wants) {
            (Some(root), _) => self.make_intermediate(root).await?,
            (None, Wants::This(next)) => self.ask_others(Some(next.root), Shares::This(next.intermediate)).await?,
            (None, _) => self.ask_others(rotation.as_ref().and_then(Anchor::fingerprint), Shares::No).await?,
        };
        self.activate(given.fingerprint).await?;
        tracing::info!(target: "alcazar::rotation", intermediate = %given.fingerprint, "this replica goes on with another intermediate");
        Ok(())
    }

    /// The replicas whose intermediate it is that this one was given with its key: by name, as far as any is known.
    pub(crate) fn whose_is_shared(&self) -> String {
        let signs = self.hierarchy().intermediate().info().fingerprint;
        let known = self.0.presences.known();
        let its = |state: &&ReplicaState| {
            !state.here && !state.presence.shared && state.presence.signing.intermediate == signs
        };
        let names: Vec<_> = known.iter().filter(its).map(ReplicaState::name).collect();
        if names.is_empty() { "the replica that gave it to this one".into() } else { names.join(", ") }
    }
}

const LOOK: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
