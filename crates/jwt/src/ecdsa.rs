use crate::{Algorithm, der};

/// An ECDSA signature as JWS has it, r and s of fixed length, from the DER in which most signers give it.
///
/// # Errors
/// When it is not such a signature, or the algorithm is not ECDSA.
///
/// **Source**: RFC 7518 §3.4; RFC 3279 §2.2.3.
pub fn fixed_of_der(algorithm: Algorithm, signature: &[u8]) -> Result<Vec<u8>, EcdsaDerError> {
    let size = match algorithm {
        Algorithm::Es256 => 32,
        Algorithm::Es384 => 48,
        _ => return Err(EcdsaDerError),
    };
    let (pair, end) = der::take(der::SEQUENCE, signature).ok_or(EcdsaDerError)?;
    let (r, rest) = der::take_positive(pair).ok_or(EcdsaDerError)?;
    let (s, rest) = der::take_positive(rest).ok_or(EcdsaDerError)?;
    if !end.is_empty() || !rest.is_empty() {
        return Err(EcdsaDerError);
    }
    let mut fixed = vec![0; 2 * size];
    for (half, number) in fixed.chunks_exact_mut(size).zip([r, s]) {
        let start = size.checked_sub(number.len()).ok_or(EcdsaDerError)?;
        half.iter_mut().skip(start).zip(number).for_each(|(to, from)| *to = *from);
    }
    Ok(fixed)
}

/// Bytes that are not an ECDSA signature of the algorithm's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not an ECDSA signature in DER of the algorithm's size")]
pub struct EcdsaDerError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a signer gives for these numbers.
    fn der_of(r: &[u8], s: &[u8]) -> Vec<u8> {
        let short = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
        der::element(der::SEQUENCE, &[&der::positive(&short(r)), &der::positive(&short(s))])
    }

    proptest! {
        #[test]
        fn every_pair_of_numbers_keeps_its_value(r in any::<[u8; 32]>(), s in any::<[u8; 32]>(), zeros in 0_usize..32) {
            let mut r = r;
            r.iter_mut().take(zeros).for_each(|byte| *byte = 0);
            prop_assume!(r != [0; 32] && s != [0; 32]);
            prop_assert_eq!(fixed_of_der(Algorithm::Es256, &der_of(&r, &s)).unwrap(), [r, s].concat());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            drop(fixed_of_der(Algorithm::Es256, &bytes));
        }
    }

    #[test]
    fn what_is_not_one_signature_of_the_size_is_refused() {
        let good = der_of(&[7; 32], &[200; 32]);
        assert!(fixed_of_der(Algorithm::Es256, &good).is_ok());
        assert!(fixed_of_der(Algorithm::Es384, &der_of(&[7; 48], &[200; 48])).is_ok());
        let longer = [good.as_slice(), &[0]].concat();
        for (algorithm, bad) in [
            (Algorithm::Rs256, good.as_slice()),
            (Algorithm::Es256, &longer),
            (Algorithm::Es256, good.get(..good.len() - 1).unwrap()),
            (Algorithm::Es256, &der_of(&[7; 33], &[1; 32])),
            (Algorithm::Es256, &[0x30, 6, 2, 1, 0, 2, 1, 1]),
            (Algorithm::Es256, &[0x30, 6, 2, 1, 0x80, 2, 1, 1]),
            (Algorithm::Es256, &[0x30, 7, 2, 2, 0, 1, 2, 1, 1]),
            (Algorithm::Es256, &[0x30, 0x81, 6, 2, 1, 1, 2, 1, 1]),
        ] {
            assert_eq!(fixed_of_der(algorithm, bad), Err(EcdsaDerError), "{algorithm} {bad:?}");
        }
    }
}
