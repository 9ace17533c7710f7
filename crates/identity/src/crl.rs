//! CRLs of RFC 5280, checked before anybody goes by them.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::{Fingerprint, StatementError, TrustBundle, rfc3339, verify_statement};

/// A CRL that its issuer signed, an authority of a trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crl {
    der: Vec<u8>,
    issuer: Fingerprint,
    good_until: SystemTime,
}

impl Crl {
    /// As it was signed, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whose it is: the SHA-256 of the issuer's certificate.
    pub fn issuer(&self) -> Fingerprint {
        self.issuer
    }

    /// Its nextUpdate: whoever checks certificates by it refuses all of them from then on.
    pub fn good_until(&self) -> SystemTime {
        self.good_until
    }
}

/// Checks a CRL: that it is good now, and signed by the first certificate of `chain`, which leads to a root of `bundle` and may
/// sign CRLs.
///
/// # Errors
/// When it is not.
pub fn verify_crl(
    der: &[u8],
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<Crl, CrlError> {
    let Ok(([], list)) = CertificateRevocationList::from_der(der) else { return Err(CrlError::Malformed) };
    let signer = chain.first().ok_or(CrlError::Issuer(StatementError::NoSigner))?;
    let issuer = Fingerprint::of(signer);
    // The context is empty: a CRL is signed as everybody's.
    let signature = &list.signature_value.data;
    verify_statement(b"", list.tbs_cert_list.as_ref(), signature, chain, bundle, now).map_err(CrlError::Issuer)?;
    let Ok((_, certificate)) = X509Certificate::from_der(signer) else { return Err(CrlError::Malformed) };
    if list.issuer() != certificate.subject() {
        return Err(CrlError::Name { issuer });
    }
    // Verifiers refuse everybody under an authority whose CRL they have and may not use.
    let may_sign = certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()));
    if !may_sign {
        return Err(CrlError::KeyUsage { issuer });
    }
    let good_until = list.next_update().and_then(time).ok_or(CrlError::Endless { issuer })?;
    match time(list.last_update()) {
        Some(made) if made <= now && now < good_until => Ok(Crl { der: der.to_vec(), issuer, good_until }),
        _ => Err(CrlError::NotGood { issuer, good_until, now }),
    }
}

fn time(at: ASN1Time) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(at.timestamp()).ok()?))
}

/// Why nobody goes by a CRL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Not a CRL.
    #[error("what was given as a CRL is none")]
    Malformed,
    /// No authority that is trusted signed it.
    #[error("the CRL is not signed by an authority that is trusted here")]
    Issuer(#[source] StatementError),
    /// It names somebody else.
    #[error("the CRL names another issuer than the authority with the SHA-256 {issuer}, which signed it")]
    Name {
        /// Who signed it.
        issuer: Fingerprint,
    },
    /// Its issuer signs certificates alone.
    #[error("the authority with the SHA-256 {issuer} may not sign CRLs: its key usage lacks cRLSign")]
    KeyUsage {
        /// Who signed it.
        issuer: Fingerprint,
    },
    /// It does not say until when it is good.
    #[error("the CRL of the authority with the SHA-256 {issuer} has no nextUpdate")]
    Endless {
        /// Who signed it.
        issuer: Fingerprint,
    },
    /// Too old, or of the future.
    #[error(
        "the CRL of the authority with the SHA-256 {issuer}, good until {}, is not good at {}, by our clock",
        rfc3339(*good_until), rfc3339(*now)
    )]
    NotGood {
        /// Who signed it.
        issuer: Fingerprint,
        /// Its nextUpdate.
        good_until: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
}

