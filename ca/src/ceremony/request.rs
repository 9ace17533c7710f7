//! What a CA asks for: an intermediate for its cluster, by a key that it keeps.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use alcazar_identity::TrustDomain;
use alcazar_service::files::private_directory;
use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::CeremonyError;
use crate::{
    config::Config,
    csr::{Csr, KeyHash, KeyKind},
    hierarchy::{Folder, Sort},
    keys::{KeyLabel, KeyStore},
    signer::{Signer, SigningHandle},
};

/// A request that was made, or made before and not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// Where it lies.
    pub file: PathBuf,
    /// Itself.
    pub pem: String,
    /// The hash of its public key, for people to compare.
    pub key_hash: KeyHash,
}

/// Makes a request for the intermediate of the configured cluster. The key is made and kept here. While no certificate for it has come,
/// the same request is given again; a key that has had one is never asked for a second time. Blocks.
///
/// # Errors
/// When the key store or the disk does not take it.
pub fn request(config: &Config, keys: &Arc<dyn KeyStore>) -> Result<Requested, CeremonyError> {
    private_directory(&config.data_dir).map_err(CeremonyError::io("create", &config.data_dir))?;
    let folder = Folder::new(config.data_dir.join("hierarchy"));
    folder.make()?;
    // Beside a running CA, and beside another one of these.
    let _locked = folder.lock()?;
    let installed = installed(config);
    for (label, key_hash) in folder.requests()? {
        if Some(key_hash) == installed {
            folder.answer(&label)?;
        }
    }
    if let Some((label, key_hash)) = folder.newest_request()?.filter(|(label, _)| !folder.is_answered(label)) {
        let file = folder.request(&label);
        let pem = fs::read_to_string(&file).map_err(CeremonyError::io("read", &file))?;
        return Ok(Requested { file, pem, key_hash });
    }
    let label = KeyLabel::random(Sort::Intermediate.as_str())?;
    // A crash before the request is there leaves the note, and the next start removes the key.
    folder.begin(&label)?;
    let signer = keys.generate(&label)?;
    let pem = certificate_request(&config.trust_domain, &config.cluster, signer)
        .and_then(|request| request.pem())
        .map_err(CeremonyError::MakeRequest)?;
    folder.write_request(&label, &pem)?;
    folder.finish(&label)?;
    let file = folder.request(&label);
    let key_hash =
        Csr::from_pem(&pem).map_err(|source| CeremonyError::Request { file: file.clone(), source })?.key_hash();
    Ok(Requested { file, pem, key_hash })
}

/// The key of the certificate that is in place: the next request is by another one.
fn installed(config: &Config) -> Option<KeyHash> {
    let configured = config.cacerts.as_ref().and_then(|cacerts| cacerts.dir.clone());
    let folder = configured.unwrap_or_else(|| config.data_dir.join(crate::hierarchy::INSTALLED));
    let read = |name: &str| fs::read(folder.join(name)).ok();
    let text = read("ca-cert.pem").or_else(|| read("tls.crt")).unwrap_or_default();
    let certificate = alcazar_identity::CertificateDer::from_pem_slice(&text).ok()?;
    KeyHash::of_certificate(&certificate)
}

/// A request for an intermediate of a cluster.
pub(crate) fn certificate_request(
    trust_domain: &TrustDomain,
    cluster: &str,
    signer: Arc<dyn Signer>,
) -> Result<rcgen::CertificateSigningRequest, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Alcazar intermediate");
    let uri = |text: String| text.as_str().try_into().map(SanType::URI);
    // The name of the cluster as that of a node that nobody has: it is the one place that a certificate's owner reads it from.
    params.subject_alt_names =
        vec![uri(trust_domain.to_uri())?, uri(format!("{}{CLUSTER}{cluster}", trust_domain.to_uri()))?];
    params.serialize_request(&SigningHandle(signer))
}

const CLUSTER: &str = "/cluster/";

/// A request, read where the root is kept. Its sender holds the key; what it asks for is for a person to judge.
#[derive(Clone, Debug)]
pub struct IntermediateRequest {
    /// The trust domain that it names.
    pub trust_domain: TrustDomain,
    /// The cluster that it names.
    pub cluster: String,
    /// The hash of its public key.
    pub key_hash: KeyHash,
    pub(super) spki: Vec<u8>,
    pub(super) der: Vec<u8>,
}

impl IntermediateRequest {
    /// Reads a request in PEM.
    ///
    /// # Errors
    /// When it is none, its signature is wrong, its key is not of a kind for intermediates, or it does not say for whom it asks.
    pub fn parse(file: &Path, text: &str) -> Result<Self, CeremonyError> {
        let wrong = |source| CeremonyError::Request { file: file.into(), source };
        let csr = Csr::from_pem(text).map_err(wrong)?;
        match csr.kind() {
            KeyKind::P256 | KeyKind::P384 => {}
            other => return Err(CeremonyError::Key(format!("{other:?}"))),
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|_reason| wrong(crate::csr::CsrError::NotPem))?;
        let nameless = || CeremonyError::Nameless { file: file.into() };
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|_reason| nameless())?;
        let mut uris = Vec::new();
        for extension in parsed.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                let found = names.general_names.iter();
                uris.extend(found.filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None }));
            }
        }
        let [domain, cluster] = uris.as_slice() else { return Err(nameless()) };
        let cluster = cluster.strip_prefix(domain).and_then(|rest| rest.strip_prefix(CLUSTER)).ok_or_else(nameless)?;
        let trust_domain: TrustDomain =
            domain.strip_prefix("spiffe://").and_then(|name| name.parse().ok()).ok_or_else(nameless)?;
        if !crate::authority::is_cluster_name(&trust_domain, cluster) {
            return Err(nameless());
        }
        let spki = parsed.certification_request_info.subject_pki.raw.to_vec();
        Ok(Self { trust_domain, cluster: cluster.into(), key_hash: csr.key_hash(), spki, der: der.to_vec() })
    }
}
