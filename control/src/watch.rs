//! Notices that files may have changed: at once by inotify, at the latest by looking again now and then.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::sources::{Paths, Stat};

/// Follows the folders that files live in.
///
/// Files are watched by their folders, because editors and deployments replace files, links and whole folders; a
/// watch on what was replaced would hear nothing more.
pub(crate) struct Watch {
    paths: Option<Paths>,
    touched: Arc<Notify>,
    folders: BTreeSet<(PathBuf, Stat)>,
    /// `None` while the system gives no watches: then only looking helps.
    watcher: Option<RecommendedWatcher>,
    seen: BTreeSet<(PathBuf, Option<Stat>)>,
}

impl Watch {
    /// Follows nothing yet.
    pub(crate) fn new() -> Self {
        let touched = Arc::new(Notify::new());
        Self { paths: None, touched, folders: BTreeSet::new(), watcher: None, seen: BTreeSet::new() }
    }

    /// Follows these paths from now on. To be called before the files are read, so that no change falls between.
    pub(crate) fn follow(&mut self, paths: Paths) {
        self.renew(paths.folders());
        self.seen = paths.fingerprint();
        self.paths = Some(paths);
    }

    /// Waits until something may have changed, and is quiet again.
    pub(crate) async fn changed(&mut self) {
        loop {
            let patience = if self.watcher.is_some() { LOOK_AGAIN } else { LOOK_OFTEN };
            match timeout(patience, self.touched.notified()).await {
                Ok(()) => {
                    self.quiet().await;
                    return;
                }
                Err(_) if self.looks_different() => {
                    self.quiet().await;
                    return;
                }
                Err(_) => {}
            }
        }
    }

    fn looks_different(&self) -> bool {
        let different = |paths: &Paths| paths.fingerprint() != self.seen || paths.folders() != self.folders;
        self.paths.as_ref().is_some_and(different)
    }

    /// Waits for a pause: an editor does several things to save one file. Not for ever: a log may grow beside it.
    async fn quiet(&self) {
        let end = Instant::now() + LONGEST_NOISE;
        loop {
            let pause = (Instant::now() + PAUSE).min(end);
            tokio::select! {
                () = self.touched.notified() => {}
                () = sleep_until(pause) => return,
            }
        }
    }

    /// Watches the folders as they are now.
    fn renew(&mut self, folders: BTreeSet<(PathBuf, Stat)>) {
        if folders == self.folders && self.watcher.is_some() {
            return;
        }
        match watcher(&folders, Arc::clone(&self.touched)) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                if self.watcher.take().is_some() || self.folders.is_empty() {
                    tracing::warn!(target: "alcazar::reload", %error, "cannot watch files; looking at them every {LOOK_OFTEN:?}");
                }
            }
        }
        self.folders = folders;
    }
}

fn watcher(folders: &BTreeSet<(PathBuf, Stat)>, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error may hide a change.
        if event.is_err() || event.is_ok_and(|event| is_change(&event)) {
            touched.notify_one();
        }
    })?;
    for (folder, _) in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Our own reading makes events too, which must not make us read again.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

