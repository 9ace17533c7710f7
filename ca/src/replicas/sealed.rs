//! What replicas tell each other in private, through a store that others may read and write.
//!
//! Each letter is sealed by a key that is derived from the secret that all replicas have, for one purpose and one replica of one
//! cluster: a letter that is altered, or put in another's place, does not open.
//!
//! ```text
//! version 1 │ nonce 12 │ AES-256-GCM(plaintext)
//! ```

use std::{fmt, fs, io, os::unix::fs::PermissionsExt, path::Path};

use alcazar_identity::TrustDomain;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::ReplicaId;
use crate::serial::{NoRandomness, random_bytes};

/// The secret that all replicas of a CA have.
pub(crate) struct Secret(Zeroizing<Vec<u8>>);

/// Who tells what: a letter opens in no other context.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) cluster: &'a str,
    /// Who joins.
    pub(crate) replica: &'a ReplicaId,
    pub(crate) purpose: Purpose,
}

/// What a letter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Asking for an intermediate.
    Request,
    /// Giving one.
    Answer,
}

impl Secret {
    /// Reads it from a file: everything but a line break at its end.
    pub(crate) fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::Io { path: path.into(), source };
        let mut bytes = fs::read(path).map(Zeroizing::new).map_err(failed)?;
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        // The group's bits may be the mask of an access list.
        if mode & 0o007 != 0 {
            return Err(SecretError::Exposed { path: path.into(), mode: mode & 0o777 });
        }
        let end = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        bytes.truncate(end);
        Self::new(bytes).map_err(|found| SecretError::Short { path: path.into(), found })
    }

    /// A secret of enough bytes; else how many there are.
    pub(crate) fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, usize> {
        if bytes.len() < SHORTEST { Err(bytes.len()) } else { Ok(Self(bytes)) }
    }

    /// Seals a letter.
    pub(crate) fn seal(&self, context: Context<'_>, letter: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random_bytes()?;
        let mut body = Zeroizing::new(letter.to_vec());
        let tag = self.key(context)?.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context.text()),
            &mut body,
        );
        let tag = tag.map_err(|_unspecified| SealError::Cipher)?;
        Ok([&[VERSION], nonce.as_slice(), body.as_slice(), tag.as_ref()].concat())
    }

    /// Opens a letter.
    pub(crate) fn open(&self, context: Context<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (&version, rest) = sealed.split_first().ok_or(SealError::Malformed)?;
        if version != VERSION {
            return Err(SealError::Version(version));
        }
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Malformed)?;
        if body.len() > LONGEST {
            return Err(SealError::Malformed);
        }
        let mut body = Zeroizing::new(body.to_vec());
        let key = self.key(context)?;
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context.text()), &mut body);
        let length = opened.map_err(|_unspecified| SealError::Closed)?.len();
        body.truncate(length);
        Ok(body)
    }

    fn key(&self, context: Context<'_>) -> Result<LessSafeKey, SealError> {
        let prk = Salt::new(HKDF_SHA256, SALT).extract(&self.0);
        let text = context.text();
        let info = [text.as_slice()];
        let okm = prk.expand(&info, &AES_256_GCM).map_err(|_unspecified| SealError::Cipher)?;
        Ok(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Context<'_> {
    /// No name in it can have a line break: none stands for another.
    fn text(&self) -> Vec<u8> {
        let purpose = match self.purpose {
            Purpose::Request => "request",
            Purpose::Answer => "answer",
        };
        let Self { trust_domain, cluster, replica, .. } = self;
        format!("{purpose}\n{trust_domain}\n{cluster}\n{replica}\n").into_bytes()
    }
}

/// Opens what another replica may have sealed, with a secret that is no secret; for the fuzzer, which finds inputs that panic.
pub fn open_letter(sealed: &[u8]) -> bool {
    let (Ok(trust_domain), Ok(replica)) = ("td".parse(), "0000000000000001".parse()) else { return false };
    let Ok(secret) = Secret::new(Zeroizing::new(vec![0; SHORTEST])) else { return false };
    let context = Context { trust_domain: &trust_domain, cluster: "c", replica: &replica, purpose: Purpose::Answer };
    secret.open(context, sealed).is_ok()
}

/// Why a letter was not sealed or opened.
#[derive(Debug, Error)]
pub enum SealError {
    /// Too short or too long to be one.
    #[error("it is no sealed letter")]
    Malformed,
    /// Of another version of this program.
    #[error("it is sealed in the form {0}, which this version of the program does not know")]
    Version(u8),
    /// Another secret, another place, or altered.
    #[error(
        "it does not open: it is sealed with another secret (replicas.secretFile is to be the same for all), was meant for another, or was altered"
    )]
    Closed,
    /// The cipher refused.
    #[error("it cannot be sealed")]
    Cipher,
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Why the replicas' secret cannot be used.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The disk refused.
    #[error("the secret of the replicas in {} cannot be read (replicas.secretFile)", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Everybody can read it.
    #[error("everybody can read the secret of the replicas in {} (mode {mode:04o}); run: chmod o= {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: std::path::PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Too short to be random enough.
    #[error(
        "the secret of the replicas in {} has {found} bytes, and must have {SHORTEST} or more: `openssl rand -base64 32` makes one",
        path.display()
    )]
    Short {
        /// The file.
        path: std::path::PathBuf,
        /// How many bytes it has.
        found: usize,
    },
}

