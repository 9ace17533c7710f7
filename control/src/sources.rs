//! The files that a mesh is made of, as they are on disk.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use alcazar_yaml::{MAX_FILE_BYTES, SourceFile};

/// Reads a file that a person wrote.
///
/// # Errors
/// When it cannot be read, is too long, or is not text.
pub fn read(path: &Path) -> Result<SourceFile, ReadError> {
    let failed = |source| ReadError::Read { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(ReadError::TooLong { path: path.to_owned() });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceFile::new(path.display().to_string(), text)),
        Err(_) => Err(ReadError::NotText { path: path.to_owned() }),
    }
}

/// Reads policies: a file, or every `*.yaml` and `*.yml` in a folder and the folders in it, in the order of their
/// paths. Names that begin with a dot are passed over.
///
/// # Errors
/// When the folder or one of the files cannot be read.
pub fn read_policies(path: &Path) -> Result<Vec<SourceFile>, ReadError> {
    files(path)?.iter().map(|file| read(file)).collect()
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ReadError {
    /// It is not there, or may not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is longer than a file may be.
    #[error("{} is longer than {} MiB", path.display(), MAX_FILE_BYTES / (1024 * 1024))]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not UTF-8.
    #[error("{} is not text in UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

/// The files that a `policies` path means, in the order of their paths.
fn files(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let failed = |source| ReadError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut walk = Walk::default();
    walk.folder(path, 0).map_err(failed)?;
    walk.files.sort();
    Ok(walk.files)
}

#[derive(Default)]
struct Walk {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) -> io::Result<()> {
        self.folders.push(folder.to_owned());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            match fs::metadata(&path) {
                // A link that leads up again ends here.
                Ok(metadata) if metadata.is_dir() && depth < DEPTH => self.folder(&path, depth + 1)?,
                Ok(metadata) if metadata.is_file() && is_yaml => self.files.push(path),
                // A dangling link to a policy is a policy that is missing.
                Err(error) if is_yaml => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The paths that are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) mesh: PathBuf,
    pub(crate) policies: Option<PathBuf>,
}

impl Paths {
    /// What the files look like from outside: it differs when something may have changed.
    pub(crate) fn fingerprint(&self) -> BTreeSet<(PathBuf, Option<Stat>)> {
        let policies = self.policies.iter().flat_map(|path| self.walk(path).files);
        let paths = policies.chain(self.policies.clone()).chain([self.mesh.clone()]);
        paths.map(|path| (path.clone(), fs::metadata(&path).ok().map(|metadata| Stat::of(&metadata)))).collect()
    }

    /// The folders in which a change of the files shows, each with what it is now.
    pub(crate) fn folders(&self) -> BTreeSet<(PathBuf, Stat)> {
        let mut folders = BTreeSet::new();
        let mut add = |folder: &Path| {
            if let Ok(metadata) = fs::metadata(folder) {
                folders.insert((folder.to_owned(), Stat::inode(&metadata)));
            }
        };
        add(parent(&self.mesh));
        let mut files = vec![self.mesh.clone()];
        if let Some(policies) = &self.policies {
            add(parent(policies));
            let walk = self.walk(policies);
            walk.folders.iter().for_each(|folder| add(folder));
            files.push(policies.clone());
            files.extend(walk.files);
        }
        // What is reached by a link changes where it really is.
        for file in files.iter().filter_map(|file| fs::canonicalize(file).ok()) {
            add(parent(&file));
        }
        folders
    }

    fn walk(&self, policies: &Path) -> Walk {
        let mut walk = Walk::default();
        if fs::metadata(policies).is_ok_and(|metadata| metadata.is_dir()) {
            // What cannot be walked now is reported by the reading; here it is only looked out for.
            drop(walk.folder(policies, 0));
        }
        walk
    }
}

/// A file as the system tells it from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stat {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stat {
    fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), length: metadata.len(), modified }
    }

    fn inode(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), length: 0, modified: (0, 0) }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// How deep folders of policies may nest.
const DEPTH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_the_yaml_files_of_a_folder_and_below() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("shop/deep")).unwrap();
        fs::create_dir_all(at(".git")).unwrap();
        for file in [
            "b.yaml",
            "a.yml",
            "README.md",
            ".hidden.yaml",
            ".git/c.yaml",
            "shop/d.yaml",
            "shop/deep/e.yaml",
            "f.yaml~",
        ] {
            fs::write(at(file), file).unwrap();
        }
        std::os::unix::fs::symlink(at("shop"), at("shop/deep/loop")).unwrap();
        let read = |path: &Path| -> Result<BTreeSet<String>, ReadError> {
            Ok(read_policies(path)?.iter().map(|file| file.text().to_owned()).collect())
        };
        let expected = ["a.yml", "b.yaml", "shop/d.yaml", "shop/deep/e.yaml"].map(str::to_owned);
        assert_eq!(read(folder.path()).unwrap(), BTreeSet::from(expected));
        assert_eq!(read(&at("b.yaml")).unwrap(), BTreeSet::from(["b.yaml".to_owned()]));
        assert!(matches!(read(&at("nowhere")), Err(ReadError::Read { .. })));
        std::os::unix::fs::symlink(at("gone"), at("dangling.yaml")).unwrap();
        assert!(matches!(read(folder.path()), Err(ReadError::Read { .. })));
    }

    #[test]
    fn a_file_that_is_not_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.yaml");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read(&path), Err(ReadError::NotText { .. })));
        let long = fs::File::create(&path).unwrap();
        long.set_len(MAX_FILE_BYTES as u64 + 1).unwrap();
        assert!(matches!(read(&path), Err(ReadError::TooLong { .. })));
        assert!(matches!(read(folder.path()), Err(ReadError::Read { .. })));
    }
}
