//! Signed lists of revocations: written by the CA, checked by everybody who holds one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_identity::{
    CertificateDer, Fingerprint, ListIssuer, ParseListIssuerError, ParseSpiffeIdError, ParseTrustDomainError,
    Revocation, RevocationList, RevocationReason, Revocations, RevokedIdentity, Signatory, StatementError,
    TrustBundles, TrustDomain, is_of_cluster, verify_statement,
};
use prost::Message;

use crate::ca::v1;

/// What comes before the bytes of a list when they are signed, so that the signature is good for nothing else.
pub const CONTEXT: &[u8] = b"alcazar.ca.v1.RevocationList\0";

/// A list as it is signed: the same list is always the same bytes.
pub fn encode_list(list: &RevocationList, changed_at: SystemTime) -> Vec<u8> {
    let mut certificates: Vec<_> = list
        .serials()
        .map(|revoked| v1::RevokedCertificate {
            serial: revoked.serial,
            issuer: revoked.issuer.map(|issuer| issuer.as_bytes().to_vec()).unwrap_or_default(),
            mark: Some(mark(&revoked.revocation)),
        })
        .collect();
    certificates.sort_by(|a, b| (&a.serial, &a.issuer).cmp(&(&b.serial, &b.issuer)));
    let mut identities: Vec<_> = list
        .identities()
        .map(|(id, revoked)| v1::RevokedIdentity {
            spiffe_id: id.to_string(),
            before: seconds(revoked.before),
            reinstated: revoked.reinstated,
            mark: Some(mark(&revoked.revocation)),
        })
        .collect();
    identities.sort_by(|a, b| a.spiffe_id.cmp(&b.spiffe_id));
    let mut intermediates: Vec<_> = list
        .intermediates()
        .map(|(print, revocation)| v1::RevokedIntermediate {
            fingerprint: print.as_bytes().to_vec(),
            mark: Some(mark(&revocation)),
        })
        .collect();
    intermediates.sort_by(|a, b| a.fingerprint.cmp(&b.fingerprint));
    let message = v1::RevocationList {
        trust_domain: list.trust_domain().to_string(),
        issuer: list.issuer().to_string(),
        version: list.version(),
        changed_at: seconds(changed_at),
        certificates,
        identities,
        intermediates,
    };
    message.encode_to_vec()
}

/// The bytes to sign for an encoded list.
pub fn to_be_signed(list: &[u8]) -> Vec<u8> {
    [CONTEXT, list].concat()
}

/// Holds the newest list of each issuer that it was shown, and no list that it did not check.
///
/// What is not said again stays: nobody takes a revocation back by keeping silent about it.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    held: BTreeMap<(TrustDomain, ListIssuer), Kept>,
    current: Arc<Revocations>,
}

#[derive(Debug, Clone)]
struct Kept {
    list: Arc<RevocationList>,
    signed: v1::SignedRevocationList,
    /// From the signer up to its root; empty for a root's.
    path: Vec<Fingerprint>,
    /// Until when the signature proves anything; `None` for a root's, which stands as long as the root is trusted.
    good_until: Option<SystemTime>,
}

/// What became of the lists that were shown.
#[derive(Debug, Default)]
pub struct Taken {
    /// The issuers whose lists are new.
    pub taken: Vec<ListIssuer>,
    /// The issuers whose lists say nothing new and are signed anew: by this signature others can be shown them for longer, or
    /// at all.
    pub renewed: Vec<ListIssuer>,
    /// Why others were not.
    pub refused: Vec<ListError>,
}

impl Taken {
    /// Whether what is held, or what proves it, is not what it was: to be kept and handed on.
    pub fn is_change(&self) -> bool {
        !self.taken.is_empty() || !self.renewed.is_empty()
    }
}

impl Keeper {
    /// What is revoked by the lists held. Their signed form is the evidence ([`Revocations::evidence`]).
    pub fn current(&self) -> &Arc<Revocations> {
        &self.current
    }

    /// The lists as they were signed.
    pub fn signed(&self) -> v1::SignedRevocations {
        v1::SignedRevocations { lists: self.held.values().map(|kept| kept.signed.clone()).collect() }
    }

