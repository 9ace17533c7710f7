//! The folder of a workload's files. All of them change in one moment, and what an earlier run has left does no harm:
//!
//! ```text
//!   key.pem ─▶ ..data/key.pem          made once
//!   ..data ─▶ ..alcazar.<digest>/      turned by a rename, when the new files are on the disk
//! ```
//!
//! It may belong to the workload's user, and the agent may be root: nothing is written through a link that somebody else has
//! put there, and nothing is replaced that is not ours.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, fchmod, fchown, fstat, fsync, mkdirat, openat, readlinkat,
};
use rustix::fs::{renameat, statat, symlinkat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::content::{Content, GENERATION, NAMES};

/// A folder that is held open: whatever happens to its path, the files go where they went before.
pub(crate) struct Folder {
    at: OwnedFd,
    path: PathBuf,
}

/// Whose the files are, and who may read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mode: u32,
    pub(crate) key_mode: u32,
}

impl Folder {
    /// Opens a folder, or makes it, and those above it.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        Self::walk(path, true).map(|at| Self { at, path: path.into() }).map_err(|error| refused(path, error))
    }

    /// Opens a folder; `None` where there is none.
    pub(crate) fn existing(path: &Path) -> Result<Option<Self>, FolderError> {
        match Self::walk(path, false) {
            Ok(at) => Ok(Some(Self { at, path: path.into() })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(refused(path, error)),
        }
    }

    /// From the root down, one folder at a time, and through no link: whoever may write above could turn it elsewhere.
    fn walk(path: &Path, make: bool) -> Result<OwnedFd, Errno> {
        let mut at = openat(CWD, "/", FOLDER, Mode::empty())?;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            at = match openat(&at, name, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) if make => {
                    match mkdirat(&at, name, Mode::from(0o755)) {
                        Err(Errno::EXIST) | Ok(()) => {}
                        Err(error) => return Err(error),
                    }
                    openat(&at, name, FOLDER, Mode::empty())?
                }
                found => found?,
            };
        }
        Ok(at)
    }

    /// Puts the files there, all at once. `false`: they were there already.
    pub(crate) fn put(&self, content: &Content, access: Access) -> Result<bool, FolderError> {
        for (name, ..) in content.files() {
            self.is_ours_or_free(name)?;
        }
        let generation = content.generation();
        let doing = |what: &'static str| {
            move |source: Errno| FolderError::Write { path: self.path.clone(), what, source: source.into() }
        };
        if self.current().as_deref() == Some(&generation) && self.holds(&generation, content, access) {
            return Ok(false);
        }
        // Nobody reads a generation that is not the current one: it is what a crash has left.
        if self.current().as_deref() != Some(&generation) {
            self.remove(&generation).map_err(doing("clear away what is left of an earlier try"))?;
        }
        self.write(&generation, content, access).map_err(doing("write the files"))?;
        self.turn(&generation).map_err(doing("turn to the new files"))?;
        for (name, ..) in content.files() {
            match symlinkat(format!("{DATA}/{name}"), &self.at, name) {
                Err(Errno::EXIST) | Ok(()) => {}
                Err(source) => return Err(doing("make the links")(source)),
            }
        }
        for name in NAMES.into_iter().filter(|name| content.files().all(|(other, ..)| other != *name)) {
            if self.is_our_link(name) {
                unlinkat(&self.at, name, AtFlags::empty()).map_err(doing("remove a link to what is no more"))?;
            }
        }
        fsync(&self.at).map_err(doing("make it last"))?;
        Ok(true)
    }

    /// Removes generations that are not current.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let current = self.current();
        let mut old = Vec::new();
        for entry in Dir::read_from(&self.at)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(GENERATION) && Some(&name) != current.as_ref() {
                old.push(name);
            }
        }
        for name in old {
            self.remove(&name)?;
        }
        Ok(())
    }

    /// Removes the files, where their workload is nobody any more; whether there were any.
    pub(crate) fn clear(&self) -> io::Result<bool> {
        let was_there = self.current().is_some();
        for name in NAMES.into_iter().filter(|name| self.is_our_link(name)) {
            unlinkat(&self.at, name, AtFlags::empty())?;
        }
        if self.current().is_some() {
            unlinkat(&self.at, DATA, AtFlags::empty())?;
        }
        self.sweep()?;
        Ok(was_there)
    }

    fn is_ours_or_free(&self, name: &'static str) -> Result<(), FolderError> {
        match statat(&self.at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Ok(_) if self.is_our_link(name) => Ok(()),
            Ok(_) => Err(FolderError::InTheWay(self.path.join(name))),
            Err(source) => Err(FolderError::Write {
                path: self.path.clone(),
                what: "look at what is there",
                source: source.into(),
            }),
        }
    }

    fn is_our_link(&self, name: &str) -> bool {
        self.link(name).is_some_and(|target| target == format!("{DATA}/{name}"))
    }

    fn link(&self, name: &str) -> Option<String> {
        readlinkat(&self.at, name, Vec::new()).ok().map(|target| target.to_string_lossy().into_owned())
    }

    /// The generation that readers see.
    fn current(&self) -> Option<String> {
        self.link(DATA).filter(|name| name.starts_with(GENERATION) && !name.contains('/'))
    }

    /// Whether the generation has these very bytes, and they are whose they should be.
    fn holds(&self, generation: &str, content: &Content, access: Access) -> bool {
        let Ok(folder) = openat(&self.at, generation, FOLDER, Mode::empty()) else { return false };
        content.files().all(|(name, bytes, secret)| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(file) = openat(&folder, name, flags, Mode::empty()) else { return false };
            let Ok(found) = fstat(&file) else { return false };
            let mode = if secret { access.key_mode } else { access.mode };
            let is_right = found.st_mode & 0o7777 == mode
                && access.uid.is_none_or(|uid| found.st_uid == uid)
                && access.gid.is_none_or(|gid| found.st_gid == gid)
                && u64::try_from(found.st_size).is_ok_and(|size| size == bytes.len() as u64);
            let mut read = zeroize::Zeroizing::new(Vec::with_capacity(bytes.len()));
            is_right && io::Read::read_to_end(&mut std::fs::File::from(file), &mut read).is_ok() && *read == bytes
        })
    }

    fn write(&self, generation: &str, content: &Content, access: Access) -> Result<(), Errno> {
        match mkdirat(&self.at, generation, Mode::from(0o700)) {
            Err(Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let folder = openat(&self.at, generation, FOLDER, Mode::empty())?;
        // Whoever owns the folder above may have put another one in its place.
        if fstat(&folder)?.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Errno::PERM);
        }
        for (name, bytes, secret) in content.files() {
            let temporary = format!("{name}.new");
            match unlinkat(&folder, &temporary, AtFlags::empty()) {
                Err(Errno::NOENT) | Ok(()) => {}
                Err(error) => return Err(error),
            }
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&folder, &temporary, create, Mode::from(0o600))?;
            let mut rest = bytes;
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest)?;
                rest = rest.get(written..).unwrap_or_default();
            }
            if access.uid.is_some() || access.gid.is_some() {
                fchown(&file, access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw))?;
            }
            // After the owner, whose change takes bits away.
            fchmod(&file, Mode::from(if secret { access.key_mode } else { access.mode }))?;
            fsync(&file)?;
            renameat(&folder, &temporary, &folder, name)?;
        }
        fchmod(&folder, Mode::from(0o755))?;
        fsync(&folder)
    }

    fn turn(&self, generation: &str) -> Result<(), Errno> {
        match unlinkat(&self.at, DATA_NEW, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        symlinkat(generation, &self.at, DATA_NEW)?;
        renameat(&self.at, DATA_NEW, &self.at, DATA)
    }

    fn remove(&self, generation: &str) -> Result<(), Errno> {
        let folder = match openat(&self.at, generation, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        let is_file = |kind| matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Unknown);
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            if is_file(entry.file_type()) {
                let name: &CStr = entry.file_name();
                unlinkat(&folder, name, AtFlags::empty())?;
            }
        }
        unlinkat(&self.at, generation, AtFlags::REMOVEDIR)
    }
}

fn refused(path: &Path, error: Errno) -> FolderError {
    match error {
        // What the system calls a link where a folder is wanted.
        Errno::LOOP | Errno::NOTDIR => FolderError::Link { path: path.into() },
        other => FolderError::Open { path: path.into(), source: other.into() },
    }
}

/// Why files are not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// It cannot be used.
    #[error("cannot use the folder {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// Somebody may turn it to another place.
    #[error("{}, or something above it, is a link or a file and no folder; name the folder itself", path.display())]
    Link { path: PathBuf },
    /// Somebody else's.
    #[error("{} was not made by the agent; move it away, and the agent puts its own there", .0.display())]
    InTheWay(PathBuf),
    /// The system said no.
    #[error("cannot {what} in {}", path.display())]
    Write { path: PathBuf, what: &'static str, source: io::Error },
}

/// The link that all files go through.
const DATA: &str = "..data";
const DATA_NEW: &str = "..data.alcazar-new";
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
