//! How a replica gets an intermediate: as the first of all, from its own root, or from another replica.
//!
//! ```text
//! joins                      store                                     whoever has the root, or signs
//! key, request ──sealed──▶ ca/joining/requests/<id>  ── watched ──▶  opened, checked, certified (or, without a root, shared)
//! checked, held ◀────────  ca/joining/answers/<id>   ◀──sealed─────
//! ```

use std::{path::Path, time::Duration};

use alcazar_identity::{Fingerprint, TrustDomain};
use alcazar_service::{Shutdown, clock::Clock, process};
use alcazar_store::{Expected, LeaseError};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use super::{
    ReplicaId, ReplicaState,
    letters::{Answer, AnswerKey, LetterError, Request, is_fresh},
    sealed::{Context, Purpose, SealError, Secret, SecretError},
};
use crate::{
    authority::AuthorityInfo,
    ca::{Ca, OpenError},
    config::Config,
    csr::KeyHash,
    hierarchy::{
        self, Given, GivenKey, Hierarchy, HierarchyError, HierarchyFiles, Standing, TrustState, Wants, blocking,
        check_request,
    },
    keys::KeyLabel,
    records::{RecordError, Records, family},
    rotation::{Anchor, Kind},
};

/// A sealed letter. Records `ca/joining/requests/<id>` and `ca/joining/answers/<id>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Letter {
    sealed: String,
}

impl Letter {
    pub(super) fn new(sealed: &[u8]) -> Self {
        Self { sealed: STANDARD.encode(sealed) }
    }

    pub(super) fn sealed(&self) -> Result<Vec<u8>, SealError> {
        STANDARD.decode(&self.sealed).map_err(|_reason| SealError::Malformed)
    }
}

/// Whoever asks other replicas.
pub(crate) struct Asker<'a> {
    pub(crate) records: &'a Records,
    pub(crate) files: &'a HierarchyFiles,
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) cluster: &'a str,
    pub(crate) secret_file: Option<&'a Path>,
    pub(crate) clock: &'a Clock,
}

