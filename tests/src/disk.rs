use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::components::installed;
use crate::{DEADLINE, Process, passed_over, until};

/// A disk in memory that only those see who are started on it, and which a test fills. It goes when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    /// Holds the mount namespace in which it is mounted.
    holder: Process,
    path: PathBuf,
    own_users: bool,
}

impl SmallDisk {
    /// Mounts one of so many MiB on a folder; `None` where this user may mount nothing, not even in a namespace of its own.
    ///
    /// # Errors
    /// When it is not mounted, or nothing may be in CI.
    pub fn mount(path: &Path, mib: u32, log: &Path) -> Result<Option<Self>> {
        let own_users = !rustix::process::geteuid().is_root();
        let flags = if own_users { "-rm" } else { "-m" };
        if !installed("unshare", &[flags, "true"]) {
            passed_over("the right to mount in a namespace of its own (unshare -m)")?;
            return Ok(None);
        }
        fs::create_dir_all(path)?;
        let script = format!(
            "mount -t tmpfs -o size={mib}m,mode=0700 alcazar \"$0\" && touch \"$0/mounted\" && exec sleep infinity"
        );
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", &script]).arg(path);
        let disk = Self { holder: Process::start(command, log)?, path: path.to_owned(), own_users };
        let mounted = disk.seen().join("mounted");
        until("a disk", DEADLINE, || mounted.exists().then_some(())).with_context(|| disk.holder.log())?;
        Ok(Some(disk))
    }

    /// Where it is for those who are started on it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is for everybody else.
    pub fn seen(&self) -> PathBuf {
        let inside = self.path.strip_prefix("/").unwrap_or(&self.path);
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(inside)
    }

    /// A program that sees it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg("--target").arg(self.holder.id().to_string());
        if self.own_users {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Fills it up to so many bytes.
    ///
    /// # Errors
    /// When it cannot be written to for another reason than being full.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let mut filler = fs::File::options().create(true).append(true).open(self.filler())?;
        let block = vec![0_u8; BLOCK];
        while let Some(more) = self.free()?.checked_sub(leave).filter(|more| *more > 0) {
            let length = usize::try_from(more).unwrap_or(BLOCK).min(BLOCK);
            match filler.write(block.get(..length).unwrap_or(&block)) {
                Ok(_) => {}
                // Others write too.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// When it cannot.
    pub fn clear(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    /// How many bytes are left.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn free(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(self.seen())?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn filler(&self) -> PathBuf {
        self.seen().join("filler")
    }
}

const BLOCK: usize = 1 << 20;
