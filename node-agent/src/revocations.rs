//! What was taken back: heard from the CA, checked, kept over a restart, and handed to whoever verifies.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alcazar_api::ca::v1;
use alcazar_api::revocations::{Keeper, Taken, read_evidence};
use alcazar_identity::{Revocations, TrustBundles};
use alcazar_mtls::Clock;
use alcazar_service::Shutdown;
use alcazar_service::files::write_atomic;
use alcazar_service::process::chain;
use tokio::sync::watch;

/// Checks the lists of revocations that the CA says, and keeps the newest of each issuer.
pub(crate) struct Checking {
    pub(crate) file: RevocationsFile,
    pub(crate) clock: Clock,
    /// What the CA says, as it arrives.
    pub(crate) said: watch::Receiver<Option<Arc<v1::SignedRevocations>>>,
    /// By which signatures are checked.
    pub(crate) bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    /// What is good of it.
    pub(crate) checked: watch::Sender<Arc<Revocations>>,
}

impl Checking {
    /// Runs until the shutdown. What an earlier run has saved is in force from the start, so that a restart while the CA is
    /// away forgets nothing: it was proved when it was saved, and its signer's time may be over, or its root's.
    pub(crate) async fn keep(mut self, shutdown: Shutdown) {
        let mut keeper = self.file.held();
        if !keeper.current().is_empty() {
            self.checked.send_replace(keeper.current().clone());
        }
        loop {
            let bundles = self.bundles.borrow_and_update().clone();
            let said = self.said.borrow_and_update().clone();
            if let (Some(bundles), Some(said)) = (bundles, said)
                && self.take(&mut keeper, &said, &bundles).is_change()
            {
                let revocations = keeper.current().clone();
                self.save(&revocations).await;
                self.checked.send_replace(revocations);
            }
            let change = tokio::select! {
                change = self.said.changed() => change,
                change = self.bundles.changed() => change,
                () = shutdown.cancelled() => return,
            };
            if change.is_err() {
                return;
            }
        }
    }

    fn take(&self, keeper: &mut Keeper, shown: &v1::SignedRevocations, bundles: &TrustBundles) -> Taken {
        let outcome = keeper.take(shown, bundles, (self.clock)());
        for refused in &outcome.refused {
            tracing::warn!(target: "alcazar::revoked", reason = chain(refused), "a list of revocations is not taken; what is held stays");
        }
        for issuer in &outcome.renewed {
            tracing::debug!(target: "alcazar::revoked", %issuer, "a list of revocations is signed anew");
        }
        for issuer in &outcome.taken {
            let entries: usize = keeper.current().lists().filter(|l| l.issuer() == issuer).map(|l| l.len()).sum();
            tracing::info!(target: "alcazar::revoked", %issuer, entries, "a list of revocations is in force");
        }
        outcome
    }

    async fn save(&self, revocations: &Arc<Revocations>) {
        let (path, revocations) = (self.file.0.clone(), revocations.clone());
        let written = tokio::task::spawn_blocking(move || write_atomic(&path, revocations.evidence(), 0o600)).await;
        if let Err(error) = written.map_err(io::Error::other).and_then(|written| written) {
            // They are in force; a restart while the CA is away would forget them.
            tracing::error!(file = %self.file.0.display(), %error, "the revocations could not be saved; they are in force all the same");
        }
    }
}

/// The file in which the lists are kept as they were signed and checked, in the folder of the agent's keys.
#[derive(Debug, Clone)]
pub(crate) struct RevocationsFile(PathBuf);

impl RevocationsFile {
    pub(crate) fn within(data_dir: &Path) -> Self {
        Self(data_dir.join("revocations.pb"))
    }

    /// What an earlier run has saved.
    pub(crate) fn held(&self) -> Keeper {
        let mut keeper = Keeper::default();
        for signed in self.load().map(|saved| saved.lists).unwrap_or_default() {
            if let Err(error) = keeper.hold(&signed) {
                tracing::error!(target: "alcazar::revoked", file = %self.0.display(), reason = chain(&error), "a saved list of revocations cannot be read; until the CA says it again it is not in force");
            }
        }
        keeper
    }

