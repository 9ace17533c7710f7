//! Bundles of other trust domains: what is held, and what replaces it.

use std::time::{Duration, SystemTime};

use alcazar_api::spiffe::{BundleDocumentError, ReadBundle};
use alcazar_identity::{BundleError, JwtAuthority, JwtAuthorityError, TrustBundle, TrustDomain};
use alcazar_store::Expected;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    ca::Ca,
    records::{RecordError, family, seconds, text},
};

/// A foreign bundle that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignBundle {
    /// The bundle.
    pub bundle: TrustBundle,
    /// Where it is from.
    pub source: Source,
    /// When this version of it was received.
    pub received: SystemTime,
    /// When its source last said that it is the newest, to the hour.
    pub confirmed: SystemTime,
}

/// Where a foreign bundle is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// From the endpoint at this URL.
    Endpoint(String),
    /// From the operator.
    Operator,
}

/// The record `ca/federation/<trust domain>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForeignRecord {
    #[serde(with = "text")]
    trust_domain: TrustDomain,
    sequence: u64,
    /// PEM.
    roots: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    jwt_authorities: Vec<JwtAuthorityRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_hint: Option<u64>,
    source: Source,
    #[serde(with = "seconds")]
    received: SystemTime,
    /// Seconds since 1970; none until it was confirmed after it was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirmed: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct JwtAuthorityRecord {
    key_id: String,
    /// Base64 of DER.
    public_key: String,
}

impl ForeignRecord {
    fn of(held: &ForeignBundle) -> Self {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let bundle = &held.bundle;
        let authority = |authority: &JwtAuthority| JwtAuthorityRecord {
            key_id: authority.key_id().into(),
            public_key: STANDARD.encode(authority.public_key()),
        };
        Self {
            trust_domain: bundle.trust_domain().clone(),
            sequence: bundle.sequence(),
            roots: bundle.to_pem(),
            jwt_authorities: bundle.jwt_authorities().map(authority).collect(),
            refresh_hint: bundle.refresh_hint().map(|hint| hint.as_secs()),
            source: held.source.clone(),
            received: crate::issue::whole_seconds(held.received),
            confirmed: (held.confirmed > held.received).then(|| seconds::of(held.confirmed)),
        }
    }

    pub(crate) fn read(self) -> Result<ForeignBundle, ForeignError> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let authority = |record: JwtAuthorityRecord| {
            let key = STANDARD.decode(record.public_key).unwrap_or_default();
            JwtAuthority::new(record.key_id, key)
        };
        let authorities = self.jwt_authorities.into_iter().map(authority).collect::<Result<Vec<_>, _>>()?;
        let bundle = TrustBundle::from_pem(self.trust_domain, self.sequence, self.roots.as_bytes())?
            .with_jwt_authorities(authorities)?
            .with_refresh_hint(self.refresh_hint.map(Duration::from_secs));
        let confirmed = self.confirmed.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let confirmed = confirmed.map_or(self.received, |confirmed| confirmed.max(self.received));
        Ok(ForeignBundle { bundle, source: self.source, received: self.received, confirmed })
    }
}

/// The bundle that replaces the one that is held; `None` where nothing changes.
///
/// A document without a sequence is the newest where it says something new, and gets the next number here.
pub(crate) fn newer(held: Option<&TrustBundle>, read: ReadBundle) -> Result<Option<TrustBundle>, ForeignError> {
    let ReadBundle { bundle, numbered, .. } = read;
    let Some(held) = held else { return Ok(Some(bundle)) };
    if !numbered {
        let as_held = bundle.with_sequence(held.sequence());
        let next = held.sequence().saturating_add(1);
        return Ok((as_held != *held).then(|| as_held.with_sequence(next)));
    }
    if bundle.sequence() < held.sequence() {
        return Err(ForeignError::Older {
            trust_domain: bundle.trust_domain().clone(),
            held: held.sequence(),
            got: bundle.sequence(),
        });
    }
    Ok((bundle != *held).then_some(bundle))
}

impl Ca {
    /// The foreign bundles that are held.
    ///
    /// # Errors
    /// When the store does not answer, or what it has is damaged.
    pub async fn foreign_bundles(&self) -> Result<Vec<ForeignBundle>, ForeignError> {
        let (records, _) = self.0.records.list::<ForeignRecord>(family::FEDERATION).await?;
        records.into_iter().map(|stored| stored.record.read()).collect()
    }

