//! Certificate revocation lists of RFC 5280, for whoever checks certificates by those: made when they are asked for, kept
//! until what they say changes.
//!
//! ```text
//! GET /crl/<SHA-256 of an intermediate>.crl    leaves that it issued: by serial number, and those of revoked identities
//! GET /crl/root.crl, /crl/<SHA-256>.crl        intermediates; where the root's key is here, or its CRL was brought
//! ```

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{Fingerprint, ListIssuer, Revocation, RevocationReason};
use alcazar_service::process;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer};

use super::{Named, Published, RefreshError, UnknownError};
use crate::{
    authority::{Authority, AuthorityInfo},
    ca::Ca,
    hierarchy::HierarchyError,
    issue::{BACKDATE, whole_seconds},
    records::RecordError,
    signer::SignError,
};

impl Ca {
    /// The CRL of an intermediate or a root, DER: made where the key is here, else the newest that was brought.
    ///
    /// # Errors
    /// When neither is here, or a record cannot be read.
    pub async fn crl(&self, issuer: Fingerprint) -> Result<Vec<u8>, CrlError> {
        match self.make_crl(issuer, None).await {
            Err(CrlError::Unknown(source)) => match self.last_crl(issuer).await? {
                None => self.brought_crl(issuer).await?.ok_or(CrlError::Unknown(source)),
                Some(last) => Ok(last),
            },
            outcome => outcome.map(|made| made.crl),
        }
    }

    /// Makes one: to be put on record, good until then and with what there is room for, or else for a day with everything.
    pub(super) async fn make_crl(&self, issuer: Fingerprint, until: Option<SystemTime>) -> Result<Made, CrlError> {
        let (now, published) = ((self.0.clock)(), self.follow_revocations().borrow().clone());
        let is_root = self.hierarchy().roots().iter().any(|root| root.fingerprint == issuer);
        let mut revoked: Vec<_> = if is_root {
            self.revoked_intermediates(issuer, &published).await?.into_iter().collect()
        } else {
            self.revoked_leaves(&published, now).await?
        };
        let left_out = until.map_or(0, |_| revoked.len().saturating_sub(MOST));
        revoked.truncate(revoked.len() - left_out);
        let revoked = revoked.into_iter().collect();
        let files = self.0.files.clone();
        let active = self.hierarchy().signing().authority.clone();
        let until = until.unwrap_or(now + LIFE);
        let found = tokio::task::spawn_blocking(move || match () {
            () if active.info().fingerprint == issuer => Ok(active),
            () if is_root => files.root_signer(issuer, now).map(Arc::new),
            () => files.load(issuer, now).map(|signing| signing.authority),
        });
        let found = found.await.map_err(|_ending| CrlError::Interrupted)?;
        let authority = found.map_err(|source| CrlError::Unknown(Box::new(source)))?;
        let number = self.next_crl_number(issuer, now).await;
        let made = self.0.signing.with(move || encode(&authority, revoked, number, now, until)).await;
        Ok(Made { crl: made.map_err(CrlError::Signer)??, left_out })
    }

    /// Whose CRLs may be had here: what signs, what has signed and is still here or has left its last one, and the roots.
    pub(super) async fn issuers_of_crls(&self) -> BTreeSet<Fingerprint> {
        let hierarchy = self.hierarchy();
        let mut issuers: BTreeSet<_> = hierarchy.roots().iter().map(|root| root.fingerprint).collect();
        issuers.insert(hierarchy.intermediate().info().fingerprint);
        match self.authorities().await {
            Ok(here) => {
                let all = here.roots.into_iter().chain(here.intermediates);
                issuers.extend(all.map(|authority| authority.fingerprint));
            }
            // Those that are in memory can be asked for all the same.
            Err(error) => {
                tracing::warn!(reason = %process::chain(&error), "the issuers of CRLs cannot be read from the disk")
            }
        }
        match self.issuers_of_last_crls().await {
            Ok(gone) => issuers.extend(gone),
            Err(error) => {
                tracing::warn!(reason = %process::chain(&error), "the last CRLs of those who are gone are not known")
            }
        }
        issuers
    }

    /// Changes with what is revoked.
    pub(super) fn version_of_crls(&self) -> u64 {
        let published = self.follow_revocations().borrow().clone();
        published.revocations.lists().map(|list| list.version()).fold(published.version, u64::wrapping_add)
    }

    /// Serial numbers of leaves: those revoked by number, and the living ones of revoked identities. Most important first: what a
    /// person named, and of each identity its newest; whoever has had a thousand certificates issued to itself drives out nobody else.
    pub(super) async fn revoked_leaves(
        &self,
        published: &Published,
        now: SystemTime,
    ) -> Result<Vec<(Vec<u8>, Revocation)>, CrlError> {
        let mut found = Vec::new();
        let on_record = self.certificates_on_record(now).await?;
        for entry in published.entries.iter() {
            let revocation = Revocation { reason: entry.reason, since: entry.since, until: entry.until };
            match &entry.named {
                Named::Serial { serial, .. } => {
                    found.push((0, bytes_of(serial), revocation));
                }
                Named::Identity { id, .. } => {
                    let here = self.certificates_in_ledger(id, now).await?;
                    let all = on_record.get(id).into_iter().flatten().chain(&here);
                    let meant: BTreeSet<_> = all
                        .filter(|certificate| certificate.is_meant(entry))
                        .map(|certificate| (Reverse(certificate.not_before), bytes_of(&certificate.serial)))
                        .collect();
                    found.extend((1..).zip(meant).map(|(rank, (_, serial))| (rank, serial, revocation)));
                }
            }
        }
        found.sort_by(|(rank, one, first), (other, two, second)| {
            rank.cmp(other).then(second.since.cmp(&first.since)).then(one.cmp(two))
        });
        let mut seen = BTreeSet::new();
        found.retain(|(_, serial, _)| seen.insert(serial.clone()));
        Ok(found.into_iter().map(|(_, serial, revocation)| (serial, revocation)).collect())
    }

