//! How a replica gets an intermediate: as the first of all, from its own root, or from another replica.
//!
//! ```text
//! joins                      store                                     whoever has the root, or signs
//! key, request ──sealed──▶ ca/joining/requests/<id>  ── watched ──▶  opened, checked, certified (or, without a root, shared)
//! checked, held ◀────────  ca/joining/answers/<id>   ◀──sealed─────
//! ```

use std::{path::Path, time::Duration};

use alcazar_identity::{Fingerprint, TrustDomain};
use alcazar_service::{clock::Clock, process};
use alcazar_store::{Expected, LeaseError};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use super::{
    ReplicaId,
    letters::{Answer, AnswerKey, LetterError, Request, Shares, is_fresh},
    sealed::{Context, Purpose, SealError, Secret, SecretError},
};
use crate::{
    authority::AuthorityInfo,
    ca::{Ca, OpenError},
    config::Config,
    csr::KeyHash,
    hierarchy::{
        self, Given, GivenKey, Hierarchy, HierarchyError, HierarchyFiles, Standing, TrustState, blocking, check_request,
    },
    keys::KeyLabel,
    records::{RecordError, Records, family},
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
        let given = self.ask(&secret, trust, None, Shares::Any).await?;
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
        shared: Shares,
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
    /// it; or, where that is `shared`, the one that another replica signs with. Nothing signs with it until it is activated.
    ///
    /// # Errors
    /// When no replica that can answers within a minute, or what it gives is not good.
    pub(crate) async fn obtain_intermediate(
        &self,
        root: Fingerprint,
        shared: Shares,
    ) -> Result<AuthorityInfo, JoinError> {
        if self.can_certify(root).await? {
            return Ok(self.make_intermediate(root).await?);
        }
        self.ask_others(Some(root), shared).await
    }

    /// Whether the key of a root is here.
    pub(crate) async fn can_certify(&self, root: Fingerprint) -> Result<bool, HierarchyError> {
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        blocking(move || Ok(files.can_certify(root, now))).await
    }

    pub(super) async fn ask_others(
        &self,
        root: Option<Fingerprint>,
        shared: Shares,
    ) -> Result<AuthorityInfo, JoinError> {
        let asker = self.asker();
        let secret = asker.secret().await?.ok_or(JoinError::NoSecret)?;
        // There is one letter of a replica at a time.
        let _turn = self.0.presences.asking().lock().await;
        let trust = self.trust_state().await?.record;
        asker.ask(&secret, &trust, root, shared).await
    }
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
