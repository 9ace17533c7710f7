//! A CA certificate and the signer behind it; how roots and intermediates are made.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint, SpiffeId, TrustDomain, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    csr::KeyHash,
    issue::{BACKDATE, der::Template, whole_seconds},
    revocation::CrlUrl,
    serial::Serial,
    signer::{Signer, SigningHandle},
};

/// A certificate that may sign others, with the signer of its key.
pub struct Authority {
    info: AuthorityInfo,
    /// When what it signs can be verified: when it and everything above it is good.
    bounds: Validity,
    issuer: Issuer<'static, SigningHandle>,
    /// What all of its leaves have in common.
    leaf: Template,
    /// Where its CRL is, as what it signs says.
    crl: Option<String>,
}

/// What anybody may know of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityInfo {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
    /// When it is good.
    pub validity: Validity,
}

impl Authority {
    /// Joins a CA certificate and the signer of its key.
    ///
    /// # Errors
    /// When it is not a CA certificate, or the key is not its own.
    pub fn new(certificate: CertificateDer<'static>, signer: Arc<dyn Signer>) -> Result<Self, AuthorityError> {
        let info = AuthorityInfo::parse(certificate)?;
        let (_, parsed) = X509Certificate::from_der(&info.certificate).map_err(|_reason| AuthorityError::Malformed)?;
        let handle = SigningHandle(signer);
        if parsed.public_key().raw != handle.subject_public_key_info() {
            return Err(AuthorityError::OtherKey);
        }
        let issuer =
            Issuer::from_ca_cert_der(&info.certificate, handle).map_err(|_reason| AuthorityError::Malformed)?;
        let leaf = Template::new(&parsed, issuer.key().algorithm()).ok_or(AuthorityError::Algorithm)?;
        Ok(Self { bounds: info.validity, info, issuer, leaf, crl: None })
    }

    /// The same, where what it signs says that its CRL is found below `base`.
    #[must_use]
    pub fn published_at(self, base: Option<&CrlUrl>) -> Self {
        let Some(base) = base else { return self };
        let crl = base.of(self.info.fingerprint);
        Self { leaf: self.leaf.with_crl(&crl), crl: Some(crl), ..self }
    }

    /// Where its CRL is, as what it signs says.
    pub fn crl(&self) -> Option<&str> {
        self.crl.as_deref()
    }

    /// The same below certificates that are good at these times: nothing that it signs is good at others.
    pub(crate) fn below(mut self, above: impl IntoIterator<Item = Validity>) -> Self {
        for validity in above {
            let (from, to) = (self.bounds.not_before(), self.bounds.not_after());
            let both = Validity::new(from.max(validity.not_before()), to.min(validity.not_after()));
            self.bounds = both.unwrap_or(self.bounds);
        }
        self
    }

    /// When what it signs can be verified.
    pub(crate) fn bounds(&self) -> Validity {
        self.bounds
    }

    /// A new root of the trust domain, good for ten years from `now`, that may have intermediates and those no more.
    ///
    /// # Errors
    /// When the signer does not sign.
    pub fn root(
        trust_domain: &TrustDomain,
        signer: Arc<dyn Signer>,
        serial: Serial,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::root_for(trust_domain, signer, serial, now, ROOT_LIFE)
    }

    /// The same, good for another life.
    ///
    /// # Errors
    /// When the signer does not sign.
    pub fn root_for(
        trust_domain: &TrustDomain,
        signer: Arc<dyn Signer>,
        serial: Serial,
        now: SystemTime,
        life: Duration,
    ) -> Result<Self, AuthorityError> {
        let handle = SigningHandle(signer.clone());
        let mut params = params(1, &handle, serial, now, now + life)?;
        params.distinguished_name = name("root", &handle, [(DnType::OrganizationName, trust_domain.as_str())]);
        let certificate = params.self_signed(&handle).map_err(AuthorityError::Sign)?;
        Self::new(certificate.der().clone(), signer)
    }

    /// A new intermediate of `cluster`, good for a year but no longer than its root.
    ///
    /// # Errors
    /// When the root's signer does not sign.
    pub fn intermediate(
        root: &Self,
        trust_domain: &TrustDomain,
        cluster: &str,
        signer: Arc<dyn Signer>,
        serial: Serial,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let handle = SigningHandle(signer.clone());
        let life = INTERMEDIATE_LIFE;
        let certificate = Self::certify(root, trust_domain, cluster, &handle, serial, now, life)?;
        Self::new(certificate, signer)
    }