    /// Believes this bundle of another trust domain, unless a newer one is held; whether anything changed.
    ///
    /// # Errors
    /// When it is of our own trust domain, older than what is held, too large to be kept, or the store does not answer.
    pub async fn set_foreign_bundle(&self, read: ReadBundle, source: Source) -> Result<bool, ForeignError> {
        let trust_domain = read.bundle.trust_domain().clone();
        if trust_domain == *self.trust_domain() {
            return Err(ForeignError::Own(trust_domain));
        }
        let name = trust_domain.as_str();
        loop {
            let stored = self.0.records.get::<ForeignRecord>(family::FEDERATION, name).await?;
            let held = stored.as_ref().map(|stored| stored.record.clone().read()).transpose()?;
            let next = newer(held.as_ref().map(|held| &held.bundle), read.clone())?;
            let moved = held.as_ref().is_some_and(|held| held.source != source);
            let bundle = match (next, held) {
                (Some(bundle), _) => bundle,
                // The same from elsewhere: who looks after it has changed.
                (None, Some(held)) if moved => held.bundle,
                (None, _) => return Ok(false),
            };
            let now = (self.0.clock)();
            let held = ForeignBundle { bundle, source: source.clone(), received: now, confirmed: now };
            let record = ForeignRecord::of(&held);
            let size = serde_json::to_vec(&record).map_or(usize::MAX, |bytes| bytes.len());
            if size > alcazar_store::MAX_VALUE {
                return Err(ForeignError::TooLarge { trust_domain, size });
            }
            let expected = stored.map_or(Expected::Absent, |stored| Expected::At(stored.revision));
            match self.0.records.put(family::FEDERATION, name, expected, &record).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    tracing::info!(target: "alcazar::rotation", trust_domain = name, sequence = record.sequence, source = ?source, "the bundle of another trust domain is believed");
                    self.believe_foreign_bundles().await?;
                    return Ok(true);
                }
            }
        }
    }

    /// Its endpoint says that what is held is the newest: noted now and then, so that its age is known after a restart too.
    pub(crate) async fn confirm_foreign_bundle(&self, trust_domain: &TrustDomain) -> Result<(), ForeignError> {
        let (name, now) = (trust_domain.as_str(), (self.0.clock)());
        let Some(stored) = self.0.records.get::<ForeignRecord>(family::FEDERATION, name).await? else { return Ok(()) };
        let held = stored.record.read()?;
        if now.duration_since(held.confirmed).is_ok_and(|since| since < NOTED_EACH) {
            return Ok(());
        }
        let record = ForeignRecord::of(&ForeignBundle { confirmed: now, ..held });
        match self.0.records.put(family::FEDERATION, name, Expected::At(stored.revision), &record).await {
            // Another replica noted it, or something newer came.
            Err(error) if error.is_conflict() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    /// Forgets another trust domain: its workloads are believed no more. Whether it was believed.
    ///
    /// # Errors
    /// When its bundle is fetched from an endpoint, which would bring it back, or the store does not answer.
    pub async fn delete_foreign_bundle(&self, trust_domain: &TrustDomain) -> Result<bool, ForeignError> {
        if self.0.federation.relations.iter().any(|relation| relation.trust_domain == *trust_domain) {
            return Err(ForeignError::Configured(trust_domain.clone()));
        }
        self.forget_foreign_bundle(trust_domain).await
    }

    async fn forget_foreign_bundle(&self, trust_domain: &TrustDomain) -> Result<bool, ForeignError> {
        let name = trust_domain.as_str();
        loop {
            let Some(stored) = self.0.records.get::<ForeignRecord>(family::FEDERATION, name).await? else {
                return Ok(false);
            };
            match self.0.records.delete(family::FEDERATION, name, stored.revision).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    tracing::warn!(target: "alcazar::rotation", trust_domain = name, "another trust domain is believed no more");
                    self.believe_foreign_bundles().await?;
                    return Ok(true);
                }
            }
        }
    }

    /// Forgets trust domains that were fetched from endpoints and are not configured any more; then believes what is held.
    pub(crate) async fn open_federation(&self) -> Result<(), ForeignError> {
        let relations = &self.0.federation.relations;
        for held in self.foreign_bundles().await? {
            let name = held.bundle.trust_domain();
            let configured = relations.iter().any(|relation| relation.trust_domain == *name);
            if (matches!(held.source, Source::Endpoint(_)) && !configured) || name == self.trust_domain() {
                self.forget_foreign_bundle(name).await?;
            }
        }
        self.believe_foreign_bundles().await
    }

    /// Takes what the store has.
    pub(crate) async fn believe_foreign_bundles(&self) -> Result<(), ForeignError> {
        let _turn = self.0.federation.turn.lock().await;
        let own = self.trust_domain();
        let held = self.foreign_bundles().await?;
        for held in &held {
            self.0.federation.was_confirmed(held.bundle.trust_domain(), held.confirmed);
        }
        let held = held.into_iter().map(|held| held.bundle);
        let foreign = held.filter(|bundle| bundle.trust_domain() != own).collect();
        self.0.federation.foreign.send_if_modified(|held| {
            let changed = **held != foreign;
            if changed {
                *held = std::sync::Arc::new(foreign);
            }
            changed
        });
        Ok(())
    }
}

