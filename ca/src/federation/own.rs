//! Our own bundle: what everybody is told, and what the operator changes by hand.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use alcazar_api::spiffe::write_bundle;
use alcazar_identity::{CertificateDer, Fingerprint, TrustBundle, TrustBundles, TrustDomain, rfc3339};
use alcazar_service::process::chain;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    authority::{AuthorityError, AuthorityInfo},
    ca::Ca,
    hierarchy::{Hierarchy, HierarchyError, TrustState},
};

impl Ca {
    /// What everybody in the trust domain believes: our own bundle, and those of federated trust domains.
    pub fn trust_bundles(&self) -> TrustBundles {
        self.bundles_with(&self.hierarchy())
    }

    /// The same with our own bundle as it was at the moment of a hierarchy: chain and bundle of a reply fit each other.
    pub(crate) fn bundles_with(&self, hierarchy: &Hierarchy) -> TrustBundles {
        let foreign = Arc::clone(&self.0.federation.foreign.borrow());
        let hint = self.0.config.refresh_hint();
        let own = hierarchy.bundles().iter().cloned().map(|bundle| bundle.with_refresh_hint(Some(hint)));
        // Ours comes last: whatever the store has, nobody else's takes its place.
        let theirs = foreign.iter().filter(|bundle| bundle.trust_domain() != self.trust_domain()).cloned();
        theirs.chain(own).collect()
    }

    /// Our own bundle.
    pub fn own_bundle(&self) -> Option<TrustBundle> {
        self.trust_bundles().get(self.trust_domain()).cloned()
    }

    /// Trusts these roots beside those that are trusted; the fingerprints of those that are new.
    ///
    /// # Errors
    /// When one is not a CA certificate, or the store does not answer.
    pub async fn add_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<Vec<Fingerprint>, RootChangeError> {
        let now = (self.0.clock)();
        for root in &roots {
            let fingerprint = Fingerprint::of(root);
            let info = AuthorityInfo::parse(root.clone())
                .map_err(|source| RootChangeError::NotARoot { root: fingerprint, source })?;
            if info.validity.not_after() <= now {
                let end = rfc3339(info.validity.not_after());
                return Err(RootChangeError::Expired { root: fingerprint, end, now: rfc3339(now) });
            }
            if let Some(what) = unfit(self.trust_domain(), root) {
                return Err(RootChangeError::Unfit { root: fingerprint, what });
            }
        }
        let before: Vec<_> = self.hierarchy().roots().iter().map(|root| root.fingerprint).collect();
        self.change_trusted_roots(|trust| trust.with_roots(&roots)).await?;
        let added: Vec<_> =
            roots.iter().map(|root| Fingerprint::of(root)).filter(|new| !before.contains(new)).collect();
        for root in &added {
            tracing::warn!(target: "alcazar::rotation", %root, "the operator added a root: whatever it signs is believed");
        }
        Ok(added)
    }

    /// Trusts a root no more. One that is in use, or of which it cannot be known, only by force.
    ///
    /// # Errors
    /// When it is not trusted, is the one that we sign under, is in use and no force was meant, or the store does not answer.
    pub async fn remove_root(&self, root: Fingerprint, force: bool) -> Result<(), RootChangeError> {
        let hierarchy = self.hierarchy();
        if !hierarchy.trusts(root) {
            return Err(RootChangeError::NotTrusted(root));
        }
        if hierarchy.root().fingerprint == root {
            return Err(RootChangeError::Signing(root));
        }
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        let plugged = tokio::task::spawn_blocking(move || files.plugged_roots(now)).await;
        if plugged.is_ok_and(|plugged| plugged.contains(&root)) {
            return Err(RootChangeError::InFile { root, folder: self.0.files.plugged.default_folder() });
        }
        let users = self.users_of(&hierarchy, root).await?;
        if !users.is_empty() && !force {
            return Err(RootChangeError::InUse { root, users });
        }
        // Asked again when it is our turn: a rotation may have begun to sign under it meanwhile.
        let signing = AtomicBool::new(false);
        let without = |trust: &TrustState| {
            signing.store(self.hierarchy().root().fingerprint == root, Ordering::Relaxed);
            if signing.load(Ordering::Relaxed) { None } else { trust.without_root(root) }
        };
        self.change_trusted_roots(without).await?;
        if signing.into_inner() {
            return Err(RootChangeError::Signing(root));
        }
        let users = users.join("; ");
        tracing::warn!(target: "alcazar::rotation", %root, force, users, "the operator removed a root: whatever stands on it is believed no more");
        Ok(())
    }