const VERSION: u8 = 1;
const SHORTEST: usize = 32;
/// A letter has a few certificates and a key.
const LONGEST: usize = 32 * 1024;
const SALT: &[u8] = b"alcazar replicas v1";

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn secret(byte: u8) -> Secret {
        Secret::new(Zeroizing::new(vec![byte; 32])).unwrap()
    }

    #[test]
    fn a_letter_opens_in_its_own_place_alone() {
        let (domain, other): (TrustDomain, TrustDomain) = ("td".parse().unwrap(), "ts".parse().unwrap());
        let (one, two): (ReplicaId, ReplicaId) =
            ("0000000000000001".parse().unwrap(), "0000000000000002".parse().unwrap());
        let here = Context { trust_domain: &domain, cluster: "c", replica: &one, purpose: Purpose::Answer };
        let sealed = secret(1).seal(here, b"hello").unwrap();
        assert_eq!(secret(1).open(here, &sealed).unwrap().as_slice(), b"hello");
        assert!(!sealed.windows(5).any(|window| window == b"hello"));
        for (what, foreign) in [
            ("another trust domain", Context { trust_domain: &other, ..here }),
            ("another cluster", Context { cluster: "d", ..here }),
            ("another replica", Context { replica: &two, ..here }),
            ("another purpose", Context { purpose: Purpose::Request, ..here }),
        ] {
            assert!(matches!(secret(1).open(foreign, &sealed), Err(SealError::Closed)), "{what}");
        }
        assert!(matches!(secret(2).open(here, &sealed), Err(SealError::Closed)));
    }

    #[test]
    fn whatever_is_altered_does_not_open() {
        let domain: TrustDomain = "td".parse().unwrap();
        let replica = "0000000000000001".parse().unwrap();
        let here = Context { trust_domain: &domain, cluster: "c", replica: &replica, purpose: Purpose::Request };
        let sealed = secret(1).seal(here, b"a letter").unwrap();
        for place in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[place] ^= 1;
            assert!(secret(1).open(here, &altered).is_err(), "byte {place}");
            assert!(secret(1).open(here, &sealed[..place]).is_err(), "cut at {place}");
        }
        assert!(secret(1).open(here, &[sealed.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn a_secret_is_long_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write(&format!("{}\n", "k".repeat(32)), 0o640);
        assert_eq!(Secret::read(&path).unwrap().0.len(), 32);
        write("short\n", 0o600);
        assert!(matches!(Secret::read(&path), Err(SecretError::Short { found: 5, .. })));
        write("\n\n", 0o600);
        assert!(matches!(Secret::read(&path), Err(SecretError::Short { found: 0, .. })));
        write(&"k".repeat(40), 0o644);
        assert!(matches!(Secret::read(&path), Err(SecretError::Exposed { mode: 0o644, .. })));
    }
}
