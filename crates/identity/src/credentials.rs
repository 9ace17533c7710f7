use std::sync::Arc;

use crate::{Revocations, TrustBundles, X509Svid};

/// What a mutual-TLS endpoint holds: who it is, whom it believes, and whom it believes no more.
///
/// Endpoints take it as `tokio::sync::watch::Receiver<Arc<Credentials>>`, so that a rotation or a new
/// bundle replaces both at once and no handshake sees half of a change.
#[derive(Debug, Clone)]
pub struct Credentials {
    svid: X509Svid,
    /// Those who are served by one agent believe the same.
    bundles: Arc<TrustBundles>,
    revocations: Arc<Revocations>,
}

impl Credentials {
    /// Joins an SVID and the bundles that its holder trusts; nothing is revoked.
    pub fn new(svid: X509Svid, bundles: TrustBundles) -> Self {
        Self { svid, bundles: Arc::new(bundles), revocations: Arc::default() }
    }

    /// Believes these from now on, which others may share.
    pub fn believe(&mut self, bundles: Arc<TrustBundles>) {
        self.bundles = bundles;
    }

    /// Holds peers against these from now on.
    pub fn revoke(&mut self, revocations: Arc<Revocations>) {
        self.revocations = revocations;
    }

    /// The same with these revocations.
    #[must_use]
    pub fn with_revocations(self, revocations: Arc<Revocations>) -> Self {
        Self { revocations, ..self }
    }

    /// Who the endpoint is.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// Whom the endpoint believes.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// Whom the endpoint believes no more.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Whether the same certificate is shown and the same roots are believed: what a connection stands on. Revocations
    /// may differ; they end single connections.
    pub fn prove_the_same_as(&self, other: &Self) -> bool {
        self.svid.chain() == other.svid.chain() && self.bundles == other.bundles
    }
}
