use rustls_pki_types::CertificateDer;

use crate::pem::{certificates_from_pem, certificates_to_pem};
use crate::{ParseSvidError, SpiffeId, SvidKey, SvidLeaf, Validity};

/// A certificate chain that names a workload, and the private key that proves it.
///
/// **Shape**: DER; leaf first, then the intermediates in order, the root excluded.
///
/// **Source**: X509-SVID.
#[derive(Debug, Clone)]
pub struct X509Svid {
    id: SpiffeId,
    validity: Validity,
    serial: String,
    chain: Vec<CertificateDer<'static>>,
    key: SvidKey,
}

impl X509Svid {
    /// Joins a chain and a key.
    ///
    /// # Errors
    /// When the chain is empty, its first certificate is not a leaf X509-SVID, or the key is not the leaf's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: SvidKey) -> Result<Self, ParseSvidError> {
        let leaf = SvidLeaf::parse(chain.first().ok_or(ParseSvidError::Empty)?)?;
        if leaf.public_key() != key.public_key() {
            return Err(ParseSvidError::KeyMismatch);
        }
        // The leaf's public key is not kept: it is the key's.
        Ok(Self { id: leaf.id().clone(), validity: leaf.validity(), serial: leaf.serial().to_owned(), chain, key })
    }

    /// Reads a chain and a key from PEM.
    ///
    /// # Errors
    /// As [`X509Svid::new`], and when a PEM cannot be read.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, ParseSvidError> {
        let chain = certificates_from_pem(chain).map_err(ParseSvidError::Pem)?;
        let key = SvidKey::from_pem(key).map_err(|_| ParseSvidError::Key)?;
        Self::new(chain, key)
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When it is good.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The leaf's serial number, in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The certificates: DER, leaf first, root excluded.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificates as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        certificates_to_pem(&self.chain)
    }

    /// The private key.
    pub fn key(&self) -> &SvidKey {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    /// A self-signed certificate with these URIs, and its key.
    fn leaf(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        (vec![certificate.der().clone()], key)
    }

    fn svid(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Result<String, String> {
        let (chain, key) = leaf(uris, change);
        let key = SvidKey::from_pkcs8(key.serialize_der()).unwrap();
        X509Svid::new(chain, key).map(|svid| svid.id().to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_leaf_in_form_is_an_svid_and_others_say_why_not() {
        let id = "spiffe://td/ns/shop/sa/reviews";
        assert_eq!(svid(&[id], |_| ()), Ok(id.to_owned()));

        let why = |uris: &[&str], change: fn(&mut CertificateParams)| svid(uris, change).unwrap_err();
        assert!(why(&[], |_| ()).contains("no URI"));
        assert!(why(&[id, "spiffe://td/b"], |_| ()).contains("2 URIs"));
        assert!(why(&["https://td/a"], |_| ()).contains("not a SPIFFE ID"));
        assert!(why(&["spiffe://td"], |_| ()).contains("no path"));
        assert!(why(&[id], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).contains("CA"));
        assert!(why(&[id], |p| p.key_usages = vec![]).contains("key usage"));
        assert!(why(&[id], |p| p.key_usages.push(KeyUsagePurpose::CrlSign)).contains("sign certificates or CRLs"));
        assert!(why(&[id], |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]).contains("digitalSignature"));
    }

    #[test]
    fn a_key_of_another_is_refused_and_none_is_printed() {
        let (chain, key) = leaf(&["spiffe://td/a"], |_| ());
        let other = SvidKey::from_pkcs8(KeyPair::generate().unwrap().serialize_der()).unwrap();
        assert_eq!(X509Svid::new(chain.clone(), other).unwrap_err(), ParseSvidError::KeyMismatch);

        let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
        assert!(format!("{svid:?}").contains("redacted"));
    }

    #[test]
    fn pem_goes_out_and_comes_back() {
        let (chain, key) = leaf(&["spiffe://td/a"], |_| ());
        let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
        let again = X509Svid::from_pem(svid.chain_pem().as_bytes(), svid.key().to_pem().as_bytes()).unwrap();
        assert_eq!((again.id(), again.serial(), again.chain()), (svid.id(), svid.serial(), svid.chain()));
        assert_eq!(again.key().secret_pkcs8_der(), key.serialize_der());
        assert!(X509Svid::from_pem(b"", svid.key().to_pem().as_bytes()).is_err());
        assert!(X509Svid::from_pem(svid.chain_pem().as_bytes(), b"").is_err());
    }
}
