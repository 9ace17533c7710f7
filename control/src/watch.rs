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
