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

/// A new private key, and a request as [`request`] makes it: for those who make many, since to take a key apart and put it
/// together again costs more than to make one.
pub(crate) fn generate_with_request() -> Result<(SvidKey, Vec<u8>), MakeKeyError> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let der = Zeroizing::new(pair.serialize_der());
    let request = signed(&pair);
    pair.zeroize();
    Ok((SvidKey::from_pkcs8(der.as_slice())?, request?))
}

/// A certificate request, PKCS#10 in DER, that proves possession of the key and says nothing else: the CA takes
/// the public key alone.
pub(crate) fn request(key: &SvidKey) -> Result<Vec<u8>, MakeKeyError> {
    let mut pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.secret_pkcs8_der()))?;
    let request = signed(&pair);
    pair.zeroize();
    request
}

fn signed(pair: &KeyPair) -> Result<Vec<u8>, MakeKeyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(pair)?.der().to_vec())
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
        let (key, both) = generate_with_request().unwrap();
        let public_key = |der: Vec<u8>| CertificateSigningRequestParams::from_der(&der.into()).unwrap().public_key;
        assert_eq!(public_key(both), public_key(request(&key).unwrap()));
    }
}
