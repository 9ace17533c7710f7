//! A hierarchy that a person plugs in: an intermediate of the cluster, or a root that signs one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint};
use alcazar_mtls::{Side, verify_peer};
use alcazar_service::process;

use super::{
    Hierarchy, HierarchyError, HierarchyFiles, Signing,
    files::{Opened, Remembered, first_sequence},
    folder::{Held, Sort},
    heard::Heard,
    making::is_fresh,
    replaced::SLACK,
    signing::Renewal,
    trust::TrustState,
};
use crate::{
    authority::{Authority, AuthorityError, AuthorityInfo},
    cacerts::{CacertsFiles, GENERATION, NAMES, PluggedIn, Stamp, check},
    config::Config,
    csr::KeyHash,
    keys::{KeyLabel, read_passphrase},
    profile::Profile,
    records::seconds,
    signer::{KeySigner, Signer},
};

/// Where plugged-in certificates come from.
#[derive(Clone, Debug)]
pub(crate) struct Plugged {
    configured: Option<PathBuf>,
    /// A new root that signs at once, because a person wants the cut.
    cut_over_to: Option<Fingerprint>,
    /// What was said of the files last.
    said: Arc<Mutex<Vec<String>>>,
    /// Where `alcazar ca install` puts them.
    installed: PathBuf,
    passphrase: Option<PathBuf>,
    /// How long a leaf may live that is issued now.
    leaf_life: Duration,
}

impl Plugged {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            configured: config.cacerts.as_ref().and_then(|cacerts| cacerts.dir.clone()),
            cut_over_to: config.cacerts.as_ref().and_then(|cacerts| cacerts.cut_over_to),
            said: Arc::default(),
            installed: config.data_dir.join(INSTALLED),
            passphrase: config.keys.passphrase_file.clone(),
            leaf_life: config.certificates.max_ttl,
        }
    }

    /// The folder, where there is to be one.
    pub(crate) fn folder(&self) -> Result<Option<PathBuf>, HierarchyError> {
        if self.configured.is_some() {
            return Ok(self.configured.clone());
        }
        // A folder that an installation only began, or never finished, is none yet.
        for name in std::iter::once(GENERATION).chain(NAMES) {
            let path = self.installed.join(name);
            match path.symlink_metadata() {
                // Also a link that leads nowhere: to make a root of our own instead would be worse than to stop.
                Ok(_) => return Ok(Some(self.installed.clone())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(super::folder::io_error("look at", &path, source)),
            }
        }
        Ok(None)
    }

    /// The CRLs that were plugged in with the set.
    pub(crate) fn crls(&self) -> Vec<Vec<u8>> {
        let Ok(Some(folder)) = self.folder() else { return Vec::new() };
        CacertsFiles::read(&folder).map(|files| files.crls()).unwrap_or_default()
    }

    pub(super) fn leaf_life(&self) -> Duration {
        self.leaf_life
    }

    pub(crate) fn default_folder(&self) -> PathBuf {
        self.configured.clone().unwrap_or_else(|| self.installed.clone())
    }

    /// What the files look like from outside: when it changes, they are read again.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::of(&self.default_folder())
    }
}

impl HierarchyFiles {
    /// What is plugged in: its roots are trusted, and it signs, at once or once everybody has heard of a new root.
    pub(super) fn open_plugged(
        &self,
        folder: &Path,
        remembered: &Remembered,
        present: Option<&Signing>,
        heard: &Heard,
        now: SystemTime,
    ) -> Result<Opened, HierarchyError> {
        let found = self.read_plugged(folder, now)?;
        self.say(folder, &found.warnings);
        let root = found.root.fingerprint;
        let before = self.trusted_before(remembered, now)?;
        let told = moved(&before, &found, now, None);
        let waits = match told.find(root) {
            Some(root_of) if self.plugged.cut_over_to != Some(root) => heard.waits(root_of, now),
            _ => Vec::new(),
        };
        let remembered_one = if present.is_none() { self.signed_last(remembered, &told, now) } else { None };
        let good = |signing: &&Signing| signing.bounds().contains(now);
        if let Some(present) = present.or(remembered_one.as_ref()).filter(good)
            && !waits.is_empty()
            && present.root.fingerprint != root
        {
            // Leaves of a root that a verifier has not heard of would be refused: for a while the present one goes on.
            return Ok(Opened { trust: told, signing: present.clone(), waits });
        }
        if !waits.is_empty() && present.is_none() && !heard.is_nobody() {
            let old = before.iter().flat_map(|trust| &trust.roots).map(|root| Fingerprint::of(&root.certificate));
            let old = old.filter(|old| *old != root).map(|old| old.to_string()).collect::<Vec<_>>().join(", ");
            return Err(HierarchyError::NewToEverybody { folder: folder.into(), root, old, waits: waits.join("; ") });
        }
        let retire_at = now + remembered.leaf_life + SLACK;
        let trust = moved(&before, &found, now, Some((root, retire_at)));
        let signing = self.plugged_signing(found, remembered, now)?;
        if present.is_none_or(|present| !present.is_like(&signing)) {
            self.try_out(folder, &trust, &signing)?;
        }
        if let Some(last) = remembered.active.filter(|last| *last != signing.authority.info().fingerprint) {
            self.replace(last, now)?;
        }
        Ok(Opened { trust, signing, waits: Vec::new() })
    }

