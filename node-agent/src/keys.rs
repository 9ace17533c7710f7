use alcazar_identity::{KeyError, SvidKey};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize, Zeroizing};

/// A new private key: ECDSA P-256.
pub(crate) fn generate() -> Result<SvidKey, MakeKeyError> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let der = Zeroizing::new(pair.serialize_der());
    pair.zeroize();
    Ok(SvidKey::from_pkcs8(der.as_slice())?)
}

/// A certificate request, PKCS#10 in DER, that proves possession of the key and says nothing else: the CA takes
/// the public key alone.
pub(crate) fn request(key: &SvidKey) -> Result<Vec<u8>, MakeKeyError> {
    let mut pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.secret_pkcs8_der()))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&pair);
    pair.zeroize();
    Ok(request?.der().to_vec())
}

/// Why a key or a request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeKeyError {
    /// The random source or the signature failed.
    #[error("cannot make a key or a certificate request")]
    Crypto(#[from] rcgen::Error),
    /// The key that was made cannot be used.
    #[error("the key that was made cannot be used")]
    Key(#[from] KeyError),
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateSigningRequestParams;

    use super::*;

    #[test]
    fn a_request_is_of_its_key_and_names_nobody() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one.secret_pkcs8_der(), other.secret_pkcs8_der());
        let der = request(&one).unwrap();
        let read = CertificateSigningRequestParams::from_der(&der.into()).unwrap();
        assert_eq!(read.params.distinguished_name, DistinguishedName::new());
        assert!(read.params.subject_alt_names.is_empty());
        let again = CertificateSigningRequestParams::from_der(&request(&one).unwrap().into()).unwrap();
        assert_eq!(read.public_key, again.public_key);
    }
}
