use alcazar_identity::{
    BundleError, Crl, ParseSvidError, ParseTrustDomainError, TrustBundle, TrustBundles, TrustDomain, X509Svid,
    pem_block,
};

use crate::ca::v1;
use crate::envoy::core::data_source::Specifier;
use crate::envoy::core::{DataSource, TypedExtensionConfig};
use crate::envoy::tls::secret::Type;
use crate::envoy::tls::spiffe_cert_validator_config as validator;
use crate::envoy::tls::{
    CertificateValidationContext, GenericSecret, Secret, SpiffeCertValidatorConfig, TlsCertificate,
};
use crate::envoy::{UnpackError, pack, unpack};
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

/// A trust bundle with CRLs by which Envoy checks the leaf of whoever shows one: it refuses everybody of whose issuer there is none
/// among them, and everybody as soon as one of them is over.
pub fn checked_bundle_secret<'c>(name: &str, bundle: &TrustBundle, crls: impl IntoIterator<Item = &'c Crl>) -> Secret {
    let pem: String = crls.into_iter().map(|crl| pem_block("X509 CRL", crl.der())).collect();
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(bundle.to_pem().into_bytes())),
        crl: Some(inline(pem.into_bytes())),
        // Of those above the leaf there may be no CRL: a root that is kept offline makes few.
        only_verify_leaf_cert_crl: true,
        ..CertificateValidationContext::default()
    };
    Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) }
}

/// Every trust domain's bundle as the secret that Envoy's SPIFFE certificate validator and our proxies take: each is believed for
/// its own trust domain alone.
pub fn bundles_secret(name: &str, bundles: &TrustBundles) -> Secret {
    let trust_domain = |bundle: &TrustBundle| validator::TrustDomain {
        name: bundle.trust_domain().to_string(),
        trust_bundle: Some(inline(bundle.to_pem().into_bytes())),
        ..validator::TrustDomain::default()
    };
    let config = SpiffeCertValidatorConfig {
        trust_domains: bundles.iter().map(trust_domain).collect(),
        ..SpiffeCertValidatorConfig::default()
    };
    let context = CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: VALIDATOR.to_owned(),
            typed_config: Some(pack(VALIDATOR_URL, &config)),
        }),
        ..CertificateValidationContext::default()
    };
    Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) }
}

/// The bundles in such a secret, each by itself: one that cannot be read is left out, so that it harms its own trust domain
/// alone. SDS carries no sequence, so the caller says it.
///
/// # Errors
/// When the secret is of another kind.
pub fn bundles_from_secret(secret: &Secret, sequence: u64) -> Result<ReadBundles, SecretError> {
    let typed = match &secret.r#type {
        Some(Type::ValidationContext(context)) => context.custom_validator_config.as_ref(),
        _ => None,
    };
    let typed = typed.and_then(|config| config.typed_config.as_ref());
    let typed = typed.ok_or_else(|| SecretError::NotBundles(secret.name.clone()))?;
    let config: SpiffeCertValidatorConfig =
        unpack(VALIDATOR_URL, typed).map_err(|source| SecretError::Validator { name: secret.name.clone(), source })?;
    let mut read = ReadBundles::default();
    for one in config.trust_domains.iter().take(MAX_TRUST_DOMAINS) {
        let name = || format!("{} for {}", secret.name, one.name.chars().take(64).collect::<String>());
        let bundle =
            one.name.parse::<TrustDomain>().map_err(|source| SecretError::TrustDomain { name: name(), source });
        let bundle = bundle.and_then(|trust_domain| {
            let pem = inlined(one.trust_bundle.as_ref(), &secret.name)?;
            TrustBundle::from_pem(trust_domain, sequence, pem)
                .map_err(|source| SecretError::Bundle { name: name(), source })
        });
        match bundle {
            Ok(bundle) => read.bundles.push(bundle),
            Err(error) => read.refused.push(error),
        }
    }
    Ok(read)
}

/// Bundles of several trust domains, as they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadBundles {
    /// Those that are good.
    pub bundles: Vec<TrustBundle>,
    /// Why others were left out.
    pub refused: Vec<SecretError>,
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

/// The trust bundle in a secret. SDS carries neither trust domain nor sequence, so the caller says them. CRLs are left alone: who
/// reads this goes by the signed lists.
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

/// Whether two secrets have the same roots, whatever CRLs are beside them.
pub(super) fn same_roots(one: &Secret, other: &Secret) -> bool {
    let roots = |secret: &Secret| match &secret.r#type {
        Some(Type::ValidationContext(context)) => context.trusted_ca.clone(),
        _ => None,
    };
    roots(one).is_some_and(|roots_of_one| Some(roots_of_one) == roots(other))
}

/// Why a secret is not what its name promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not a validation context with a SPIFFE certificate validator.
    #[error("the secret {0:?} does not hold the bundles of trust domains")]
    NotBundles(String),
    /// A validator of another kind.
    #[error("the secret {name:?} does not hold a SPIFFE certificate validator")]
    Validator {
        /// The secret's name.
        name: String,
        /// What is wrong.
        source: UnpackError,
    },
    /// Not the name of a trust domain.
    #[error("the secret {name:?} has a bundle of no trust domain")]
    TrustDomain {
        /// The secret's name.
        name: String,
        /// What is wrong.
        source: ParseTrustDomainError,
    },
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

/// Envoy's name for the validator.
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const VALIDATOR_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// More than anybody federates with.
const MAX_TRUST_DOMAINS: usize = 1_000;
