//! The machine's hands: how what it orders is done.

use std::{collections::BTreeSet, path::PathBuf};

use alcazar_identity::{CertificateDer, Fingerprint};
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

use super::{Action, Anchor, Kind, Rotation, observe::newest};
use crate::{
    authority::AuthorityInfo,
    ca::Ca,
    hierarchy::{HierarchyError, blocking},
    jwt_authority::JwtKeyError,
    records::RecordError,
    replicas::{JoinError, ReplicaState, Shares},
};

/// Why the world was not seen, or not changed.
#[derive(Debug, Error)]
pub(crate) enum WorldError {
    /// The store.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The certificates and keys.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The keys for JWT-SVIDs.
    #[error(transparent)]
    Jwt(#[from] JwtKeyError),
    /// No other replica has made an intermediate for this one.
    #[error("another replica is to sign the next intermediate of this one, and has not")]
    Join(#[source] Box<JoinError>),
    /// Whoever has the root's key is not there.
    #[error(
        "the key of the root {root} is not here, and nobody who has it is there: {}; start it, or abort the rotation",
        if holders.is_empty() { "no replica that is known has it" } else { holders.as_str() }
    )]
    RootAway {
        /// The root.
        root: Fingerprint,
        /// Who had it when they were last heard of.
        holders: String,
    },
    /// What is ordered is not there.
    #[error("nothing here is {0}")]
    Missing(Anchor),
    /// What a person plugged in would sign by the root that is being left.
    #[error(
        "the certificates that are plugged in, in {}, stand on the root that is being left, {left}: plug the set under {to} in again (alcazar ca install); where this CA made that root itself, move the folder away, and it signs with its own",
        folder.display()
    )]
    PluggedUnder {
        /// Where they are.
        folder: PathBuf,
        /// The root above them.
        left: Anchor,
        /// The root that is gone back to.
        to: Anchor,
    },
    /// There is no key to go away from.
    #[error("no key for JWT-SVIDs signs here yet; it is made when the CA serves: try again in a minute")]
    NoJwtKey,
}

impl Ca {
    /// Does what was ordered.
    pub(super) async fn act(&self, rotation: &Rotation, action: &Action) -> Result<(), WorldError> {
        match action {
            Action::Make => self.make(rotation).await,
            Action::Settle { step, trusted, dropped, signing } => {
                self.check_what_is_plugged_in(rotation).await?;
                // Whoever orders for an earlier step has been overtaken.
                if !self.0.records.raise_fence(*step).await? {
                    return Ok(());
                }
                match rotation.kind {
                    Kind::Root => {
                        self.trust_what_is_brought(rotation, trusted).await?;
                        self.settle_roots(trusted, dropped, signing).await
                    }
                    Kind::Intermediate => Ok(self.activate(fingerprint(signing)?).await?),
                    Kind::Jwt => Ok(self.settle_jwt_keys(rotation, dropped, signing).await?),
                }
            }
            Action::Forget(anchor) => {
                if rotation.kind == Kind::Jwt {
                    return Ok(self.forget_jwt_generation(rotation, anchor).await?);
                }
                let fingerprint = fingerprint(anchor)?;
                let authorities = self.authorities().await?;
                if rotation.kind == Kind::Intermediate {
                    // It can be revoked all the same: the root's list names it.
                    for info in authorities.intermediates.iter().filter(|info| info.fingerprint == fingerprint) {
                        self.remember_intermediate(info).await?;
                        self.keep_last_crl(info.fingerprint).await?;
                    }
                    return Ok(self.forget_intermediate(fingerprint).await?);
                }
                // From below: an intermediate without its root would be damage.
                let root = authorities.roots.iter().find(|root| root.fingerprint == fingerprint);
                let under = |info: &&AuthorityInfo| root.is_some_and(|root| info.is_signed_by(root));
                for intermediate in authorities.intermediates.iter().filter(under) {
                    self.keep_last_crl(intermediate.fingerprint).await?;
                    self.forget_intermediate(intermediate.fingerprint).await?;
                }
                Ok(self.forget_root(fingerprint).await?)
            }
        }
    }

