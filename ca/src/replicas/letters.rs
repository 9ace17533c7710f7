//! What is in the letters: a replica that joins asks for an intermediate, and another gives it one.
//!
//! ```text
//! request   at 8 │ root 32, or zeros │ shared? 1: no, any, or this │ fingerprint 32, of this │ certificate request, PEM
//! answer    at 8 │ hash of the requested key 32 │ kind 1 │ number of certificates 1 │ { length 4 │ DER }… │ key
//!           the certificates: the intermediate, what is above it, the root; the key: none, PKCS#8, or a label in the token
//! ```

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{csr::KeyHash, keys::KeyLabel, records::seconds};

/// A replica asks for an intermediate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) at: SystemTime,
    /// Under this root; `None` for whichever signs.
    pub(crate) root: Option<Fingerprint>,
    pub(crate) shared: Shares,
    pub(crate) csr: String,
}

/// Whether one that another replica signs with will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shares {
    No,
    Any,
    /// This one and no other: it takes the place of one that is shared.
    This(Fingerprint),
}

impl Shares {
    /// Whether this one will do.
    pub(super) fn takes(self, intermediate: Fingerprint) -> bool {
        match self {
            Self::No => false,
            Self::Any => true,
            Self::This(wanted) => wanted == intermediate,
        }
    }
}

/// A replica gives another an intermediate.
pub(crate) struct Answer {
    pub(crate) at: SystemTime,
    /// For the request by this key.
    pub(crate) key_hash: KeyHash,
    /// From the intermediate up, the root excluded.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) key: AnswerKey,
}

/// Whose key the intermediate has.
pub(crate) enum AnswerKey {
    /// The one that was asked with.
    Own,
    /// The one that another replica signs with.
    Shared(Zeroizing<Vec<u8>>),
    /// The same, in the token that both have.
    Token(KeyLabel),
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let root = self.root.map_or([0; 32], |root| *root.as_bytes());
        let at = seconds::of(self.at).to_be_bytes();
        let (kind, this) = match &self.shared {
            Shares::No => (0, [].as_slice()),
            Shares::Any => (1, [].as_slice()),
            Shares::This(wanted) => (2, wanted.as_bytes().as_slice()),
        };
        [at.as_slice(), &root, &[kind], this, self.csr.as_bytes()].concat()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LetterError> {
        let mut reader = Reader(bytes);
        let at = reader.moment()?;
        let root = reader.chunk::<32>()?;
        let shared = match reader.chunk::<1>()? {
            [0] => Shares::No,
            [1] => Shares::Any,
            [2] => Shares::This(reader.chunk::<32>()?.into()),
            _ => return Err(LetterError::Malformed),
        };
        let csr = std::str::from_utf8(reader.0).map_err(|_reason| LetterError::Malformed)?.to_owned();
        let root = (root != [0; 32]).then(|| Fingerprint::from(root));
        Ok(Self { at, root, shared, csr })
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(8 * 1024));
        bytes.extend_from_slice(&seconds::of(self.at).to_be_bytes());
        bytes.extend_from_slice(self.key_hash.as_bytes());
        let (kind, key) = match &self.key {
            AnswerKey::Own => (0, [].as_slice()),
            AnswerKey::Shared(key) => (1, key.as_slice()),
            AnswerKey::Token(label) => (2, label.as_str().as_bytes()),
        };
        bytes.push(kind);
        bytes.push(u8::try_from(self.chain.len() + 1).unwrap_or(u8::MAX));
        for certificate in self.chain.iter().chain([&self.root]) {
            bytes.extend_from_slice(&u32::try_from(certificate.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(certificate);
        }
        bytes.extend_from_slice(key);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LetterError> {
        let mut reader = Reader(bytes);
        let at = reader.moment()?;
        let key_hash = KeyHash::from_digest(reader.chunk::<32>()?);
        let [kind, count] = reader.chunk::<2>()?;
        let mut chain = Vec::new();
        for _ in 0..count {
            let length = u32::from_be_bytes(reader.chunk::<4>()?);
            let length = usize::try_from(length).map_err(|_too_long| LetterError::Malformed)?;
            chain.push(CertificateDer::from(reader.take(length)?.to_vec()));
        }
        let root = chain.pop().ok_or(LetterError::Malformed)?;
        if chain.is_empty() {
            return Err(LetterError::Malformed);
        }
        let key = match (kind, reader.0) {
            (0, []) => AnswerKey::Own,
            (1, key) if !key.is_empty() => AnswerKey::Shared(Zeroizing::new(key.to_vec())),
            (2, label) => {
                let label = std::str::from_utf8(label).ok().and_then(|label| label.parse().ok());
                AnswerKey::Token(label.ok_or(LetterError::Malformed)?)
            }
            _ => return Err(LetterError::Malformed),
        };
        Ok(Self { at, key_hash, chain, root, key })
    }
}

/// Whether a letter of that moment still counts.
pub(crate) fn is_fresh(at: SystemTime, now: SystemTime) -> Result<(), LetterError> {
    let apart = now.duration_since(at).unwrap_or_else(|ahead| ahead.duration());
    if apart <= FRESH { Ok(()) } else { Err(LetterError::Old { at, now }) }
}

/// Why a letter is not read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LetterError {
    /// It makes no sense.
    #[error("the letter was written by another version of this program, or is damaged")]
    Malformed,
    /// Somebody has put an old one there, or a clock is wrong.
    #[error(
        "the letter is of {}, and the clock here says {}: it is an old one, or a clock is wrong",
        alcazar_identity::rfc3339(*at), alcazar_identity::rfc3339(*now)
    )]
    Old {
        /// When it was written.
        at: SystemTime,
        /// Now.
        now: SystemTime,
    },
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], LetterError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(LetterError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], LetterError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(LetterError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn moment(&mut self) -> Result<SystemTime, LetterError> {
        let seconds = Duration::from_secs(u64::from_be_bytes(self.chunk::<8>()?));
        SystemTime::UNIX_EPOCH.checked_add(seconds).ok_or(LetterError::Malformed)
    }
}