    /// Serial numbers of the intermediates that a root has revoked, of those that were known here.
    async fn revoked_intermediates(
        &self,
        root: Fingerprint,
        published: &Published,
    ) -> Result<BTreeMap<Vec<u8>, Revocation>, CrlError> {
        let mut revoked = BTreeMap::new();
        let list = published.revocations.list(self.trust_domain(), &ListIssuer::Root(root));
        for (print, revocation) in list.into_iter().flat_map(|list| list.intermediates()) {
            match self.known_intermediate(print).await?.as_ref().and_then(serial_of) {
                Some(serial) => {
                    revoked.insert(serial, revocation);
                }
                None => {
                    tracing::warn!(target: "alcazar::revoked", intermediate = %print, "its certificate is not known here, so the CRL cannot name it");
                }
            }
        }
        Ok(revoked)
    }
}

/// A CRL as it was made.
#[derive(Clone)]
pub(super) struct Made {
    /// DER.
    pub(super) crl: Vec<u8>,
    /// How many revoked certificates there was no room for.
    pub(super) left_out: usize,
}

/// A CRL of this number that is good until then.
pub(crate) fn encode(
    issuer: &Authority,
    revoked: BTreeMap<Vec<u8>, Revocation>,
    number: u64,
    now: SystemTime,
    until: SystemTime,
) -> Result<Vec<u8>, CrlError> {
    // As certificates are: of two clocks one is behind.
    let this_update = whole_seconds(now - BACKDATE);
    let revoked_certs = revoked.into_iter().map(|(serial, revocation)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial),
        revocation_time: whole_seconds(revocation.since).into(),
        reason_code: reason(revocation.reason),
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: this_update.into(),
        next_update: whole_seconds(until).into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: key_identifier(issuer.info()),
    };
    Ok(params.signed_by(issuer.issuer()).map_err(CrlError::Sign)?.der().to_vec())
}

/// The issuer's key as its own certificate identifies it: by that the CRL is found.
fn key_identifier(issuer: &AuthorityInfo) -> KeyIdMethod {
    let Ok((_, certificate)) = X509Certificate::from_der(&issuer.certificate) else { return KeyIdMethod::Sha256 };
    let own = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    own.map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified)
}

/// RFC 5280 §5.3.1: unspecified is said by silence.
fn reason(reason: RevocationReason) -> Option<rcgen::RevocationReason> {
    use rcgen::RevocationReason as Code;
    Some(match reason {
        RevocationReason::Unspecified => return None,
        RevocationReason::KeyCompromise => Code::KeyCompromise,
        RevocationReason::CaCompromise => Code::CaCompromise,
        RevocationReason::AffiliationChanged => Code::AffiliationChanged,
        RevocationReason::Superseded => Code::Superseded,
        RevocationReason::CessationOfOperation => Code::CessationOfOperation,
        RevocationReason::CertificateHold => Code::CertificateHold,
        RevocationReason::PrivilegeWithdrawn => Code::PrivilegeWithdrawn,
        RevocationReason::AaCompromise => Code::AaCompromise,
    })
}

/// The bytes of a serial number in hexadecimal, without leading zeros.
fn bytes_of(serial: &str) -> Vec<u8> {
    let digits = serial.trim_start_matches('0').as_bytes();
    let value = |digit: u8| (digit as char).to_digit(16).map_or(0, |value| value.min(15) as u8);
    digits.rchunks(2).rev().map(|pair| pair.iter().fold(0, |sum: u8, digit| (sum << 4) | value(*digit))).collect()
}

/// The bytes of an authority's serial number, without leading zeros.
pub(crate) fn serial_of(info: &AuthorityInfo) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(&info.certificate).ok()?;
    Some(certificate.raw_serial().iter().copied().skip_while(|byte| *byte == 0).collect())
}

/// Why there is no CRL.
#[derive(Debug, Error)]
pub enum CrlError {
    /// Its issuer's key is elsewhere, and nobody has brought one.
    #[error("the issuer's key is not here, and no CRL of it was brought")]
    Unknown(#[source] Box<HierarchyError>),
    /// Which intermediates are known is not known.
    #[error("the certificates of revoked intermediates cannot be looked for")]
    Intermediates(#[from] UnknownError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Neither the ledger nor the records can be asked.
    #[error("the certificates of an identity cannot be found out")]
    Certificates(#[from] RefreshError),
    /// It could not be signed: a plugged-in issuer may lack cRLSign.
    #[error("the CRL could not be signed")]
    Sign(#[source] rcgen::Error),
    /// The holder of its issuer's key does not answer.
    #[error("the CRL could not be signed")]
    Signer(#[source] SignError),
    /// The process is ending.
    #[error("interrupted")]
    Interrupted,
}

/// How long a CRL is good.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How many certificates one names on record: of 58 bytes at most each, they fit with a signature of any key into 40 KiB.
pub(super) const MOST: usize = 670;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_the_bytes_that_they_were() {
        for (text, bytes) in [("ff", vec![0xff]), ("0abc", vec![0xa, 0xbc]), ("00", vec![]), ("1234", vec![0x12, 0x34])]
        {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }
}
