//! A file that is appended to, renamed when it is large, and begun anew when somebody else renamed it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::AuditConfig;

#[derive(Debug)]
pub(super) struct Rotating {
    path: PathBuf,
    /// In bytes; zero: none.
    limit: u64,
    keep: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Which file it is, whatever its name.
    is: (u64, u64),
    size: u64,
    /// Its last line has no end.
    torn: bool,
}

impl Rotating {
    pub(super) fn open(config: &AuditConfig) -> io::Result<Self> {
        let limit = config.rotate_at.saturating_mul(1 << 20);
        let mut rotating = Self { path: config.file.clone(), limit, keep: config.keep, open: None };
        rotating.look()?;
        Ok(rotating)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the lines, all of them or none; before them, how many are missing, where that has not been `told`.
    pub(super) fn append(&mut self, lines: &[String], lost: u64, told: &mut u64) -> io::Result<()> {
        self.look()?;
        let mut text = String::new();
        if lost > *told {
            let missing = lost - *told;
            let at = super::layer::now();
            let line =
                serde_json::json!({"at": at, "event": "lost", "message": "lines are missing here", "lines": missing});
            text = line.to_string() + "\n";
        }
        for line in lines {
            text += line;
            text.push('\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let held = self.open.as_ref().map_or(0, |open| open.size);
        if self.limit > 0 && held > 0 && held.saturating_add(size) > self.limit {
            self.rotate()?;
        }
        if let Some(open) = &mut self.open {
            open.append(text.as_bytes())?;
        }
        *told = lost;
        Ok(())
    }

    /// Opens the file where it is not open, or is another one than the one of this name.
    fn look(&mut self) -> io::Result<()> {
        if let Some(open) = &self.open {
            match fs::metadata(&self.path) {
                Ok(found) if (found.dev(), found.ino()) == open.is => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.open = None,
            }
        }
        // Who called what is for the operator's eyes.
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        let found = file.metadata()?;
        let mut last = [b'\n'];
        if found.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        let is = (found.dev(), found.ino());
        self.open = Some(Open { file, is, size: found.len(), torn: last != [b'\n'] });
        Ok(())
    }

    /// `file` becomes `file.1`, and so on; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            for number in (1..self.keep).rev() {
                match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, self.numbered(1))?;
        }
        self.look()
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Open {
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            (self.size, self.torn) = (self.size + 1, false);
        }
        match self.file.write_all(text) {
            Ok(()) => {
                self.size = self.size.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
                Ok(())
            }
            Err(error) => {
                // What is there of it goes, or it would be there twice. If even that fails, the next line begins on its own.
                self.torn = self.file.set_len(self.size).is_err();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(rotating: &mut Rotating, line: &str) {
        rotating.append(&[line.to_owned()], 0, &mut 0).unwrap();
    }

    #[test]
    fn a_large_file_is_renamed_and_as_many_are_kept_as_was_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let mut rotating = Rotating::open(&AuditConfig { rotate_at: 1, keep: 2, file: path.clone() }).unwrap();
        rotating.limit = 10;
        for line in ["one", "two", "three", "four", "a line that is longer than a file may be", "five"] {
            append(&mut rotating, line);
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("audit"), "five\n");
        assert_eq!(read("audit.1"), "a line that is longer than a file may be\n");
        assert_eq!(read("audit.2"), "four\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_line_that_was_torn_by_a_kill_is_ended_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        fs::write(&path, "whole\n{\"at").unwrap();
        append(&mut Rotating::open(&AuditConfig::new(&path)).unwrap(), "next");
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\n{\"at\nnext\n");
    }

    #[test]
    fn a_full_disk_leaves_no_half_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let mut rotating = Rotating::open(&AuditConfig::new(&path)).unwrap();
        append(&mut rotating, "one");
        // Always full.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut rotating.open.as_mut().unwrap().file, full);
        let error = rotating.append(&["two".to_owned()], 0, &mut 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        rotating.open.as_mut().unwrap().file = good;
        append(&mut rotating, "two");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>(), ["one", "two"]);
    }
}
