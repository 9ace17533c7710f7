//! What has been replaced stays until the last leaf of it is over, and is then forgotten with its key.

use std::time::{Duration, SystemTime};

use alcazar_identity::Fingerprint;

use super::{
    HierarchyError, HierarchyFiles,
    folder::{Held, Sort},
};

impl HierarchyFiles {
    /// Removes a root and its key from the disk.
    pub(crate) fn forget_root(&self, root: Fingerprint) -> Result<(), HierarchyError> {
        self.forget(Sort::Root, root)
    }

    /// Removes an intermediate and its key from the disk.
    pub(crate) fn forget_intermediate(&self, intermediate: Fingerprint) -> Result<(), HierarchyError> {
        self.forget(Sort::Intermediate, intermediate)
    }

    fn forget(&self, sort: Sort, fingerprint: Fingerprint) -> Result<(), HierarchyError> {
        for held in self.folder.held(sort)?.iter().filter(|held| held.info.fingerprint == fingerprint) {
            // Its key is not ours to destroy; the note goes last, so that it never is.
            if self.folder.is_of_another(&held.label) {
                self.folder.remove(&held.label)?;
                self.folder.forget_notes(&held.label)?;
                continue;
            }
            // With the note first, a crash between the removals is cleared by the next start.
            self.folder.begin(&held.label)?;
            self.folder.remove(&held.label)?;
            self.keys.remove(&held.label)?;
            self.folder.forget_notes(&held.label)?;
            self.folder.finish(&held.label)?;
        }
        Ok(())
    }

    /// Notes that nothing signs with it from now on; what it has signed is in use for a while, and its list of revocations with it.
    pub(super) fn replace(&self, intermediate: Fingerprint, now: SystemTime) -> Result<(), HierarchyError> {
        for held in self.intermediate(intermediate)? {
            self.folder.replace(&held.label, now)?;
        }
        Ok(())
    }

    /// Notes that one signs from now on, and not the one before it.
    pub(super) fn succeed(
        &self,
        intermediate: Fingerprint,
        before: Fingerprint,
        now: SystemTime,
    ) -> Result<(), HierarchyError> {
        if before != intermediate {
            self.replace(before, now)?;
        }
        self.intermediate(intermediate)?.iter().try_for_each(|held| self.folder.unreplace(&held.label))
    }

    /// The replaced intermediates of which no leaf is alive any more, where none lives longer than `leaf_life`.
    pub(super) fn over(
        &self,
        active: Fingerprint,
        leaf_life: Duration,
        now: SystemTime,
    ) -> Result<Vec<Fingerprint>, HierarchyError> {
        if !self.folder.exists()? {
            return Ok(Vec::new());
        }
        let held = self.folder.held(Sort::Intermediate)?;
        let mut over = Vec::new();
        for (label, at) in self.folder.replaced(now)? {
            let Some(held) = held.iter().find(|held| held.label == label) else {
                self.folder.unreplace(&label)?;
                continue;
            };
            match now.duration_since(at) {
                _ if held.info.fingerprint == active => self.folder.unreplace(&label)?,
                Ok(passed) if passed >= leaf_life + SLACK => over.push(held.info.fingerprint),
                Ok(_) => {}
                // The clock was set back.
                Err(_ahead) => self.folder.replace(&label, now)?,
            }
        }
        Ok(over)
    }

    fn intermediate(&self, fingerprint: Fingerprint) -> Result<Vec<Held>, HierarchyError> {
        let mut held = self.folder.held(Sort::Intermediate)?;
        held.retain(|held| held.info.fingerprint == fingerprint);
        Ok(held)
    }
}

/// Clocks differ, and a last request may be on its way.
pub(super) const SLACK: Duration = Duration::from_secs(600);
