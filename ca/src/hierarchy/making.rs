//! Making authorities, and clearing away what a crash left half made.
//!
//! A key is made before the certificate that needs it. What is being made is noted first: a crash leaves a note, and the next start
//! clears away what the note names. A folder without notes is whole, and a part that is missing from it is damage.

use std::{fs, io, time::SystemTime};

use alcazar_identity::{Fingerprint, rfc3339};
use alcazar_service::process;

use super::{
    HierarchyError, HierarchyFiles, TrustState,
    files::Opened,
    folder::{Held, Sort, io_error},
};
use crate::{
    authority::{Authority, AuthorityInfo},
    keys::KeyLabel,
    serial::Serial,
};

impl HierarchyFiles {
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

    /// The same, or one with a fresh intermediate once the present one is past half of its life, or not good by this clock.
    pub(super) fn renew_if_due(&self, mut opened: Opened, now: SystemTime) -> Result<Opened, HierarchyError> {
        let present = opened.signing.authority.info().clone();
        if is_fresh(&present, now) {
            return Ok(opened);
        }
        let root = opened.signing.root.clone();
        // Whoever has the root is asked elsewhere.
        if self.folder.held(Sort::Root)?.iter().any(|held| held.info == root && held.is_elsewhere()) {
            return Ok(opened);
        }
        if !root.validity.contains(now) {
            // The root has ended, or the clock is wrong: nothing that it signs now is good now.
            return Ok(opened);
        }
        // Bounded by its root, a new one may be no better.
        if present.validity.contains(now) && root.validity.not_after() <= present.validity.not_after() {
            tracing::warn!(not_after = %rfc3339(present.validity.not_after()), "the intermediate cannot be renewed: its root ends with it");
            return Ok(opened);
        }
        // One may be there already: of a renewal that was cut short, or of a moment at which the clock was wrong.
        let better = |held: &Held| held.info.is_signed_by(&root) && is_fresh(&held.info, now);
        let made = match self.folder.held(Sort::Intermediate)?.into_iter().find(better) {
            Some(held) => held,
            None => self.write_intermediate(&self.root_authority(&self.root_of(root.fingerprint)?)?, now)?,
        };
        opened.signing = self.signing(&made, root)?;
        self.replace(present.fingerprint, now)?;
        tracing::info!(target: "alcazar::rotation", fingerprint = %made.info.fingerprint, not_after = %rfc3339(made.info.validity.not_after()), "the intermediate was renewed");
        Ok(opened)
    }

    /// Clears away what was being made when the process ended; of a first start, everything.
    pub(super) fn clear(&self, known: bool) -> Result<(), HierarchyError> {
        let _locked = self.folder.lock()?;
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
                self.folder.forget_notes(label)?;
            }
            self.folder.finish(label)?;
        }
        self.folder.finish(&first)
    }

    /// The first root, and an intermediate of it.
    pub(super) fn create(&self, now: SystemTime) -> Result<Opened, HierarchyError> {
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
        Ok(Opened { trust, signing: self.signing(&intermediate, root.info)?, waits: Vec::new() })
    }

    fn write_root(&self, label: KeyLabel, now: SystemTime) -> Result<Held, HierarchyError> {
        self.making(label, |label| {
            let signer = self.keys.generate(label)?;
            let made = Authority::root(&self.trust_domain, signer, Serial::random()?, now);
            Ok(made.map_err(HierarchyError::Make)?.info().clone())
        })
    }

    pub(super) fn write_intermediate(&self, root: &Authority, now: SystemTime) -> Result<Held, HierarchyError> {
        self.making(KeyLabel::random(Sort::Intermediate.as_str())?, |label| {
            let signer = self.keys.generate(label)?;
            let made = Authority::intermediate(root, &self.trust_domain, &self.cluster, signer, Serial::random()?, now);
            Ok(made.map_err(HierarchyError::Make)?.info().clone())
        })
    }

    /// Makes key and certificate under a note. What fails leaves nothing, or the note, for the next start.
    fn making(
        &self,
        label: KeyLabel,
        make: impl FnOnce(&KeyLabel) -> Result<AuthorityInfo, HierarchyError>,
    ) -> Result<Held, HierarchyError> {
        self.folder.begin(&label)?;
        let made = make(&label).and_then(|info| {
            let chain = vec![info.certificate.clone()];
            self.folder.write(&label, &chain)?;
            Ok(Held { label: label.clone(), info, chain, root: None })
        });
        let held = match made {
            Ok(held) => held,
            Err(error) => {
                let cleared = self.keys.remove(&label).map_err(HierarchyError::from);
                if let Err(error) = cleared.and_then(|()| self.folder.finish(&label)) {
                    tracing::warn!(reason = %process::chain(&error), %label, "what was begun is left to the next start to clear away");
                }
                return Err(error);
            }
        };
        self.folder.finish(&label)?;
        Ok(held)
    }
}

/// Whether more than half of its life is to come, by this clock.
pub(super) fn is_fresh(info: &AuthorityInfo, now: SystemTime) -> bool {
    info.validity.contains(now) && info.validity.remaining(now) > info.validity.lifetime() / 2
}

/// The note of a first start.
pub(super) const FIRST: &str = "hierarchy";

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    use super::*;
    use crate::{
        config::Config,
        hierarchy::{files::Remembered, heard::Heard},
        keys::{KeyAlgorithm, KeyError, KeyStore},
        signer::Signer,
    };

    /// A key store that is full at times.
    struct Full(Arc<dyn KeyStore>, AtomicBool);

    impl KeyStore for Full {
        fn generate_with(&self, label: &KeyLabel, algorithm: KeyAlgorithm) -> Result<Arc<dyn Signer>, KeyError> {
            if self.1.load(Ordering::SeqCst) {
                return Err(KeyError::Generate("full".into()));
            }
            self.0.generate_with(label, algorithm)
        }

        fn open(&self, label: &KeyLabel) -> Result<Arc<dyn Signer>, KeyError> {
            self.0.open(label)
        }

        fn remove(&self, label: &KeyLabel) -> Result<(), KeyError> {
            self.0.remove(label)
        }

        fn labels(&self) -> Result<Vec<KeyLabel>, KeyError> {
            self.0.labels()
        }
    }

    #[test]
    fn a_renewal_that_fails_at_a_start_leaves_the_present_intermediate_and_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path());
        let keys = Arc::new(Full(config.key_store(), AtomicBool::new(false)));
        let files = HierarchyFiles::new(&config, keys.clone());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let first = files.open(&Remembered::default(), None, &Heard::default(), now).unwrap();
        let own = |opened: &Opened| opened.signing.authority.info().fingerprint;
        let remembered = Remembered {
            trust: Some(first.trust.clone()),
            active: Some(own(&first)),
            root: None,
            ..Remembered::default()
        };
        let due = now + Duration::from_secs(190 * 24 * 3600);
        keys.1.store(true, Ordering::SeqCst);
        let opened = files.open(&remembered, None, &Heard::default(), due).unwrap();
        assert_eq!(own(&opened), own(&first), "it is good for months");
        let running = files.open(&remembered, Some(&first.signing), &Heard::default(), due);
        assert!(running.is_err(), "while it runs, each look says it");
        assert!(files.folder.unfinished().unwrap().is_empty(), "nothing is left half made");
        let end = now + Duration::from_secs(366 * 24 * 3600);
        assert!(files.open(&remembered, None, &Heard::default(), end).is_err(), "one that is over is no help");
        keys.1.store(false, Ordering::SeqCst);
        let opened = files.open(&remembered, None, &Heard::default(), due).unwrap();
        assert_ne!(own(&opened), own(&first));
    }
}