/// Reads what another replica may have written, as each kind of letter; for the fuzzer, which finds inputs that panic.
pub fn read_letter(bytes: &[u8]) -> usize {
    usize::from(Request::decode(bytes).is_ok()) + usize::from(Answer::decode(bytes).is_ok())
}

/// Clocks may differ by so much, and a letter wait for so long.
const FRESH: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn an_old_letter_does_not_count() {
        for (written, now, fresh) in [(1000, 1000, true), (1000, 1600, true), (1600, 1000, true), (1000, 1601, false)] {
            assert_eq!(is_fresh(at(written), at(now)).is_ok(), fresh, "{written} {now}");
        }
    }

    proptest! {
        #[test]
        fn a_request_is_read_as_it_was_written(second in 0u64..1 << 40, root in proptest::option::of(1u8..), kind in 0u8..3, csr in "\\PC*") {
            let root = root.map(|byte| Fingerprint::from([byte; 32]));
            let shared = match kind {
                0 => Shares::No,
                1 => Shares::Any,
                _ => Shares::This(Fingerprint::from([9; 32])),
            };
            let request = Request { at: at(second), root, shared, csr };
            prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }

        #[test]
        fn an_answer_is_read_as_it_was_written(
            chain in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 2..5),
            kind in 0u8..3, cut in 0usize..200,
        ) {
            let mut chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
            let root = chain.pop().unwrap();
            let key = match kind {
                0 => AnswerKey::Own,
                1 => AnswerKey::Shared(Zeroizing::new(vec![7; 9])),
                _ => AnswerKey::Token("intermediate-1".parse().unwrap()),
            };
            let answer = Answer { at: at(7), key_hash: KeyHash::from_digest([3; 32]), chain, root, key };
            let bytes = answer.encode();
            let read = Answer::decode(&bytes).unwrap();
            prop_assert_eq!((read.at, read.key_hash, &read.chain, &read.root), (answer.at, answer.key_hash, &answer.chain, &answer.root));
            prop_assert_eq!(read.encode(), bytes.clone());
            // Cut anywhere, it is no answer, or at most one with a shorter key.
            if let Ok(cut) = Answer::decode(&bytes[..cut.min(bytes.len())]) {
                prop_assert!(cut.chain == answer.chain && kind != 0 || cut.encode() == bytes);
            }
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read_letter(&bytes);
        }
    }
}