    /// Takes what is newer of the lists shown; each is taken or refused by itself.
    ///
    /// A list is good when an authority under a root of `bundles` signed it, the authority may speak for its issuer, and is
    /// not revoked by a root. A list that a revoked intermediate has signed gives way to any other of its issuer. The same
    /// list with another signature takes the place of one whose signature proves nothing any more, or less long.
    pub fn take(&mut self, shown: &v1::SignedRevocations, bundles: &TrustBundles, now: SystemTime) -> Taken {
        let mut outcome = Taken::default();
        let mut read = Vec::new();
        for signed in shown.lists.iter().take(MAX_LISTS) {
            let known = self.held.values().any(|kept| kept.signed == *signed);
            if known {
                continue;
            }
            match read_list(signed, bundles, now) {
                Ok(kept) => read.push(kept),
                Err(error) => outcome.refused.push(error),
            }
        }
        // Roots first: they say which intermediates are still to be listened to.
        read.sort_by_key(|kept| !kept.path.is_empty());
        for kept in read {
            let issuer = kept.list.issuer().clone();
            match self.admit(kept, bundles, now) {
                Ok(Admitted::New) => outcome.taken.push(issuer),
                Ok(Admitted::Renewed) => outcome.renewed.push(issuer),
                Ok(Admitted::Held) => {}
                Err(error) => outcome.refused.push(error),
            }
        }
        if outcome.is_change() {
            self.current = Arc::new(self.collect());
        }
        outcome
    }

    /// Holds a list that was proved when it was put by, and cannot be proved any more: its signer's time is over, or the root above
    /// it is trusted no more. What it says stays in force here until a newer list of its issuer comes, or the same one signed anew.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn hold(&mut self, signed: &v1::SignedRevocationList) -> Result<(), ListError> {
        let list = signed_list(signed)?;
        let key = (list.trust_domain().clone(), list.issuer().clone());
        if self.held.get(&key).is_some_and(|held| held.list.version() >= list.version()) {
            return Ok(());
        }
        let (path, good_until) = match list.issuer() {
            ListIssuer::Root(_) => (Vec::new(), None),
            ListIssuer::Cluster(_) => {
                let chain = signed.chain.iter().map(|der| Fingerprint::of(der)).collect();
                (chain, Some(SystemTime::UNIX_EPOCH))
            }
        };
        self.held.insert(key, Kept { list: Arc::new(list), signed: signed.clone(), path, good_until });
        self.current = Arc::new(self.collect());
        Ok(())
    }

    /// Holds the list of an issuer no more, where it is of this version or an older one: its cluster is gone, and nobody signs it anew.
    pub fn forget(&mut self, trust_domain: &TrustDomain, issuer: &ListIssuer, version: u64) {
        let key = (trust_domain.clone(), issuer.clone());
        if self.held.get(&key).is_some_and(|held| held.list.version() <= version) {
            self.held.remove(&key);
            self.current = Arc::new(self.collect());
        }
    }

    /// The lists held, as others can be shown them now, and those that nobody would take any more. What `is_ours` says is shown as
    /// it is: whoever signs a list himself has had it checked.
    pub fn to_show(
        &self,
        bundles: &TrustBundles,
        now: SystemTime,
        is_ours: impl Fn(&RevocationList) -> bool,
    ) -> (v1::SignedRevocations, Vec<Unproved>) {
        let (mut lists, mut unproved) = (Vec::new(), Vec::new());
        for kept in self.held.values() {
            let outcome = match is_ours(&kept.list) {
                true => Ok(()),
                false => read_list(&kept.signed, bundles, now).and_then(|read| {
                    let issuer = || kept.list.issuer().clone();
                    let revoked = self.is_revoked(kept.list.trust_domain(), &read.path);
                    if revoked { Err(ListError::RevokedSigner { issuer: issuer() }) } else { Ok(()) }
                }),
            };
            match outcome {
                Ok(()) => lists.push(kept.signed.clone()),
                Err(reason) => unproved.push(Unproved { list: Arc::clone(&kept.list), reason }),
            }
        }
        (v1::SignedRevocations { lists }, unproved)
    }

    fn admit(&mut self, kept: Kept, bundles: &TrustBundles, now: SystemTime) -> Result<Admitted, ListError> {
        let (trust_domain, issuer) = (kept.list.trust_domain().clone(), kept.list.issuer().clone());
        if self.is_revoked(&trust_domain, &kept.path) {
            return Err(ListError::RevokedSigner { issuer });
        }
        let key = (trust_domain, issuer);
        let mut admitted = Admitted::New;
        if let Some(held) = self.held.get(&key)
            && !self.is_revoked(&key.0, &held.path)
        {
            let (old, new) = (held.list.version(), kept.list.version());
            if new < old {
                return Err(ListError::Older { issuer: key.1, shown: new, held: old });
            }
            if new == old {
                if held.list != kept.list {
                    return Err(ListError::Contradiction { issuer: key.1, version: new });
                }
                // By the next intermediate, or by another replica. Who is shown it later may not trust the root above the old.
                let proves = kept.good_until > held.good_until || read_list(&held.signed, bundles, now).is_err();
                if !proves {
                    return Ok(Admitted::Held);
                }
                admitted = Admitted::Renewed;
            }
        }
        self.held.insert(key, kept);
        Ok(admitted)
    }

    /// Whether a root has revoked one of these intermediates.
    fn is_revoked(&self, trust_domain: &TrustDomain, path: &[Fingerprint]) -> bool {
        let roots = self.held.values().filter(|kept| kept.path.is_empty() && kept.list.trust_domain() == trust_domain);
        let mut lists = roots.map(|kept| &kept.list);
        lists.any(|list| path.iter().any(|print| list.intermediate(*print).is_some()))
    }

    fn collect(&self) -> Revocations {
        let mut all = Revocations::default();
        for kept in self.held.values() {
            all.merge(Arc::clone(&kept.list));
        }
        all.with_evidence(self.signed().encode_to_vec())
    }
}

