//! Credentials that change while connections come and go.

use std::sync::{Arc, Mutex, PoisonError};

use alcazar_identity::{CertificateDer, Credentials, X509Svid};
use arc_swap::ArcSwapOption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::provider;

/// The credentials of an endpoint as they are now, and as they will be: whoever holds the sender publishes
/// a new certificate or a new bundle, and the next handshake uses it.
pub type LiveCredentials = tokio::sync::watch::Receiver<Arc<Credentials>>;

/// Why credentials cannot be used for TLS.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialsError {
    /// The private key is of a kind that the TLS provider does not sign with.
    #[error("the private key of {id} cannot be used for TLS")]
    Key {
        /// Whose key it is.
        id: alcazar_identity::SpiffeId,
        /// What the provider says.
        source: rustls::Error,
    },
}

/// Turns each snapshot of credentials into what handshakes need, once.
pub(crate) struct Live {
    credentials: LiveCredentials,
    with_root: bool,
    prepared: ArcSwapOption<Prepared>,
    preparing: Mutex<()>,
}

/// One snapshot, ready for handshakes.
pub(crate) struct Prepared {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) certificate: Arc<SingleCertAndKey>,
}

impl Live {
    /// `with_root` presents our root as well, for peers that hold nothing but its fingerprint.
    pub(crate) fn new(credentials: LiveCredentials, with_root: bool) -> Self {
        Self { credentials, with_root, prepared: ArcSwapOption::empty(), preparing: Mutex::new(()) }
    }

    /// The snapshot of this moment.
    pub(crate) fn current(&self) -> Result<Arc<Prepared>, CredentialsError> {
        if let Some(prepared) = self.prepared_for(&self.newest()) {
            return Ok(prepared);
        }
        // Many handshakes see a change at once; one of them does the work.
        let _one = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.newest();
        if let Some(prepared) = self.prepared_for(&newest) {
            return Ok(prepared);
        }
        let prepared = Arc::new(Prepared::new(newest, self.with_root)?);
        self.prepared.store(Some(Arc::clone(&prepared)));
        Ok(prepared)
    }

    pub(crate) fn receiver(&self) -> &LiveCredentials {
        &self.credentials
    }

    fn newest(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.borrow())
    }

    fn prepared_for(&self, credentials: &Arc<Credentials>) -> Option<Arc<Prepared>> {
        self.prepared.load_full().filter(|prepared| Arc::ptr_eq(&prepared.credentials, credentials))
    }
}

impl Prepared {
    fn new(credentials: Arc<Credentials>, with_root: bool) -> Result<Self, CredentialsError> {
        let svid = credentials.svid();
        let key = provider::provider()
            .key_provider
            .load_private_key(svid.key().to_private_key_der())
            .map_err(|source| CredentialsError::Key { id: svid.id().clone(), source })?;
        let mut chain = svid.chain().to_vec();
        if with_root {
            chain.extend(roots_above(&credentials, svid));
        }
        let certificate = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        Ok(Self { credentials, certificate })
    }
}

/// The roots of our own bundle that bear the name of our topmost issuer, where we do not present them anyhow.
fn roots_above<'c>(
    credentials: &'c Credentials,
    svid: &'c X509Svid,
) -> impl Iterator<Item = CertificateDer<'static>> + use<'c> {
    let top = svid.chain().last().and_then(|top| names(top)).map(|(_, issuer)| issuer);
    let roots = credentials.bundles().get(svid.id().trust_domain()).into_iter().flat_map(|bundle| bundle.roots());
    roots.filter(move |root| names(root).map(|(subject, _)| subject) == top && !svid.chain().contains(root)).cloned()
}

/// A certificate's subject and issuer, raw.
fn names(der: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some((certificate.subject().as_raw().to_vec(), certificate.issuer().as_raw().to_vec()))
}

#[cfg(test)]
mod tests {
    use alcazar_identity::{SvidKey, TrustBundle, TrustBundles};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
    use tokio::sync::watch;

    use super::*;

    fn credentials() -> Arc<Credentials> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);

        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
        let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
        let bundle = TrustBundle::new("td".parse().unwrap(), 1, [root]).unwrap();
        Arc::new(Credentials::new(svid, TrustBundles::from(bundle)))
    }

    #[test]
    fn a_snapshot_is_prepared_once_and_a_change_is_seen_at_once() {
        let (sender, receiver) = watch::channel(credentials());
        let live = Live::new(receiver, false);
        let first = live.current().unwrap();
        assert!(Arc::ptr_eq(&first, &live.current().unwrap()));

        let newer = credentials();
        sender.send(Arc::clone(&newer)).unwrap();
        let second = live.current().unwrap();
        assert!(Arc::ptr_eq(&second.credentials, &newer));
        assert!(Arc::ptr_eq(&second, &live.current().unwrap()));
        // Who began with the old one keeps it whole.
        assert!(!Arc::ptr_eq(&first.credentials, &second.credentials));
    }

    #[test]
    fn a_crowd_of_handshakes_prepares_a_change_once() {
        let (_sender, receiver) = watch::channel(credentials());
        let live = Live::new(receiver, false);
        let prepared: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| live.current().unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(prepared.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    }

    #[test]
    fn the_root_is_presented_where_it_is_asked_for() {
        let credentials = credentials();
        let presented = |with_root| {
            let live = Live::new(watch::channel(Arc::clone(&credentials)).1, with_root);
            let certificate: Arc<dyn rustls::client::ResolvesClientCert> = live.current().unwrap().certificate.clone();
            certificate.resolve(&[], &[]).unwrap().cert.clone()
        };
        let root = credentials.bundles().iter().next().unwrap().roots().next().unwrap().clone();
        assert_eq!(presented(false), credentials.svid().chain());
        assert_eq!(presented(true), [credentials.svid().chain(), &[root]].concat());
    }
}
