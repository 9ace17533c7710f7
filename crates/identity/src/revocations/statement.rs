//! Statements that an authority of a trust domain signed, beside certificates.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::{Fingerprint, SpiffeId, TrustBundle, TrustDomain, rfc3339};

/// Who signed a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signatory {
    /// A root of the trust domain.
    Root(Fingerprint),
    /// An intermediate under one of them.
    Intermediate {
        /// The SHA-256 of each certificate up to the root, the signer's first.
        path: Vec<Fingerprint>,
        /// The cluster that the signer's certificate states: its organisational unit, where its organisation is the trust
        /// domain. Certificates that others made state none.
        cluster: Option<String>,
        /// Until when it is one: the first end of a certificate between it and its root, both included.
        good_until: SystemTime,
    },
}

/// Tells which authority of a trust domain signed a message, or why none did.
///
/// What was signed is the `context` followed by the message: a signature made for one purpose is none for another, and
/// the context of a statement never begins as a certificate does. `chain` begins with the signer's certificate; those
/// above it follow in any order, the root may be left out.
///
/// # Errors
/// When the signature is not the signer's, or no path leads from the signer to a root at `now`.
pub fn verify_statement(
    context: &[u8],
    message: &[u8],
    signed: &[u8],
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<Signatory, StatementError> {
    let (signer, others) = chain.split_first().ok_or(StatementError::NoSigner)?;
    if others.len() > MAX_PATH {
        return Err(StatementError::LongChain);
    }
    let certificate = parse(signer)?;
    check_signature(certificate.public_key(), &[context, message].concat(), signed)?;
    let mut path = Vec::new();
    let search = Search { signer, others, bundle, now, looks: Cell::new(MAX_LOOKS) };
    // A root may show another certificate of its own, older or newer than the one that is trusted.
    if search.is_root(&certificate) {
        return Ok(Signatory::Root(Fingerprint::of(signer)));
    }
    let good_until = search.climb(signer, &mut path)?;
    Ok(Signatory::Intermediate { path, cluster: cluster(&certificate, bundle.trust_domain()), good_until })
}

/// The way from a signer up to a root.
struct Search<'a> {
    signer: &'a CertificateDer<'a>,
    others: &'a [CertificateDer<'a>],
    bundle: &'a TrustBundle,
    now: SystemTime,
    /// How many signatures may still be checked: certificates that sign each other make a maze.
    looks: Cell<usize>,
}

impl<'a> Search<'a> {
    /// Whether it has the name and the key of a trusted root that is good now.
    fn is_root(&self, certificate: &X509Certificate<'_>) -> bool {
        self.bundle.roots().any(|root| {
            parse(root).is_ok_and(|parsed| {
                parsed.subject() == certificate.subject()
                    && parsed.public_key().raw == certificate.public_key().raw
                    && check_dates(root, &parsed, self.now).is_ok()
            })
        })
    }

    /// Puts the certificates from this one to below its root on the path; until when all of them, and the root, are good.
    fn climb(&self, der: &CertificateDer<'_>, path: &mut Vec<Fingerprint>) -> Result<SystemTime, StatementError> {
        let certificate = parse(der)?;
        let end = check_dates(der, &certificate, self.now)?;
        if self.bundle.roots().any(|root| root == der) {
            return Ok(end);
        }
        check_authority(der, &certificate, self.bundle.trust_domain())?;
        if path.len() == MAX_PATH {
            return Err(StatementError::LongChain);
        }
        path.push(Fingerprint::of(der));
        let mut failure = StatementError::NoPath {
            signer: Fingerprint::of(self.signer),
            trust_domain: self.bundle.trust_domain().clone(),
        };
        let roots = self.bundle.roots().map(|root| root as &CertificateDer<'_>);
        for above in roots.chain(self.others) {
            if path.contains(&Fingerprint::of(above)) || !self.is_issued_by(&certificate, above, path.len())? {
                continue;
            }
            match self.climb(above, path) {
                Ok(above) => return Ok(end.min(above)),
                Err(StatementError::LongChain) => return Err(StatementError::LongChain),
                Err(error) => failure = error,
            }
        }
        path.pop();
        Err(failure)
    }

    /// Whether `above` signed the certificate, and may have this many authorities below it.
    fn is_issued_by(
        &self,
        certificate: &X509Certificate<'_>,
        above: &CertificateDer<'_>,
        below: usize,
    ) -> Result<bool, StatementError> {
        let Ok(issuer) = parse(above) else { return Ok(false) };
        if certificate.issuer() != issuer.subject() || !may_issue(&issuer, below) {
            return Ok(false);
        }
        self.looks.set(self.looks.get().checked_sub(1).ok_or(StatementError::LongChain)?);
        Ok(certificate.verify_signature(Some(issuer.public_key())).is_ok())
    }
}

/// Whether an authority may have this many others below it.
fn may_issue(issuer: &X509Certificate<'_>, below: usize) -> bool {
    let room = match issuer.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => constraints
            .value
            .path_len_constraint
            .is_none_or(|longest| usize::try_from(longest).is_ok_and(|n| below <= n)),
        _ => false,
    };
    let signs = match issuer.key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Err(_) => false,
    };
    room && signs
}

