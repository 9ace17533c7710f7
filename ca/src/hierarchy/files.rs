//! Finding authorities, on the disk and in the key store. Everything here blocks.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint, TrustDomain, is_of_cluster, stated_cluster};
use alcazar_service::process;

use super::{
    HierarchyError, Signing,
    folder::{Folder, Held, Sort},
    heard::Heard,
    making::FIRST,
    plugged::Plugged,
    signing::Renewal,
    trust::TrustState,
};
use crate::{
    authority::{Authority, AuthorityInfo},
    config::Config,
    keys::{KeyLabel, KeyStore},
    revocation::CrlUrl,
};

/// Where a hierarchy is kept.
#[derive(Clone)]
pub(crate) struct HierarchyFiles {
    pub(super) folder: Folder,
    pub(super) keys: Arc<dyn KeyStore>,
    pub(super) trust_domain: TrustDomain,
    pub(super) cluster: String,
    /// Whether other replicas have the same store.
    pub(super) shared: bool,
    /// Where CRLs are, as certificates say.
    pub(super) crls: Option<CrlUrl>,
    pub(crate) plugged: Plugged,
}

/// What the store remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) trust: Option<TrustState>,
    /// The intermediate that signed last.
    pub(crate) active: Option<Fingerprint>,
    /// The root, where an earlier version of this program wrote it down.
    pub(crate) root: Option<Fingerprint>,
    /// The longest life that a leaf was ever allowed.
    pub(crate) leaf_life: Duration,
}

/// What was found, or made. The store is to remember it before anything stands on it.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) trust: TrustState,
    pub(crate) signing: Signing,
    /// Who is waited for before a new root signs.
    pub(crate) waits: Vec<String>,
}

/// Every authority on the disk.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// Roots whose certificates are here.
    pub roots: Vec<AuthorityInfo>,
    /// Intermediates of this cluster whose keys are here.
    pub intermediates: Vec<AuthorityInfo>,
}

impl HierarchyFiles {
    pub(crate) fn new(config: &Config, keys: Arc<dyn KeyStore>) -> Self {
        Self {
            folder: Folder::new(config.data_dir.join("hierarchy")),
            keys,
            trust_domain: config.trust_domain.clone(),
            cluster: config.cluster.clone(),
            shared: config.store.is_shared(),
            crls: config.revocation.crl_url.clone(),
            plugged: Plugged::new(config),
        }
    }

    /// Finds the hierarchy again, or makes one where there has never been any. `present` is what signs at the moment; without it,
    /// this is a start. `heard` says who has heard of which roots.
    pub(crate) fn open(
        &self,
        remembered: &Remembered,
        present: Option<&Signing>,
        heard: &Heard,
        now: SystemTime,
    ) -> Result<Opened, HierarchyError> {
        if let Some(folder) = self.plugged.folder()? {
            // While the CA runs, a request may be made beside it.
            if present.is_none() && self.folder.exists()? {
                self.clear(true)?;
            }
            return self.open_plugged(&folder, remembered, present, heard, now);
        }
        let known = self.known(remembered)?;
        match (self.folder.exists()?, known) {
            (true, _) if present.is_some() => {}
            (true, _) => self.clear(known.is_some())?,
            (false, Some(fingerprint)) => {
                return Err(HierarchyError::Lost { folder: self.folder.path().into(), fingerprint });
            }
            (false, None) => {}
        }
        if known.is_none() && (!self.folder.exists()? || self.folder.is_empty()?) {
            return self.create(now);
        }
        let roots = self.roots()?;
        let trust = match &remembered.trust {
            Some(trust) => trust.clone(),
            None => TrustState::new(first_sequence(remembered, now), roots.iter().map(|held| held.chain_root())),
        };
        let remembers = |held: &Held| {
            let found = held.info.fingerprint;
            known == Some(found) || remembered.trust.as_ref().is_some_and(|trust| trust.trusts(found))
        };
        if let (Some(expected), Some(found), false) = (known, roots.first(), roots.iter().any(remembers)) {
            let found = found.info.fingerprint;
            return Err(HierarchyError::Exchanged { folder: self.folder.path().into(), expected, found });
        }
        let (held, root) = self.active(remembered.active, &roots, &trust)?;
        // A root whose key is lost is found out now, and not in half a year.
        if !root.is_elsewhere() {
            self.root_authority(&root)?;
        }
        let signing = self.signing(&held, root.info.clone())?;
        let found = Opened { trust, signing, waits: Vec::new() };
        match self.renew_if_due(found.clone(), now) {
            // It signs well without; while the CA runs, each look tries again and says what is wrong.
            Err(error) if present.is_none() && found.signing.bounds().contains(now) => {
                tracing::error!(target: "alcazar::rotation", reason = %process::chain(&error), "the intermediate was not renewed; the present one signs on");
                Ok(found)
            }
            renewed => renewed,
        }
    }