    async fn make(&self, rotation: &Rotation) -> Result<(), WorldError> {
        let root = match rotation.kind {
            Kind::Jwt => return Ok(self.make_jwt_generation(rotation.begun).await?),
            Kind::Root => {
                match newest(rotation, &self.hierarchy(), &self.own_roots().await?) {
                    // Made before a crash, without its intermediate.
                    Some(root) => root,
                    None => self.make_root().await?.fingerprint,
                }
            }
            Kind::Intermediate => {
                let root = self.hierarchy().root().fingerprint;
                self.check_root_is_at_hand(root).await?;
                root
            }
        };
        self.obtain_intermediate(root, Shares::No).await.map_err(|error| WorldError::Join(Box::new(error)))?;
        Ok(())
    }

    /// Of these one may have been made for a rotation; what another replica has made is not ours to go on with.
    pub(super) async fn own_roots(&self) -> Result<Vec<AuthorityInfo>, WorldError> {
        let files = self.0.files.clone();
        Ok(blocking(move || files.own_roots()).await?)
    }

    /// Whom to ask is there, or need not be asked: else a person is told at once whom to start.
    async fn check_root_is_at_hand(&self, root: Fingerprint) -> Result<(), WorldError> {
        let (replicas, now) = (self.replicas().await?, (self.0.clock)());
        let has = |state: &&ReplicaState| state.presence.roots.contains(&root);
        if self.can_certify(root).await? || replicas.iter().filter(has).any(|state| state.signs_elsewhere(now)) {
            return Ok(());
        }
        let holders = replicas.iter().filter(|state| !state.here).filter(has).map(ReplicaState::name);
        Err(WorldError::RootAway { root, holders: holders.collect::<Vec<_>>().join(", ") })
    }

    /// On the way back what is plugged in must not stand on the root that is left: it would sign by that again and again.
    async fn check_what_is_plugged_in(&self, rotation: &Rotation) -> Result<(), WorldError> {
        let (Some(left), Some(to)) = (rotation.from(), rotation.to()) else { return Ok(()) };
        if !rotation.back || rotation.brought.is_none() || rotation.signing() != to {
            return Ok(());
        }
        let Some(folder) = self.0.files.plugged.folder()? else { return Ok(()) };
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        let roots = blocking(move || Ok(files.plugged_roots(now))).await?;
        match roots.iter().any(|root| Anchor::from(*root) == *left) {
            true => Err(WorldError::PluggedUnder { folder, left: left.clone(), to: to.clone() }),
            false => Ok(()),
        }
    }

    /// A root that a person brings lies nowhere but in the record.
    async fn trust_what_is_brought(&self, rotation: &Rotation, trusted: &BTreeSet<Anchor>) -> Result<(), WorldError> {
        let (Some(pem), Some(new)) = (&rotation.brought, &rotation.new) else { return Ok(()) };
        if !trusted.contains(new) || self.hierarchy().trusts(fingerprint(new)?) {
            return Ok(());
        }
        let missing = |_source| WorldError::Missing(new.clone());
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(missing)?;
        // By hand: no set that is plugged in, which cannot name it yet, takes it away while a person carries the request for its
        // intermediate about.
        let now = (self.0.clock)();
        Ok(self.change_trusted_roots(|trust| trust.joined_by(root.clone(), now)).await?)
    }

    /// The two roots of a rotation that is under way.
    pub(crate) async fn rotating_roots(&self) -> Result<BTreeSet<Fingerprint>, RecordError> {
        let found = self.0.records.rotation().await?.map(|found| found.record.rotation);
        let of = found.filter(|rotation| rotation.kind == Kind::Root && !rotation.is_over());
        let both = of.iter().flat_map(|rotation| [Some(&rotation.old), rotation.new.as_ref()]).flatten();
        Ok(both.filter_map(Anchor::fingerprint).collect())
    }

