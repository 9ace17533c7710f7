//! Making, finding and forgetting authorities, on the disk and in the key store. Everything here blocks.
//!
//! A key is made before the certificate that needs it, and the certificate before anything signs with it. What is being made is
//! noted first: a crash leaves a note, and the next start clears away what the note names. So a folder without notes is whole,
//! and a part that is missing from it is damage.

use std::{fmt, fs, io, sync::Arc, time::SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, TrustDomain, is_of_cluster, rfc3339, stated_cluster};

use super::{
    HierarchyError, Signing,
    folder::{Folder, Held, Sort, io_error},
    plugged::Plugged,
    trust::TrustState,
};
use crate::{
    authority::{Authority, AuthorityInfo},
    config::Config,
    keys::{KeyLabel, KeyStore},
    revocation::CrlUrl,
    serial::Serial,
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
}

/// What was found, or made. The store is to remember it before anything stands on it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) trust: TrustState,
    pub(crate) signing: Signing,
    /// Intermediates that nothing signs with any more.
    pub(crate) stale: Vec<Fingerprint>,
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

    /// Finds the hierarchy again, or makes one where there has never been any. `present` is what signs at the moment.
    pub(crate) fn open(
        &self,
        remembered: &Remembered,
        present: Option<&Signing>,
        now: SystemTime,
    ) -> Result<Opened, HierarchyError> {
        if let Some(folder) = self.plugged.folder()? {
            if self.folder.exists()? {
                self.clear(true)?;
            }
            return self.open_plugged(&folder, remembered, present, now);
        }
        let known = self.known(remembered)?;
        match (self.folder.exists()?, known) {
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
        self.renew_if_due(Opened { trust, signing, stale: Vec::new() }, now)
    }

    /// The same, or one with a fresh intermediate once the present one is past half of its life.
    pub(crate) fn renew_if_due(&self, mut opened: Opened, now: SystemTime) -> Result<Opened, HierarchyError> {
        let present = opened.signing.authority.info().clone();
        if present.validity.remaining(now) > present.validity.lifetime() / 2 {
            return Ok(opened);
        }
        let root = opened.signing.root.clone();
        // Whoever has the root is asked elsewhere.
        if self.folder.held(Sort::Root)?.iter().any(|held| held.info == root && held.is_elsewhere()) {
            return Ok(opened);
        }
        // Bounded by its root, a new one may be no better.
        if root.validity.not_after() <= present.validity.not_after() {
            tracing::warn!(not_after = %rfc3339(present.validity.not_after()), "the intermediate cannot be renewed: its root ends with it");
            return Ok(opened);
        }
        // One may be there already, of a renewal that was cut short.
        let better = |held: &Held| {
            held.info.is_signed_by(&root) && held.info.validity.remaining(now) > held.info.validity.lifetime() / 2
        };
        let made = match self.folder.held(Sort::Intermediate)?.into_iter().find(better) {
            Some(held) => held,
            None => self.write_intermediate(&self.root_authority(&self.root_of(root.fingerprint)?)?, now)?,
        };
        opened.signing = self.signing(&made, root)?;
        opened.stale.push(present.fingerprint);
        tracing::info!(target: "alcazar::rotation", fingerprint = %made.info.fingerprint, not_after = %rfc3339(made.info.validity.not_after()), "the intermediate was renewed");
        Ok(opened)
    }

    /// A new root, which nobody trusts yet.
    pub(crate) fn make_root(&self, now: SystemTime) -> Result<AuthorityInfo, HierarchyError> {
        if let Some(folder) = self.plugged.folder()? {
            return Err(HierarchyError::RootElsewhere { folder });
        }
        Ok(self.write_root(KeyLabel::random(Sort::Root.as_str())?, now)?.info)
    }

    /// A new intermediate under a root whose key is here; nothing signs with it yet.
    pub(crate) fn make_intermediate(
        &self,
        root: Fingerprint,
        now: SystemTime,
    ) -> Result<AuthorityInfo, HierarchyError> {
        Ok(self.write_intermediate(&self.issuing_root(root, now)?, now)?.info)
    }

    /// What is needed to sign with an intermediate.
    pub(crate) fn load(&self, intermediate: Fingerprint, now: SystemTime) -> Result<Signing, HierarchyError> {
        let unknown = || HierarchyError::Unknown { folder: self.folder.path().into(), fingerprint: intermediate };
        let mut held = self.folder.held(Sort::Intermediate)?.into_iter();
        let held = held.find(|held| held.info.fingerprint == intermediate).ok_or_else(unknown)?;
        let mut roots = self.folder.held(Sort::Root)?;
        if let Some(plugged) = self.plugged_root(now)? {
            let (info, chain) = (plugged.info().clone(), vec![plugged.info().certificate.clone()]);
            roots.push(Held { label: FIRST.parse().map_err(HierarchyError::Label)?, info, chain });
        }
        let root = self.root_above(&held, &roots)?;
        self.signing(&held, root.info)
    }

    /// A root whose key is here, wherever it came from.
    fn issuing_root(&self, root: Fingerprint, now: SystemTime) -> Result<Authority, HierarchyError> {
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

    /// Removes a root and its key from the disk.
    pub(crate) fn forget_root(&self, root: Fingerprint) -> Result<(), HierarchyError> {
        self.forget(Sort::Root, root)
    }

    /// Removes an intermediate and its key from the disk.
    pub(crate) fn forget_intermediate(&self, intermediate: Fingerprint) -> Result<(), HierarchyError> {
        self.forget(Sort::Intermediate, intermediate)
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

    /// Clears away what was being made when the process ended; of a first start, everything.
    fn clear(&self, known: bool) -> Result<(), HierarchyError> {
        self.folder.tidy()?;
        let begun = self.folder.unfinished()?;
        let first: KeyLabel = FIRST.parse().map_err(HierarchyError::Label)?;
        if begun.contains(&first) && !known {
            for held in [self.folder.held(Sort::Intermediate)?, self.folder.held(Sort::Root)?].concat() {
                self.keys.remove(&held.label)?;
                self.folder.remove(&held.label)?;
            }
        }
        for label in begun.iter().filter(|label| **label != first) {
            if !self.folder.file(label).exists() && !self.folder.request(label).exists() {
                self.keys.remove(label)?;
            }
            self.folder.finish(label)?;
        }
        self.folder.finish(&first)
    }

    fn create(&self, now: SystemTime) -> Result<Opened, HierarchyError> {
        // What an earlier version was making when it ended.
        let building = self.folder.path().with_extension("new");
        match fs::remove_dir_all(&building) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &building, error)),
            _ => {}
        }
        self.folder.make()?;
        let first: KeyLabel = FIRST.parse().map_err(HierarchyError::Label)?;
        self.folder.begin(&first)?;
        let root = self.write_root(Sort::Root.as_str().parse().map_err(HierarchyError::Label)?, now)?;
        let intermediate = self.write_intermediate(&self.root_authority(&root)?, now)?;
        self.folder.finish(&first)?;
        let parent = self.folder.path().parent().unwrap_or(self.folder.path());
        let synced = fs::File::open(parent).and_then(|folder| folder.sync_all());
        synced.map_err(|source| io_error("sync", parent, source))?;
        // Right on the first start of all; on any other, a data folder that was not there (a volume not mounted, a wrong path).
        tracing::warn!(target: "alcazar::rotation", fingerprint = %root.info.fingerprint, not_after = %rfc3339(root.info.validity.not_after()), folder = %self.folder.path().display(), "a new root was made: nothing that trusts another root trusts this one");
        let trust = TrustState::new(1, [root.info.certificate.clone()]);
        Ok(Opened { trust, signing: self.signing(&intermediate, root.info)?, stale: Vec::new() })
    }

    fn write_root(&self, label: KeyLabel, now: SystemTime) -> Result<Held, HierarchyError> {
        self.folder.begin(&label)?;
        let signer = self.keys.generate(&label)?;
        let made = Authority::root(&self.trust_domain, signer, Serial::random()?, now).map_err(HierarchyError::Make)?;
        self.hold(label, made.info().clone())
    }

    pub(super) fn write_intermediate(&self, root: &Authority, now: SystemTime) -> Result<Held, HierarchyError> {
        let label = KeyLabel::random(Sort::Intermediate.as_str())?;
        self.folder.begin(&label)?;
        let signer = self.keys.generate(&label)?;
        let made = Authority::intermediate(root, &self.trust_domain, &self.cluster, signer, Serial::random()?, now);
        self.hold(label, made.map_err(HierarchyError::Make)?.info().clone())
    }

    fn hold(&self, label: KeyLabel, info: AuthorityInfo) -> Result<Held, HierarchyError> {
        let chain = vec![info.certificate.clone()];
        self.folder.write(&label, &chain)?;
        self.folder.finish(&label)?;
        Ok(Held { label, info, chain })
    }

    fn forget(&self, sort: Sort, fingerprint: Fingerprint) -> Result<(), HierarchyError> {
        for held in self.folder.held(sort)?.iter().filter(|held| held.info.fingerprint == fingerprint) {
            // With the note first, a crash between the two removals is cleared by the next start.
            self.folder.begin(&held.label)?;
            self.folder.remove(&held.label)?;
            self.keys.remove(&held.label)?;
            self.folder.finish(&held.label)?;
        }
        Ok(())
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

    fn root_of(&self, root: Fingerprint) -> Result<Held, HierarchyError> {
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
        let authority = authority.map_err(|source| self.wrong(&held.label, source))?;
        let authority = authority.published_at(self.crls.as_ref());
        Ok(Signing { authority: Arc::new(authority), upper: held.chain.clone(), root })
    }

    /// The intermediate that signs, and its root: the one that the store remembers, or else the one that lives longest.
    fn active(
        &self,
        remembered: Option<Fingerprint>,
        roots: &[Held],
        trust: &TrustState,
    ) -> Result<(Held, Held), HierarchyError> {
        let mut found = Vec::new();
        for held in self.folder.held(Sort::Intermediate)? {
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
        let Some(root) = roots.iter().find(|root| held.info.is_signed_by(&root.info)) else {
            let names: Vec<_> = roots.iter().map(|root| root.info.fingerprint.to_string()).collect();
            return Err(wrong(format!("it is not signed by the root {}", names.join(", nor by "))));
        };
        if !held.info.is_of(&self.trust_domain) {
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

/// The note of a first start.
const FIRST: &str = "hierarchy";

/// Where there was a store and it is gone, nobody knows how far its sequence went: seconds are more than any that counted changes.
pub(super) fn first_sequence(remembered: &Remembered, now: SystemTime) -> u64 {
    match remembered.root {
        Some(_) => 1,
        None => crate::records::seconds::of(now),
    }
}
