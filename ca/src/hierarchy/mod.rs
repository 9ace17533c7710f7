//! The CA's own certificates: which roots are trusted, which intermediate signs, and what is shown above it.
//!
//! ```text
//! store   ca/trust/state    the trusted roots, and the sequence of the set        (shared by all replicas)
//!         ca/trust/active-<replica>   the intermediate that each replica signs with
//!                │                                    folder  <data>/hierarchy/
//!                ▼                                            root.pem, root-<id>.pem               roots
//!         Hierarchy: one snapshot, in a watch  ◀────────────  intermediate-<id>.pem                 intermediates, and what is above
//!         { roots, root, intermediate, upper, bundles }       making-<label>                        what was begun and not finished
//!                                                     keys    <label>-key.pem, or a PKCS#11 token   see `crate::keys`
//! ```
//!
//! # Invariants
//! - A snapshot is of one moment: chain, roots and sequence fit each other.
//! - A change is made in this order: key, certificate, store, snapshot; what is forgotten goes in the opposite one. A crash in
//!   between leaves what the next start finishes or clears.
//! - A root that is missing is never replaced by a new one.
//! - A root that is trusted, and an intermediate that signs, are not forgotten.

mod acts;
mod error;
mod files;
mod folder;
mod follow;
mod heard;
mod joined;
mod making;
mod plugged;
mod replaced;
mod signing;
mod trust;

use alcazar_identity::{CertificateDer, Fingerprint, TrustBundle, TrustBundles, TrustDomain};

pub(crate) use self::{
    acts::{HierarchyPatience, blocking, held, open, remembered},
    files::HierarchyFiles,
    folder::{Folder, Sort},
    joined::{Condition, Gift, Given, GivenKey, SharedKey, Standing, check_request},
    plugged::INSTALLED,
    signing::{Renewal, Signing},
    trust::TrustState,
};
pub use self::{error::HierarchyError, files::Authorities, follow::HierarchyChanges};
use crate::{
    authority::{Authority, AuthorityInfo},
    jwt_authority::keys::JwtKey,
};

/// What the CA stands on at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchy {
    roots: Vec<AuthorityInfo>,
    signing: Signing,
    jwt_keys: Vec<JwtKey>,
    bundles: TrustBundles,
    /// What follows a leaf, for those who want PEM: made once, as each answer has it.
    above_in_pem: Vec<String>,
}

impl Hierarchy {
    pub(crate) fn new(
        trust: &TrustState,
        signing: Signing,
        trust_domain: &TrustDomain,
    ) -> Result<Self, HierarchyError> {
        let roots = trust.infos()?;
        let certificates = roots.iter().map(|root| root.certificate.clone());
        let authorities = trust
            .jwt_keys
            .iter()
            .filter(|key| key.is_published())
            .map(JwtKey::authority)
            .collect::<Result<Vec<_>, _>>();
        let bundle = TrustBundle::new(trust_domain.clone(), trust.sequence, certificates)
            .and_then(|bundle| bundle.with_jwt_authorities(authorities?))
            .map_err(HierarchyError::Bundle)?;
        // The root of the chain comes last, where clients look for one root alone.
        let others = roots.iter().filter(|other| other.fingerprint != signing.root.fingerprint);
        let above = others.chain([&signing.root]).map(|root| &root.certificate);
        let above_in_pem = signing.upper.iter().chain(above).map(pem).collect();
        Ok(Self { roots, signing, jwt_keys: trust.jwt_keys.clone(), bundles: bundle.into(), above_in_pem })
    }

    /// What follows a leaf in PEM: the certificates above it, then every root that is trusted, the one of the chain last.
    pub(crate) fn above_in_pem(&self) -> &[String] {
        &self.above_in_pem
    }

    /// Every root that is trusted, the one above the signing intermediate among them.
    pub(crate) fn roots(&self) -> &[AuthorityInfo] {
        &self.roots
    }

    pub(crate) fn trusts(&self, root: Fingerprint) -> bool {
        self.roots.iter().any(|trusted| trusted.fingerprint == root)
    }

    /// The root above the signing intermediate.
    pub(crate) fn root(&self) -> &AuthorityInfo {
        &self.signing.root
    }

    pub(crate) fn intermediate(&self) -> &Authority {
        &self.signing.authority
    }

    /// The certificates between a leaf and the root: the signing intermediate first.
    pub(crate) fn upper(&self) -> &[CertificateDer<'static>] {
        &self.signing.upper
    }

    pub(crate) fn signing(&self) -> &Signing {
        &self.signing
    }

    /// The keys for JWT-SVIDs, with their times.
    pub(crate) fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// What everybody in the trust domain believes of it.
    pub(crate) fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// A leaf's whole chain: leaf first, root excluded.
    pub(crate) fn chain(&self, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        [std::slice::from_ref(leaf), self.upper()].concat()
    }
}

/// A certificate as one PEM block.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    alcazar_identity::pem_block("CERTIFICATE", certificate)
}