    /// What is needed to sign with an intermediate.
    pub(crate) fn load(&self, intermediate: Fingerprint, now: SystemTime) -> Result<Signing, HierarchyError> {
        let unknown = || HierarchyError::Unknown { folder: self.folder.path().into(), fingerprint: intermediate };
        let mut held = self.folder.held(Sort::Intermediate)?.into_iter();
        let held = held.find(|held| held.info.fingerprint == intermediate).ok_or_else(unknown)?;
        let mut roots = self.folder.held(Sort::Root)?;
        // A set that is broken at the moment does not stand in the way of others.
        if let Some(plugged) = self.plugged_root(now).ok().flatten() {
            let (info, chain) = (plugged.info().clone(), vec![plugged.info().certificate.clone()]);
            roots.push(Held { label: FIRST.parse().map_err(HierarchyError::Label)?, info, chain, root: None });
        }
        let root = self.root_above(&held, &roots)?;
        self.signing(&held, root.info)
    }

    /// A root whose key is here, wherever it came from.
    pub(super) fn issuing_root(&self, root: Fingerprint, now: SystemTime) -> Result<Authority, HierarchyError> {
        if let Some(held) =
            self.folder.held(Sort::Root)?.iter().find(|held| held.info.fingerprint == root && !held.is_elsewhere())
        {
            return self.root_authority(held);
        }
        match (self.plugged_root(now)?.filter(|plugged| plugged.info().fingerprint == root), self.plugged.folder()?) {
            (Some(plugged), _) => Ok(plugged),
            (None, Some(folder)) => Err(HierarchyError::RootElsewhere { folder }),
            (None, None) => Err(HierarchyError::Unknown { folder: self.folder.path().into(), fingerprint: root }),
        }
    }

    /// A root whose key is here, wherever it came from.
    pub(crate) fn root_signer(&self, root: Fingerprint, now: SystemTime) -> Result<Authority, HierarchyError> {
        self.issuing_root(root, now)
    }

    /// The certificate of an intermediate that is here.
    pub(crate) fn intermediate_certificate(
        &self,
        intermediate: Fingerprint,
    ) -> Result<Option<AuthorityInfo>, HierarchyError> {
        let mut held = self.folder.held(Sort::Intermediate)?.into_iter().map(|held| held.info);
        Ok(held.find(|info| info.fingerprint == intermediate))
    }

    /// Everything that is here.
    pub(crate) fn authorities(&self) -> Result<Authorities, HierarchyError> {
        let infos = |sort| Ok::<_, HierarchyError>(self.folder.held(sort)?.into_iter().map(|held| held.info).collect());
        Ok(Authorities { roots: infos(Sort::Root)?, intermediates: infos(Sort::Intermediate)? })
    }

