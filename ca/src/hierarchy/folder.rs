//! The folder with the CA's certificates, and the notes by which a start that was cut short is told from damage.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint};
use alcazar_service::files::{private_directory, write_atomic};
use rustls_pki_types::pem::PemObject;

use super::{HierarchyError, pem};
use crate::{
    authority::{AuthorityError, AuthorityInfo},
    csr::{Csr, KeyHash},
    keys::KeyLabel,
    records::seconds,
};

/// The folder of one CA. Its calls block.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

/// An authority on the disk.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Its key's label, which is its file's name too.
    pub(crate) label: KeyLabel,
    pub(crate) info: AuthorityInfo,
    /// The certificates from itself up, the root excluded; of a root, itself.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Its root, where that lies beside it: of one that a person plugged in.
    pub(crate) root: Option<AuthorityInfo>,
}

/// What an authority is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Root,
    Intermediate,
}

impl Sort {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        }
    }

    fn of(label: &KeyLabel) -> Option<Self> {
        let label = label.as_str();
        if label == "root" || label.starts_with("root-") {
            return Some(Self::Root);
        }
        label.starts_with("intermediate-").then_some(Self::Intermediate)
    }
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn exists(&self) -> Result<bool, HierarchyError> {
        self.0.try_exists().map_err(|source| io_error("look at", &self.0, source))
    }

    pub(crate) fn make(&self) -> Result<(), HierarchyError> {
        private_directory(&self.0).map_err(|source| io_error("create", &self.0, source))
    }

    /// Every authority of a sort; one that cannot be read is an error and never passed over.
    pub(crate) fn held(&self, sort: Sort) -> Result<Vec<Held>, HierarchyError> {
        let mut held = Vec::new();
        for name in self.names()? {
            let Some(label) = name.strip_suffix(CERTIFICATE).filter(|_| !name.ends_with(KEY)) else { continue };
            let Ok(label) = label.parse::<KeyLabel>() else { continue };
            if Sort::of(&label) == Some(sort) {
                held.push(self.read(label)?);
            }
        }
        held.sort_by(|a, b| a.label.cmp(&b.label));
        Ok(held)
    }

    /// Whether any certificate or key of an authority lies here.
    pub(crate) fn is_empty(&self) -> Result<bool, HierarchyError> {
        let ours = |name: &String| name.starts_with("root") || name.starts_with("intermediate");
        Ok(!self.names()?.iter().any(ours))
    }

    pub(crate) fn file(&self, label: &KeyLabel) -> PathBuf {
        self.0.join(format!("{label}{CERTIFICATE}"))
    }

    /// Whether an intermediate lies here, by its fingerprint.
    pub(crate) fn has_intermediate(&self, fingerprint: Fingerprint) -> bool {
        let held = self.held(Sort::Intermediate).unwrap_or_default();
        held.iter().any(|held| held.info.fingerprint == fingerprint)
    }

    fn read(&self, label: KeyLabel) -> Result<Held, HierarchyError> {
        let path = self.file(&label);
        let wrong = |source| HierarchyError::Wrong { file: path.clone(), source };
        let text = fs::read(&path).map_err(|source| io_error("read", &path, source))?;
        let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let mut chain = chain.map_err(|_reason| wrong(AuthorityError::Malformed))?;
        let first = chain.first().ok_or_else(|| wrong(AuthorityError::Malformed))?;
        let info = AuthorityInfo::parse(first.clone()).map_err(wrong)?;
        let last = chain.last().cloned().filter(|_| chain.len() > 1);
        let last = last.map(AuthorityInfo::parse).transpose().map_err(wrong)?;
        let root = last.filter(|last| last.is_signed_by(last));
        if root.is_some() {
            chain.pop();
        }
        Ok(Held { label, info, chain, root })
    }

    pub(crate) fn write(&self, label: &KeyLabel, chain: &[CertificateDer<'_>]) -> Result<(), HierarchyError> {
        let text: String = chain.iter().map(pem).collect();
        let path = self.file(label);
        write_atomic(&path, text.as_bytes(), 0o644).map_err(|source| io_error("write", &path, source))
    }

    /// The requests that were made here, with the hashes of their keys.
    pub(crate) fn requests(&self) -> Result<Vec<(KeyLabel, KeyHash)>, HierarchyError> {
        let mut found = Vec::new();
        if !self.exists()? {
            return Ok(found);
        }
        for name in self.names()? {
            let Some(label) = name.strip_suffix(REQUEST).and_then(|label| label.parse::<KeyLabel>().ok()) else {
                continue;
            };
            let path = self.request(&label);
            let text = fs::read_to_string(&path).map_err(|source| io_error("read", &path, source))?;
            let csr = Csr::from_pem(&text).map_err(|source| HierarchyError::Request { file: path, source })?;
            found.push((label, csr.key_hash()));
        }
        Ok(found)
    }

    /// The newest of the requests that were made here.
    pub(crate) fn newest_request(&self) -> Result<Option<(KeyLabel, KeyHash)>, HierarchyError> {
        let made = |label: &KeyLabel| {
            let path = self.request(label);
            fs::metadata(&path).and_then(|found| found.modified()).map_err(|source| io_error("look at", &path, source))
        };
        let mut newest = None;
        for (label, hash) in self.requests()? {
            let made = made(&label)?;
            if newest.as_ref().is_none_or(|(before, _)| made >= *before) {
                newest = Some((made, (label, hash)));
            }
        }
        Ok(newest.map(|(_, request)| request))
    }

    /// The file of a request.
    pub(crate) fn request(&self, label: &KeyLabel) -> PathBuf {
        self.0.join(format!("{label}{REQUEST}"))
    }

    pub(crate) fn write_request(&self, label: &KeyLabel, text: &str) -> Result<(), HierarchyError> {
        let path = self.request(label);
        write_atomic(&path, text.as_bytes(), 0o644).map_err(|source| io_error("write", &path, source))
    }

    /// Removes certificate and request.
    pub(crate) fn remove(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        self.remove_file(&self.request(label))?;
        self.remove_file(&self.file(label))
    }

    /// Notes that a request has had its certificate: its key is not certified a second time.
    pub(crate) fn answer(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        if self.is_answered(label) {
            return Ok(());
        }
        let path = self.named(ANSWERED, label);
        write_atomic(&path, b"", 0o600).map_err(|source| io_error("write", &path, source))
    }

    pub(crate) fn is_answered(&self, label: &KeyLabel) -> bool {
        self.named(ANSWERED, label).exists()
    }

    /// Notes from when on nothing has been signed with it.
    pub(crate) fn replace(&self, label: &KeyLabel, at: SystemTime) -> Result<(), HierarchyError> {
        let path = self.named(REPLACED, label);
        let text = seconds::of(at).to_string();
        write_atomic(&path, text.as_bytes(), 0o600).map_err(|source| io_error("write", &path, source))
    }

    /// What has been replaced, and when; where that cannot be read, just now.
    pub(crate) fn replaced(&self, now: SystemTime) -> Result<Vec<(KeyLabel, SystemTime)>, HierarchyError> {
        let names = self.names()?;
        let labels = names.iter().filter_map(|name| name.strip_prefix(REPLACED)?.parse::<KeyLabel>().ok());
        let when = |label: &KeyLabel| {
            let text = fs::read_to_string(self.named(REPLACED, label)).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(text.parse().ok()?))
        };
        Ok(labels.map(|label| (label.clone(), when(&label).unwrap_or(now))).collect())
    }

    /// Notes that the key of this label is another replica's, in the token that both have.
    pub(crate) fn note_another(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        let path = self.named(ANOTHERS, label);
        write_atomic(&path, b"", 0o600).map_err(|source| io_error("write", &path, source))
    }

    pub(crate) fn is_of_another(&self, label: &KeyLabel) -> bool {
        self.named(ANOTHERS, label).exists()
    }

    /// Forgets what is noted of it.
    pub(crate) fn forget_notes(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        self.remove_file(&self.named(ANSWERED, label))?;
        self.remove_file(&self.named(ANOTHERS, label))?;
        self.remove_file(&self.named(REPLACED, label))
    }

    /// It signs again.
    pub(crate) fn unreplace(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        self.remove_file(&self.named(REPLACED, label))
    }

    /// Held while something is made, or what is left of a crash is cleared: another process may do the other.
    pub(crate) fn lock(&self) -> Result<fs::File, HierarchyError> {
        let folder = fs::File::open(&self.0).map_err(|source| io_error("open", &self.0, source))?;
        folder.lock().map_err(|source| io_error("lock", &self.0, source))?;
        Ok(folder)
    }

    /// Notes that something is being made, before any of it is there.
    pub(crate) fn begin(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        let path = self.note(label);
        write_atomic(&path, b"", 0o600).map_err(|source| io_error("write", &path, source))
    }

    /// It is whole.
    pub(crate) fn finish(&self, label: &KeyLabel) -> Result<(), HierarchyError> {
        self.remove_file(&self.note(label))
    }

    /// What was begun and never finished.
    pub(crate) fn unfinished(&self) -> Result<Vec<KeyLabel>, HierarchyError> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(MAKING)?.parse().ok()).collect())
    }

    /// Brings a folder of the first layout into today's, and removes what a write that was cut short left.
    pub(crate) fn tidy(&self) -> Result<(), HierarchyError> {
        for name in self.names()? {
            if name.ends_with(".new") {
                self.remove_file(&self.0.join(name))?;
            }
        }
        let first = self.0.join("intermediate.pem");
        let text = match fs::read(&first) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(io_error("read", &first, source)),
        };
        let wrong = |source| HierarchyError::Wrong { file: first.clone(), source };
        let certificate = CertificateDer::from_pem_slice(&text).map_err(|_reason| wrong(AuthorityError::Malformed))?;
        let info = AuthorityInfo::parse(certificate).map_err(wrong)?;
        // Its key bears the front of the certificate's fingerprint.
        let id: String = info.fingerprint.to_string().chars().take(16).collect();
        let named = self.0.join(format!("intermediate-{id}{CERTIFICATE}"));
        fs::rename(&first, &named).map_err(|source| io_error("rename", &first, source))
    }

    fn note(&self, label: &KeyLabel) -> PathBuf {
        self.named(MAKING, label)
    }

    fn named(&self, what: &str, label: &KeyLabel) -> PathBuf {
        self.0.join(format!("{what}{label}"))
    }

    fn names(&self) -> Result<Vec<String>, HierarchyError> {
        let failed = |source| io_error("list", &self.0, source);
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            // Where certificates are plugged in there may be none of our own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    fn remove_file(&self, path: &Path) -> Result<(), HierarchyError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
            Err(_) => Ok(()),
            Ok(()) => {
                let synced = fs::File::open(&self.0).and_then(|folder| folder.sync_all());
                synced.map_err(|source| io_error("sync", &self.0, source))
            }
        }
    }
}

const CERTIFICATE: &str = ".pem";
const KEY: &str = "-key.pem";
const REQUEST: &str = ".csr";
const MAKING: &str = "making-";
const ANSWERED: &str = "answered-";
const ANOTHERS: &str = "shares-";
const REPLACED: &str = "replaced-";

pub(crate) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> HierarchyError {
    HierarchyError::Io { doing, path: path.into(), source }
}
