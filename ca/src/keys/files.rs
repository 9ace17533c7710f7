//! Keys in files: one PKCS#8 PEM each, for the CA's own user alone.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use alcazar_service::files::{private_directory, write_atomic};
use rcgen::KeyPair;
use rustix::process::geteuid;
use zeroize::Zeroizing;

use super::{
    KeyAlgorithm, KeyError, KeyLabel, KeyStore,
    pem::{KeyPemError, Parsed, parse_key, write_key},
};
use crate::signer::{KeySigner, Signer};

/// Keys as `<folder>/<label>-key.pem`, mode 0600, encrypted where there is a passphrase.
#[derive(Clone)]
pub struct FileKeys {
    folder: PathBuf,
    passphrase: Passphrase,
}

#[derive(Clone)]
enum Passphrase {
    None,
    /// Read at each use: it may be exchanged while the CA runs, and is in memory for a moment only.
    File(PathBuf),
    /// As a person typed it, for one command.
    Given(Arc<Zeroizing<Vec<u8>>>),
}

impl FileKeys {
    /// The keys in this folder, which need not be there yet; `passphrase` is the file that holds theirs.
    pub fn new(folder: impl Into<PathBuf>, passphrase: Option<PathBuf>) -> Self {
        Self { folder: folder.into(), passphrase: passphrase.map_or(Passphrase::None, Passphrase::File) }
    }

    /// The keys in this folder, encrypted with this passphrase.
    pub fn sealed(folder: impl Into<PathBuf>, passphrase: Zeroizing<Vec<u8>>) -> Self {
        Self { folder: folder.into(), passphrase: Passphrase::Given(Arc::new(passphrase)) }
    }

    /// The file of a key.
    pub fn path(&self, label: &KeyLabel) -> PathBuf {
        self.folder.join(format!("{label}{SUFFIX}"))
    }

    fn passphrase(&self) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        match &self.passphrase {
            Passphrase::None => Ok(None),
            Passphrase::File(file) => read_passphrase(file).map(Some),
            Passphrase::Given(passphrase) => Ok(Some(Zeroizing::clone(passphrase))),
        }
    }

    fn is_sealed(&self) -> bool {
        !matches!(self.passphrase, Passphrase::None)
    }

    fn read(&self, label: &KeyLabel, path: &Path) -> Result<Parsed, KeyError> {
        let text = read_private(label, path)?;
        let unreadable = |source| KeyError::Unreadable { file: path.into(), source };
        let text = std::str::from_utf8(&text).map_err(|_reason| unreadable(KeyPemError::NotPem))?;
        let passphrase = self.passphrase()?;
        let parsed = parse_key(text, passphrase.as_ref().map(|bytes| bytes.as_slice()));
        parsed.map_err(|error| match (error, &self.passphrase) {
            (KeyPemError::Locked, _) => KeyError::Locked { file: path.into() },
            (KeyPemError::Passphrase, Passphrase::File(passphrase)) => {
                KeyError::WrongPassphrase { file: path.into(), passphrase: passphrase.clone() }
            }
            (KeyPemError::Passphrase, Passphrase::Given(_)) => KeyError::Mistyped { file: path.into() },
            (error, _) => unreadable(error),
        })
    }

    fn write(&self, path: &Path, key: &KeyPair) -> Result<(), KeyError> {
        let passphrase = self.passphrase()?;
        let text = write_key(key, passphrase.as_ref().map(|bytes| bytes.as_slice()));
        let text = text.map_err(|error| KeyError::Generate(Box::new(error)))?;
        write_atomic(path, text.as_bytes(), 0o600).map_err(|source| io_error("write", path, source))
    }
}

impl KeyStore for FileKeys {
    fn generate_with(&self, label: &KeyLabel, algorithm: KeyAlgorithm) -> Result<Arc<dyn Signer>, KeyError> {
        let path = self.path(label);
        if path.try_exists().map_err(|source| io_error("look at", &path, source))? {
            return Err(KeyError::Exists { label: label.clone(), place: path.display().to_string() });
        }
        private_directory(&self.folder).map_err(|source| io_error("create", &self.folder, source))?;
        let key = KeyPair::generate_for(algorithm.signature()).map_err(|error| KeyError::Generate(Box::new(error)))?;
        self.write(&path, &key)?;
        Ok(Arc::new(KeySigner::new(key)))
    }

