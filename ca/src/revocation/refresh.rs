//! From the records to what is in force and told: after each change, here or by another replica.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_api::{
    ca::v1,
    revocations::{Keeper, ListError, Unproved, encode_list},
};
use alcazar_identity::{Fingerprint, ListIssuer, RevocationList, TrustBundles};
use alcazar_service::{Part, Shutdown, process};
use alcazar_store::{Expected, WatchError};
use thiserror::Error;

use super::{Entry, Published, entry, entry::Version, sign::sign};
use crate::{
    ca::Ca,
    hierarchy::Hierarchy,
    ledger::LedgerError,
    records::{RecordError, Stored, family, prefix},
    signer::SignError,
};

/// What a refresh goes on from.
#[derive(Default)]
pub(super) struct Refreshing {
    pub(super) keeper: Keeper,
    /// This cluster's list as it was signed last.
    own: Option<v1::SignedRevocationList>,
}

impl Refreshing {
    /// The list with a signature of the present intermediate, which may be that of before.
    async fn signed(
        &mut self,
        list: &RevocationList,
        changed_at: SystemTime,
        hierarchy: &Hierarchy,
    ) -> Result<v1::SignedRevocationList, SignError> {
        let (encoded, chain) = (encode_list(list, changed_at), hierarchy.upper());
        if let Some(own) = &self.own
            && own.list == encoded
            && own.chain.iter().eq(chain.iter().map(AsRef::as_ref))
        {
            return Ok(own.clone());
        }
        let own = sign(list, changed_at, hierarchy.intermediate().signer().clone(), chain).await?;
        Ok(self.own.insert(own).clone())
    }
}

impl Refreshing {
    /// Takes a list that is on record. It was proved when it was put there: where that cannot be done any more, after its signer's
    /// end or its root's, what it says stays in force all the same.
    fn take_on_record(&mut self, signed: v1::SignedRevocationList, bundles: &TrustBundles, now: SystemTime) {
        let shown = v1::SignedRevocations { lists: vec![signed] };
        let Some(refused) = self.keeper.take(&shown, bundles, now).refused.pop() else { return };
        let was_proved = matches!(refused, ListError::Signature { .. } | ListError::RevokedSigner { .. });
        let held = match shown.lists.first() {
            Some(signed) if was_proved => self.keeper.hold(signed).is_ok(),
            _ => false,
        };
        let reason = process::chain(&refused);
        match held {
            true => {
                tracing::warn!(target: "alcazar::revoked", reason, "a list of revocations on record can be proved to nobody any more; it is obeyed here")
            }
            false => {
                tracing::warn!(target: "alcazar::revoked", reason, "a list of revocations on record is not taken")
            }
        }
    }
}

/// What there is to mend where lists are obeyed here that nodes would not take. One that nothing depends on any more is no
/// trouble, and neither is one of a trust domain whose certificates nobody here takes.
fn trouble_of(unproved: &[Unproved], now: SystemTime) -> Option<String> {
    let troubles = unproved.iter().filter(|unproved| {
        !matches!(unproved.reason, ListError::ForeignTrustDomain(_)) && still_counts(&unproved.list, now)
    });
    let troubles: Vec<_> = troubles.map(|unproved| process::chain(&unproved.reason)).collect();
    (!troubles.is_empty()).then(|| {
        format!(
            "revocations are obeyed here and no node can be told of them: {}; export the list where it was made (`alcazar revocations export FILE`) and import it here again; where that cluster is gone, `alcazar revocations drop CLUSTER`",
            troubles.join("; ")
        )
    })
}

/// Whether anything that a list is about could be good.
fn still_counts(list: &RevocationList, now: SystemTime) -> bool {
    let lives = |revocation: alcazar_identity::Revocation| now <= revocation.until;
    list.serials().any(|revoked| lives(revoked.revocation))
        || list.intermediates().any(|(_, revocation)| lives(revocation))
        || list.identities().any(|(_, revoked)| !revoked.reinstated || lives(revoked.revocation))
}

