use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use super::Revocation;
use crate::{Fingerprint, ParseFingerprintError, SpiffeId, TrustDomain};

/// Who keeps a list of revocations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListIssuer {
    /// A root, by its SHA-256: it alone revokes intermediates.
    Root(Fingerprint),
    /// The CA of a cluster, by the cluster's name: all of its intermediates, one after the other, sign for one list.
    Cluster(String),
}

impl fmt::Display for ListIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(print) => write!(f, "root:{print}"),
            Self::Cluster(name) => write!(f, "cluster:{name}"),
        }
    }
}

impl FromStr for ListIssuer {
    type Err = ParseListIssuerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("root", print)) => Ok(Self::Root(print.parse()?)),
            Some(("cluster", name)) if !name.is_empty() => Ok(Self::Cluster(name.to_owned())),
            _ => Err(ParseListIssuerError::Unknown(text.chars().take(64).collect())),
        }
    }
}

/// A text that names no keeper of a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseListIssuerError {
    /// The root's fingerprint is none.
    #[error("the root that keeps the list is not named by a fingerprint")]
    Root(#[from] ParseFingerprintError),
    /// Neither a root nor a cluster.
    #[error("{0:?} is neither root:<SHA-256> nor cluster:<name>")]
    Unknown(String),
}

/// What one issuer has revoked, as of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    trust_domain: TrustDomain,
    issuer: ListIssuer,
    version: u64,
    /// By their digits without leading zeros: certificates and people write them with or without.
    serials: HashMap<String, Vec<(Option<Fingerprint>, Revocation)>>,
    identities: HashMap<SpiffeId, RevokedIdentity>,
    intermediates: HashMap<Fingerprint, Revocation>,
}

/// A certificate in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedSerial {
    /// Its serial number: hexadecimal, lower case, without leading zeros.
    pub serial: String,
    /// The SHA-256 of its issuer's certificate; `None`: whoever in the trust domain issued it.
    pub issuer: Option<Fingerprint>,
    /// Why and since when.
    pub revocation: Revocation,
}

/// An identity in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevokedIdentity {
    /// Once it is reinstated, certificates whose not-before is earlier stay revoked.
    pub before: SystemTime,
    /// Whether it may be issued new ones. While it may not, every certificate of it is revoked.
    pub reinstated: bool,
    /// Why and since when.
    pub revocation: Revocation,
}

impl RevocationList {
    /// An empty list.
    pub fn new(trust_domain: TrustDomain, issuer: ListIssuer, version: u64) -> Self {
        Self {
            trust_domain,
            issuer,
            version,
            serials: HashMap::new(),
            identities: HashMap::new(),
            intermediates: HashMap::new(),
        }
    }

    /// Whose certificates it is about.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whose list it is.
    pub fn issuer(&self) -> &ListIssuer {
        &self.issuer
    }

    /// Which version of it; later is higher.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether nothing is on it.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty() && self.identities.is_empty() && self.intermediates.is_empty()
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.serials.values().map(Vec::len).sum::<usize>() + self.identities.len() + self.intermediates.len()
    }

    /// Adds a certificate, by its serial number in hexadecimal; whether the text is one.
    pub fn revoke_serial(&mut self, serial: &str, issuer: Option<Fingerprint>, revocation: Revocation) -> bool {
        let Some(serial) = Self::normal_serial(serial) else { return false };
        self.serials.entry(serial).or_default().push((issuer, revocation));
        true
    }

    /// Adds an identity. Of two entries the later moment counts.
    pub fn revoke_identity(&mut self, id: SpiffeId, identity: RevokedIdentity) {
        let entry = self.identities.entry(id).or_insert(identity);
        if entry.before < identity.before {
            *entry = identity;
        }
    }

    /// Adds an intermediate, by the SHA-256 of its certificate.
    pub fn revoke_intermediate(&mut self, intermediate: Fingerprint, revocation: Revocation) {
        self.intermediates.insert(intermediate, revocation);
    }

    /// The certificates on it, in no order.
    pub fn serials(&self) -> impl Iterator<Item = RevokedSerial> {
        self.serials.iter().flat_map(|(serial, all)| {
            let one = move |(issuer, revocation): &(Option<Fingerprint>, Revocation)| RevokedSerial {
                serial: serial.clone(),
                issuer: *issuer,
                revocation: *revocation,
            };
            all.iter().map(one)
        })
    }

    /// The identities on it, in no order.
    pub fn identities(&self) -> impl Iterator<Item = (&SpiffeId, &RevokedIdentity)> {
        self.identities.iter()
    }

    /// The intermediates on it, in no order.
    pub fn intermediates(&self) -> impl Iterator<Item = (Fingerprint, Revocation)> {
        self.intermediates.iter().map(|(print, revocation)| (*print, *revocation))
    }

    /// The revocation of an identity.
    pub fn identity(&self, id: &SpiffeId) -> Option<&RevokedIdentity> {
        // An empty map would still hash the text.
        if self.identities.is_empty() { None } else { self.identities.get(id) }
    }

    /// The revocation of an intermediate.
    pub fn intermediate(&self, print: Fingerprint) -> Option<Revocation> {
        if self.intermediates.is_empty() { None } else { self.intermediates.get(&print).copied() }
    }

    /// The revocation of a certificate by this issuer.
    pub fn serial(&self, serial: &str, issuer: Option<Fingerprint>) -> Option<Revocation> {
        if self.serials.is_empty() {
            return None;
        }
        let found = self.serials.get(serial.trim_start_matches('0'))?;
        let of_issuer = |(by, _): &&(Option<Fingerprint>, Revocation)| by.is_none() || *by == issuer;
        found.iter().find(of_issuer).map(|(_, revocation)| *revocation)
    }

    /// A serial number as lists have it: lower case, no colons, no leading zeros; `None` when it is none.
    pub fn normal_serial(text: &str) -> Option<String> {
        let text = text.strip_prefix("0x").unwrap_or(text);
        let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        let digits = digits.trim_start_matches('0');
        let good = (1..=MAX_DIGITS).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        good.then(|| digits.to_owned())
    }
}

/// 20 octets: RFC 5280 §4.1.2.2 allows no more.
const MAX_DIGITS: usize = 40;