    /// The root that is to sign at present, while one is rotated.
    pub(crate) async fn root_to_sign_by(&self) -> Result<Option<Anchor>, RecordError> {
        let found = self.0.records.rotation().await?.map(|found| found.record.rotation);
        let of = found.filter(|rotation| rotation.kind == Kind::Root && !rotation.is_over());
        Ok(of.map(|rotation| rotation.signing().clone()))
    }

    /// Removes here what a rotation of the root has left, when another replica drove it; once. Here it may still be trusted: then
    /// the next look does it.
    pub(super) async fn forget_what_was_left(&self, rotation: &Rotation) -> Result<(), WorldError> {
        let done = self.0.rotations.forgotten.borrow().is_some_and(|step| step == rotation.step);
        if rotation.kind != Kind::Root || done {
            return Ok(());
        }
        if let Some(from) = rotation.from() {
            let (hierarchy, left) = (self.hierarchy(), fingerprint(from)?);
            if hierarchy.trusts(left) || hierarchy.root().fingerprint == left {
                return Ok(());
            }
            self.act(rotation, &Action::Forget(from.clone())).await?;
        }
        self.0.rotations.forgotten.send_replace(Some(rotation.step));
        Ok(())
    }

    /// Signs under this root, where an intermediate of ours is under it and the trust state allows it. The driver has seen to the
    /// latter: without it there is nothing to do yet.
    pub(super) async fn sign_under(&self, root: &Anchor) -> Result<(), WorldError> {
        let (hierarchy, wanted) = (self.hierarchy(), fingerprint(root)?);
        if hierarchy.root().fingerprint == wanted {
            return Ok(());
        }
        let Some(info) = hierarchy.roots().iter().find(|info| info.fingerprint == wanted).cloned() else {
            return Ok(());
        };
        let authorities = self.authorities().await?;
        let under = authorities.intermediates.iter().filter(|held| held.is_signed_by(&info));
        match under.max_by_key(|held| held.validity.not_after()) {
            Some(held) => Ok(self.activate(held.fingerprint).await?),
            None => Ok(()),
        }
    }

    /// First everybody who is to be trusted, then the signer, then without those who are not: at no moment is there a signer
    /// whom nobody trusts.
    async fn settle_roots(
        &self,
        trusted: &BTreeSet<Anchor>,
        dropped: &BTreeSet<Anchor>,
        signing: &Anchor,
    ) -> Result<(), WorldError> {
        let present: BTreeSet<Anchor> = self.hierarchy().roots().iter().map(|root| root.fingerprint.into()).collect();
        let wider: BTreeSet<_> = present.union(trusted).cloned().collect();
        let signs = fingerprint(signing)?;
        if self.hierarchy().root().fingerprint != signs {
            self.set_trusted_roots(&fingerprints(&wider)?).await?;
            let authorities = self.authorities().await?;
            let root = authorities.roots.iter().find(|root| root.fingerprint == signs);
            let root = root.ok_or_else(|| WorldError::Missing(signing.clone()))?;
            let under = authorities.intermediates.iter().filter(|info| info.is_signed_by(root));
            let intermediate = under.max_by_key(|info| info.validity.not_after());
            let intermediate = intermediate.ok_or_else(|| WorldError::Missing(signing.clone()))?;
            self.activate(intermediate.fingerprint).await?;
        }
        let exactly: BTreeSet<_> = wider.difference(dropped).cloned().collect();
        self.set_trusted_roots(&fingerprints(&exactly)?).await?;
        Ok(())
    }
}

fn fingerprint(anchor: &Anchor) -> Result<Fingerprint, WorldError> {
    anchor.fingerprint().ok_or_else(|| WorldError::Missing(anchor.clone()))
}

fn fingerprints(anchors: &BTreeSet<Anchor>) -> Result<Vec<Fingerprint>, WorldError> {
    anchors.iter().map(fingerprint).collect()
}
