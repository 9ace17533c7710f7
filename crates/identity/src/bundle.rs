use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::pem::{certificates_from_pem, certificates_to_pem};
use crate::{Fingerprint, JwtAuthority, JwtAuthorityError, TrustDomain};

/// What one trust domain is known by: its roots, and the keys that sign its JWT-SVIDs. Both are *sets*, because more
/// than one is the normal case during a rotation.
///
/// There always is a root; each is a CA certificate. No two JWT authorities have one key id. The order is that of the
/// bytes and means nothing. `sequence` grows by one with each change, so that of two bundles the newer is known.
///
/// **Source**: SPIFFE Trust Domain and Bundle §3, §4.1, §4.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    /// Sorted by their bytes, none twice.
    roots: Vec<CertificateDer<'static>>,
    /// Sorted by their key ids, none twice.
    jwt_authorities: Vec<JwtAuthority>,
    refresh_hint: Option<Duration>,
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
        Ok(Self { trust_domain, sequence, roots, jwt_authorities: Vec::new(), refresh_hint: None })
    }

    /// A bundle of the certificates in a PEM text.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], and when the PEM cannot be read.
    pub fn from_pem(trust_domain: TrustDomain, sequence: u64, pem: &[u8]) -> Result<Self, BundleError> {
        let roots = certificates_from_pem(pem).map_err(BundleError::Pem)?;
        Self::new(trust_domain, sequence, roots)
    }

    /// The same with these keys for JWT-SVIDs instead of its own.
    ///
    /// # Errors
    /// When two different keys bear one name: a token would be good or not by chance.
    pub fn with_jwt_authorities(
        self,
        authorities: impl IntoIterator<Item = JwtAuthority>,
    ) -> Result<Self, BundleError> {
        let mut jwt_authorities: Vec<_> = authorities.into_iter().collect();
        jwt_authorities.sort();
        jwt_authorities.dedup();
        let twice = jwt_authorities.windows(2).find_map(|pair| match pair {
            [one, other] if one.key_id() == other.key_id() => Some(one.key_id().to_owned()),
            _ => None,
        });
        match twice {
            Some(key_id) => Err(BundleError::KeyIdTwice { trust_domain: self.trust_domain, key_id }),
            None => Ok(Self { jwt_authorities, ..self }),
        }
    }

    /// The same with this refresh hint, in whole seconds.
    #[must_use]
    pub fn with_refresh_hint(self, hint: Option<Duration>) -> Self {
        let refresh_hint = hint.map(|hint| Duration::from_secs(hint.as_secs()));
        Self { refresh_hint, ..self }
    }

    /// The same, as another version.
    #[must_use]
    pub fn with_sequence(self, sequence: u64) -> Self {
        Self { sequence, ..self }
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

    /// The keys that sign JWT-SVIDs; none where the trust domain issues none.
    pub fn jwt_authorities(&self) -> impl ExactSizeIterator<Item = &JwtAuthority> {
        self.jwt_authorities.iter()
    }

    /// The key of this name.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|authority| authority.key_id() == key_id)
    }

    /// How often who keeps a copy should look for a newer version.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
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

    /// Forgets a trust domain; whether it was believed.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> bool {
        self.0.remove(trust_domain).is_some()
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
    /// One of the JWT authorities is none.
    #[error(transparent)]
    JwtAuthority(#[from] JwtAuthorityError),
    /// Two JWT authorities of one name.
    #[error("the trust bundle of {trust_domain} has two JWT authorities with the key id {key_id:?}")]
    KeyIdTwice {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// The name.
        key_id: String,
    },
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
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData};

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
    fn a_jwt_authority_has_a_name_of_its_own() {
        let key = || rcgen::KeyPair::generate().unwrap().subject_public_key_info();
        let authority = |name: &str| JwtAuthority::new(name, key()).unwrap();
        let td: TrustDomain = "td".parse().unwrap();
        let bundle = TrustBundle::new(td, 1, [root()]).unwrap();
        let (one, two) = (authority("b"), authority("a"));
        let both = [one.clone(), two.clone(), one.clone()];
        let bundle = bundle.with_jwt_authorities(both).unwrap().with_refresh_hint(Some(Duration::from_millis(5300)));
        assert_eq!(bundle.jwt_authorities().collect::<Vec<_>>(), [&two, &one]);
        assert_eq!((bundle.jwt_authority("b"), bundle.jwt_authority("c")), (Some(&one), None));
        assert_eq!(bundle.refresh_hint(), Some(Duration::from_secs(5)));
        let refused = bundle.with_jwt_authorities([one, authority("b")]).unwrap_err();
        assert!(refused.to_string().contains("two JWT authorities with the key id \"b\""), "{refused}");
        for name in ["", "a\nb", &"x".repeat(257)] {
            assert!(JwtAuthority::new(name, key()).is_err(), "{name:?}");
        }
        assert!(JwtAuthority::new("a", [key(), vec![0]].concat()).is_err());
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
