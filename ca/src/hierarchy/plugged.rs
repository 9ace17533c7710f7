//! A hierarchy that a person plugs in: an intermediate of the cluster, or a root that signs one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_mtls::{Side, verify_peer};

use super::{
    Hierarchy, HierarchyError, HierarchyFiles, Signing,
    files::{Opened, Remembered, first_sequence},
    folder::{Held, Sort},
    trust::TrustState,
};
use crate::{
    authority::Authority,
    cacerts::{CacertsFiles, PluggedIn, Stamp, check},
    config::Config,
    csr::KeyHash,
    keys::read_passphrase,
    profile::Profile,
    signer::{KeySigner, Signer},
};

/// Where plugged-in certificates come from.
#[derive(Clone, Debug)]
pub(crate) struct Plugged {
    configured: Option<PathBuf>,
    /// Where `alcazar ca install` puts them.
    installed: PathBuf,
    passphrase: Option<PathBuf>,
    /// How long a leaf may live on after its root has been left.
    leaf_life: Duration,
}

impl Plugged {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            configured: config.cacerts.as_ref().map(|cacerts| cacerts.dir.clone()),
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
        let there = self.installed.try_exists();
        let there = there.map_err(|source| super::folder::io_error("look at", &self.installed, source))?;
        Ok(there.then(|| self.installed.clone()))
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
        now: SystemTime,
    ) -> Result<Opened, HierarchyError> {
        let found = self.read_plugged(folder, now)?;
        for warning in &found.warnings {
            tracing::warn!(folder = %folder.display(), warning, "the CA's certificates can be used, and something in them should be mended");
        }
        let trust = self.trust_of(&found, remembered, now)?;
        let (root, since) = (found.root.fingerprint, trust.since(found.root.fingerprint));
        let settling = since.is_some_and(|since| now.duration_since(since).unwrap_or_default() < SETTLE);
        // Leaves of a root that a verifier has not heard of would be refused: for a moment the present one goes on.
        if let (Some(present), true) = (present, settling)
            && present.root.fingerprint != root
            && present.authority.info().validity.contains(now)
        {
            return Ok(Opened { trust, signing: present.clone(), stale: Vec::new() });
        }
        let signing = self.plugged_signing(found, remembered, now)?;
        self.try_out(folder, &trust, &signing, now)?;
        Ok(Opened { trust, signing, stale: Vec::new() })
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

    fn trust_of(
        &self,
        found: &PluggedIn,
        remembered: &Remembered,
        now: SystemTime,
    ) -> Result<TrustState, HierarchyError> {
        let roots = found.roots.iter().map(|root| root.certificate.clone());
        let mut before = remembered.trust.clone();
        if before.is_none() && self.folder.exists()? {
            let own: Vec<Held> = self.folder.held(Sort::Root)?;
            let certificates = own.into_iter().map(|held| held.info.certificate);
            before = Some(TrustState::new(first_sequence(remembered, now), certificates));
        }
        let Some(before) = before.filter(|before| !before.roots.is_empty()) else {
            return Ok(TrustState::new(1, roots));
        };
        let retire_at = now + SETTLE + self.plugged.leaf_life + SLACK;
        Ok(before.moving_to(roots, now, retire_at).unwrap_or(before))
    }

    fn plugged_signing(
        &self,
        found: PluggedIn,
        remembered: &Remembered,
        now: SystemTime,
    ) -> Result<Signing, HierarchyError> {
        let root = found.root.clone();
        if !found.is_root {
            let upper = found.chain.clone();
            let authority = self.plugged_authority(found)?;
            self.check_cluster(authority.info())?;
            return Ok(Signing { authority: Arc::new(authority), upper, root });
        }
        let authority = self.plugged_authority(found)?;
        self.folder.make()?;
        let fresh = |held: &Held| held.info.validity.remaining(now) > held.info.validity.lifetime() / 2;
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
    fn requested_key(
        &self,
        certificate: &alcazar_identity::CertificateDer<'_>,
    ) -> Result<Arc<dyn Signer>, HierarchyError> {
        use x509_parser::{certificate::X509Certificate, prelude::FromDer};
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_reason| HierarchyError::Make(crate::authority::AuthorityError::Malformed))?;
        let hash = KeyHash::of(parsed.public_key().raw);
        let mut requests = self.folder.requests()?.into_iter();
        let label = requests.find(|(_, held)| *held == hash).map(|(label, _)| label);
        let label = label.ok_or(HierarchyError::Make(crate::authority::AuthorityError::OtherKey))?;
        Ok(self.keys.open(&label)?)
    }

    /// Signs a leaf that nobody gets, and lets the one verifier look at it.
    pub(super) fn try_out(
        &self,
        folder: &Path,
        trust: &TrustState,
        signing: &Signing,
        now: SystemTime,
    ) -> Result<(), HierarchyError> {
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

/// From the moment that a new root is trusted until its intermediate signs: agents and proxies hear of it in seconds.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);
const SLACK: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(60);
