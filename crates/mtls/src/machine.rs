//! Certificates that an enterprise's own CA gave to its machines: who holds one, proved by a signature.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, rfc3339};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::provider;

/// The roots that an enterprise's machine certificates stand on. They vouch for machines alone, never for a peer of the mesh.
#[derive(Debug, Clone)]
pub struct MachineRoots(Vec<TrustAnchor<'static>>);

/// A machine that holds the key of a certificate under one of the roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Of its certificate.
    pub fingerprint: Fingerprint,
    /// The subject's common name; one, or it is not read.
    pub common_name: Option<String>,
    /// The DNS names among the alternative names.
    pub dns_names: Vec<String>,
    /// The URIs among the alternative names.
    pub uris: Vec<String>,
}

impl MachineRoots {
    /// Reads roots from PEM.
    ///
    /// # Errors
    /// When there is none, or one cannot be used.
    pub fn from_pem(pem: &[u8]) -> Result<Self, MachineRootsError> {
        let read = |root: Result<CertificateDer<'_>, _>| {
            let root = root.map_err(|_reason| MachineRootsError::Pem)?;
            Ok(anchor_from_trusted_cert(&root).map_err(MachineRootsError::Root)?.to_owned())
        };
        let roots = CertificateDer::pem_slice_iter(pem).map(read).collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() { Err(MachineRootsError::Empty) } else { Ok(Self(roots)) }
    }

    /// Tells which machine made `signature` over `message`: the certificate leads to one of these roots, is for client
    /// authentication and good at `now`, and its key made the signature.
    ///
    /// The chain is DER, leaf first; the root need not be in it. Any signature algorithm of the key's kind will do, SHA-1
    /// never.
    ///
    /// # Errors
    /// When a rule is broken; the first one.
    ///
    /// **Source**: RFC 5280 §6, §4.2.1.12.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        message: &[u8],
        signature: &[u8],
        now: SystemTime,
    ) -> Result<Machine, MachineError> {
        let (leaf, issuers) = chain.split_first().ok_or(MachineError::NoCertificate)?;
        // Building paths from many look-alike issuers is costly, and the caller is a stranger.
        if issuers.len() > MAX_ISSUERS || chain.iter().any(|certificate| certificate.len() > MAX_CERTIFICATE) {
            return Err(MachineError::LongChain);
        }
        let end_entity = EndEntityCert::try_from(leaf).map_err(MachineError::Certificate)?;
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let algorithms = provider::signatures().all;
        let path = end_entity.verify_for_usage(
            algorithms,
            &self.0,
            issuers,
            UnixTime::since_unix_epoch(seconds),
            KeyUsage::required(CLIENT_AUTHENTICATION),
            None,
            None,
        );
        path.map_err(|source| MachineError::Path { now: rfc3339(now), source })?;
        if !has_signed(leaf, message, signature) {
            return Err(MachineError::Signature);
        }
        Ok(Machine {
            fingerprint: Fingerprint::of(leaf),
            common_name: common_name(leaf),
            dns_names: end_entity.valid_dns_names().map(str::to_owned).collect(),
            uris: end_entity.valid_uri_names().map(str::to_owned).collect(),
        })
    }
}

/// Whether the key of this certificate (DER) made `signature` over `message`: by any algorithm of the key's kind, never with
/// SHA-1. Nothing else is said of the certificate.
pub fn has_signed(certificate: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
    let good = |algorithm| certificate.verify_signature(algorithm, message, signature).is_ok();
    provider::signatures().all.iter().any(|algorithm| good(*algorithm))
}

fn common_name(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok().map(str::to_owned),
        _ => None,
    }
}

/// Why roots of machine certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MachineRootsError {
    /// Not PEM.
    #[error("the PEM cannot be read")]
    Pem,
    /// No certificate.
    #[error("the PEM holds no certificate")]
    Empty,
    /// Not a certificate that can be a root.
    #[error("a certificate cannot be used as a root")]
    Root(#[source] webpki::Error),
}

/// Why nobody is believed to be a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The chain is empty.
    #[error("there is no certificate")]
    NoCertificate,
    /// More, or larger, certificates than an honest chain has.
    #[error("the chain is longer than any honest one")]
    LongChain,
    /// The leaf cannot be read.
    #[error("the certificate cannot be read")]
    Certificate(#[source] webpki::Error),
    /// No path to a root, out of date, or not for client authentication.
    #[error(
        "the certificate leads to none of the configured roots, or is not for client authentication, or is out of date (the clock here says {now})"
    )]
    Path {
        /// The clock.
        now: String,
        /// What webpki says.
        source: webpki::Error,
    },
    /// The caller does not hold the key, or signed something else.
    #[error("the signature is not of the certificate's key over this request")]
    Signature,
}

const MAX_ISSUERS: usize = 6;
const MAX_CERTIFICATE: usize = 16 * 1024;
/// id-kp-clientAuth.
const CLIENT_AUTHENTICATION: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
