//! The few bytes of DER between a token and a certificate.

use crate::keys::KeyAlgorithm;

/// The object identifiers of the curves, in DER.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

pub(super) fn curve(algorithm: KeyAlgorithm) -> &'static [u8] {
    match algorithm {
        KeyAlgorithm::P256 => P256,
        KeyAlgorithm::P384 => P384,
    }
}

pub(super) fn algorithm(curve: &[u8]) -> Option<KeyAlgorithm> {
    match curve {
        P256 => Some(KeyAlgorithm::P256),
        P384 => Some(KeyAlgorithm::P384),
        _ => None,
    }
}

/// The uncompressed point of a key; tokens wrap it in an octet string, and some do not.
pub(super) fn point(bytes: &[u8], algorithm: KeyAlgorithm) -> Option<Vec<u8>> {
    let length = match algorithm {
        KeyAlgorithm::P256 => 65,
        KeyAlgorithm::P384 => 97,
    };
    let bare = match bytes {
        [0x04, size, rest @ ..] if rest.len() == length && usize::from(*size) == length => rest,
        bare => bare,
    };
    (bare.len() == length && bare.first() == Some(&0x04)).then(|| bare.to_vec())
}

/// r and s side by side, as PKCS#11 gives them, as the sequence that X.509 wants.
pub(super) fn signature(raw: &[u8]) -> Option<Vec<u8>> {
    let half = raw.len() / 2;
    if raw.is_empty() || !raw.len().is_multiple_of(2) || half > 48 {
        return None;
    }
    let (r, s) = raw.split_at_checked(half)?;
    let body = [integer(r)?, integer(s)?].concat();
    let mut der = vec![0x30, u8::try_from(body.len()).ok().filter(|length| *length < 0x80)?];
    der.extend(body);
    Some(der)
}

fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let start = bytes.iter().position(|byte| *byte != 0)?;
    let digits = bytes.get(start..)?;
    let sign = if digits.first()? & 0x80 == 0 { &[][..] } else { &[0][..] };
    let length = u8::try_from(sign.len() + digits.len()).ok()?;
    Some([&[0x02, length], sign, digits].concat())
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
        },
    };

    use super::*;

    #[test]
    fn each_signature_is_turned_into_one_that_verifies() {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref());
        // Enough for numbers with a high bit and with leading zeros to turn up.
        for number in 0..2000_u32 {
            let message = number.to_be_bytes();
            let raw = key.sign(&random, &message).unwrap();
            public.verify(&message, &signature(raw.as_ref()).unwrap()).unwrap();
        }
    }

    #[test]
    fn what_is_no_signature_and_no_point_is_refused() {
        for raw in [&[][..], &[1; 63], &[0; 64], &[1; 98]] {
            assert_eq!(signature(raw), None);
        }
        let bare = [&[0x04][..], &[7; 64]].concat();
        let wrapped = [&[0x04, 65][..], &bare].concat();
        assert_eq!(point(&bare, KeyAlgorithm::P256), Some(bare.clone()));
        assert_eq!(point(&wrapped, KeyAlgorithm::P256), Some(bare.clone()));
        assert_eq!(point(&wrapped, KeyAlgorithm::P384), None);
        assert_eq!(point(&bare[..64], KeyAlgorithm::P256), None);
    }
}
