//! Small files of this replica alone: a line that says what it is and what it must hash to, then JSON.

use alcazar_identity::Fingerprint;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The bytes of a file that holds `record`.
pub(super) fn encode<T: Serialize>(kind: &str, record: &T) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(record)?;
    let mut bytes = format!("alcazar {kind} 1 {}\n", Fingerprint::of(&body)).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// What such a file holds.
pub(super) fn decode<T: DeserializeOwned>(kind: &str, bytes: &[u8]) -> Result<T, CheckedFileError> {
    if bytes.len() > LARGEST {
        return Err(CheckedFileError::TooLarge(bytes.len()));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(CheckedFileError::NoHead)?;
    let (head, rest) = bytes.split_at(end);
    let body = rest.get(1..).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_reason| CheckedFileError::NoHead)?;
    let begins = format!("alcazar {kind} 1 ");
    let said = head.strip_prefix(&begins).and_then(|print| print.parse::<Fingerprint>().ok());
    if said.ok_or(CheckedFileError::NoHead)? != Fingerprint::of(body) {
        return Err(CheckedFileError::Altered);
    }
    serde_json::from_slice(body).map_err(CheckedFileError::Body)
}

/// What is wrong with a file.
#[derive(Debug, Error)]
pub(crate) enum CheckedFileError {
    #[error("{0} bytes are more than any such file has")]
    TooLarge(usize),
    #[error("its first line does not say that it is such a file, of this version")]
    NoHead,
    #[error("it is cut or was altered: its content has another hash than its first line says")]
    Altered,
    #[error("its content makes no sense; it was written by another version of this program")]
    Body(#[source] serde_json::Error),
}

/// More than a certificate and what is said of it.
const LARGEST: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_reads_back_and_no_change_goes_unnoticed() {
        let record = vec!["one".to_owned(), "two".into()];
        let bytes = encode("test", &record).unwrap();
        assert_eq!(decode::<Vec<String>>("test", &bytes).unwrap(), record);
        assert!(decode::<Vec<String>>("other", &bytes).is_err());
        for place in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[place] ^= 1;
            assert!(decode::<Vec<String>>("test", &altered).is_err(), "byte {place}");
            assert!(decode::<Vec<String>>("test", &bytes[..place]).is_err(), "cut at {place}");
        }
        assert!(matches!(decode::<u8>("test", &vec![b'x'; LARGEST + 1]), Err(CheckedFileError::TooLarge(_))));
        assert!(matches!(decode::<u8>("test", &encode("test", &"x").unwrap()), Err(CheckedFileError::Body(_))));
    }

    proptest! {
        #[test]
        fn whatever_it_holds_it_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<u8>("test", &bytes).is_err());
        }
    }
}
