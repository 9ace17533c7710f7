//! Issuance, as a function of its arguments.

pub(crate) mod der;

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint, SpiffeId, Validity};
use thiserror::Error;

use crate::{
    authority::Authority,
    csr::{Csr, KeyHash, KeyKind},
    profile::DnsName,
    serial::Serial,
    signer::SignError,
};

/// Whom a leaf names.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its SPIFFE ID.
    pub id: &'a SpiffeId,
    /// Names that stock TLS clients check, where the configuration or a registration gives any.
    pub dns: &'a [DnsName],
}

impl<'a> From<&'a SpiffeId> for Subject<'a> {
    fn from(id: &'a SpiffeId) -> Self {
        Self { id, dns: &[] }
    }
}

/// A leaf that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The leaf.
    pub certificate: CertificateDer<'static>,
    /// Its serial number.
    pub serial: Serial,
    /// Whom it names.
    pub id: SpiffeId,
    /// When it is good.
    pub validity: Validity,
    /// When it was issued; its life counts from here.
    pub issued_at: SystemTime,
    /// The hash of its public key.
    pub key_hash: KeyHash,
    /// The fingerprint of the certificate that signed it.
    pub issuer: Fingerprint,
    /// Whether its life was cut to that of its issuer.
    pub clamped: bool,
    /// Whether everything in it has the one form that it can have: a leaf that was written here, for a P-256 key.
    pub(crate) is_plain: bool,
}

/// As [`issue`], but good from `earliest` on at most where that is given: what is issued after a revocation must not look as
/// if it were of before.
///
/// # Errors
/// As [`issue`].
pub(crate) fn issue_from(
    csr: &Csr,
    subject: Subject<'_>,
    ttl: Duration,
    issuer: &Authority,
    serial: Serial,
    now: SystemTime,
    earliest: Option<SystemTime>,
) -> Result<Issued, IssueError> {
    let issued_at = whole_seconds(now);
    let bounds = issuer.bounds();
    if !bounds.contains(issued_at) {
        return Err(IssueError::IssuerNotGood { validity: bounds, now });
    }
    let wanted = issued_at + ttl;
    let not_after = wanted.min(bounds.not_after());
    let not_before = earliest.map_or(issued_at - BACKDATE, |earliest| earliest.max(issued_at - BACKDATE));
    let validity = Validity::new(not_before, not_after).ok_or(IssueError::IssuerNotGood { validity: bounds, now })?;

    let leaf = issuer.leaf();
    let to_be_signed = leaf.to_be_signed(csr, subject, serial, (not_before, not_after));
    let signature = issuer.signer().sign(&to_be_signed).map_err(IssueError::Sign)?;
    let certificate = leaf.certificate(&to_be_signed, &signature);
    Ok(Issued {
        certificate,
        serial,
        id: subject.id.clone(),
        validity,
        issued_at,
        key_hash: csr.key_hash(),
        issuer: issuer.info().fingerprint,
        clamped: not_after < wanted,
        is_plain: csr.has_plain_key(),
    })
}

/// Signs a leaf for `subject` and the key of `csr`, good from two minutes before `now` to `ttl` after it, but never
/// longer than its issuer. Nothing but the public key is taken from the request.
///
/// **Source**: X509-SVID §2 to §4; RFC 5280 §4.1.2.5, §4.2.1.
///
/// # Errors
/// When the issuer is not good at `now`, or does not sign.
pub fn issue(
    csr: &Csr,
    subject: Subject<'_>,
    ttl: Duration,
    issuer: &Authority,
    serial: Serial,
    now: SystemTime,
) -> Result<Issued, IssueError> {
    issue_from(csr, subject, ttl, issuer, serial, now, None)
}

/// Why nothing was issued.
#[derive(Debug, Error)]
pub enum IssueError {
    /// The requester wants a longer life than anybody gets.
    #[error("a life of {seconds} s is longer than the longest of {} s", max.as_secs())]
    TtlTooLong {
        /// What was asked for.
        seconds: u64,
        /// What is allowed.
        max: Duration,
    },
    /// A key that the profile does not allow.
    #[error(
        "a key of the kind {kind} is not certified by the profile; it allows {}",
        allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    KeyKind {
        /// The kind.
        kind: KeyKind,
        /// What is allowed.
        allowed: BTreeSet<KeyKind>,
    },
    /// The intermediate has expired, or the clock is wrong.
    #[error("the issuing certificate, with those above it, is good from {validity}, and the clock here says {}", alcazar_identity::rfc3339(*now))]
    IssuerNotGood {
        /// When it is good.
        validity: Validity,
        /// The clock.
        now: SystemTime,
    },
    /// The signer did not sign.
    #[error("the certificate could not be signed")]
    Sign(#[source] SignError),
}

/// How far a certificate reaches back, for clocks that are behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(120);

/// X.509 knows no fractions of seconds.
pub(crate) fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
