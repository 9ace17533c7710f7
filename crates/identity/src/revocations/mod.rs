//! What is believed no more although its time is not over: by serial number, by identity, by intermediate.
//!
//! Each issuer (a cluster's CA, or a root) keeps a list of its own, with a version; a verifier holds the newest of each.

mod list;
mod reason;
mod statement;

use std::sync::Arc;
use std::time::SystemTime;

use crate::{Fingerprint, SpiffeId, TrustDomain, rfc3339};

pub use list::{ListIssuer, ParseListIssuerError, RevocationList, RevokedIdentity, RevokedSerial};
pub use reason::{ParseRevocationReasonError, RevocationReason};
pub use statement::{Signatory, StatementError, is_of_cluster, stated_cluster, verify_statement};

/// Every list that a verifier holds.
///
/// Cheap to clone and to ask: nothing at all where nothing is revoked, a few hash look-ups otherwise.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    lists: Vec<Arc<RevocationList>>,
    evidence: Arc<[u8]>,
}

/// What a certificate that leads to a root says of itself: all that a revocation can name.
#[derive(Debug, Clone, Copy)]
pub struct Proven<'a> {
    /// Whom it names.
    pub id: &'a SpiffeId,
    /// Its serial number, in hexadecimal.
    pub serial: &'a str,
    /// From when it is good.
    pub not_before: SystemTime,
    /// The SHA-256 of each certificate between it and its root, its own issuer first; of the root, where that is its issuer.
    pub issuers: &'a [Fingerprint],
}

impl Revocations {
    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.lists.iter().all(|list| list.is_empty())
    }

    /// The lists, each issuer's once.
    pub fn lists(&self) -> impl Iterator<Item = &RevocationList> {
        self.lists.iter().map(|list| &**list)
    }

    /// The list of one issuer.
    pub fn list(&self, trust_domain: &TrustDomain, issuer: &ListIssuer) -> Option<&RevocationList> {
        self.lists().find(|list| list.trust_domain() == trust_domain && list.issuer() == issuer)
    }

    /// Takes an issuer's list in place of an older one of its own; never an older one in place of a newer.
    pub fn merge(&mut self, list: Arc<RevocationList>) -> Merged {
        let same = |held: &&mut Arc<RevocationList>| {
            held.trust_domain() == list.trust_domain() && held.issuer() == list.issuer()
        };
        match self.lists.iter_mut().find(same) {
            None => {
                self.lists.push(list);
                Merged::Taken
            }
            Some(held) if held.version() < list.version() => {
                *held = list;
                Merged::Taken
            }
            Some(held) if held.version() == list.version() => Merged::Held,
            Some(held) => Merged::Older { held: held.version() },
        }
    }

    /// The signed statements that the lists were read from, in whatever form they travel: for handing on to others, who
    /// check them for themselves.
    pub fn evidence(&self) -> &[u8] {
        &self.evidence
    }

    /// The same lists with their signed statements.
    #[must_use]
    pub fn with_evidence(self, evidence: impl Into<Arc<[u8]>>) -> Self {
        Self { evidence: evidence.into(), ..self }
    }

    /// Whether this intermediate may vouch for nobody in this trust domain any more.
    pub fn of_intermediate(&self, trust_domain: &TrustDomain, intermediate: Fingerprint) -> Option<Revoked> {
        let revocation = self.about(trust_domain).find_map(|list| list.intermediate(intermediate))?;
        Some(Revoked { rule: RevokedBy::Intermediate(intermediate), revocation })
    }

    /// Whether a certificate is revoked, and by which rule: its intermediates first, then its identity, then its serial
    /// number.
    pub fn of(&self, proven: &Proven<'_>) -> Option<Revoked> {
        if self.lists.is_empty() {
            return None;
        }
        let trust_domain = proven.id.trust_domain();
        let intermediate = proven.issuers.iter().find_map(|issuer| self.of_intermediate(trust_domain, *issuer));
        intermediate.or_else(|| self.of_identity(proven)).or_else(|| self.of_serial(proven))
    }

    /// While an identity is barred, the dates of its certificates prove nothing: another issuer may not have heard of it, or
    /// its clock was ahead. Only between a reinstatement and what came before it do they tell.
    fn of_identity(&self, proven: &Proven<'_>) -> Option<Revoked> {
        let mut found = self.about(proven.id.trust_domain()).filter_map(|list| list.identity(proven.id));
        let identity = found.find(|identity| !identity.reinstated || proven.not_before < identity.before)?;
        let before = identity.reinstated.then_some(identity.before);
        let rule = RevokedBy::Identity { id: proven.id.clone(), before };
        Some(Revoked { rule, revocation: identity.revocation })
    }

    fn of_serial(&self, proven: &Proven<'_>) -> Option<Revoked> {
        let issuer = proven.issuers.first().copied();
        let mut lists = self.about(proven.id.trust_domain());
        let revocation = lists.find_map(|list| list.serial(proven.serial, issuer))?;
        Some(Revoked { rule: RevokedBy::Serial(proven.serial.to_owned()), revocation })
    }

    fn about<'a>(&'a self, trust_domain: &'a TrustDomain) -> impl Iterator<Item = &'a RevocationList> {
        self.lists().filter(move |list| list.trust_domain() == trust_domain)
    }
}

impl PartialEq for Revocations {
    /// Equal when the same lists are held in the same versions.
    fn eq(&self, other: &Self) -> bool {
        let same = |list: &Arc<RevocationList>| other.lists.iter().any(|theirs| theirs == list);
        self.lists.len() == other.lists.len() && self.lists.iter().all(same)
    }
}

impl Eq for Revocations {}

/// What became of a list that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// It is held now.
    Taken,
    /// This version is held already.
    Held,
    /// A newer one is held, and stays.
    Older {
        /// The version that is held.
        held: u64,
    },
}

/// Since when something is revoked, why, and for how long that must be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// Why.
    pub reason: RevocationReason,
    /// Since when.
    pub since: SystemTime,
    /// Until when a certificate that it concerns could be good: after that it may be forgotten.
    pub until: SystemTime,
}

/// Why a certificate that leads to a root is not believed all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// What was named.
    pub rule: RevokedBy,
    /// Why and since when.
    pub revocation: Revocation,
}

/// What a revocation names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedBy {
    /// One certificate, by its serial number.
    Serial(String),
    /// Certificates of an identity.
    Identity {
        /// Whose.
        id: SpiffeId,
        /// Those whose not-before is earlier, where the identity was reinstated; else all.
        before: Option<SystemTime>,
    },
    /// Everything under an intermediate, by the SHA-256 of its certificate.
    Intermediate(Fingerprint),
}

impl std::fmt::Display for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Revocation { reason, since, .. } = self.revocation;
        match &self.rule {
            RevokedBy::Serial(serial) => write!(f, "the certificate with the serial number {serial} is revoked")?,
            RevokedBy::Identity { id, before: None } => write!(f, "the identity {id} is revoked")?,
            RevokedBy::Identity { id, before: Some(before) } => {
                write!(f, "the certificates of {id} from before {} are revoked", rfc3339(*before))?;
            }
            RevokedBy::Intermediate(print) => write!(f, "the intermediate with the SHA-256 {print} is revoked")?,
        }
        write!(f, ", since {} ({reason})", rfc3339(since))
    }
}

#[cfg(test)]
mod tests;
