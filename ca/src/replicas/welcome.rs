//! Answering replicas that join.

use std::{collections::HashMap, time::Duration};

use alcazar_service::{Shutdown, process};
use alcazar_store::{Entry, LeaseError, Revision};
use tokio::time::Instant;

use super::{
    JoinError, ReplicaId,
    joining::Letter,
    letters::{Answer, AnswerKey, Request, is_fresh},
    sealed::{Context, Purpose, Secret},
};
use crate::{
    authority::AuthorityInfo,
    ca::Ca,
    csr::KeyHash,
    hierarchy::{Gift, HierarchyError, SharedKey, blocking, check_request},
    records::{RecordError, Stored, family, prefix, read},
};

/// Requests that were looked at, and when first.
type Seen = HashMap<(ReplicaId, Revision), (Instant, bool)>;

impl Ca {
    /// Gives replicas that ask for it an intermediate, until the end.
    pub(crate) async fn welcome_replicas(self, shutdown: Shutdown) {
        let Some(path) = self.0.config.replicas.secret_file.clone().filter(|_| self.0.config.store.is_shared()) else {
            return;
        };
        let mut seen = Seen::new();
        loop {
            let path = path.clone();
            let secret = tokio::task::spawn_blocking(move || Secret::read(&path)).await;
            let outcome = match secret {
                Ok(Ok(secret)) => tokio::select! {
                    () = shutdown.cancelled() => return,
                    outcome = self.answer_requests(&secret, &mut seen) => outcome.map_err(JoinError::from),
                },
                Ok(Err(error)) => Err(error.into()),
                Err(_ending) => return,
            };
            if let Err(error) = outcome {
                tracing::warn!(reason = %process::chain(&error), "replicas that join cannot be answered for now");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn answer_requests(&self, secret: &Secret, seen: &mut Seen) -> Result<(), RecordError> {
        let prefix = prefix(family::JOINING_REQUESTS)?;
        let store = self.0.records.store();
        loop {
            let listing = store.list(&prefix).await?;
            seen.retain(|(id, revision), _| {
                listing.entries.iter().any(|entry| entry.key().name() == id.as_str() && entry.revision() == *revision)
            });
            for entry in &listing.entries {
                let Ok(id) = entry.key().name().parse::<ReplicaId>() else { continue };
                if id == *self.replica() {
                    continue;
                }
                let known = seen.entry((id.clone(), entry.revision())).or_insert((Instant::now(), false));
                if let Err(error) = self.answer_request(secret, &id, entry, known.0).await
                    && !std::mem::replace(&mut known.1, true)
                {
                    tracing::warn!(replica = %id, reason = %process::chain(&error), "a replica that wants to join is not answered");
                }
            }
            if listing.entries.is_empty() {
                let mut watch = store.watch(&prefix, listing.revision).await?;
                // Whatever it is, what is there is listed again.
                if watch.next().await.is_err() {
                    return Ok(());
                }
            } else {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn answer_request(
        &self,
        secret: &Secret,
        id: &ReplicaId,
        entry: &Entry,
        since: Instant,
    ) -> Result<(), JoinError> {
        let context = |purpose| Context {
            trust_domain: self.trust_domain(),
            cluster: &self.0.config.cluster,
            replica: id,
            purpose,
        };
        let Stored { record, revision } = read::<Letter>(entry)?;
        let opened = secret.open(context(Purpose::Request), &record.sealed()?)?;
        let request = Request::decode(&opened)?;
        is_fresh(request.at, (self.0.clock)())?;
        let (spki, key_hash) = check_request(&request.csr, self.trust_domain(), &self.0.config.cluster)?;
        let lease = self.0.store.acquire_lease(LEASE, self.replica().as_str(), LEASE_TTL, (self.0.clock)()).await;
        let lease = match lease {
            Ok(lease) => lease,
            // Another replica is at it.
            Err(LeaseError::Held { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let outcome = self.give(secret, context(Purpose::Answer), revision, &request, spki, key_hash, since).await;
        if let Err(error) = self.0.store.release_lease(&lease).await {
            tracing::debug!(reason = %process::chain(&error), "a lease was not given back; it ends by itself");
        }
        outcome
    }

    #[allow(clippy::too_many_arguments, reason = "one step of the answer, with what is known of the request")]
    async fn give(
        &self,
        secret: &Secret,
        context: Context<'_>,
        revision: Revision,
        request: &Request,
        spki: Vec<u8>,
        key_hash: KeyHash,
        since: Instant,
    ) -> Result<(), JoinError> {
        let id = context.replica;
        let present = self.0.records.revision_of(family::JOINING_REQUESTS, id.as_str()).await?;
        if present != Some(revision) {
            return Ok(());
        }
        let (hierarchy, now) = (self.hierarchy(), (self.0.clock)());
        let root = request.root.unwrap_or(hierarchy.root().fingerprint);
        if !hierarchy.trusts(root) {
            return Err(JoinError::Root(root));
        }
        let (files, signing) = (self.0.files.clone(), hierarchy.signing().clone());
        // Somebody who has the root may answer better.
        let own = signing.authority.info().fingerprint;
        let share = request.shared.takes(own) && self.revoked_intermediate(own).is_none();
        let share = share && since.elapsed() >= OTHERS_FIRST && signing.root.fingerprint == root;
        let gift = blocking(move || match files.certify(root, &spki, now)? {
            None if share => files.share(&signing),
            gift => Ok(gift),
        });
        let (chain, root, key) = match gift.await? {
            None => return Ok(()),
            Some(Gift::Certificate { chain, root }) => (chain, root, AnswerKey::Own),
            Some(Gift::Shared { chain, root, key: SharedKey::Pkcs8(key) }) => (chain, root, AnswerKey::Shared(key)),
            Some(Gift::Shared { chain, root, key: SharedKey::Label(label) }) => (chain, root, AnswerKey::Token(label)),
        };
        // What this replica signed is on its record before anybody has it.
        if let (AnswerKey::Own, Some(made)) = (&key, chain.first()) {
            let info = AuthorityInfo::parse(made.clone()).map_err(HierarchyError::Make)?;
            self.record_authority(&info).await.map_err(HierarchyError::from)?;
        }
        let shared = !matches!(key, AnswerKey::Own);
        let intermediate = chain.first().map(|der| alcazar_identity::Fingerprint::of(der).to_string());
        let answer = Answer { at: now, key_hash, chain, root, key };
        let sealed = secret.seal(context, &answer.encode())?;
        tracing::warn!(target: "alcazar::rotation", replica = %id, intermediate, %key_hash, shared, "another replica is given an intermediate of this cluster");
        self.0.records.put_letter(family::JOINING_ANSWERS, id, &Letter::new(&sealed)).await?;
        match self.0.records.delete(family::JOINING_REQUESTS, id.as_str(), revision).await {
            Err(error) if !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

const LEASE: &str = "joining";
const LEASE_TTL: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);
const OTHERS_FIRST: Duration = Duration::from_secs(6);