    /// Who may still stand on a root, in words; nobody once it has expired.
    async fn users_of(&self, hierarchy: &Hierarchy, root: Fingerprint) -> Result<Vec<String>, RootChangeError> {
        let now = (self.0.clock)();
        let Some(info) = hierarchy.roots().iter().find(|info| info.fingerprint == root) else { return Ok(Vec::new()) };
        if info.validity.not_after() <= now {
            return Ok(Vec::new());
        }
        let here = self.authorities().await?;
        let below = here.intermediates.iter().filter(|one| one.is_signed_by(info) && one.validity.not_after() > now);
        let mut users: Vec<_> = below
            .map(|one| {
                format!(
                    "the intermediate {} of this cluster, good until {}",
                    one.fingerprint,
                    rfc3339(one.validity.not_after())
                )
            })
            .collect();
        if let Some(until) = self.root_retires_at(root).await?.filter(|until| *until > now) {
            users.push(format!("certificates issued under it before, good until {}", rfc3339(until)));
        }
        if !here.roots.iter().any(|held| held.fingerprint == root) {
            users.push("whoever else issues under it: its key is not here, so that cannot be seen".into());
        }
        Ok(users)
    }
}

/// Why a root cannot be one of ours: its key does not last, or our bundle document could not be written with it.
pub(crate) fn unfit(trust_domain: &TrustDomain, root: &CertificateDer<'static>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(root).ok()?;
    if let Some(weakness) = crate::cacerts::weakness(&parsed) {
        return Some(weakness);
    }
    let bundle = TrustBundle::new(trust_domain.clone(), 0, [root.clone()]);
    let written =
        bundle.map_err(|error| chain(&error)).and_then(|bundle| write_bundle(&bundle).map_err(|error| chain(&error)));
    written.err()
}

/// Why the roots were not changed.
#[derive(Debug, Error)]
pub enum RootChangeError {
    /// Not a CA certificate.
    #[error("the certificate {root} cannot be a root")]
    NotARoot {
        /// Its fingerprint.
        root: Fingerprint,
        /// Why.
        source: AuthorityError,
    },
    /// It is over.
    #[error("the root {root} expired at {end}, and the clock here says {now}")]
    Expired {
        /// Its fingerprint.
        root: Fingerprint,
        /// Its end.
        end: String,
        /// The clock.
        now: String,
    },
    /// Everybody who reads our bundle would have to read it.
    #[error("the certificate {root} cannot be a root here: {what}")]
    Unfit {
        /// Its fingerprint.
        root: Fingerprint,
        /// What is wrong.
        what: String,
    },
    /// A file brings it back.
    #[error(
        "the root {root} is in root-cert.pem in {}, which is looked at all the time: take it out of that file, and it goes when nothing stands on it any more",
        folder.display()
    )]
    InFile {
        /// Its fingerprint.
        root: Fingerprint,
        /// The folder with the file.
        folder: PathBuf,
    },
    /// Nothing to remove.
    #[error("the root {0} is not trusted; `alcazar bundle show` lists those that are")]
    NotTrusted(Fingerprint),
    /// Ours.
    #[error(
        "this CA signs under the root {0}: nobody could connect any more; move to another one first: alcazar root rotate"
    )]
    Signing(Fingerprint),
    /// Somebody's.
    #[error("the root {root} is in use by: {}; rotate away from it, or remove it with --force, and they are cut off", users.join("; "))]
    InUse {
        /// Its fingerprint.
        root: Fingerprint,
        /// Whose.
        users: Vec<String>,
    },
    /// The hierarchy.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
}