    /// Whether the root that is plugged in is one that nothing has signed under yet, so that it matters who has heard of it. What
    /// cannot be read is told by whoever opens it.
    pub(super) fn waits_to_be_heard_of(&self, remembered: &Remembered, now: SystemTime) -> bool {
        let Ok(Some(folder)) = self.plugged.folder() else { return false };
        let Ok(found) = self.read_plugged(&folder, now) else { return false };
        let trusted = remembered.trust.as_ref().and_then(|trust| trust.find(found.root.fingerprint));
        trusted.is_none_or(|root| root.joined.is_some())
    }

    /// What signed when this CA ended, where its key is here and it can go on.
    fn signed_last(&self, remembered: &Remembered, trust: &TrustState, now: SystemTime) -> Option<Signing> {
        let signing = self.load(remembered.active?, now).ok()?;
        trust.trusts(signing.root.fingerprint).then_some(signing)
    }

    /// Says what should be mended in the files, once.
    fn say(&self, folder: &Path, warnings: &[String]) {
        let mut said = self.plugged.said.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter().filter(|warning| !said.contains(warning)) {
            tracing::warn!(folder = %folder.display(), warning, "the CA's certificates can be used, and something in them should be mended");
        }
        *said = warnings.to_vec();
    }

    /// The roots that the plugged-in set brings, where there is one that can be read.
    pub(crate) fn plugged_roots(&self, now: SystemTime) -> Vec<Fingerprint> {
        let Ok(Some(folder)) = self.plugged.folder() else { return Vec::new() };
        let found = self.read_plugged(&folder, now).map(|found| found.roots).unwrap_or_default();
        found.iter().map(|root| root.fingerprint).collect()
    }

    /// The root above what is plugged in and can be read.
    pub(super) fn root_above_plugged(&self, now: SystemTime) -> Option<Fingerprint> {
        let folder = self.plugged.folder().ok()??;
        self.read_plugged(&folder, now).ok().map(|found| found.root.fingerprint)
    }

    /// A root that is plugged in with its key.
    pub(super) fn plugged_root(&self, now: SystemTime) -> Result<Option<Authority>, HierarchyError> {
        let Some(folder) = self.plugged.folder()? else { return Ok(None) };
        let found = self.read_plugged(&folder, now)?;
        if found.is_root { self.plugged_authority(found).map(Some) } else { Ok(None) }
    }

    fn read_plugged(&self, folder: &Path, now: SystemTime) -> Result<PluggedIn, HierarchyError> {
        let refused = |source| HierarchyError::PluggedIn { folder: folder.into(), source: Box::new(source) };
        let files = CacertsFiles::read(folder).map_err(refused)?;
        let held: Vec<KeyHash> = self.folder.requests()?.into_iter().map(|(_, hash)| hash).collect();
        let passphrase = self.plugged.passphrase.as_deref().map(read_passphrase).transpose()?;
        let passphrase = passphrase.as_ref().map(|bytes| bytes.as_slice());
        check(&files, &held, passphrase, &self.trust_domain, now).map_err(refused)
    }

    /// What was trusted before this look; `None` where nothing is known of it.
    fn trusted_before(&self, remembered: &Remembered, now: SystemTime) -> Result<Option<TrustState>, HierarchyError> {
        let mut before = remembered.trust.clone();
        if before.is_none() && self.folder.exists()? {
            let own: Vec<Held> = self.folder.held(Sort::Root)?;
            let certificates = own.into_iter().map(|held| held.info.certificate);
            before = Some(TrustState::new(first_sequence(remembered, now), certificates));
        }
        Ok(before.filter(|before| !before.roots.is_empty()))
    }