/// Why a foreign bundle is not taken, or not let go.
#[derive(Debug, Error)]
pub enum ForeignError {
    /// Ourselves.
    #[error("{0} is our own trust domain; nobody else says what its bundle is")]
    Own(TrustDomain),
    /// Something older than what is held.
    #[error(
        "the bundle of {trust_domain} has the sequence {got}, and {held} is held already; an older bundle never replaces a newer one (if its owner began anew, delete the one that is held first)"
    )]
    Older {
        /// Whose it is.
        trust_domain: TrustDomain,
        /// What is held.
        held: u64,
        /// What came.
        got: u64,
    },
    /// Larger than a record can be.
    #[error("the bundle of {trust_domain} takes {size} bytes, and at most {} can be kept", alcazar_store::MAX_VALUE)]
    TooLarge {
        /// Whose it is.
        trust_domain: TrustDomain,
        /// Its size.
        size: usize,
    },
    /// It would come back.
    #[error("the bundle of {0} is fetched from its endpoint and would come back; take it out of federation in ca.yaml")]
    Configured(TrustDomain),
    /// Not a bundle document.
    #[error("it is not a bundle document")]
    Document(#[from] BundleDocumentError),
    /// The store has something else.
    #[error("the foreign bundle in the store is damaged")]
    Bundle(#[from] BundleError),
    /// The store has something else.
    #[error("the foreign bundle in the store is damaged")]
    JwtAuthority(#[from] JwtAuthorityError),
    /// The store.
    #[error(transparent)]
    Records(#[from] RecordError),
}

/// What is written each time would be written by every replica, every few minutes, for nothing.
const NOTED_EACH: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData};

    use super::*;

    fn bundle(sequence: u64) -> TrustBundle {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let authority = JwtAuthority::new("one", key.subject_public_key_info()).unwrap();
        let bundle = TrustBundle::new("other.example".parse().unwrap(), sequence, [root]).unwrap();
        bundle.with_jwt_authorities([authority]).unwrap().with_refresh_hint(Some(Duration::from_secs(60)))
    }

    fn read(bundle: TrustBundle, numbered: bool) -> ReadBundle {
        ReadBundle { bundle, numbered, ignored: Vec::new() }
    }

    #[test]
    fn the_newer_replaces_the_older_and_never_the_other_way() {
        let held = bundle(7);
        let next = bundle(8);
        assert_eq!(newer(None, read(held.clone(), true)).unwrap(), Some(held.clone()));
        assert_eq!(newer(Some(&held), read(held.clone(), true)).unwrap(), None);
        assert_eq!(newer(Some(&held), read(next.clone(), true)).unwrap(), Some(next.clone()));
        let older = newer(Some(&next), read(held.clone(), true)).unwrap_err();
        assert!(older.to_string().contains("the sequence 7, and 8 is held"), "{older}");
        // An owner that does not count: what came last is the newest, and is numbered here.
        let unnumbered = newer(Some(&held), read(next.clone().with_sequence(0), false)).unwrap();
        assert_eq!(unnumbered, Some(next.with_sequence(8)));
        assert_eq!(newer(Some(&held), read(held.clone().with_sequence(0), false)).unwrap(), None);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let received = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for source in [Source::Operator, Source::Endpoint("https://other.example/".into())] {
            for confirmed in [received, received + Duration::from_secs(7200)] {
                let held = ForeignBundle { bundle: bundle(3), source: source.clone(), received, confirmed };
                let text = serde_json::to_string(&ForeignRecord::of(&held)).unwrap();
                assert_eq!(serde_json::from_str::<ForeignRecord>(&text).unwrap().read().unwrap(), held);
            }
        }
    }
}