    /// The certificate of an intermediate whose key is elsewhere, good for `life` but no longer than its root.
    ///
    /// # Errors
    /// When the root's signer does not sign.
    pub fn certify(
        root: &Self,
        trust_domain: &TrustDomain,
        cluster: &str,
        key: &impl PublicKeyData,
        serial: Serial,
        now: SystemTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let end = (now + life).min(root.info.validity.not_after());
        let mut params = params(0, key, serial, now, end)?;
        let names = [(DnType::OrganizationName, trust_domain.as_str()), (DnType::OrganizationalUnitName, cluster)];
        params.distinguished_name = name("intermediate", key, names);
        // By this the verifier binds what it signs to its trust domain.
        let uri = trust_domain.to_uri().try_into().map_err(AuthorityError::Sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.use_authority_key_identifier_extension = true;
        let crl = root.crl().map(|url| CrlDistributionPoint { uris: vec![url.to_owned()] });
        params.crl_distribution_points = crl.into_iter().collect();
        let certificate = params.signed_by(key, &root.issuer).map_err(AuthorityError::Sign)?;
        Ok(certificate.der().clone())
    }

    /// What anybody may know of it.
    pub fn info(&self) -> &AuthorityInfo {
        &self.info
    }

    /// What all of its leaves have in common.
    pub(crate) fn leaf(&self) -> &Template {
        &self.leaf
    }

    pub(crate) fn signer(&self) -> &Arc<dyn Signer> {
        &self.issuer.key().0
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, SigningHandle> {
        &self.issuer
    }
}

impl AuthorityInfo {
    /// Reads a CA certificate.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(certificate: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        let (rest, parsed) = X509Certificate::from_der(&certificate).map_err(|_reason| AuthorityError::Malformed)?;
        let is_ca = parsed.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
        let signs = parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
        if !rest.is_empty() || !is_ca || !signs {
            return Err(AuthorityError::NotAnAuthority);
        }
        let at = |time: x509_parser::time::ASN1Time| {
            u64::try_from(time.timestamp())
                .ok()
                .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)))
        };
        let dates = parsed.validity();
        let validity = at(dates.not_before).zip(at(dates.not_after)).and_then(|(from, to)| Validity::new(from, to));
        let validity = validity.ok_or(AuthorityError::Malformed)?;
        Ok(Self { fingerprint: Fingerprint::of(&certificate), validity, certificate })
    }

    /// Its serial number, in lower-case hexadecimal.
    pub(crate) fn serial(&self) -> String {
        let Ok((_, parsed)) = X509Certificate::from_der(&self.certificate) else { return String::new() };
        parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether `other` signed this one.
    pub(crate) fn is_signed_by(&self, other: &Self) -> bool {
        let Ok((_, subject)) = X509Certificate::from_der(&self.certificate) else { return false };
        let Ok((_, issuer)) = X509Certificate::from_der(&other.certificate) else { return false };
        subject.issuer() == issuer.subject() && subject.verify_signature(Some(issuer.public_key())).is_ok()
    }

    /// Whether its subject names the cluster.
    pub(crate) fn is_for(&self, cluster: &str) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(&self.certificate) else { return false };
        let wanted: String = cluster.chars().take(NAME_LIMIT).collect();
        let mut units = parsed.subject().iter_organizational_unit();
        let found = units.next().and_then(|unit| unit.as_str().ok());
        found == Some(wanted.as_str()) && units.next().is_none()
    }

    /// The hash of its public key.
    pub(crate) fn key_hash(&self) -> Option<KeyHash> {
        let (_, parsed) = X509Certificate::from_der(&self.certificate).ok()?;
        Some(KeyHash::of(parsed.public_key().raw))
    }

    /// Whether it bears the URI of the trust domain and of nothing else.
    pub(crate) fn is_of(&self, trust_domain: &TrustDomain) -> bool {
        use x509_parser::extensions::GeneralName::URI;
        let Ok((_, parsed)) = X509Certificate::from_der(&self.certificate) else { return false };
        let names = parsed.subject_alternative_name().ok().flatten();
        names.is_some_and(|names| matches!(&*names.value.general_names, [URI(uri)] if *uri == trust_domain.to_uri()))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Why a certificate and a key are not an authority.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// Not an X.509 certificate.
    #[error("it is not an X.509 certificate that can be read")]
    Malformed,
    /// A certificate, but not of a CA.
    #[error("it is not the certificate of a certificate authority (CA:TRUE and keyCertSign)")]
    NotAnAuthority,
    /// Its key signs by an algorithm that leaves cannot be signed by here.
    #[error("its key signs by an algorithm that is not supported: use P-256, P-384, Ed25519, or RSA with SHA-2")]
    Algorithm,
    /// The key belongs to another certificate.
    #[error("the private key does not belong to it")]
    OtherKey,
    /// It could not be made.
    #[error("it could not be signed")]
    Sign(#[source] rcgen::Error),
}

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The life of an intermediate that the CA makes by itself.
pub(crate) const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The longest common, organisation or unit name (RFC 5280, appendix A.1).
const NAME_LIMIT: usize = 64;

fn params(
    path_len: u8,
    key: &impl PublicKeyData,
    serial: Serial,
    now: SystemTime,
    end: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial.to_bytes()));
    params.not_before = whole_seconds(now - BACKDATE).into();
    params.not_after = whole_seconds(end).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(key));
    Ok(params)
}

/// A name that differs for each key, so that two roots of a trust domain are never mistaken for each other.
fn name<'a>(
    kind: &str,
    key: &impl PublicKeyData,
    more: impl IntoIterator<Item = (DnType, &'a str)>,
) -> DistinguishedName {
    let id: String = key_id(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("Alcazar {kind} {id}"));
    for (kind, text) in more {
        name.push(kind, text.chars().take(NAME_LIMIT).collect::<String>());
    }
    name
}

/// RFC 7093 §2, method 1: the first 160 bits of the SHA-256 of the public key.
fn key_id(key: &impl PublicKeyData) -> Vec<u8> {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.der_bytes());
    digest.as_ref().iter().take(20).copied().collect()
}

/// Whether a cluster's name can stand in the SPIFFE IDs of its nodes.
pub(crate) fn is_cluster_name(trust_domain: &TrustDomain, cluster: &str) -> bool {
    SpiffeId::node(trust_domain, cluster, "n").is_ok()
}