/// How long nothing may happen until a change counts as complete.
const PAUSE: Duration = Duration::from_millis(75);
/// How long something may go on happening until we read anyway.
const LONGEST_NOISE: Duration = Duration::from_millis(400);
/// How often files are looked at while they are watched.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often files are looked at where they cannot be watched.
const LOOK_OFTEN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    /// A mesh file and a folder of policies, followed.
    struct Files {
        folder: TempDir,
        watch: Watch,
    }

    impl Files {
        fn new(lay_out: impl FnOnce(&Path)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            lay_out(folder.path());
            let mut files = Self { folder, watch: Watch::new() };
            files.follow();
            files
        }

        fn plain() -> Self {
            Self::new(|folder| {
                fs::create_dir(folder.join("policies")).unwrap();
                fs::write(folder.join("mesh.yaml"), "one").unwrap();
                fs::write(folder.join("policies/a.yaml"), "one").unwrap();
            })
        }

        fn at(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        fn follow(&mut self) {
            let paths = Paths { mesh: self.at("mesh.yaml"), policies: Some(self.at("policies")) };
            self.watch.follow(paths);
        }

        /// Makes a change and waits until it is noticed, far sooner than by looking again.
        async fn expect(&mut self, what: &str, change: impl FnOnce(&Self)) {
            change(self);
            let begun = Instant::now();
            let noticed = timeout(Duration::from_secs(20), self.watch.changed()).await;
            assert!(noticed.is_ok(), "{what}: not noticed");
            assert!(self.watch.watcher.is_none() || begun.elapsed() < LOOK_AGAIN, "{what}: noticed late");
            self.follow();
        }
    }

    #[tokio::test]
    async fn every_way_to_save_a_file_is_noticed() {
        let mut files = Files::plain();
        files.expect("in place", |files| fs::write(files.at("mesh.yaml"), "two").unwrap()).await;
        files
            .expect("renamed over", |files| {
                fs::write(files.at("mesh.yaml.new"), "three").unwrap();
                fs::rename(files.at("mesh.yaml.new"), files.at("mesh.yaml")).unwrap();
            })
            .await;
        files.expect("after that, in place", |files| fs::write(files.at("mesh.yaml"), "four").unwrap()).await;
        files.expect("a new policy", |files| fs::write(files.at("policies/b.yaml"), "one").unwrap()).await;
        files.expect("a policy gone", |files| fs::remove_file(files.at("policies/a.yaml")).unwrap()).await;
        files.expect("a folder in the folder", |files| fs::create_dir(files.at("policies/deep")).unwrap()).await;
        files.expect("a policy in it", |files| fs::write(files.at("policies/deep/c.yaml"), "one").unwrap()).await;
        files
            .expect("the folder replaced", |files| {
                fs::rename(files.at("policies"), files.at("policies.old")).unwrap();
                fs::create_dir(files.at("policies")).unwrap();
            })
            .await;
        files.expect("a policy in the new one", |files| fs::write(files.at("policies/d.yaml"), "one").unwrap()).await;
    }

    #[tokio::test]
    async fn a_deployment_by_links_is_noticed() {
        // As Kubernetes mounts a ConfigMap: files are links through `..data`, which is swapped.
        let version = |folder: &Path, name: &str| {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("a.yaml"), name).unwrap();
        };
        let mut files = Files::new(|folder| {
            fs::write(folder.join("mesh.yaml"), "one").unwrap();
            fs::create_dir(folder.join("policies")).unwrap();
            version(&folder.join("policies"), "..1");
            symlink("..1", folder.join("policies/..data")).unwrap();
            symlink("..data/a.yaml", folder.join("policies/a.yaml")).unwrap();
        });
        for next in ["..2", "..3"] {
            files
                .expect(next, |files| {
                    version(&files.at("policies"), next);
                    symlink(next, files.at("policies/..data.new")).unwrap();
                    fs::rename(files.at("policies/..data.new"), files.at("policies/..data")).unwrap();
                })
                .await;
            assert_eq!(fs::read_to_string(files.at("policies/a.yaml")).unwrap(), next);
        }
        // The folder itself may be a link to a release.
        let mut files = Files::new(|folder| {
            fs::write(folder.join("mesh.yaml"), "one").unwrap();
            version(folder, "r1");
            version(folder, "r2");
            symlink("r1", folder.join("policies")).unwrap();
        });
        files
            .expect("another release", |files| {
                symlink("r2", files.at("next")).unwrap();
                fs::rename(files.at("next"), files.at("policies")).unwrap();
            })
            .await;
        files.expect("a change in it", |files| fs::write(files.at("r2/a.yaml"), "new").unwrap()).await;
    }

    #[tokio::test]
    async fn reading_is_not_a_change() {
        let mut files = Files::plain();
        for _ in 0..3 {
            fs::read(files.at("mesh.yaml")).unwrap();
            fs::read(files.at("policies/a.yaml")).unwrap();
            fs::read_dir(files.at("policies")).unwrap().for_each(drop);
        }
        let noticed = timeout(LOOK_AGAIN + Duration::from_millis(500), files.watch.changed()).await;
        assert!(noticed.is_err(), "our own reading makes us read again");
    }

    #[tokio::test]
    async fn without_watches_changes_are_found_by_looking() {
        let mut files = Files::plain();
        files.watch.watcher = None;
        let look = timeout(Duration::from_secs(20), files.watch.changed());
        fs::write(files.folder.path().join("mesh.yaml"), "longer than before").unwrap();
        assert!(look.await.is_ok());
    }

    #[tokio::test]
    async fn a_noisy_neighbour_does_not_delay_a_change_for_ever() {
        let mut files = Files::plain();
        let log = files.at("decisions.log");
        let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = std::thread::spawn({
            let end = Arc::clone(&end);
            move || {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(&log, "line").unwrap();
                }
            }
        });
        files.expect("a change beside a log", |files| fs::write(files.at("mesh.yaml"), "two").unwrap()).await;
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
    }
}
