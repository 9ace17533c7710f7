use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::pem::{certificates_from_pem, certificates_to_pem};
use crate::{Fingerprint, TrustDomain};

/// The roots of one trust domain: a *set*, because more than one is the normal case during a rotation.
///
/// Never empty; each root is a CA certificate. The order of the roots is that of their bytes and means
/// nothing. `sequence` grows by one with each change, so that of two bundles the newer is known.
///
/// **Source**: SPIFFE Trust Domain and Bundle §3, §4.1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    /// Sorted by their bytes, none twice.
    roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// A bundle of these roots.
    ///
    /// # Errors
    /// When there is no root, or one is not a CA certificate.
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut roots: Vec<_> = roots.into_iter().collect();
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        if roots.is_empty() {
            return Err(BundleError::Empty(trust_domain));
        }
        roots.iter().try_for_each(check_root)?;
        Ok(Self { trust_domain, sequence, roots })
    }

    /// A bundle of the certificates in a PEM text.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], and when the PEM cannot be read.
    pub fn from_pem(trust_domain: TrustDomain, sequence: u64, pem: &[u8]) -> Result<Self, BundleError> {
        let roots = certificates_from_pem(pem).map_err(BundleError::Pem)?;
        Self::new(trust_domain, sequence, roots)
    }

    /// Whose roots these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Which version of the set this is.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The roots, at least one.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.roots.iter()
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.roots)
    }

    /// The moment at which the first of the roots stops being good.
    pub fn earliest_expiry(&self) -> Option<SystemTime> {
        self.roots.iter().filter_map(not_after).min()
    }
}

/// The bundles that one party believes: its own trust domain's, and those of federated ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundles(BTreeMap<TrustDomain, TrustBundle>);

impl TrustBundles {
    /// The bundle of a trust domain, when it is believed at all.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        self.0.get(trust_domain)
    }

    /// Adds or replaces the bundle of its trust domain; an older sequence never replaces a newer one.
    ///
    /// Returns whether anything changed.
    pub fn insert(&mut self, bundle: TrustBundle) -> bool {
        match self.0.get(&bundle.trust_domain) {
            Some(held) if held.sequence > bundle.sequence || *held == bundle => false,
            _ => {
                self.0.insert(bundle.trust_domain.clone(), bundle);
                true
            }
        }
    }

    /// The bundles, by the name of their trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.0.values()
    }
}

impl From<TrustBundle> for TrustBundles {
    fn from(bundle: TrustBundle) -> Self {
        Self(BTreeMap::from([(bundle.trust_domain.clone(), bundle)]))
    }
}

impl FromIterator<TrustBundle> for TrustBundles {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let mut all = Self::default();
        for bundle in bundles {
            all.insert(bundle);
        }
        all
    }
}

/// Why certificates are not a trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No root: a bundle that trusts nobody is a mistake, not a policy.
    #[error("the trust bundle of {0} has no root")]
    Empty(TrustDomain),
    /// The PEM text cannot be read.
    #[error("the PEM cannot be read: {0}")]
    Pem(String),
    /// One of the roots is not an X.509 certificate.
    #[error("the root with the SHA-256 fingerprint {0} is not an X.509 certificate")]
    NotACertificate(Fingerprint),
    /// One of the roots is not a CA.
    #[error("the root with the SHA-256 fingerprint {0} is not a CA certificate")]
    NotACa(Fingerprint),
}

fn check_root(der: &CertificateDer<'static>) -> Result<(), BundleError> {
    match X509Certificate::from_der(der) {
        Ok(([], root)) => match root.basic_constraints() {
            Ok(Some(constraints)) if constraints.value.ca => Ok(()),
            _ => Err(BundleError::NotACa(Fingerprint::of(der))),
        },
        _ => Err(BundleError::NotACertificate(Fingerprint::of(der))),
    }
}

fn not_after(der: &CertificateDer<'static>) -> Option<SystemTime> {
    let (_, root) = X509Certificate::from_der(der).ok()?;
    let seconds = u64::try_from(root.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn certificate(ca: IsCa) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = ca;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn root() -> CertificateDer<'static> {
        certificate(IsCa::Ca(BasicConstraints::Unconstrained))
    }

    #[test]
    fn a_bundle_has_roots_and_nothing_else() {
        let td: TrustDomain = "td".parse().unwrap();
        let one = root();
        let bundle = TrustBundle::new(td.clone(), 1, [one.clone(), root(), one.clone()]).unwrap();
        assert_eq!(bundle.roots().len(), 2);
        assert_eq!(TrustBundle::from_pem(td.clone(), 1, bundle.to_pem().as_bytes()), Ok(bundle));

        assert_eq!(TrustBundle::new(td.clone(), 1, []), Err(BundleError::Empty(td.clone())));
        let leaf = certificate(IsCa::NoCa);
        assert_eq!(TrustBundle::new(td.clone(), 1, [leaf.clone()]), Err(BundleError::NotACa(Fingerprint::of(&leaf))));
        let junk = CertificateDer::from(vec![1, 2, 3]);
        assert!(matches!(TrustBundle::new(td, 1, [junk]), Err(BundleError::NotACertificate(_))));
    }

    #[test]
    fn an_older_bundle_never_replaces_a_newer_one() {
        let td: TrustDomain = "td".parse().unwrap();
        let bundle = |sequence| TrustBundle::new(td.clone(), sequence, [root()]).unwrap();
        let (old, new) = (bundle(1), bundle(2));
        let mut bundles = TrustBundles::from(new.clone());
        assert!(!bundles.insert(old));
        assert!(!bundles.insert(new.clone()));
        assert_eq!(bundles.get(&td), Some(&new));
        assert!(bundles.insert(bundle(3)));
    }
}
