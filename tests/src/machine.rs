use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::binary;

/// A machine: a directory in which commands are run away from any terminal, and from which files are carried to others.
#[derive(Debug)]
pub struct Machine(PathBuf);

impl Machine {
    /// A new one below `folder`.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file there.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Runs a command, with the words of `line`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, program: &Path, line: &str) -> Result<Output> {
        let mut command = Command::new(program);
        let command = command.current_dir(&self.0).args(line.split(' ')).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot start {}", program.display()))
    }

    /// What `alcazar` says, both outputs together.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn alcazar(&self, line: &str) -> Result<String> {
        let output = self.run(&binary("alcazar")?, line)?;
        let said = text(&output);
        ensure!(output.status.success(), "alcazar {line}: {said}");
        Ok(said)
    }

    /// What `alcazar` says when it refuses.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, line: &str) -> Result<String> {
        let output = self.run(&binary("alcazar")?, line)?;
        ensure!(!output.status.success(), "alcazar {line} succeeded: {}", text(&output));
        Ok(text(&output))
    }

    /// What OpenSSL prints.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn openssl(&self, line: &str) -> Result<String> {
        let output = self.run(Path::new("openssl"), line)?;
        ensure!(output.status.success(), "openssl {line}: {}", text(&output));
        Ok(text(&output))
    }

    /// Writes a file that is its owner's alone.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.file(name), text)?;
        fs::set_permissions(self.file(name), fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Carries a file, or a folder of files, to another machine.
    ///
    /// # Errors
    /// When it is not there, or the disk does not take it.
    pub fn carry(&self, name: &str, to: &Self) -> Result<()> {
        let from = self.file(name);
        let to = to.0.join(from.file_name().context("a file has a name")?);
        if !from.is_dir() {
            fs::copy(&from, &to).with_context(|| from.display().to_string())?;
            return Ok(());
        }
        fs::create_dir_all(&to)?;
        for file in fs::read_dir(&from)? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok(())
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
