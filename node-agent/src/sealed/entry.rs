use std::sync::Arc;
use std::time::SystemTime;

use alcazar_api::ca::v1;
use alcazar_identity::{Revocations, SpiffeId, SvidKey, TrustBundles, X509Svid, rfc3339};
use alcazar_mtls::{Side, verify_peer};
use alcazar_service::process::chain;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::name_of;
use super::seal::SealError;
use crate::issued::Issued;
use crate::registration::{Registration, RegistrationError};
use crate::saved::{Secret, milliseconds, time};
use crate::schedule::Life;

/// A registration, and what is held for it.
pub(crate) struct Entry {
    registration: Registration,
    held: Option<Held>,
}

struct Held {
    svid: X509Svid,
    life: Life,
}

/// A registration that comes back, with its certificate where that is good.
pub(crate) struct Restored {
    pub(crate) registration: Registration,
    pub(crate) issued: Option<Issued>,
}

impl Entry {
    pub(crate) fn new(registration: Registration, issued: Option<&Issued>) -> Self {
        let held = issued.map(|issued| Held { svid: issued.svid().clone(), life: *issued.life() });
        Self { registration, held }
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    pub(crate) fn encode(&self) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let registration = RegistrationFile {
            id: self.registration.id().to_owned(),
            spiffe_id: self.registration.spiffe_id().to_string(),
            selectors: self.registration.selectors().iter().map(ToString::to_string).collect(),
            ttl: self.registration.ttl().as_secs(),
        };
        let held = self.held.as_ref().map(|Held { svid, life }| HeldFile {
            issued: milliseconds(life.issued()),
            expires: milliseconds(life.expires()),
            received: milliseconds(life.received()),
            chain: svid.chain_pem(),
            key: Secret::of(svid.key()),
        });
        // Sized beforehand: a growing buffer would leave copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT));
        serde_json::to_writer(&mut *bytes, &File { registration, held })?;
        Ok(bytes)
    }

    /// Reads what was sealed under this name for this node.
    pub(crate) fn decode(plain: &[u8], name: &str, node: &SpiffeId) -> Result<Self, EntryError> {
        let File { registration, held } = serde_json::from_slice(plain).map_err(SealError::from)?;
        let RegistrationFile { id, spiffe_id, selectors, ttl } = registration;
        let (node_id, ttl) = (node.to_string(), i64::try_from(ttl).unwrap_or(i64::MAX));
        let wire = v1::Registration { id, node_id, spiffe_id, selectors, ttl, ..Default::default() };
        let registration = Registration::read(&wire, node)?;
        if name_of(registration.id()) != name {
            return Err(SealError::Foreign.into());
        }
        Ok(Self { registration, held: held.map(HeldFile::read).transpose()? })
    }

    /// What of it is good now. A certificate that is not is left behind, with a word.
    pub(crate) fn restore(self, bundles: &TrustBundles, revocations: &Arc<Revocations>, now: SystemTime) -> Restored {
        let Self { registration, held } = self;
        let issued = held.and_then(|held| {
            let serial = held.svid.serial().to_owned();
            let checked = held.check(&registration, bundles, revocations, now);
            checked
                .inspect_err(|reason| {
                    tracing::warn!(target: "alcazar::refused", registration = registration.id(), serial, reason, "a sealed certificate is served no more; its workload waits for the CA");
                })
                .ok()
        });
        Restored { registration, issued }
    }
}

impl Held {
    /// As a reply of the CA is: identity, life, chain; and that it was not taken back meanwhile.
    fn check(
        self,
        registration: &Registration,
        bundles: &TrustBundles,
        revocations: &Arc<Revocations>,
        now: SystemTime,
    ) -> Result<Issued, String> {
        let Self { svid, life } = self;
        if svid.id() != registration.spiffe_id() {
            return Err(format!("it is {}'s, and the registration is of {}", svid.id(), registration.spiffe_id()));
        }
        if life.is_over(now) {
            return Err(format!(
                "it expired at {}; this machine's clock says {}",
                rfc3339(life.expires()),
                rfc3339(now)
            ));
        }
        verify_peer(svid.chain(), bundles, Side::Client, now).map_err(|error| chain(&error))?;
        let mut issued = Issued::restored(svid, bundles.clone(), life);
        issued.revoke(revocations.clone());
        match issued.revoked(now) {
            Some(revoked) => Err(revoked.to_string()),
            None => Ok(issued),
        }
    }
}

impl HeldFile {
    fn read(self) -> Result<Held, EntryError> {
        let key = SvidKey::from_pkcs8(self.key.bytes()).map_err(|_| EntryError::Key)?;
        // Key and certificate belong together, or this is no SVID.
        let svid = X509Svid::from_pem(self.chain.as_bytes(), key.to_pem().as_bytes())?;
        let [issued, expires, received] = [self.issued, self.expires, self.received].map(time);
        let life = match (issued, expires, received) {
            (Some(issued), Some(expires), Some(received)) => Life::new(issued, expires, received),
            _ => None,
        };
        Ok(Held { svid, life: life.ok_or(EntryError::Times)? })
    }
}

/// Why what was sealed cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    #[error("the registration in it cannot be served")]
    Registration(#[from] RegistrationError),
    #[error("the key in it is none")]
    Key,
    #[error("the certificate in it is none of its key's")]
    Svid(#[from] alcazar_identity::ParseSvidError),
    #[error("the times in it make no sense")]
    Times,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    registration: RegistrationFile,
    held: Option<HeldFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistrationFile {
    id: String,
    spiffe_id: String,
    selectors: Vec<String>,
    /// Seconds.
    ttl: u64,
}

/// Times are milliseconds since the Unix epoch.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeldFile {
    issued: u64,
    expires: u64,
    received: u64,
    chain: String,
    key: Secret,
}

/// Room for a chain, a key and the selectors.
const LIMIT: usize = 32 * 1024;
