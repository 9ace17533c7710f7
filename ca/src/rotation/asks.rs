//! What a person can ask of a rotation.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint, rfc3339};
use alcazar_service::process;
use alcazar_store::{Expected, LeaseError};
use thiserror::Error;

use super::{
    Anchor, Kind, NotAborted, NotForced, Phase, Rotation, Wait, clusters::StateError, gate::before_signing,
    observe::signing, world::WorldError,
};
use crate::{
    authority::{AuthorityError, AuthorityInfo},
    ca::Ca,
    federation::unfit,
    hierarchy::{Renewal, pem},
    records::RecordError,
    replicas::ReplicaState,
};

/// A rotation, for people.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) rotation: Rotation,
    pub(crate) waits: Vec<Wait>,
    pub(crate) problem: Option<String>,
}

impl Ca {
    /// Begins a rotation.
    ///
    /// # Errors
    /// When one is under way, or the store does not answer.
    pub(crate) async fn start_rotation(&self, kind: Kind) -> Result<Shown, RotationError> {
        if kind == Kind::Root
            && let Some(folder) = self.0.files.plugged.folder().map_err(WorldError::from)?
        {
            return Err(RotationError::Plugged(folder));
        }
        self.start(kind, None).await
    }

    /// Begins a rotation to a root whose key is elsewhere: of `certificates` the one that is not trusted yet.
    ///
    /// # Errors
    /// When it cannot be told which is meant, it is no root, or as [`Ca::start_rotation`].
    pub(crate) async fn start_rotation_to(
        &self,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Shown, RotationError> {
        let hierarchy = self.hierarchy();
        let new: Vec<_> = certificates.into_iter().filter(|one| !hierarchy.trusts(Fingerprint::of(one))).collect();
        let [certificate] = &*new else { return Err(RotationError::WhichRoot(new.len())) };
        let info = AuthorityInfo::parse(certificate.clone()).map_err(RotationError::NotARoot)?;
        if let Some(what) = unfit(self.trust_domain(), certificate) {
            return Err(RotationError::UnfitRoot { root: info.fingerprint, what });
        }
        if !info.is_signed_by(&info) {
            return Err(RotationError::NotARoot(AuthorityError::NotAnAuthority));
        }
        let now = (self.0.clock)();
        if !info.validity.contains(now) {
            return Err(RotationError::RootOver { end: rfc3339(info.validity.not_after()), now: rfc3339(now) });
        }
        self.start(Kind::Root, Some((info.fingerprint.into(), pem(certificate)))).await
    }

    async fn start(&self, kind: Kind, brought: Option<(Anchor, String)>) -> Result<Shown, RotationError> {
        if kind == Kind::Intermediate {
            self.check_whose_intermediate_it_is().await?;
        }
        let found = self.0.records.rotation().await?;
        let expected = match &found {
            Some(found) if !found.record.rotation.is_over() => {
                return Err(RotationError::UnderWay(found.record.rotation.kind));
            }
            Some(found) => Expected::At(found.revision),
            None => Expected::Absent,
        };
        let over = found.map(|found| found.record.rotation);
        let last = over.as_ref().map_or(0, |over| over.step);
        let after = self.0.records.fence().await?.step.max(last);
        let old = match kind {
            Kind::Jwt => self.signing_jwt_key().ok_or(WorldError::NoJwtKey)?,
            kind => signing(kind, &self.hierarchy()),
        };
        let authorities = self.authorities().await.map_err(WorldError::from)?;
        let here = match kind {
            Kind::Root => authorities.roots,
            Kind::Intermediate => authorities.intermediates,
            Kind::Jwt => Vec::new(),
        };
        let here = here.iter().map(|info| info.fingerprint.into()).collect();
        let (given, certificate) = brought.unzip();
        let mut rotation = Rotation::new(kind, old, given, after, (self.0.clock)()).among(here);
        if let Some(certificate) = certificate {
            rotation = rotation.bringing(certificate);
        }
        if kind == Kind::Intermediate {
            rotation = rotation.of_replica(self.replica().as_str());
        }
        if let Some(over) = &over {
            self.0.records.keep_last_of_root(over).await?;
        }
        self.0.records.put_rotation(expected, &rotation).await?;
        tracing::info!(target: "alcazar::rotation", %kind, old = %rotation.old, "a rotation began");
        self.0.rotations.wake.notify_one();
        self.show(rotation).await
    }

    /// One that another replica gave with its key is that one's to rotate: this one follows. Where the root's key is at hand it has
    /// one of its own in a moment.
    async fn check_whose_intermediate_it_is(&self) -> Result<(), RotationError> {
        let (hierarchy, now) = (self.hierarchy(), (self.0.clock)());
        let root = hierarchy.root().fingerprint;
        if hierarchy.signing().renewal != Renewal::Sharer {
            return Ok(());
        }
        let replicas = self.replicas().await?;
        let has_root = |state: &ReplicaState| state.signs_elsewhere(now) && state.presence.roots.contains(&root);
        match replicas.iter().any(has_root) {
            true => Ok(()),
            false => Err(RotationError::Shared(self.whose_is_shared())),
        }
    }

    /// Replaces the keys for JWT-SVIDs at once, because one was stolen: nobody is waited for.
    ///
    /// # Errors
    /// When no key can be made, or the store does not answer.
    pub(crate) async fn replace_stolen(&self) -> Result<Shown, RotationError> {
        let old = self.signing_jwt_key().ok_or(WorldError::NoJwtKey)?;
        let (new, gone) = self.replace_stolen_jwt_keys().await.map_err(WorldError::from)?;
        tracing::warn!(target: "alcazar::rotation", key_id = new, gone = gone.join(", "), "every key for JWT-SVIDs was replaced at once: tokens of before are good no more");
        loop {
            let (found, now) = (self.0.records.rotation().await?, (self.0.clock)());
            let last = found.as_ref().map_or(0, |found| found.record.rotation.step);
            let after = self.0.records.fence().await?.step.max(last);
            let done = Rotation::new(Kind::Jwt, old.clone(), Some(Anchor::new(new.clone())), after, now);
            let done = done.entering(Phase::Done, now);
            let shown = Shown { rotation: done.clone(), waits: Vec::new(), problem: None };
            let expected = match &found {
                // One of JWT keys has nothing left to do; of something else the record stays.
                Some(found) if found.record.rotation.kind == Kind::Jwt || found.record.rotation.is_over() => {
                    Expected::At(found.revision)
                }
                Some(_) => return Ok(shown),
                None => Expected::Absent,
            };
            if let Some(found) = &found {
                self.0.records.keep_last_of_root(&found.record.rotation).await?;
            }
            match self.0.records.put_rotation(expected, &done).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(|_revision| shown)?),
            }
        }
    }

    /// The rotation that is under way, or the last one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn rotation(&self) -> Result<Option<Shown>, RotationError> {
        match self.0.records.rotation().await? {
            Some(found) => Ok(Some(self.show(found.record.rotation).await?)),
            None => Ok(None),
        }
    }

    /// Sends the rotation back to where it came from.
    ///
    /// # Errors
    /// When there is none, it goes back already, or it is too late.
    pub(crate) async fn abort_rotation(&self) -> Result<Shown, RotationError> {
        // Only the replica whose intermediate it is drives it: one that is gone would leave it under way for ever.
        let replicas = self.replicas().await?;
        let is_left_alone = |rotation: &Rotation, now| {
            let of = rotation.replica.as_deref().filter(|of| *of != self.replica().as_str());
            let known = replicas.iter().find(|state| Some(state.id.as_str()) == of);
            of.is_some() && known.is_none_or(|state| state.is_gone(now))
        };
        let others = !self.config().clusters.is_empty();
        let aborted = self.change_rotation(|rotation, now| match is_left_alone(rotation, now) {
            true => Ok(rotation.left_as_it_is(now)?),
            false => Ok(rotation.aborted(others, now)?),
        });
        let aborted = aborted.await?;
        tracing::warn!(target: "alcazar::rotation", kind = %aborted.kind, phase = %aborted.phase, left_as_it_is = aborted.left_as_it_is, "the rotation was aborted");
        self.show(aborted).await
    }

    /// Goes on without these in `step`, which is the one that a person has seen: in another they would break something else.
    ///
    /// # Errors
    /// When there is no rotation, it has gone on, or one of them is not waited for.
    pub(crate) async fn force_rotation(&self, step: u64, parties: &BTreeSet<String>) -> Result<Shown, RotationError> {
        let found = self.0.records.rotation().await?.ok_or(RotationError::None)?;
        if found.record.rotation.step != step {
            return Err(RotationError::MovedOn(found.record.rotation.phase));
        }
        let seen = self.observe(&found.record.rotation, Duration::ZERO).await?;
        let limits = self.limits().await?;
        let force = |rotation: &Rotation| match rotation.step == step {
            true => Ok(rotation.forced(parties, &seen, &limits)?.0),
            false => Err(RotationError::MovedOn(rotation.phase)),
        };
        let forced = self.change_rotation(|rotation, _now| force(rotation)).await?;
        let named = parties.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        tracing::warn!(target: "alcazar::rotation", kind = %forced.kind, phase = %forced.phase, parties = named, "a person forced the rotation past parties that have not followed: they may be cut off");
        self.show(forced).await
    }

    async fn change_rotation(
        &self,
        change: impl Fn(&Rotation, SystemTime) -> Result<Rotation, RotationError>,
    ) -> Result<Rotation, RotationError> {
        loop {
            let found = self.0.records.rotation().await?.ok_or(RotationError::None)?;
            let next = change(&found.record.rotation, (self.0.clock)())?;
            match self.0.records.put_rotation(Expected::At(found.revision), &next).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    self.0.rotations.wake.notify_one();
                    return Ok(next);
                }
            }
        }
    }

    /// Whom a rotation waits for before what is plugged in under this root may sign: an intermediate that is plugged in early has its
    /// time when everybody has heard of its root, on the way there and on the way back. `None` where it is no rotation's to say.
    pub(crate) async fn awaited_before_signing(
        &self,
        root: Fingerprint,
    ) -> Result<Option<(Fingerprint, Vec<String>)>, RecordError> {
        let Some(found) = self.0.records.rotation().await? else { return Ok(None) };
        let (rotation, anchor) = (found.record.rotation, Anchor::from(root));
        if !rotation.holds_back(&anchor) {
            return Ok(None);
        }
        let waits = match self.waits_of(&rotation, &anchor).await {
            Ok(waits) => waits,
            Err(error) => vec![format!("the rotation, which cannot be looked at: {}", process::chain(&error))],
        };
        Ok(Some((root, waits)))
    }

    async fn waits_of(&self, rotation: &Rotation, root: &Anchor) -> Result<Vec<String>, RotationError> {
        let looked = self.looked_at(rotation).filter(|waits| !waits.is_empty() && rotation.to() == Some(root));
        Ok(match looked {
            Some(waits) => before_signing(waits),
            None => {
                let seen = self.observe(rotation, Duration::ZERO).await?;
                rotation.awaited_before_signing(root, &seen, &self.limits().await?)
            }
        })
    }

    /// Whom the driver here found to be waited for, a moment ago.
    fn looked_at(&self, rotation: &Rotation) -> Option<Vec<Wait>> {
        let looked = self.0.rotations.waits.borrow().clone();
        let (_, _, mut waits) = looked.filter(|(step, at, _)| *step == rotation.step && at.elapsed() < FRESH)?;
        waits.retain(|wait| !rotation.forced.contains(&wait.party));
        Some(waits)
    }

    async fn show(&self, rotation: Rotation) -> Result<Shown, RotationError> {
        let problem = self.0.rotations.problem.borrow().clone();
        if rotation.is_over() {
            let problem = what_stays(&rotation);
            return Ok(Shown { rotation, waits: Vec::new(), problem });
        }
        // Whoever looks on does not make the driver's work a second time.
        if let Some(waits) = self.looked_at(&rotation) {
            return Ok(Shown { rotation, waits, problem });
        }
        let seen = self.observe(&rotation, Duration::ZERO).await?;
        let waits = rotation.step(&seen, &self.limits().await?, (self.0.clock)()).waiting;
        Ok(Shown { rotation, waits, problem })
    }
}