    /// What was saved. What cannot be read is as good as none, and is told.
    fn load(&self) -> Option<v1::SignedRevocations> {
        let read = match std::fs::read(&self.0) {
            Ok(bytes) => read_evidence(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error),
        };
        read.inspect_err(|error| {
            tracing::error!(target: "alcazar::revoked", file = %self.0.display(), %error, "the saved revocations cannot be read; until the CA says them again none are in force");
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use alcazar_identity::{ListIssuer, Revocation, RevocationList, RevocationReason};

    use super::*;
    use crate::testing::{ca, clock};

    /// A list of this version with one certificate on it.
    fn list(version: u64) -> RevocationList {
        let now = clock()();
        let mut list =
            RevocationList::new(ca::TRUST_DOMAIN.parse().unwrap(), ListIssuer::Cluster("east".into()), version);
        let until = now + Duration::from_secs(3600);
        let why = Revocation { reason: RevocationReason::KeyCompromise, since: now, until };
        assert!(list.revoke_serial("77", None, why));
        list
    }

    /// One run of the agent's part.
    struct Run {
        said: watch::Sender<Option<Arc<v1::SignedRevocations>>>,
        bundles: watch::Sender<Option<Arc<TrustBundles>>>,
        checked: watch::Receiver<Arc<Revocations>>,
        shutdown: Shutdown,
    }

    impl Run {
        fn start(directory: &Path) -> Self {
            Self::start_by(directory, clock())
        }

        fn start_by(directory: &Path, clock: Clock) -> Self {
            let (said, bundles) = (watch::Sender::new(None), watch::Sender::new(None));
            let checked = watch::Sender::new(Arc::default());
            let run = Self { said, bundles, checked: checked.subscribe(), shutdown: Shutdown::new() };
            let checking = Checking {
                file: RevocationsFile::within(directory),
                clock,
                said: run.said.subscribe(),
                bundles: run.bundles.subscribe(),
                checked,
            };
            run.shutdown.spawn("revocations", checking.keep(run.shutdown.clone()));
            run
        }

        fn say(&self, signed: v1::SignedRevocationList) {
            self.said.send_replace(Some(Arc::new(v1::SignedRevocations { lists: vec![signed] })));
        }

        /// The version in force, once there is one above `than`.
        async fn above(&mut self, than: u64) -> u64 {
            let newest = |held: &Revocations| held.lists().map(RevocationList::version).max().unwrap_or_default();
            let waiting = self.checked.wait_for(|held| newest(held) > than);
            newest(&tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap().clone())
        }

        async fn stop(self) {
            self.shutdown.trigger("the run is over");
            self.shutdown.finished(Duration::from_secs(20)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_the_ca_said_is_in_force_after_a_restart_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let now = clock()();
        let ca = ca::Ca::new(now);
        let mut run = Run::start(directory.path());
        run.say(ca.signed(&list(3), now));
        // Nothing can be checked before there are roots.
        assert!(run.checked.borrow().is_empty());
        run.bundles.send_replace(Some(Arc::new(ca.bundles())));
        assert_eq!(run.above(0).await, 3);
        run.stop().await;

        let mut run = Run::start(directory.path());
        run.bundles.send_replace(Some(Arc::new(ca.bundles())));
        assert_eq!(run.above(0).await, 3);
        // An older list and one of a stranger change nothing; a newer one does.
        run.say(ca.signed(&list(2), now));
        run.say(ca::Ca::new(now).signed(&list(9), now));
        run.say(ca.signed(&list(4), now));
        assert_eq!(run.above(3).await, 4);
        run.stop().await;

        std::fs::write(directory.path().join("revocations.pb"), b"\xff\xff damaged").unwrap();
        let mut run = Run::start(directory.path());
        run.bundles.send_replace(Some(Arc::new(ca.bundles())));
        run.say(ca.signed(&list(4), now));
        assert_eq!(run.above(0).await, 4);
        run.stop().await;
    }

    #[tokio::test]
    async fn after_a_rotation_of_the_root_what_is_saved_is_good_under_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let now = clock()();
        let (old, new) = (ca::Ca::new(now), ca::Ca::new(now));
        let mut run = Run::start(directory.path());
        run.bundles.send_replace(Some(Arc::new(old.bundles())));
        run.say(old.signed(&list(3), now));
        assert_eq!(run.above(0).await, 3);
        let before = run.checked.borrow().evidence().to_vec();
        run.bundles.send_replace(Some(Arc::new(new.bundles())));
        run.say(new.signed(&list(3), now));
        let handed_on = run.checked.wait_for(|held| held.evidence() != before);
        drop(tokio::time::timeout(Duration::from_secs(20), handed_on).await.unwrap().unwrap());
        run.stop().await;

        let mut run = Run::start(directory.path());
        run.bundles.send_replace(Some(Arc::new(new.bundles())));
        assert_eq!(run.above(0).await, 3);
        run.stop().await;
    }

    #[tokio::test]
    async fn what_was_saved_is_in_force_when_nobody_could_check_it_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let now = clock()();
        let (old, new) = (ca::Ca::new(now), ca::Ca::new(now));
        let mut run = Run::start(directory.path());
        run.bundles.send_replace(Some(Arc::new(old.bundles())));
        run.say(old.signed(&list(3), now));
        assert_eq!(run.above(0).await, 3);
        run.stop().await;

        // Its root is trusted no more, its signer has ended, the clock begins in 1970, or no bundle has come yet.
        let ages = Duration::from_secs(100 * 365 * 24 * 3600);
        for at in [now, now + ages, SystemTime::UNIX_EPOCH] {
            for bundles in [None, Some(Arc::new(old.bundles())), Some(Arc::new(new.bundles()))] {
                let mut run = Run::start_by(directory.path(), Arc::new(move || at));
                run.bundles.send_replace(bundles);
                assert_eq!(run.above(0).await, 3);
                run.stop().await;
            }
        }

        // Whoever signs now has the word; a stranger and an older list do not.
        let mut run = Run::start(directory.path());
        run.bundles.send_replace(Some(Arc::new(new.bundles())));
        assert_eq!(run.above(0).await, 3);
        run.say(old.signed(&list(9), now));
        run.say(new.signed(&list(2), now));
        let before = run.checked.borrow().evidence().to_vec();
        run.say(new.signed(&list(3), now));
        let anew = run.checked.wait_for(|held| held.evidence() != before);
        drop(tokio::time::timeout(Duration::from_secs(20), anew).await.unwrap().unwrap());
        assert_eq!(run.above(0).await, 3);
        run.say(new.signed(&list(4), now));
        assert_eq!(run.above(3).await, 4);
        run.stop().await;
    }
}
