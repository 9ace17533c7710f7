//! The files of a set, as they lie in a folder.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::CacertsError;

/// The bytes of the files of a set, by name.
#[derive(Clone, Default)]
pub struct CacertsFiles(pub(super) BTreeMap<&'static str, Zeroizing<Vec<u8>>>);

/// Where the files were when they were looked at: another stamp is another set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<(&'static str, PathBuf, u64, u64, i64, i64)>);

/// The link to the generation of a set that counts.
pub(crate) const GENERATION: &str = "..data";

/// Every name that counts.
pub(crate) const NAMES: [&str; 8] = [CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN, CA_CRL, TLS_CRT, TLS_KEY, CA_CRT];
pub(super) const CA_CERT: &str = "ca-cert.pem";
pub(super) const CA_KEY: &str = "ca-key.pem";
pub(super) const ROOT_CERT: &str = "root-cert.pem";
pub(super) const CERT_CHAIN: &str = "cert-chain.pem";
pub(super) const CA_CRL: &str = "ca-crl.pem";
pub(super) const TLS_CRT: &str = "tls.crt";
pub(super) const TLS_KEY: &str = "tls.key";
pub(super) const CA_CRT: &str = "ca.crt";

/// More than any honest file has.
const LARGEST: u64 = 1 << 20;

impl CacertsFiles {
    /// A set from memory; names that do not count are passed over.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        let mut set = BTreeMap::new();
        for (name, bytes) in files {
            if let Some(name) = NAMES.iter().find(|known| **known == name) {
                set.insert(*name, Zeroizing::new(bytes));
            }
        }
        Self(set)
    }

    /// The files in a folder. Of a volume that Kubernetes swaps by a link, all are of one generation.
    ///
    /// # Errors
    /// When the folder or a file cannot be read.
    pub fn read(folder: &Path) -> Result<Self, CacertsError> {
        let failed = |path: &Path, source| CacertsError::Io { path: path.into(), source };
        fs::read_dir(folder).map_err(|source| failed(folder, source))?;
        let generation = generation(folder);
        let mut set = BTreeMap::new();
        for name in NAMES {
            let path = generation.join(name);
            match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&path, error)),
                Ok(found) if found.len() > LARGEST => {
                    return Err(CacertsError::TooLong { file: name, bytes: found.len() });
                }
                // What the kubelet mounts is so by default, and seen in one container alone.
                Ok(found) if [CA_KEY, TLS_KEY].contains(&name) && found.mode() & 0o007 != 0 && generation == folder => {
                    tracing::warn!(file = %path.display(), mode = %format!("{:04o}", found.mode() & 0o777), "everybody on this machine can read the CA's key; run chmod o= on it, and replace it if strangers have been here");
                }
                Ok(_) => {}
            }
            let bytes = fs::read(&path).map_err(|source| failed(&path, source))?;
            set.insert(name, Zeroizing::new(bytes));
        }
        Ok(Self(set))
    }

    /// The files, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (*name, bytes.as_slice()))
    }

    /// The CRLs among them, in DER.
    pub(crate) fn crls(&self) -> Vec<Vec<u8>> {
        self.0.get(CA_CRL).map(|pem| crate::revocation::crls_in(pem)).unwrap_or_default()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, CacertsError> {
        let Some(bytes) = self.0.get(name) else { return Ok(None) };
        std::str::from_utf8(bytes).map(Some).map_err(|_reason| CacertsError::NotPem { file: name })
    }
}

impl std::fmt::Debug for CacertsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Stamp {
    pub(crate) fn of(folder: &Path) -> Self {
        let generation = generation(folder);
        let look = |name: &'static str| {
            let path = generation.join(name);
            let found = fs::metadata(&path).ok()?;
            Some((name, path, found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        };
        Self(NAMES.into_iter().filter_map(look).collect())
    }
}

/// The kubelet writes a whole new folder and then turns the link `..data` to it.
fn generation(folder: &Path) -> PathBuf {
    fs::canonicalize(folder.join(GENERATION)).unwrap_or_else(|_none| folder.into())
}
