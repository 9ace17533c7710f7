use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use alcazar_identity::SpiffeId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::entry::EntryError;

/// Seals for one node: AES-256-GCM with a nonce by chance, bound to the format, the node and the file's name.
///
/// By one key at most 2^32 files are sealed: 10,000 registrations of an hour's life need thirty years for that.
pub(crate) struct Seal {
    key: LessSafeKey,
    node: SpiffeId,
}

impl Seal {
    pub(crate) fn new(key: &[u8; KEY], node: SpiffeId) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Crypto)?;
        Ok(Self { key: LessSafeKey::new(key), node })
    }

    /// The bytes of the file of this name.
    pub(crate) fn seal(&self, name: &str, mut plain: Zeroizing<Vec<u8>>) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Crypto)?;
        let tag =
            self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), self.bound(name), &mut plain);
        let tag = tag.map_err(|_| SealError::Crypto)?;
        Ok([MAGIC, &nonce, &plain, tag.as_ref()].concat())
    }

    /// What was sealed in the file of this name.
    pub(crate) fn open(&self, name: &str, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, EntryError> {
        let sealed = bytes.strip_prefix(MAGIC).ok_or(SealError::Format)?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Format)?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let opened = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), self.bound(name), &mut plain);
        let length = opened.map_err(|_| SealError::Foreign)?.len();
        plain.truncate(length);
        Ok(plain)
    }

    fn bound(&self, name: &str) -> Aad<Vec<u8>> {
        Aad::from([MAGIC, self.node.as_str().as_bytes(), b"\0", name.as_bytes()].concat())
    }
}

/// Reads the key: 32 bytes, in a file that is its owner's alone.
///
/// # Errors
/// When it is something else.
pub(crate) fn read_key(path: &Path) -> Result<Zeroizing<[u8; KEY]>, SealKeyError> {
    let failed = |source| SealKeyError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let mode = found.permissions().mode() & 0o777;
    // A credential of systemd is root's, and its group's bits are the mask of an access list with this very user.
    let is_given = found.uid() == 0 && !rustix::process::geteuid().is_root();
    if mode & if is_given { 0o037 } else { 0o077 } != 0 {
        return Err(SealKeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY + 1));
    file.take(KEY as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let key = <[u8; KEY]>::try_from(bytes.as_slice()).map(Zeroizing::new);
    key.map_err(|_| SealKeyError::Length { path: path.to_owned(), found: found.size() })
}

/// Why the key that seals cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealKeyError {
    /// It cannot be read.
    #[error("cannot read the key in {} (seal.keyFile); make one: head -c 32 /dev/urandom > {}", path.display(), path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may have read it.
    #[error("the key in {} (seal.keyFile) is open to others (mode {mode:04o}); if nobody else has had it, run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is no such key.
    #[error("{} (seal.keyFile) has {found} bytes, and a key has 32; make one: head -c 32 /dev/urandom > {}", path.display(), path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// How many bytes it has.
        found: u64,
    },
}

/// Why something is not sealed, or not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("it was not sealed by this version of the agent")]
    Format,
    #[error("it was sealed by another key, for another node or registration, or is damaged")]
    Foreign,
    #[error("the random source, or the cipher, failed")]
    Crypto,
    #[error("it cannot be written down")]
    Json(#[from] serde_json::Error),
}

/// In bytes.
const KEY: usize = 32;
const MAGIC: &[u8] = b"alcazar-sealed-v1\n";