/// What nobody cleans up, where the replica that would have is gone.
fn what_stays(rotation: &Rotation) -> Option<String> {
    let replica = rotation.replica.as_ref().filter(|_| rotation.left_as_it_is)?;
    let old = &rotation.old;
    let new = rotation.new.as_ref().map_or("one that it may have made".to_owned(), ToString::to_string);
    Some(format!(
        "the replica {replica} was gone and nobody goes back for it: its intermediates, {old} and {new}, stay good, with their keys where its data folder is; revoke them if somebody else may have that"
    ))
}

/// Why a rotation does not do what was asked.
#[derive(Debug, Error)]
pub(crate) enum RotationError {
    /// There is none.
    #[error("no rotation is under way")]
    None,
    /// One at a time.
    #[error("a rotation of the {0} is under way; wait for its end, or abort it")]
    UnderWay(Kind),
    /// It is another replica's.
    #[error(
        "the intermediate that this replica signs with is shared: ask {0}, whose it is, by its own socket, and this one follows; or give this one an intermediate of its own (alcazar ca request, alcazar root sign, alcazar ca install)"
    )]
    Shared(String),
    /// How far this cluster is was not stated.
    #[error("how far this cluster is cannot be stated")]
    State(#[from] StateError),
    /// Not yet.
    #[error("this CA has not looked yet how far it is, or another replica drives rotations: ask again, or that one")]
    NotStated,
    /// The root is not ours to make.
    #[error(
        "the certificates of this CA are plugged in, in {}: its root is made elsewhere; name the new one with --new-root, and plug in an intermediate under it when you are asked to",
        .0.display()
    )]
    Plugged(PathBuf),
    /// None, or several.
    #[error("of the certificates given, {0} are not trusted yet: give the new root, and nothing else that is new")]
    WhichRoot(usize),
    /// Not a root.
    #[error("what was given is not a root")]
    NotARoot(#[source] AuthorityError),
    /// A root that not everybody could read, or that does not last.
    #[error("the certificate {root} cannot be a root here: {what}")]
    UnfitRoot {
        /// Its fingerprint.
        root: Fingerprint,
        /// What is wrong.
        what: String,
    },
    /// A root whose time is not now.
    #[error("the root that was given is not good now: it ends at {end}, and the clock here says {now}")]
    RootOver {
        /// Its end.
        end: String,
        /// The clock.
        now: String,
    },
    /// It has gone on since it was looked at.
    #[error("it has gone on, to {0}: look again who is waited for there, and what they would lose")]
    MovedOn(Phase),
    /// It does not go back.
    #[error(transparent)]
    Abort(#[from] NotAborted),
    /// It does not go on.
    #[error(transparent)]
    Force(#[from] NotForced),
    /// The store.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The lease.
    #[error("the lease of whoever drives rotations cannot be had")]
    Lease(#[from] LeaseError),
    /// The world.
    #[error(transparent)]
    World(#[from] WorldError),
}

/// So old may be what is shown of whom it waits for.
const FRESH: Duration = Duration::from_secs(15);