    fn open(&self, label: &KeyLabel) -> Result<Arc<dyn Signer>, KeyError> {
        let path = self.path(label);
        let parsed = self.read(label, &path)?;
        if self.is_sealed() && !parsed.encrypted {
            self.write(&path, &parsed.key)?;
            tracing::info!(file = %path.display(), "a key that lay open is encrypted now; copies of the old file are not");
        }
        Ok(Arc::new(KeySigner::new(parsed.key)))
    }

    fn import(&self, label: &KeyLabel, pkcs8: &[u8]) -> Result<Arc<dyn Signer>, KeyError> {
        let path = self.path(label);
        if path.try_exists().map_err(|source| io_error("look at", &path, source))? {
            return Err(KeyError::Exists { label: label.clone(), place: path.display().to_string() });
        }
        let refused = |error: rcgen::Error| KeyError::Import { label: label.clone(), what: error.to_string() };
        let key = KeyPair::try_from(pkcs8).map_err(refused)?;
        private_directory(&self.folder).map_err(|source| io_error("create", &self.folder, source))?;
        self.write(&path, &key)?;
        Ok(Arc::new(KeySigner::new(key)))
    }

    fn export(&self, label: &KeyLabel) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let path = self.path(label);
        Ok(Some(Zeroizing::new(self.read(label, &path)?.key.serialize_der())))
    }

    fn remove(&self, label: &KeyLabel) -> Result<(), KeyError> {
        let path = self.path(label);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, error)),
            Err(_) => Ok(()),
            Ok(()) => {
                let synced = fs::File::open(&self.folder).and_then(|folder| folder.sync_all());
                synced.map_err(|source| io_error("sync", &self.folder, source))
            }
        }
    }

    fn labels(&self) -> Result<Vec<KeyLabel>, KeyError> {
        let failed = |source| io_error("list", &self.folder, source);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut labels = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let label = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            labels.extend(label.and_then(|label| label.parse().ok()));
        }
        labels.sort();
        Ok(labels)
    }
}

/// Reads a passphrase: the first line of a file, which others may not read.
///
/// # Errors
/// When it cannot be read, everybody can read it, or its first line is empty.
pub fn read_passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let wrong = |what: String| KeyError::Passphrase { file: path.into(), what };
    let bytes = fs::read(path).map(Zeroizing::new).map_err(|error| wrong(error.to_string()))?;
    let mode = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.permissions().mode();
    // The group's bits may be the mask of an access list, as systemd's credentials have one.
    if mode & 0o007 != 0 {
        return Err(wrong(format!(
            "everybody can read it (mode {:04o}); run: chmod o= {}",
            mode & 0o777,
            path.display()
        )));
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(wrong("its first line is empty; the passphrase stands there".into()));
    }
    Ok(Zeroizing::new(line.to_vec()))
}

const SUFFIX: &str = "-key.pem";

/// A key that others can read or write is not signed with: who knows who has had it.
fn read_private(label: &KeyLabel, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KeyError::Missing { label: label.clone(), place: path.display().to_string() },
        _ => io_error("read", path, error),
    };
    let found = fs::metadata(path).map_err(failed)?;
    if found.permissions().mode() & 0o077 != 0 {
        return Err(KeyError::Exposed { file: path.into(), mode: found.permissions().mode() & 0o777 });
    }
    let ours = geteuid().as_raw();
    if found.uid() != ours {
        return Err(KeyError::Owner { file: path.into(), owner: found.uid(), ours });
    }
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> KeyError {
    KeyError::Io { doing, path: path.into(), source }
}

impl std::fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileKeys").field("folder", &self.folder).finish_non_exhaustive()
    }
}
