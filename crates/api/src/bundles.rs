use alcazar_identity::{BundleError, CertificateDer, ParseTrustDomainError, TrustBundle, TrustBundles};

use crate::ca::v1;

impl From<&TrustBundle> for v1::TrustBundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            sequence: bundle.sequence(),
            roots: bundle.roots().map(|root| root.to_vec()).collect(),
        }
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
        Ok(Self::new(message.trust_domain.parse()?, message.sequence, roots)?)
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
}