/// A list that is in force where it is held, and that nobody else can be shown.
#[derive(Debug, Clone)]
pub struct Unproved {
    /// What it says.
    pub list: Arc<RevocationList>,
    /// Why nobody would take it.
    pub reason: ListError,
}

/// What became of one list.
enum Admitted {
    New,
    Renewed,
    Held,
}

/// Reads what [`Revocations::evidence`] gave.
///
/// # Errors
/// When it is not that.
pub fn read_evidence(bytes: &[u8]) -> Result<v1::SignedRevocations, prost::DecodeError> {
    v1::SignedRevocations::decode(bytes)
}

/// What a signed list says, unchecked: whoever signed it.
///
/// # Errors
/// When it cannot be read.
pub fn signed_list(signed: &v1::SignedRevocationList) -> Result<RevocationList, ListError> {
    list_of(&v1::RevocationList::decode(signed.list.as_slice()).map_err(ListError::Decode)?)
}

fn read_list(signed: &v1::SignedRevocationList, bundles: &TrustBundles, now: SystemTime) -> Result<Kept, ListError> {
    let list = signed_list(signed)?;
    let issuer = list.issuer().clone();
    let bundle =
        bundles.get(list.trust_domain()).ok_or_else(|| ListError::ForeignTrustDomain(list.trust_domain().clone()))?;
    let chain: Vec<_> = signed.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let signatory = verify_statement(CONTEXT, &signed.list, &signed.signature, &chain, bundle, now)
        .map_err(|source| ListError::Signature { issuer: issuer.clone(), source })?;
    let (path, good_until) = match (signatory, &issuer) {
        (Signatory::Root(signer), ListIssuer::Root(named)) if signer == *named => (Vec::new(), None),
        (Signatory::Intermediate { path, cluster, good_until }, ListIssuer::Cluster(name))
            if is_of_cluster(cluster.as_deref(), name) =>
        {
            if list.intermediates().next().is_some() {
                return Err(ListError::Intermediates { issuer });
            }
            (path, Some(good_until))
        }
        _ => return Err(ListError::OtherIssuer { issuer }),
    };
    Ok(Kept { list: Arc::new(list), signed: signed.clone(), path, good_until })
}

fn list_of(message: &v1::RevocationList) -> Result<RevocationList, ListError> {
    let entries = message.certificates.len() + message.identities.len() + message.intermediates.len();
    if entries > MAX_ENTRIES {
        return Err(ListError::TooLong(entries));
    }
    let mut list = RevocationList::new(message.trust_domain.parse()?, message.issuer.parse()?, message.version);
    for entry in &message.certificates {
        let issuer = match entry.issuer.as_slice() {
            [] => None,
            print => Some(fingerprint(print)?),
        };
        if !list.revoke_serial(&entry.serial, issuer, revocation(entry.mark.as_ref())?) {
            return Err(ListError::Serial(entry.serial.chars().take(64).collect()));
        }
    }
    for entry in &message.identities {
        let identity = RevokedIdentity {
            before: time(entry.before)?,
            reinstated: entry.reinstated,
            revocation: revocation(entry.mark.as_ref())?,
        };
        list.revoke_identity(entry.spiffe_id.parse()?, identity);
    }
    for entry in &message.intermediates {
        list.revoke_intermediate(fingerprint(&entry.fingerprint)?, revocation(entry.mark.as_ref())?);
    }
    Ok(list)
}

fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, ListError> {
    <[u8; 32]>::try_from(bytes).map(Fingerprint::from).map_err(|_| ListError::Fingerprint)
}

fn revocation(mark: Option<&v1::RevocationMark>) -> Result<Revocation, ListError> {
    let mark = mark.ok_or(ListError::NoMark)?;
    let reason = u8::try_from(mark.reason).ok().and_then(RevocationReason::from_code);
    Ok(Revocation {
        reason: reason.ok_or(ListError::Reason(mark.reason))?,
        since: time(mark.since)?,
        until: time(mark.until)?,
    })
}

fn mark(revocation: &Revocation) -> v1::RevocationMark {
    v1::RevocationMark {
        reason: revocation.reason.code().into(),
        since: seconds(revocation.since),
        until: seconds(revocation.until),
    }
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> Result<SystemTime, ListError> {
    let since = u64::try_from(seconds).ok().map(Duration::from_secs);
    since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)).ok_or(ListError::Time(seconds))
}

/// Why a list of revocations is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not the message.
    #[error("a list of revocations cannot be read")]
    Decode(#[source] prost::DecodeError),
    /// Not the name of a trust domain.
    #[error("a list of revocations names no trust domain")]
    TrustDomain(#[from] ParseTrustDomainError),
    /// Not the name of an issuer of lists.
    #[error("a list of revocations names nobody who keeps lists")]
    Issuer(#[from] ParseListIssuerError),
    /// Not a SPIFFE ID.
    #[error("a list of revocations names an identity that is none")]
    Identity(#[from] ParseSpiffeIdError),
    /// Not a serial number.
    #[error("a list of revocations has {0:?} as a serial number")]
    Serial(String),
    /// Not a fingerprint.
    #[error("a list of revocations has a fingerprint that is not 32 bytes long")]
    Fingerprint,
    /// An entry without its mark.
    #[error("a list of revocations has an entry without reason and time")]
    NoMark,
    /// A reason that RFC 5280 does not have.
    #[error("a list of revocations has {0} as a reason")]
    Reason(u32),
    /// A moment before 1970.
    #[error("a list of revocations has {0} as a moment")]
    Time(i64),
    /// Nobody revokes so much.
    #[error("a list of revocations has {0} entries, more than {MAX_ENTRIES}")]
    TooLong(usize),
    /// We hold no roots by which to check it.
    #[error("a list of revocations is about the trust domain {0}, which is not trusted here")]
    ForeignTrustDomain(TrustDomain),
    /// Nobody signed it whom we believe.
    #[error("the list of {issuer} is not signed by an authority that is trusted here")]
    Signature {
        /// Whose list it says to be.
        issuer: ListIssuer,
        /// What is wrong.
        source: StatementError,
    },
    /// Signed by an authority that does not speak for its issuer.
    #[error("the list of {issuer} is signed by an authority that does not speak for it")]
    OtherIssuer {
        /// Whose list it says to be.
        issuer: ListIssuer,
    },
    /// An intermediate does not judge intermediates.
    #[error("the list of {issuer} revokes an intermediate, which a root alone may do")]
    Intermediates {
        /// Whose list it is.
        issuer: ListIssuer,
    },
    /// Its signer is revoked itself.
    #[error("the list of {issuer} is signed by an intermediate that is revoked")]
    RevokedSigner {
        /// Whose list it says to be.
        issuer: ListIssuer,
    },
    /// We know better.
    #[error("the list of {issuer} has the version {shown}, and {held} is held")]
    Older {
        /// Whose list it is.
        issuer: ListIssuer,
        /// The version that was shown.
        shown: u64,
        /// The version that stays.
        held: u64,
    },
    /// Two lists of one version that differ.
    #[error(
        "the list of {issuer} differs from the one held of the same version {version}, which stays until a newer one comes"
    )]
    Contradiction {
        /// Whose list it is.
        issuer: ListIssuer,
        /// The version.
        version: u64,
    },
}

/// The most entries that a list may have. More would be an attack on memory; a whole cluster is revoked by its intermediate.
pub const MAX_ENTRIES: usize = 100_000;
/// The longest list that a CA writes, in bytes: with others it must fit into one message.
pub const MAX_LIST: usize = 8 * 1024 * 1024;
/// Clusters and roots of all trust domains.
const MAX_LISTS: usize = 1_000;