    /// The certificate of a root that is here.
    pub(crate) fn root_certificate(&self, root: Fingerprint) -> Result<CertificateDer<'static>, HierarchyError> {
        Ok(self.root_of(root)?.info.certificate)
    }

    /// The root that this CA is known to have issued under.
    fn known(&self, remembered: &Remembered) -> Result<Option<Fingerprint>, HierarchyError> {
        let trusted = remembered.trust.as_ref().map(TrustState::infos).transpose()?;
        Ok(trusted.and_then(|roots| roots.first().map(|root| root.fingerprint)).or(remembered.root))
    }

    fn roots(&self) -> Result<Vec<Held>, HierarchyError> {
        let roots = self.folder.held(Sort::Root)?;
        if let (true, Some((label, _))) = (roots.is_empty(), self.folder.requests()?.first()) {
            return Err(HierarchyError::Waiting {
                request: self.folder.request(label),
                folder: self.plugged.default_folder(),
            });
        }
        if roots.is_empty() {
            return Err(HierarchyError::Missing { file: self.folder.path().join("root.pem") });
        }
        Ok(roots)
    }

    pub(super) fn root_of(&self, root: Fingerprint) -> Result<Held, HierarchyError> {
        let found = self.folder.held(Sort::Root)?.into_iter().find(|held| held.info.fingerprint == root);
        found.ok_or_else(|| HierarchyError::Unknown { folder: self.folder.path().into(), fingerprint: root })
    }

    pub(super) fn root_authority(&self, root: &Held) -> Result<Authority, HierarchyError> {
        let signer = self.keys.open(&root.label)?;
        let authority = Authority::new(root.info.certificate.clone(), signer);
        let authority = authority.map_err(|source| self.wrong(&root.label, source))?;
        Ok(authority.published_at(self.crls.as_ref()))
    }

    pub(super) fn signing(&self, held: &Held, root: AuthorityInfo) -> Result<Signing, HierarchyError> {
        self.check_cluster(&held.info)?;
        let signer = self.keys.open(&held.label)?;
        let authority = Authority::new(held.info.certificate.clone(), signer);
        let authority = authority.map(|authority| authority.published_at(self.crls.as_ref()));
        let renewal = match &held.root {
            // One with its root beside it was signed elsewhere.
            Some(_) => Renewal::Person,
            None if self.is_shared(held) => Renewal::Sharer,
            None => Renewal::Itself,
        };
        let signing = authority.and_then(|authority| Signing::new(authority, held.chain.clone(), root, renewal));
        signing.map_err(|source| self.wrong(&held.label, source))
    }

    /// The intermediate that signs, and its root: the one that the store remembers, or else the one that lives longest.
    fn active(
        &self,
        remembered: Option<Fingerprint>,
        roots: &[Held],
        trust: &TrustState,
    ) -> Result<(Held, Held), HierarchyError> {
        let mut found = Vec::new();
        // Those that were signed elsewhere have not been signed by a root that is here.
        for held in self.folder.held(Sort::Intermediate)?.into_iter().filter(|held| held.root.is_none()) {
            let root = match self.root_above(&held, roots) {
                // Of a root that others have rotated away from.
                Err(_) if self.shared => continue,
                found => found?,
            };
            if trust.trusts(root.info.fingerprint) {
                found.push((held, root));
            }
        }
        // With replicas, the root of what signed last may have been rotated away from in the meantime.
        let remembered =
            remembered.filter(|wanted| !self.shared || found.iter().any(|(held, _)| held.info.fingerprint == *wanted));
        let Some(wanted) = remembered else {
            let longest = found.into_iter().max_by_key(|(held, _)| held.info.validity.not_after());
            return longest
                .ok_or_else(|| HierarchyError::Missing { file: self.folder.path().join("intermediate-….pem") });
        };
        let active = found.into_iter().find(|(held, _)| held.info.fingerprint == wanted);
        active.ok_or_else(|| HierarchyError::Unknown { folder: self.folder.path().into(), fingerprint: wanted })
    }

    pub(super) fn root_above(&self, held: &Held, roots: &[Held]) -> Result<Held, HierarchyError> {
        let wrong = |what| HierarchyError::Mismatch { file: self.folder.file(&held.label), what };
        let beside = held.root.clone().map(|info| Held { info, ..held.clone() });
        let found = roots.iter().find(|root| held.info.is_signed_by(&root.info)).or(beside.as_ref());
        let Some(root) = found else {
            let names: Vec<_> = roots.iter().map(|root| root.info.fingerprint.to_string()).collect();
            return Err(wrong(format!("it is not signed by the root {}", names.join(", nor by "))));
        };
        // One that a person brought need not name the trust domain: it was checked when it was plugged in.
        if held.root.is_none() && !held.info.is_of(&self.trust_domain) {
            return Err(wrong(format!("it is not an intermediate of the trust domain {}", self.trust_domain)));
        }
        Ok(root.clone())
    }

    /// What an intermediate of another cluster signs for this one, as lists of revocations, nobody believes.
    pub(super) fn check_cluster(&self, intermediate: &AuthorityInfo) -> Result<(), HierarchyError> {
        let stated = stated_cluster(&intermediate.certificate, &self.trust_domain);
        match stated.filter(|stated| !is_of_cluster(Some(stated), &self.cluster)) {
            Some(stated) => Err(HierarchyError::OtherCluster {
                intermediate: intermediate.fingerprint,
                stated,
                cluster: self.cluster.clone(),
            }),
            None => Ok(()),
        }
    }

    fn wrong(&self, label: &KeyLabel, source: crate::authority::AuthorityError) -> HierarchyError {
        HierarchyError::Wrong { file: self.folder.file(label), source }
    }
}

impl Held {
    fn chain_root(&self) -> CertificateDer<'static> {
        self.info.certificate.clone()
    }
}

impl fmt::Debug for HierarchyFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HierarchyFiles").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Where there was a store and it is gone, nobody knows how far its sequence went: seconds are more than any that counted changes.
pub(super) fn first_sequence(remembered: &Remembered, now: SystemTime) -> u64 {
    match remembered.root {
        Some(_) => 1,
        None => crate::records::seconds::of(now),
    }
}
