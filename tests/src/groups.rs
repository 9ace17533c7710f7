use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{DEADLINE, until};

/// A control group in every hierarchy, of version 1 and 2. It goes when this is dropped, and those below it.
#[derive(Debug)]
pub struct ControlGroups(String);

impl ControlGroups {
    /// Makes it, of this name, below the root.
    ///
    /// # Errors
    /// When this user may make none.
    pub fn make(name: &str) -> Result<Self> {
        let groups = Self(name.to_owned());
        for folder in hierarchies() {
            let group = folder.join(name);
            fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // Of version 1 one without is of no use.
                if let Ok(all) = fs::read(folder.join(file)) {
                    fs::write(group.join(file), all)?;
                }
            }
        }
        Ok(groups)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// A program that is in it from the beginning, with all that it starts.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        let enter = "while [ \"$1\" != -- ]; do echo $$ > \"$1\" || exit; shift; done; shift; exec \"$@\"";
        command.args(["-c", enter, "sh"]);
        command.args(hierarchies().iter().map(|folder| folder.join(&self.0).join("cgroup.procs")));
        command.arg("--").arg(program);
        command
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        for folder in hierarchies() {
            // What is in it has just been ended, and may not be gone yet.
            drop(until("empty control groups", DEADLINE, || clear(&folder.join(&self.0)).then_some(())));
        }
    }
}

/// Removes a group and those below it; whether it is gone.
fn clear(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            clear(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
    !group.exists()
}

fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    if top.join("cgroup.controllers").exists() {
        return vec![top.to_owned()];
    }
    let folders = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    // Two controllers may share one, by a link for each.
    folders.filter(|path| path.is_dir() && !path.is_symlink()).collect()
}
