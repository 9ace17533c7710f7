//! Our own rules for the issuers on a path, because webpki leaves them open.

use std::time::SystemTime;

use alcazar_identity::{CertificateDer, Fingerprint, Revocations, SpiffeId, TrustDomain};
use webpki::VerifiedPath;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::presented::validity_of;
use super::{IssuerFault, Link, Presented, VerifyPeerError, error};

/// Holds the issuers of a path, and the root that it ends at, against our rules.
pub(super) fn check(
    leaf: &CertificateDer<'_>,
    path: &VerifiedPath<'_>,
    root: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), VerifyPeerError> {
    for intermediate in path.intermediate_certificates() {
        let der = intermediate.der();
        intermediate_fault(&der, trust_domain).map_err(|fault| issuer_error(leaf, &der, fault))?;
    }
    let certificate = parse(root).ok_or(IssuerFault::Unreadable).map_err(|fault| issuer_error(leaf, root, fault))?;
    match validity_of(&certificate) {
        Some(validity) => error::check_dates(leaf, Link::Root, root, validity, now)?,
        None => return Err(issuer_error(leaf, root, IssuerFault::Unreadable)),
    }
    // A root may leave its key usage out, as many that others made do; what it states must include signing.
    match key_cert_sign(&certificate) {
        None | Some(true) => Ok(()),
        Some(false) => Err(issuer_error(leaf, root, IssuerFault::NoKeyCertSign)),
    }
}

/// Holds the intermediates of a path against the revocations: another path, through others, may still be good.
pub(super) fn check_revoked(
    leaf: &CertificateDer<'_>,
    path: &VerifiedPath<'_>,
    trust_domain: &TrustDomain,
    revocations: &Revocations,
) -> Result<(), VerifyPeerError> {
    if revocations.is_empty() {
        return Ok(());
    }
    let mut prints = path.intermediate_certificates().map(|issuer| Fingerprint::of(&issuer.der()));
    match prints.find_map(|print| revocations.of_intermediate(trust_domain, print)) {
        None => Ok(()),
        Some(revoked) => Err(VerifyPeerError::Revoked { peer: Presented::boxed(leaf), revoked: Box::new(revoked) }),
    }
}

fn intermediate_fault(der: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<(), IssuerFault> {
    let certificate = parse(der).ok_or(IssuerFault::Unreadable)?;
    if key_cert_sign(&certificate) != Some(true) {
        return Err(IssuerFault::NoKeyCertSign);
    }
    let Some(names) = certificate.subject_alternative_name().map_err(|_| IssuerFault::Unreadable)? else {
        return Ok(());
    };
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) if !is_of(uri, trust_domain) => {
                return Err(IssuerFault::OtherTrustDomain(trust_domain.clone()));
            }
            // It may be a URI all the same.
            GeneralName::Invalid(..) => return Err(IssuerFault::Unreadable),
            _ => {}
        }
    }
    Ok(())
}

fn is_of(uri: &str, trust_domain: &TrustDomain) -> bool {
    uri.parse::<SpiffeId>().is_ok_and(|id| id.trust_domain() == trust_domain)
}

/// Whether a certificate may sign others; `None` when it states no key usage.
fn key_cert_sign(certificate: &X509Certificate<'_>) -> Option<bool> {
    match certificate.key_usage() {
        Ok(None) => None,
        Ok(Some(usage)) => Some(usage.value.key_cert_sign()),
        Err(_) => Some(false),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

fn issuer_error(leaf: &CertificateDer<'_>, issuer: &CertificateDer<'_>, fault: IssuerFault) -> VerifyPeerError {
    VerifyPeerError::Issuer { peer: Presented::boxed(leaf), issuer: Presented::boxed(issuer), fault }
}
