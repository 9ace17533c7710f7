use crate::{TrustBundles, X509Svid};

/// What a mutual-TLS endpoint holds: who it is, and whom it believes.
///
/// Endpoints take it as `tokio::sync::watch::Receiver<Arc<Credentials>>`, so that a rotation or a new
/// bundle replaces both at once and no handshake sees half of a change.
#[derive(Debug, Clone)]
pub struct Credentials {
    svid: X509Svid,
    bundles: TrustBundles,
}

impl Credentials {
    /// Joins an SVID and the bundles that its holder trusts.
    pub fn new(svid: X509Svid, bundles: TrustBundles) -> Self {
        Self { svid, bundles }
    }

    /// Who the endpoint is.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// Whom the endpoint believes.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }
}