impl Ca {
    /// The same at the start. A list that cannot be told does not keep the CA from starting: it is how that is mended.
    pub(crate) async fn open_revocations(&self) -> Result<(), RefreshError> {
        match self.refresh_revocations().await {
            Err(error) if error.is_of_the_list() => {
                tracing::error!(target: "alcazar::revoked", reason = %process::chain(&error), "the revocations on record are obeyed here, and cannot be told");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Makes what is on record be in force and told.
    ///
    /// # Errors
    /// When the store does not answer, or the list cannot be signed, or is not one that others would take.
    pub(crate) async fn refresh_revocations(&self) -> Result<(), RefreshError> {
        let outcome = self.try_refresh_revocations().await;
        let trouble = match &outcome {
            Ok(trouble) => trouble.clone(),
            Err(error) => Some(process::chain(error)),
        };
        self.0.revoking.trouble.send_if_modified(|held| std::mem::replace(held, trouble.clone()) != trouble);
        outcome.map(drop)
    }

    /// What is in force, and still for a person to mend.
    async fn try_refresh_revocations(&self) -> Result<Option<String>, RefreshError> {
        let mut refreshing = self.0.revoking.refreshing.lock().await;
        let now = (self.0.clock)();
        let entries = self.present_entries(now).await?;
        let list = |version| entry::list(self.trust_domain(), &self.0.config.cluster, version, &entries);
        let issuer = ListIssuer::Cluster(self.0.config.cluster.clone());
        let held = refreshing.keeper.current().list(self.trust_domain(), &issuer).map(RevocationList::version);
        let version = self.version_of(&list(0), held, now).await?;
        let (hierarchy, list) = (self.hierarchy(), list(version.version));
        let own = refreshing.signed(&list, version.changed_at, &hierarchy).await?;
        let bundles = self.trust_bundles();
        let on_record = self.signed_lists().await?;
        for dropped in &on_record.dropped {
            refreshing.keeper.forget(&dropped.trust_domain, &dropped.issuer, dropped.version);
        }
        for signed in on_record.signed.lists {
            refreshing.take_on_record(signed, &bundles, now);
        }
        let bytes = own.list.len();
        let shown = v1::SignedRevocations { lists: vec![own] };
        let refused = refreshing.keeper.take(&shown, hierarchy.bundles(), now).refused.pop();
        let revocations = refreshing.keeper.current().clone();
        let told = revocations.list(self.trust_domain(), &issuer).is_some_and(|told| *told == list);
        let is_ours = |list: &RevocationList| list.trust_domain() == self.trust_domain() && *list.issuer() == issuer;
        let (signed, unproved) = refreshing.keeper.to_show(&bundles, now, is_ours);
        self.publish_revocations(Published {
            revocations,
            signed,
            entries: Arc::new(entries),
            own: Some(Arc::new(list)),
            version: version.version,
            bytes,
        });
        match refused {
            _ if told => Ok(trouble_of(&unproved, now)),
            Some(ListError::Older { held, .. }) => Err(RefreshError::Older { version: version.version, held }),
            Some(refused) => Err(RefreshError::NotTaken(refused)),
            None => Ok(trouble_of(&unproved, now)),
        }
    }

    fn publish_revocations(&self, now: Published) {
        let revocations = now.revocations.clone();
        self.0.revoking.published.send_if_modified(|held| {
            let same = held.signed == now.signed
                && held.entries == now.entries
                && held.own == now.own
                && held.revocations == now.revocations;
            if !same {
                *held = Arc::new(now);
            }
            !same
        });
        let serving = &self.0.serving;
        if serving.borrow().revocations() != &revocations {
            serving.send_modify(|credentials| {
                *credentials = Arc::new((**credentials).clone().with_revocations(revocations));
            });
        }
    }

    /// Follows changes by other replicas, of the hierarchy and of time, until the end.
    pub(crate) async fn keep_revocations(self, part: Part, shutdown: Shutdown) {
        let kept = async {
            loop {
                match self.follow_revocations_on_record().await {
                    Err(RefreshError::Watch(WatchError::Lagged)) => {}
                    Err(error) => {
                        tracing::error!(target: "alcazar::revoked", reason = %process::chain(&error), "the revocations on record cannot be used; those in force stay");
                        tokio::time::sleep(RETRY).await;
                    }
                    Ok(()) => return,
                }
            }
        };
        let mut trouble = self.0.revoking.trouble.subscribe();
        let told = async {
            loop {
                match trouble.borrow_and_update().clone() {
                    Some(trouble) => part.degraded(trouble),
                    None => part.ready(),
                }
                if trouble.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = kept => {}
            () = told => {}
        }
    }

    /// Refreshes at every change; ends when it cannot, or when nobody changes the hierarchy any more.
    async fn follow_revocations_on_record(&self) -> Result<(), RefreshError> {
        let (mut hierarchy, mut foreign) = (self.0.hierarchy.subscribe(), self.0.federation.foreign.subscribe());
        let mut kept = BTreeSet::new();
        let (entries, lists) = (prefix(family::REVOCATIONS)?, prefix(family::REVOCATION_LISTS)?);
        let store = self.0.records.store();
        // From before what a refresh reads, so that no change falls between.
        let revision = store.page(&lists, None, 1).await.map_err(RecordError::from)?.revision;
        let mut entries = store.watch(&entries, revision).await.map_err(RecordError::from)?;
        let mut lists = store.watch(&lists, revision).await.map_err(RecordError::from)?;
        loop {
            match self.refresh_revocations().await {
                Err(error) if error.is_of_the_list() => {
                    tracing::error!(target: "alcazar::revoked", reason = %process::chain(&error), "the revocations on record are obeyed here, and cannot be told");
                }
                outcome => outcome?,
            }
            self.keep_serials(&mut kept).await?;
            tokio::select! {
                event = entries.next() => drop(event?),
                event = lists.next() => drop(event?),
                change = hierarchy.changed() => if change.is_err() { return Ok(()) },
                // Lists of other trust domains are good by those.
                change = foreign.changed() => if change.is_err() { return Ok(()) },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// The entries that count, after those whose time is over were forgotten. By a clock that is ahead for a moment none is.
    async fn present_entries(&self, now: SystemTime) -> Result<Vec<Entry>, RecordError> {
        let (stored, _) = self.0.records.list::<Entry>(family::REVOCATIONS).await?;
        let over = stored.iter().map(|stored| &stored.record).filter(|record| record.is_over(now));
        let over: BTreeSet<_> =
            self.0.revoking.over.over(over.map(|record| record.named.key()), now).into_iter().collect();
        let mut entries = Vec::with_capacity(stored.len());
        for Stored { record, revision } in stored {
            if !over.contains(&record.named.key()) {
                entries.push(record);
                continue;
            }
            match self.0.records.delete(family::REVOCATIONS, &record.named.key(), revision).await {
                Err(error) if !error.is_conflict() => return Err(error),
                // Renewed by another replica: the next look finds it.
                _ => {}
            }
        }
        Ok(entries)
    }

    /// The version that this content has, raised in the store where it is new.
    async fn version_of(
        &self,
        list: &RevocationList,
        in_force: Option<u64>,
        now: SystemTime,
    ) -> Result<Version, RecordError> {
        let digest = Fingerprint::of(&encode_list(list, SystemTime::UNIX_EPOCH));
        loop {
            let present = self.0.records.get::<Version>(family::REVOCATION_LISTS, OWN).await?;
            let version = Version::of(present.as_ref().map(|stored| &stored.record), in_force, digest, now);
            let expected = match present {
                Some(stored) if stored.record == version => return Ok(version),
                Some(stored) => Expected::At(stored.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::REVOCATION_LISTS, OWN, expected, &version).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_| version),
            }
        }
    }
}

/// Why the revocations on record are not in force.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// The store did not answer.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The ledger cannot be read.
    #[error("the ledger cannot be asked for the certificates of an identity")]
    Ledger(#[from] LedgerError),
    /// The intermediate's key did not sign.
    #[error("the list of revocations could not be signed")]
    Sign(#[from] SignError),
    /// Nobody would take the list.
    #[error(
        "nobody would take this cluster's list of revocations, so nodes and proxies go on with the one before; issuance obeys the record"
    )]
    NotTaken(#[source] ListError),
    /// The store knows less than verifiers do.
    #[error(
        "the list of revocations on record has the version {version}, and {held} is in force: was the store put back to an older state? The next revocation makes it newer; revoke again what is missing in `alcazar revocations`"
    )]
    Older {
        /// On record.
        version: u64,
        /// In force.
        held: u64,
    },
    /// Changes of the records cannot be followed.
    #[error("the records of revocations cannot be watched")]
    Watch(#[from] WatchError),
}

impl RefreshError {
    /// Whether the records are read and obeyed, and the list made of them is not one that can be told.
    pub(crate) fn is_of_the_list(&self) -> bool {
        matches!(self, Self::NotTaken(_) | Self::Older { .. })
    }
}

/// The record of this cluster's version.
const OWN: &str = "own";
/// How often the clock is looked at for entries whose time is over.
const LOOK: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(5);
