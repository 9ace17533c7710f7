//! Where the CA's keys live: made here, signed with here, never read back by anybody else.
//!
//! ```text
//!   hierarchy (root, intermediates)  ─┐                          ┌─▶ FileKeys    <data>/hierarchy/<label>-key.pem, PKCS#8, 0600,
//!   JWT authority                    ─┼─▶ KeyStore ─▶ Signer ────┤               encrypted where a passphrase is configured
//!   requests that wait for a root    ─┘   by label               └─▶ Pkcs11Keys  a token; keys that it does not give away
//! ```
//!
//! # Invariants
//! - A label names one key for ever: `generate` refuses one that is taken, so that no key is overwritten.
//! - A key is durable before `generate` returns: the certificate that needs it comes after it.
//! - Every call may block, on a disk, on a slow derivation from a passphrase, or on a token: callers use `spawn_blocking`.

mod config;
mod files;
mod pem;
mod pkcs11;

use std::{error::Error, fmt, io, path::PathBuf, str::FromStr, sync::Arc};

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm};
use thiserror::Error;
use zeroize::Zeroizing;

pub(crate) use self::pem::parse_key;
pub use self::{
    config::KeysConfig,
    files::{FileKeys, read_passphrase},
    pem::KeyPemError,
    pkcs11::{Pkcs11Config, Pkcs11Keys},
};
use crate::{
    serial::{NoRandomness, random_bytes},
    signer::Signer,
};

/// Keys by their labels.
pub trait KeyStore: Send + Sync {
    /// Makes a key of this kind; durable when it returns.
    ///
    /// # Errors
    /// When there is one of this label already, or it cannot be kept.
    fn generate_with(&self, label: &KeyLabel, algorithm: KeyAlgorithm) -> Result<Arc<dyn Signer>, KeyError>;

    /// Makes a P-256 key: every handshake in the mesh verifies its signatures, and others would take several times as long.
    ///
    /// # Errors
    /// As [`KeyStore::generate_with`].
    fn generate(&self, label: &KeyLabel) -> Result<Arc<dyn Signer>, KeyError> {
        self.generate_with(label, KeyAlgorithm::P256)
    }

    /// The signer of a key.
    ///
    /// # Errors
    /// When there is none of this label, or it cannot be used. The error says what to do.
    fn open(&self, label: &KeyLabel) -> Result<Arc<dyn Signer>, KeyError>;

    /// Keeps a key that was made elsewhere, in PKCS#8.
    ///
    /// # Errors
    /// When there is one of this label already, it is none, or keys do not come in here.
    fn import(&self, label: &KeyLabel, _pkcs8: &[u8]) -> Result<Arc<dyn Signer>, KeyError> {
        Err(KeyError::Import { label: label.clone(), what: "keys are made in the token, and none comes in".into() })
    }

    /// A key in PKCS#8, for another replica to have too; `None` where keys do not come out.
    ///
    /// # Errors
    /// When there is none of this label, or it cannot be read.
    fn export(&self, _label: &KeyLabel) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        Ok(None)
    }

    /// Whether other replicas reach the same keys by the same labels.
    fn is_shared(&self) -> bool {
        false
    }

    /// Destroys a key. One that is not there is as good as destroyed.
    ///
    /// # Errors
    /// When it cannot be destroyed.
    fn remove(&self, label: &KeyLabel) -> Result<(), KeyError>;

    /// Every key's label, sorted.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn labels(&self) -> Result<Vec<KeyLabel>, KeyError>;
}

/// The kinds of key that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    P256,
    /// ECDSA on P-384 with SHA-384: for a root whose owner asks for it.
    P384,
}

impl KeyAlgorithm {
    pub(crate) fn signature(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::P384 => &PKCS_ECDSA_P384_SHA384,
        }
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        })
    }
}

/// The name of a key: letters, digits, `-` and `_`, such as `root`, `intermediate-5f0c…` or `jwt-…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyLabel(String);