impl CrlError {
    /// Whether it is of an authority whose certificates nobody takes here now: it can be left out, and nobody is refused for want
    /// of it who would be taken with it.
    pub fn is_of_nobody(&self) -> bool {
        matches!(self, Self::Issuer(StatementError::NoPath { .. } | StatementError::NotGood { .. }))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber,
    };

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second)
    }

    fn params(name: &str, usages: &[KeyUsagePurpose]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        (params.not_before, params.not_after) = (at(0).into(), at(1_000).into());
        params
    }

    fn root() -> Authority {
        Authority::self_signed(params("root", BOTH), KeyPair::generate().unwrap()).unwrap()
    }

    fn below(root: &Authority, usages: &[KeyUsagePurpose]) -> Authority {
        Authority::signed_by(params("intermediate", usages), KeyPair::generate().unwrap(), root).unwrap()
    }

    fn crl(issuer: &Authority, from: u64, until: u64) -> Vec<u8> {
        let params = CertificateRevocationListParams {
            this_update: at(from).into(),
            next_update: at(until).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(issuer).unwrap().der().to_vec()
    }

    const BOTH: &[KeyUsagePurpose] = &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

    #[test]
    fn a_crl_counts_that_its_issuer_signed_for_now() {
        let (root, stranger) = (root(), root());
        let bundle = TrustBundle::new("td".parse().unwrap(), 1, [root.der().clone()]).unwrap();
        let (one, other) = (below(&root, BOTH), below(&root, BOTH));
        let check = |der: &[u8], chain: &Authority, second| {
            verify_crl(der, &[chain.der().clone()], &bundle, at(second)).map(|crl| crl.good_until())
        };
        let good = crl(&one, 10, 20);
        assert_eq!(check(&good, &one, 10), Ok(at(20)));
        assert_eq!(check(&good, &one, 19), Ok(at(20)));
        for second in [9, 20, 21] {
            let error = check(&good, &one, second).unwrap_err();
            assert!(matches!(error, CrlError::NotGood { .. }) && !error.is_of_nobody(), "{second}: {error}");
        }
        // Of the same name, by another key.
        let error = check(&good, &other, 10).unwrap_err();
        assert!(error == CrlError::Issuer(StatementError::Signature) && !error.is_of_nobody(), "{error}");
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(check(&damaged, &one, 10), Err(CrlError::Issuer(StatementError::Signature)));
        for none in [&b""[..], b"\x30\x00", &[good.as_slice(), b"\0"].concat(), one.der()] {
            assert_eq!(check(none, &one, 10), Err(CrlError::Malformed));
        }
        // Nobody takes their certificates, so nobody needs their CRLs.
        let theirs = below(&stranger, BOTH);
        assert!(check(&crl(&theirs, 10, 20), &theirs, 10).unwrap_err().is_of_nobody());
        let ended = check(&crl(&one, 10, 5_000), &one, 2_000).unwrap_err();
        assert!(ended.is_of_nobody(), "{ended}");
        // It will certify somebody in a moment.
        let early = verify_crl(&good, &[one.der().clone()], &bundle, at(0) - Duration::from_secs(1)).unwrap_err();
        assert!(!early.is_of_nobody(), "{early}");
        assert!(matches!(verify_crl(&good, &[], &bundle, at(10)), Err(CrlError::Issuer(StatementError::NoSigner))));
    }

    #[test]
    fn an_authority_that_may_not_sign_crls_has_none() {
        let root = root();
        let bundle = TrustBundle::new("td".parse().unwrap(), 1, [root.der().clone()]).unwrap();
        // The same key and name, with the permission and without.
        let key = KeyPair::generate().unwrap();
        let with =
            Authority::signed_by(params("intermediate", BOTH), KeyPair::from_pem(&key.serialize_pem()).unwrap(), &root)
                .unwrap();
        let without = Authority::signed_by(params("intermediate", &BOTH[..1]), key, &root).unwrap();
        let der = crl(&with, 10, 20);
        assert!(verify_crl(&der, &[with.der().clone()], &bundle, at(10)).is_ok());
        let error = verify_crl(&der, &[without.der().clone()], &bundle, at(10)).unwrap_err();
        assert!(matches!(error, CrlError::KeyUsage { .. }) && !error.is_of_nobody(), "{error}");
    }
}