/// Until when it is good.
fn check_dates(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    now: SystemTime,
) -> Result<SystemTime, StatementError> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok());
    let dates = certificate.validity();
    let good = |now: &i64| dates.not_before.timestamp() <= *now && *now <= dates.not_after.timestamp();
    let not_after = u64::try_from(dates.not_after.timestamp()).ok();
    let not_after = not_after.and_then(|end| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end)));
    let not_after = not_after.filter(|_| seconds.as_ref().is_some_and(good));
    let is_early = seconds.is_some_and(|now| now < dates.not_before.timestamp());
    let authority = || Fingerprint::of(der);
    not_after.ok_or_else(|| match is_early {
        true => StatementError::NotYetGood { authority: authority(), now },
        false => StatementError::NotGood { authority: authority(), now },
    })
}

/// An intermediate signs certificates, and names no other trust domain.
fn check_authority(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), StatementError> {
    let fault =
        || StatementError::NotAnAuthority { authority: Fingerprint::of(der), trust_domain: trust_domain.clone() };
    let ca = certificate.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
    // Who may issue certificates may take them back: many plugged-in intermediates lack cRLSign.
    let signs = certificate.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
    let names = certificate.subject_alternative_name().map_err(|_| fault())?;
    let names = names.as_ref().map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let ours = names.iter().all(|name| match name {
        GeneralName::URI(uri) => uri.parse::<SpiffeId>().is_ok_and(|id| id.trust_domain() == trust_domain),
        GeneralName::Invalid(..) => false,
        _ => true,
    });
    if ca && signs && ours { Ok(()) } else { Err(fault()) }
}

fn check_signature(key: &SubjectPublicKeyInfo<'_>, message: &[u8], signed: &[u8]) -> Result<(), StatementError> {
    let algorithm = algorithm(key).ok_or(StatementError::Algorithm)?;
    let key = UnparsedPublicKey::new(algorithm, &key.subject_public_key.data);
    key.verify(message, signed).map_err(|_| StatementError::Signature)
}

/// The one algorithm that a key of its kind signs statements with.
fn algorithm(key: &SubjectPublicKeyInfo<'_>) -> Option<&'static dyn VerificationAlgorithm> {
    let kind = &key.algorithm.algorithm;
    if *kind == OID_SIG_ED25519 {
        return Some(&signature::ED25519);
    }
    if *kind == OID_PKCS1_RSAENCRYPTION {
        return Some(&signature::RSA_PKCS1_2048_8192_SHA256);
    }
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    match () {
        () if *kind != OID_KEY_TYPE_EC_PUBLIC_KEY => None,
        () if curve == OID_EC_P256 => Some(&signature::ECDSA_P256_SHA256_ASN1),
        () if curve == OID_NIST_EC_P384 => Some(&signature::ECDSA_P384_SHA384_ASN1),
        () => None,
    }
}

/// The cluster that an intermediate states: its organisational unit, where its organisation is the trust domain. Certificates
/// that others made state none.
pub fn stated_cluster(intermediate: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Option<String> {
    cluster(&parse(intermediate).ok()?, trust_domain)
}

/// Whether an intermediate that states this cluster is one of that cluster. A certificate's field is short, so a long name
/// is cut there; one that states none is whoever's its root says.
pub fn is_of_cluster(stated: Option<&str>, cluster: &str) -> bool {
    stated.is_none_or(|stated| cluster.chars().take(NAME_LIMIT).eq(stated.chars()))
}

fn cluster(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Option<String> {
    let organization = certificate.subject().iter_organization().next()?.as_str().ok()?;
    // A certificate's field is short: a long name is cut there.
    if !trust_domain.as_str().chars().take(NAME_LIMIT).eq(organization.chars()) {
        return None;
    }
    certificate.subject().iter_organizational_unit().next()?.as_str().ok().map(str::to_owned)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, StatementError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(StatementError::NotACertificate(Fingerprint::of(der))),
    }
}

/// Why nobody signed a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// No certificate came with it.
    #[error("the statement comes without its signer's certificate")]
    NoSigner,
    /// More certificates than any path has.
    #[error("more certificates came with the statement than any path needs")]
    LongChain,
    /// Not an X.509 certificate.
    #[error("what has the SHA-256 {0} is not an X.509 certificate")]
    NotACertificate(Fingerprint),
    /// A kind of key that signs nothing here.
    #[error("the signer's key is none of P-256, P-384, Ed25519 and RSA")]
    Algorithm,
    /// The signature is another's, or over something else.
    #[error("the signature over the statement is not its signer's")]
    Signature,
    /// Its time has not begun: it was made a moment ago, or our clock is behind.
    #[error("the authority with the SHA-256 {authority} is not good yet at {}, by our clock", rfc3339(*now))]
    NotYetGood {
        /// Which.
        authority: Fingerprint,
        /// Our clock.
        now: SystemTime,
    },
    /// Expired.
    #[error("the authority with the SHA-256 {authority} is not good at {}, by our clock", rfc3339(*now))]
    NotGood {
        /// Which.
        authority: Fingerprint,
        /// Our clock.
        now: SystemTime,
    },
    /// A leaf, or a CA of another trust domain.
    #[error("what has the SHA-256 {authority} is not a certificate authority of {trust_domain}")]
    NotAnAuthority {
        /// Which.
        authority: Fingerprint,
        /// The trust domain that the statement is about.
        trust_domain: TrustDomain,
    },
    /// No root that we trust is above the signer.
    #[error("the signer with the SHA-256 {signer} leads to no root that we trust for {trust_domain}")]
    NoPath {
        /// The signer.
        signer: Fingerprint,
        /// The trust domain.
        trust_domain: TrustDomain,
    },
}

/// RFC 5280, appendix A.1.
const NAME_LIMIT: usize = 64;
/// As many certificates as a path can have below its root.
const MAX_PATH: usize = 6;
/// Twice as many signatures as the longest path has, and some for roots that share a name.
const MAX_LOOKS: usize = 32;
