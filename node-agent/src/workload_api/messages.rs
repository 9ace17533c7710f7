use std::collections::BTreeMap;

use alcazar_api::spiffe::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use alcazar_api::spiffe::write_jwt_bundle;
use alcazar_identity::{Credentials, TrustBundle, TrustBundles};

use crate::registry::Held;
use crate::sds::View;

/// The caller's certificates, the default one first. `None` as long as there is none for the default identity: whoever does not
/// choose takes the first, and must not become somebody else for a moment.
///
/// **Source**: SPIFFE Workload API §5.2.1.
pub(super) fn x509_svids(view: &View) -> Option<X509svidResponse> {
    let (id, default) = view.iter().next()?;
    let own = id.trust_domain();
    let bundles = default.credentials()?.bundles();
    let svids = view.iter().filter_map(|(_, held)| svid(held.credentials()?));
    let federated = bundles.iter().filter(|bundle| bundle.trust_domain() != own);
    let federated_bundles = federated.map(|bundle| (key(bundle), roots(bundle))).collect();
    Some(X509svidResponse { svids: svids.collect(), crl: crls(view), federated_bundles })
}

/// The roots of every trust domain that the caller believes; `None` while it has no certificate to believe anybody by.
///
/// **Source**: SPIFFE Workload API §5.2.2.
pub(super) fn x509_bundles(view: &View) -> Option<X509BundlesResponse> {
    Some(X509BundlesResponse { crl: crls(view), bundles: by_trust_domain(bundles(view)?, roots) })
}

/// The keys for JWT-SVIDs of every trust domain that the caller believes.
///
/// **Source**: SPIFFE Workload API §6.2.2.
pub(super) fn jwt_bundles(view: &View) -> Option<JwtBundlesResponse> {
    let document = |bundle: &TrustBundle| write_jwt_bundle(bundle).into_bytes();
    Some(JwtBundlesResponse { bundles: by_trust_domain(bundles(view)?, document) })
}

/// Whom the caller believes.
pub(super) fn bundles(view: &View) -> Option<&TrustBundles> {
    let (_, held) = view.any()?;
    Some(held.credentials()?.bundles())
}

/// Why there is nothing to give: what is held for the default identity, in words.
pub(super) fn absence(view: &View) -> &str {
    match view.iter().next().map(|(_, held)| &**held) {
        Some(Held::Nothing(why)) => why,
        _ => "nothing is held for the caller",
    }
}

fn svid(credentials: &Credentials) -> Option<X509svid> {
    let svid = credentials.svid();
    Some(X509svid {
        spiffe_id: svid.id().to_string(),
        x509_svid: svid.chain().iter().flat_map(|certificate| certificate.iter().copied()).collect(),
        x509_svid_key: svid.key().secret_pkcs8_der().to_vec(),
        bundle: roots(credentials.bundles().get(svid.id().trust_domain())?),
        hint: String::new(),
    })
}

/// The CRLs of the caller's own trust domain, DER.
fn crls(view: &View) -> Vec<Vec<u8>> {
    let own = view.any().map(|(id, _)| view.crls(id.trust_domain())).unwrap_or_default();
    own.iter().map(|crl| crl.der().to_vec()).collect()
}

fn by_trust_domain(bundles: &TrustBundles, of: impl Fn(&TrustBundle) -> Vec<u8>) -> BTreeMap<String, Vec<u8>> {
    bundles.iter().map(|bundle| (key(bundle), of(bundle))).collect()
}

fn key(bundle: &TrustBundle) -> String {
    bundle.trust_domain().to_uri()
}

fn roots(bundle: &TrustBundle) -> Vec<u8> {
    bundle.roots().flat_map(|root| root.iter().copied()).collect()
}
