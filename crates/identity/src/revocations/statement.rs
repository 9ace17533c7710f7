//! Statements that an authority of a trust domain signed, beside certificates.

use std::time::SystemTime;

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
    let path = path(signer, others, bundle, now)?;
    match path.as_slice() {
        [] => Ok(Signatory::Root(Fingerprint::of(signer))),
        _ => Ok(Signatory::Intermediate { path, cluster: cluster(&certificate, bundle.trust_domain()) }),
    }
}

/// The certificates from the signer to below its root; none when it is one.
fn path(
    signer: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<Vec<Fingerprint>, StatementError> {
    let (mut path, mut der) = (Vec::new(), signer);
    loop {
        let certificate = parse(der)?;
        check_dates(der, &certificate, now)?;
        if bundle.roots().any(|root| root == der) {
            return Ok(path);
        }
        check_authority(der, &certificate, bundle.trust_domain())?;
        path.push(Fingerprint::of(der));
        if path.len() > MAX_PATH {
            return Err(StatementError::LongChain);
        }
        let roots = bundle.roots().map(|root| root as &CertificateDer<'_>);
        let above = roots.chain(others).find(|above| is_issued_by(&certificate, above, path.len()));
        der = above.ok_or_else(|| StatementError::NoPath {
            signer: Fingerprint::of(signer),
            trust_domain: bundle.trust_domain().clone(),
        })?;
    }
}

/// Whether `above` signed the certificate, and may have this many authorities below it.
fn is_issued_by(certificate: &X509Certificate<'_>, above: &CertificateDer<'_>, below: usize) -> bool {
    let Ok(issuer) = parse(above) else { return false };
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
        && certificate.issuer() == issuer.subject()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

fn check_dates(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    now: SystemTime,
) -> Result<(), StatementError> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok());
    let dates = certificate.validity();
    let good = |now| dates.not_before.timestamp() <= now && now <= dates.not_after.timestamp();
    match seconds.is_some_and(good) {
        true => Ok(()),
        false => Err(StatementError::NotGood { authority: Fingerprint::of(der), now }),
    }
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
    /// Expired, or not good yet.
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
