use std::time::Duration;

use alcazar_identity::{
    BundleError, CertificateDer, JwtAuthority, JwtAuthorityError, ParseTrustDomainError, TrustBundle, TrustBundles,
};

use crate::ca::v1;

impl From<&TrustBundle> for v1::TrustBundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            sequence: bundle.sequence(),
            roots: bundle.roots().map(|root| root.to_vec()).collect(),
            jwt_authorities: bundle.jwt_authorities().map(Into::into).collect(),
            refresh_hint: bundle.refresh_hint().map_or(0, |hint| i64::try_from(hint.as_secs()).unwrap_or(i64::MAX)),
        }
    }
}

impl From<&JwtAuthority> for v1::JwtAuthority {
    fn from(authority: &JwtAuthority) -> Self {
        Self { key_id: authority.key_id().to_owned(), public_key: authority.public_key().to_vec() }
    }
}

impl From<&TrustBundles> for v1::TrustBundles {
    fn from(bundles: &TrustBundles) -> Self {
        Self { bundles: bundles.iter().map(Into::into).collect() }
    }
}

impl TryFrom<v1::TrustBundle> for TrustBundle {
    type Error = BundleMessageError;

    fn try_from(message: v1::TrustBundle) -> Result<Self, Self::Error> {
        let roots = message.roots.into_iter().map(CertificateDer::from);
        let authorities = message.jwt_authorities.into_iter();
        let authorities = authorities.map(|authority| JwtAuthority::new(authority.key_id, authority.public_key));
        let hint = u64::try_from(message.refresh_hint).ok().filter(|seconds| *seconds > 0);
        let bundle = Self::new(message.trust_domain.parse()?, message.sequence, roots)?;
        let bundle = bundle.with_jwt_authorities(authorities.collect::<Result<Vec<_>, _>>()?)?;
        Ok(bundle.with_refresh_hint(hint.map(Duration::from_secs)))
    }
}

impl TryFrom<v1::TrustBundles> for TrustBundles {
    type Error = BundleMessageError;

    fn try_from(message: v1::TrustBundles) -> Result<Self, Self::Error> {
        message.bundles.into_iter().map(TrustBundle::try_from).collect()
    }
}

/// Why a message is not a trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleMessageError {
    /// The trust domain's name is wrong.
    #[error(transparent)]
    TrustDomain(#[from] ParseTrustDomainError),
    /// The roots are wrong.
    #[error(transparent)]
    Roots(#[from] BundleError),
    /// A key for JWT-SVIDs is wrong.
    #[error(transparent)]
    JwtAuthority(#[from] JwtAuthorityError),
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData};

    use super::*;

    #[test]
    fn a_bundle_survives_the_wire() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let authority = JwtAuthority::new("one", key.subject_public_key_info()).unwrap();
        let bundle = TrustBundle::new("td".parse().unwrap(), 7, [root]).unwrap();
        let full = bundle.clone().with_jwt_authorities([authority]).unwrap();
        let full = full.with_refresh_hint(Some(Duration::from_secs(300)));
        for bundle in [bundle, full] {
            assert_eq!(TrustBundle::try_from(v1::TrustBundle::from(&bundle)), Ok(bundle));
        }
    }
}
