use alcazar_identity::{BundleError, ParseSvidError, TrustBundle, TrustDomain, X509Svid};

use crate::ca::v1;
use crate::envoy::core::DataSource;
use crate::envoy::core::data_source::Specifier;
use crate::envoy::tls::secret::Type;
use crate::envoy::tls::{CertificateValidationContext, GenericSecret, Secret, TlsCertificate};
use crate::revocations::read_evidence;

/// An SVID as the secret that Envoy and our proxies take: PEM chain and PEM key, inline.
pub fn svid_secret(name: &str, svid: &X509Svid) -> Secret {
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(svid.chain_pem().into_bytes())),
        private_key: Some(inline(svid.key().to_pem().as_bytes().to_vec())),
        ..TlsCertificate::default()
    };
    Secret { name: name.to_owned(), r#type: Some(Type::TlsCertificate(certificate)) }
}

/// A trust bundle as the secret that Envoy and our proxies take: the roots as PEM, inline.
pub fn bundle_secret(name: &str, bundle: &TrustBundle) -> Secret {
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(bundle.to_pem().into_bytes())),
        ..CertificateValidationContext::default()
    };
    Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) }
}

/// Signed lists of revocations as a secret, as they are.
pub fn revocations_secret(name: &str, evidence: &[u8]) -> Secret {
    let generic = GenericSecret { secret: Some(inline(evidence.to_vec())), ..GenericSecret::default() };
    Secret { name: name.to_owned(), r#type: Some(Type::GenericSecret(generic)) }
}

/// The signed lists in a secret, unchecked.
///
/// # Errors
/// When the secret is of another kind, its bytes are not inline, or they are not the message.
pub fn revocations_from_secret(secret: &Secret) -> Result<v1::SignedRevocations, SecretError> {
    let Some(Type::GenericSecret(generic)) = &secret.r#type else {
        return Err(SecretError::NotRevocations(secret.name.clone()));
    };
    let evidence = inlined(generic.secret.as_ref(), &secret.name)?;
    read_evidence(evidence).map_err(|_| SecretError::NotRevocations(secret.name.clone()))
}

/// The SVID in a secret.
///
/// # Errors
/// When the secret is of another kind, its parts are not inline, or they are not an SVID.
pub fn svid_from_secret(secret: &Secret) -> Result<X509Svid, SecretError> {
    let Some(Type::TlsCertificate(certificate)) = &secret.r#type else {
        return Err(SecretError::NotACertificate(secret.name.clone()));
    };
    let chain = inlined(certificate.certificate_chain.as_ref(), &secret.name)?;
    let key = inlined(certificate.private_key.as_ref(), &secret.name)?;
    X509Svid::from_pem(chain, key).map_err(|source| SecretError::Svid { name: secret.name.clone(), source })
}

/// The trust bundle in a secret. SDS carries neither trust domain nor sequence, so the caller says them.
///
/// # Errors
/// When the secret is of another kind, its roots are not inline, or they are not roots.
pub fn bundle_from_secret(
    secret: &Secret,
    trust_domain: TrustDomain,
    sequence: u64,
) -> Result<TrustBundle, SecretError> {
    let Some(Type::ValidationContext(context)) = &secret.r#type else {
        return Err(SecretError::NotABundle(secret.name.clone()));
    };
    let pem = inlined(context.trusted_ca.as_ref(), &secret.name)?;
    TrustBundle::from_pem(trust_domain, sequence, pem)
        .map_err(|source| SecretError::Bundle { name: secret.name.clone(), source })
}

/// Why a secret is not what its name promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not a `tls_certificate`.
    #[error("the secret {0:?} does not hold a certificate")]
    NotACertificate(String),
    /// Not a `validation_context`.
    #[error("the secret {0:?} does not hold a trust bundle")]
    NotABundle(String),
    /// Not a `generic_secret` of signed lists.
    #[error("the secret {0:?} does not hold lists of revocations")]
    NotRevocations(String),
    /// A file name or an environment variable in place of the bytes.
    #[error("the secret {0:?} does not carry its bytes inline")]
    NotInline(String),
    /// The certificate or its key is wrong.
    #[error("the secret {name:?} is not an X509-SVID")]
    Svid {
        /// The secret's name.
        name: String,
        /// What is wrong.
        source: ParseSvidError,
    },
    /// The roots are wrong.
    #[error("the secret {name:?} is not a trust bundle")]
    Bundle {
        /// The secret's name.
        name: String,
        /// What is wrong.
        source: BundleError,
    },
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() }
}

fn inlined<'a>(source: Option<&'a DataSource>, name: &str) -> Result<&'a [u8], SecretError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        _ => Err(SecretError::NotInline(name.to_owned())),
    }
}