impl KeyLabel {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A label of its own for a key of this sort, as `intermediate-5f0c3a9e12ab77d0`.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random(sort: &str) -> Result<Self, NoRandomness> {
        let id = u64::from_be_bytes(random_bytes()?);
        Ok(Self(format!("{sort}-{id:016x}")))
    }
}

impl FromStr for KeyLabel {
    type Err = ParseKeyLabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        // A leading hyphen would be taken for an option by every command that is given the file.
        if (1..=64).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') {
            Ok(Self(text.into()))
        } else {
            Err(ParseKeyLabelError(text.into()))
        }
    }
}

impl fmt::Display for KeyLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not the label of a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} cannot name a key: 1 to 64 letters, digits, hyphens and underscores")]
pub struct ParseKeyLabelError(String);

/// Why a key could not be made, found or used. Each says what to do about it.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The label is taken.
    #[error("there is a key {label} in {place} already; keys are never overwritten: remove it if nothing needs it")]
    Exists {
        /// The label.
        label: KeyLabel,
        /// Where.
        place: String,
    },
    /// A key from elsewhere that is not taken in.
    #[error("the private key {label} cannot be taken in: {what}")]
    Import {
        /// The label.
        label: KeyLabel,
        /// Why not.
        what: String,
    },
    /// No key of this label.
    #[error("the private key {label} is missing: {place} is not there; restore it from a backup")]
    Missing {
        /// The label.
        label: KeyLabel,
        /// Where it should be.
        place: String,
    },
    /// A key that cannot be read.
    #[error("the private key in {} cannot be read; restore it from a backup", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: KeyPemError,
    },
    /// An encrypted key, and no passphrase is configured.
    #[error(
        "the private key in {} is encrypted, and no passphrase is configured; name the file that holds it as keys: {{passphraseFile: ...}}",
        file.display()
    )]
    Locked {
        /// The file.
        file: PathBuf,
    },
    /// A passphrase that opens nothing.
    #[error(
        "the passphrase in {} does not open the private key in {}; give the one that the key was encrypted with, or restore both from one backup",
        passphrase.display(), file.display()
    )]
    WrongPassphrase {
        /// The key's file.
        file: PathBuf,
        /// The passphrase's file.
        passphrase: PathBuf,
    },
    /// A passphrase that a person typed.
    #[error("the passphrase does not open the private key in {}; try again", file.display())]
    Mistyped {
        /// The key's file.
        file: PathBuf,
    },
    /// A passphrase that cannot be used.
    #[error("the passphrase file {} cannot be used: {what}", file.display())]
    Passphrase {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A key that others can read.
    #[error(
        "the private key in {} is open to others (mode {mode:04o}); if nobody else has had it, run: chmod 600 {}",
        file.display(), file.display()
    )]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A key that belongs to another user.
    #[error(
        "the private key in {} belongs to the user {owner}, and this process runs as {ours}; if that user is trusted with it, run: chown {ours} {}",
        file.display(), file.display()
    )]
    Owner {
        /// The file.
        file: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        ours: u32,
    },
    /// The disk refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// A key was not made.
    #[error("cannot make a key")]
    Generate(#[source] Box<dyn Error + Send + Sync>),
    /// The token did not do it.
    #[error("the PKCS#11 token {token} (module {}) cannot {doing}", module.display())]
    Token {
        /// The token's label.
        token: String,
        /// The module.
        module: PathBuf,
        /// What was being done, as a verb.
        doing: &'static str,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_file_name_that_means_nothing_else() {
        for good in ["root", "intermediate-0123456789abcdef", "jwt-Ab_9", &"x".repeat(64)] {
            assert_eq!(good.parse::<KeyLabel>().unwrap().as_str(), good);
        }
        for bad in ["", "-x", "a/b", "..", "a.b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<KeyLabel>().is_err(), "{bad:?}");
        }
        let (one, two) = (KeyLabel::random("root").unwrap(), KeyLabel::random("root").unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse::<KeyLabel>(), Ok(one));
    }
}