/// Opens the hierarchy of this replica, which may have to get an intermediate first.
pub(crate) async fn open_hierarchy(
    records: &Records,
    files: &HierarchyFiles,
    config: &Config,
    clock: &Clock,
) -> Result<Hierarchy, OpenError> {
    let begun = Instant::now();
    let asker = Asker {
        records,
        files,
        trust_domain: &config.trust_domain,
        cluster: &config.cluster,
        secret_file: config.replicas.secret_file.as_deref(),
        clock,
    };
    let patient = |error: &HierarchyError| config.store.is_shared() && error.is_race() && begun.elapsed() < PATIENCE;
    loop {
        let (now, remembered) = (clock(), hierarchy::remembered(records, files).await?);
        let (looker, known) = (files.clone(), remembered.clone());
        let standing = blocking(move || looker.standing(&known, now)).await?;
        match (standing, remembered.trust) {
            (Standing::Joins, Some(trust)) => {
                asker.join(&trust).await?;
                continue;
            }
            (Standing::First, _) => {
                let Some(lease) = asker.first().await? else { continue };
                let outcome = hierarchy::open(records, files, config, now).await;
                if let Err(error) = records.store().release_lease(&lease).await {
                    tracing::debug!(reason = %process::chain(&error), "the lease of the first start was not given back; it ends by itself");
                }
                match outcome {
                    Err(error) if patient(&error) => {}
                    outcome => return Ok(outcome?),
                }
            }
            _ => match hierarchy::open(records, files, config, now).await {
                Err(error) if patient(&error) => {}
                outcome => return Ok(outcome?),
            },
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Asker<'_> {
    /// The right to make what has never been: one replica has it. `None`: look again.
    async fn first(&self) -> Result<Option<alcazar_store::Lease>, JoinError> {
        let store = self.records.store();
        let taken = store.acquire_lease(FIRST, self.records.replica().as_str(), FIRST_TTL, (self.clock)()).await;
        match taken {
            Ok(lease) => {
                // Whoever had it before may have been quick.
                if hierarchy::remembered(self.records, self.files).await?.trust.is_none() {
                    return Ok(Some(lease));
                }
                drop(store.release_lease(&lease).await);
                Ok(None)
            }
            Err(LeaseError::Held { .. }) => {
                tokio::time::sleep(AGAIN).await;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gets an intermediate from the others, for a folder that has none.
    async fn join(&self, trust: &TrustState) -> Result<(), JoinError> {
        let Some(secret) = self.secret().await? else { return Err(JoinError::NoSecret) };
        tracing::info!(target: "alcazar::rotation", replica = %self.records.replica(), "this replica joins: it asks the others for an intermediate");
        let given = self.ask(&secret, trust, None, true).await?;
        tracing::info!(target: "alcazar::rotation", intermediate = %given.fingerprint, "this replica has joined");
        Ok(())
    }

    async fn secret(&self) -> Result<Option<Secret>, JoinError> {
        let Some(path) = self.secret_file.map(Path::to_path_buf) else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || Secret::read(&path)).await;
        Ok(Some(read.map_err(|_ending| JoinError::Interrupted)??))
    }

    /// Asks the others for an intermediate and keeps what comes; nothing signs with it yet.
    async fn ask(
        &self,
        secret: &Secret,
        trust: &TrustState,
        root: Option<Fingerprint>,
        shared: bool,
    ) -> Result<AuthorityInfo, JoinError> {
        let files = self.files.clone();
        let (label, csr) = blocking(move || files.joining_request()).await?;
        let (_, key_hash) = check_request(&csr, self.trust_domain, self.cluster)?;
        let request = Request { at: (self.clock)(), root, shared, csr };
        let sealed = secret.seal(self.context(Purpose::Request), &request.encode())?;
        self.records.put_letter(family::JOINING_REQUESTS, self.records.replica(), &Letter::new(&sealed)).await?;
        let begun = Instant::now();
        let (mut told, mut fault) = (begun, None);
        while begun.elapsed() < PATIENCE {
            match self.answer(secret, &label, key_hash, root).await {
                Ok(Some(given)) => {
                    let (files, trust, now) = (self.files.clone(), trust.clone(), (self.clock)());
                    let held = blocking(move || files.hold_given(given, &trust, now)).await;
                    self.records.remove_letters(self.records.replica()).await?;
                    return Ok(held?);
                }
                Ok(None) => {}
                Err(error) => {
                    let reason = process::chain(&error);
                    if fault.as_ref() != Some(&reason) {
                        tracing::warn!(reason, "an answer of another replica cannot be used; another is waited for");
                        fault = Some(reason);
                    }
                }
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                tracing::info!(
                    seconds = begun.elapsed().as_secs(),
                    "waiting for a replica that has the root's key, or signs, to answer (is one running, with the same replicas.secretFile?)"
                );
            }
            tokio::time::sleep(AGAIN).await;
        }
        self.records.remove_letters(self.records.replica()).await?;
        Err(JoinError::Unanswered { fault })
    }

    async fn answer(
        &self,
        secret: &Secret,
        label: &KeyLabel,
        key_hash: KeyHash,
        root: Option<Fingerprint>,
    ) -> Result<Option<Given>, JoinError> {
        let name = self.records.replica().as_str();
        let Some(found) = self.records.get::<Letter>(family::JOINING_ANSWERS, name).await? else { return Ok(None) };
        let opened = secret.open(self.context(Purpose::Answer), &found.record.sealed()?)?;
        let answer = Answer::decode(&opened)?;
        is_fresh(answer.at, (self.clock)())?;
        let other_root = root.is_some_and(|root| Fingerprint::of(&answer.root) != root);
        if answer.key_hash != key_hash || other_root {
            return Err(JoinError::OtherRequest);
        }
        let key = match answer.key {
            AnswerKey::Own => GivenKey::Asked(label.clone()),
            AnswerKey::Shared(pkcs8) => GivenKey::Pkcs8(pkcs8),
            AnswerKey::Token(label) => GivenKey::Token(label),
        };
        Ok(Some(Given { chain: answer.chain, root: answer.root, key }))
    }

    fn context(&self, purpose: Purpose) -> Context<'_> {
        Context { trust_domain: self.trust_domain, cluster: self.cluster, replica: self.records.replica(), purpose }
    }
}

impl Ca {
    fn asker(&self) -> Asker<'_> {
        Asker {
            records: &self.0.records,
            files: &self.0.files,
            trust_domain: self.trust_domain(),
            cluster: &self.0.config.cluster,
            secret_file: self.0.config.replicas.secret_file.as_deref(),
            clock: &self.0.clock,
        }
    }

    /// An intermediate of this replica's own under a trusted root: made here where the root's key is, else given by a replica that has
    /// it; or, where `shared`, the one that another replica signs with. Nothing signs with it until it is activated.
    ///
    /// # Errors
    /// When no replica that can answers within a minute, or what it gives is not good.
    pub async fn obtain_intermediate(&self, root: Fingerprint, shared: bool) -> Result<AuthorityInfo, JoinError> {
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        if blocking(move || Ok(files.can_certify(root, now))).await? {
            return Ok(self.make_intermediate(root).await?);
        }
        self.ask_others(Some(root), shared).await
    }

    async fn ask_others(&self, root: Option<Fingerprint>, shared: bool) -> Result<AuthorityInfo, JoinError> {
        let asker = self.asker();
        let secret = asker.secret().await?.ok_or(JoinError::NoSecret)?;
        // There is one letter of a replica at a time.
        let _turn = self.0.presences.asking().lock().await;
        let trust = self.trust_state().await?.record;
        asker.ask(&secret, &trust, root, shared).await
    }

    /// Looks after an intermediate that was given by another replica: asks for the next in time, and for one of its own in place of
    /// one that is shared, until the end.
    pub(crate) async fn keep_given(self, shutdown: Shutdown) {
        if !self.0.config.store.is_shared() {
            return;
        }
        let mut hierarchy = self.0.hierarchy.subscribe();
        let mut asked: Option<Instant> = None;
        loop {
            let wants = self.wants().await;
            match wants {
                Ok(Wants::Nothing) => self.follow_to_the_next_root(&shutdown).await,
                Ok(wants) if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) => {
                    asked = Some(Instant::now());
                    let outcome = tokio::select! {
                        () = shutdown.cancelled() => return,
                        outcome = self.go_over() => outcome,
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
            }
        }
    }

    /// While the root is rotated: gets an intermediate under the one that it goes to, from whoever has that root's key. Nothing signs with
    /// it before the rotation says so, and the rotation waits for every replica that has none.
    async fn follow_to_the_next_root(&self, shutdown: &Shutdown) {
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
        let given = match self.obtain_intermediate(root, brought).await {
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
        let trust = self.trust_state().await?.record;
        if !trust.trusts(hierarchy.root().fingerprint) {
            return Ok(Wants::Fresh);
        }
        let (files, signing) = (self.0.files.clone(), hierarchy.signing().clone());
        let wants = blocking(move || files.wants_another(&signing, now)).await?;
        let root = hierarchy.root().fingerprint;
        let answers = |state: &ReplicaState| !state.here && !state.is_gone(now) && state.presence.roots.contains(&root);
        // Nobody has the root at the moment: what is shared goes on.
        if wants == Wants::ItsOwn && !self.0.presences.known().iter().any(answers) {
            return Ok(Wants::Nothing);
        }
        Ok(wants)
    }

    async fn go_over(&self) -> Result<(), JoinError> {
        let (files, now, trust) = (self.0.files.clone(), (self.0.clock)(), self.trust_state().await?.record);
        let trusted: Vec<_> = trust.infos()?.iter().map(|root| root.fingerprint).collect();
        let rotation = self.root_to_sign_by().await?;
        let roots = to_sign_under(trusted, self.hierarchy().root().fingerprint, rotation.as_ref());
        let here = blocking(move || Ok(roots.into_iter().find(|root| files.can_certify(*root, now)))).await?;
        let given = match here {
            Some(root) => self.make_intermediate(root).await?,
            None => self.ask_others(rotation.as_ref().and_then(Anchor::fingerprint), false).await?,
        };
        self.activate(given.fingerprint).await?;
        tracing::info!(target: "alcazar::rotation", intermediate = %given.fingerprint, "this replica goes on with another intermediate");
        Ok(())
    }
}

/// The roots under which a replica may make itself an intermediate, in the order in which it does: while a root is rotated the one
/// that is to sign and no other, since not everybody may have heard of it; else the one that it signs under before others.
fn to_sign_under(mut trusted: Vec<Fingerprint>, present: Fingerprint, rotation: Option<&Anchor>) -> Vec<Fingerprint> {
    if let Some(signing) = rotation {
        trusted.retain(|root| Anchor::from(*root) == *signing);
    }
    trusted.sort_by_key(|root| *root != present);
    trusted
}

impl Records {
    /// Puts a letter where perhaps an older one is.
    pub(super) async fn put_letter(
        &self,
        family: &'static str,
        replica: &ReplicaId,
        letter: &Letter,
    ) -> Result<(), RecordError> {
        loop {
            let found = self.revision_of(family, replica.as_str()).await?;
            let expected = found.map_or(Expected::Absent, Expected::At);
            match self.put(family, replica.as_str(), expected, letter).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Removes what a replica asked, and what it was answered.
    pub(super) async fn remove_letters(&self, replica: &ReplicaId) -> Result<(), RecordError> {
        for family in [family::JOINING_REQUESTS, family::JOINING_ANSWERS] {
            if let Some(revision) = self.revision_of(family, replica.as_str()).await? {
                match self.delete(family, replica.as_str(), revision).await {
                    Err(error) if !error.is_conflict() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Why a replica has no intermediate.
#[derive(Debug, Error)]
pub enum JoinError {
    /// No secret.
    #[error(
        "other replicas share this CA's store, and this one has nothing to sign with in its data folder: set replicas.secretFile to the secret \
         that the other replicas have, or plug in the root or the intermediate (cacerts). If this replica had a data folder, restore it; no second root is made"
    )]
    NoSecret,
    /// Nobody answered.
    #[error(
        "no other replica gave this one an intermediate within {PATIENCE:?}{}: start a replica that has the root's key, with the same \
         replicas.secretFile, or plug in the root or the intermediate (cacerts)",
        fault.as_ref().map(|fault| format!(" (an answer came and was refused: {fault})")).unwrap_or_default()
    )]
    Unanswered {
        /// What was wrong with an answer that came.
        fault: Option<String>,
    },
    /// A root that nobody is to stand on.
    #[error("it asks for an intermediate under the root {0}, which is not trusted")]
    Root(Fingerprint),
    /// An answer to an earlier request.
    #[error("the answer in the store is for another request of this replica")]
    OtherRequest,
    /// The secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A letter does not open.
    #[error("a letter of another replica cannot be read")]
    Seal(#[from] SealError),
    /// What is in it makes no sense.
    #[error("a letter of another replica cannot be used")]
    Letter(#[from] LetterError),
    /// The certificates and keys.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The store.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The lease of the first start.
    #[error("whether another replica makes the root at this moment is not known")]
    Lease(#[from] LeaseError),
    /// The process is ending.
    #[error("it was interrupted")]
    Interrupted,
}

const FIRST: &str = "hierarchy";
const FIRST_TTL: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(300);
const TELL: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_goes_over_to_the_root_that_signs_and_to_no_other() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|root| Fingerprint::of(root));
        assert_eq!(to_sign_under(vec![a, b, c], b, None), [b, a, c]);
        // What it signs under is trusted no more.
        assert_eq!(to_sign_under(vec![a, c], b, None), [a, c]);
        // Everybody is about to hear of `a`, and `b` signs; later it is the other way round.
        assert_eq!(to_sign_under(vec![a, b], b, Some(&b.into())), [b]);
        assert_eq!(to_sign_under(vec![a, b], b, Some(&a.into())), [a]);
        assert_eq!(to_sign_under(vec![a], b, Some(&c.into())), []);
    }
}