    fn plugged_signing(
        &self,
        found: PluggedIn,
        remembered: &Remembered,
        now: SystemTime,
    ) -> Result<Signing, HierarchyError> {
        let root = found.root.clone();
        if !found.is_root {
            let (upper, elsewhere) = (found.chain.clone(), found.key.is_none());
            if elsewhere {
                self.keep(&upper, &root);
            }
            let authority = self.plugged_authority(found)?;
            self.check_cluster(authority.info())?;
            return Signing::new(authority, upper, root, Renewal::Person).map_err(HierarchyError::Make);
        }
        let authority = self.plugged_authority(found)?;
        self.folder.make()?;
        let fresh = |held: &Held| is_fresh(&held.info, now);
        let good = |held: &Held| held.info.is_signed_by(&root) && held.info.is_of(&self.trust_domain);
        let mut held: Vec<Held> = self.folder.held(Sort::Intermediate)?.into_iter().filter(good).collect();
        let active = held.iter().position(|held| Some(held.info.fingerprint) == remembered.active);
        let active = active.map(|place| held.swap_remove(place)).filter(fresh);
        let chosen = match active.or_else(|| held.into_iter().find(fresh)) {
            Some(held) => held,
            None => self.write_intermediate(&authority, now)?,
        };
        self.signing(&chosen, root)
    }

    fn plugged_authority(&self, found: PluggedIn) -> Result<Authority, HierarchyError> {
        let own = found.chain.into_iter().next().unwrap_or(found.root.certificate);
        let signer: Arc<dyn Signer> = match found.key {
            Some(key) => Arc::new(KeySigner::new(key)),
            None => self.requested_key(&own)?,
        };
        let authority = Authority::new(own, signer).map_err(HierarchyError::Make)?;
        Ok(authority.published_at(self.crls.as_ref()))
    }

    /// The key in the key store that a request was made for, and that this certificate is for.
    fn requested_key(&self, certificate: &CertificateDer<'_>) -> Result<Arc<dyn Signer>, HierarchyError> {
        Ok(self.keys.open(&self.requested(certificate)?)?)
    }

    fn requested(&self, certificate: &CertificateDer<'_>) -> Result<KeyLabel, HierarchyError> {
        let hash = KeyHash::of_certificate(certificate);
        let hash = hash.ok_or(HierarchyError::Make(AuthorityError::Malformed))?;
        let mut requests = self.folder.requests()?.into_iter();
        let label = requests.find(|(_, held)| *held == hash).map(|(label, _)| label);
        label.ok_or(HierarchyError::Make(AuthorityError::OtherKey))
    }

    /// Keeps a certificate beside its key, so that it goes on when another one is plugged in and nobody has heard of that yet, and
    /// signs its list of revocations for as long as leaves of it live.
    fn keep(&self, upper: &[CertificateDer<'static>], root: &AuthorityInfo) {
        let Some(own) = upper.first() else { return };
        let kept = self.requested(own).and_then(|label| {
            self.folder.answer(&label)?;
            let held = self.folder.held(Sort::Intermediate)?.into_iter().find(|held| held.label == label);
            if held.is_some_and(|held| held.chain == upper && held.root.as_ref() == Some(root)) {
                return Ok(());
            }
            self.folder.write(&label, &[upper, std::slice::from_ref(&root.certificate)].concat())
        });
        if let Err(error) = kept {
            tracing::warn!(reason = %process::chain(&error), "the CA's certificate was not kept beside its key; it signs all the same");
        }
    }

    /// Signs a leaf that nobody gets, and lets the one verifier look at it. It is of the first minute in which the whole chain was
    /// good: should it get into other hands, it is over.
    pub(super) fn try_out(&self, folder: &Path, trust: &TrustState, signing: &Signing) -> Result<(), HierarchyError> {
        let now = signing.bounds().not_before();
        let refused = |source| HierarchyError::Trial { folder: folder.into(), source };
        let hierarchy = Hierarchy::new(trust, signing.clone(), &self.trust_domain)?;
        let profile = Profile::new(SHORT, SHORT).map_err(|error| refused(Box::new(error)))?;
        let trial = crate::serving::issue(&hierarchy, &self.trust_domain, &[], &profile, now);
        let trial = trial.map_err(|error| refused(Box::new(error)))?;
        let verified = verify_peer(trial.credentials.svid().chain(), hierarchy.bundles(), Side::Server, now);
        verified.map(drop).map_err(|error| refused(Box::new(error)))
    }
}

/// Beside the CA's other folders.
pub(crate) const INSTALLED: &str = "cacerts";

/// The next state, with the roots that were found; where one of them signs, the others until a moment.
fn moved(
    before: &Option<TrustState>,
    found: &PluggedIn,
    now: SystemTime,
    signs: Option<(Fingerprint, SystemTime)>,
) -> TrustState {
    let roots = found.roots.iter().map(|root| root.certificate.clone());
    match before {
        // Where there may have been a store, nobody knows how far its sequence went: seconds are more than any that counted changes.
        None => TrustState::new(seconds::of(now), roots),
        Some(before) => before.moving_to(roots, now, signs).unwrap_or_else(|| before.clone()),
    }
}

const SHORT: Duration = Duration::from_secs(60);
