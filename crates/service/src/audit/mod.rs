//! An audit file: what was decided, one JSON object a line.
//!
//! ```text
//!  tracing events of some targets ─▶ AuditLayer ─▶ queue ─▶ a thread of its own ─▶ file, file.1, file.2 …
//!  spans around them (request, trace)                │ full               │ cannot be written: tried again
//!                                                    └─ counted, and told ┴─▶ Trouble: readiness, metrics
//! ```
//!
//! # Invariants
//! - Whoever decides never waits for the file.
//! - Nothing is lost in silence: what could not be written is tried again, what there was no room for is counted, and a line in
//!   the file says how many there were as soon as it can be written.
//! - A line is whole or not there: one that was torn by a full disk is ended before the next.
//! - A file that is renamed or removed is begun anew within a second: tools that rotate need to tell us nothing.

mod file;
mod layer;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use serde::Deserialize;

use self::file::Rotating;
pub use self::layer::AuditLayer;

/// Where decisions are written, and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuditConfig {
    /// The file. Its folder is there already.
    pub file: PathBuf,
    /// In mebibytes: a file that would grow past it is renamed, and a new one begins. Default: 100; 0: never, something else
    /// rotates it.
    #[serde(default = "default_size")]
    pub rotate_at: u64,
    /// Files that are kept beside it, as `<file>.1` (the newest) and so on. Default: 10.
    #[serde(default = "default_keep")]
    pub keep: u32,
}

impl AuditConfig {
    /// This file, with the defaults.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), rotate_at: default_size(), keep: default_keep() }
    }
}

fn default_size() -> u64 {
    100
}

fn default_keep() -> u32 {
    10
}

/// The way into an audit file. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub struct Audit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<Option<SyncSender<String>>>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody waits for a disk that stays full at the end.
    closing: AtomicBool,
    written: AtomicU64,
    lost: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Audit {
    /// Opens the file, to append to it.
    ///
    /// # Errors
    /// When it cannot be written, now.
    pub fn open(config: &AuditConfig) -> io::Result<Self> {
        Self::open_with_room(config, ROOM)
    }

    fn open_with_room(config: &AuditConfig, room: usize) -> io::Result<Self> {
        let file = Rotating::open(config)?;
        let (lines, queue) = mpsc::sync_channel(room);
        let state = Arc::new(State::default());
        let (told, writer) = (Arc::clone(&state), thread::Builder::new().name("audit".into()));
        let writer = writer.spawn(move || write(file, &queue, &told))?;
        let shared = Shared { lines: Mutex::new(Some(lines)), writer: Mutex::new(Some(writer)), state };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Puts a line, without its end, in the queue.
    pub fn line(&self, line: String) {
        let lines = self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let outcome = lines.map(|lines| lines.try_send(line));
        match outcome {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => {
                self.shared.state.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Lines that were written.
    pub fn written(&self) -> u64 {
        self.shared.state.written.load(Ordering::Relaxed)
    }

    /// Lines for which there was no room, as the file could not be written for long.
    pub fn lost(&self) -> u64 {
        self.shared.state.lost.load(Ordering::Relaxed)
    }

    /// Why the file cannot be written, while it cannot.
    pub fn trouble(&self) -> Option<String> {
        self.shared.state.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what is in the queue, as far as it can be, and ends. It blocks.
    pub fn close(&self) {
        self.shared.state.closing.store(true, Ordering::Relaxed);
        drop(self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            self.shared.state.say(Some("the thread that writes it has ended".into()));
        }
    }
}

impl State {
    fn say(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Until nobody has lines any more. It says nothing to the log: its lines come from there.
fn write(mut file: Rotating, queue: &Receiver<String>, state: &State) {
    let mut told = 0;
    loop {
        let mut batch = match queue.recv_timeout(LOOK) {
            Ok(line) => vec![line],
            // A file that was renamed is there again, and what was lost is told, also when nothing is decided.
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        batch.extend(queue.try_iter().take(BATCH));
        let mut tries = 0;
        while let Err(error) = file.append(&batch, state.lost.load(Ordering::Relaxed), &mut told) {
            state.say(Some(format!("{} cannot be written: {error}", file.path().display())));
            tries += 1;
            if state.closing.load(Ordering::Relaxed) && tries > LAST_TRIES {
                state.lost.fetch_add(count(&batch), Ordering::Relaxed);
                return;
            }
            thread::sleep(PAUSE);
        }
        state.written.fetch_add(count(&batch), Ordering::Relaxed);
        state.say(None);
    }
}

fn count(lines: &[String]) -> u64 {
    u64::try_from(lines.len()).unwrap_or(u64::MAX)
}

/// Lines that wait while the file cannot be written.
const ROOM: usize = 65_536;
const BATCH: usize = 1024;
const LOOK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(500);
const LAST_TRIES: u32 = 4;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    /// The writer is a thread of its own: what it did is looked at until it is there.
    fn until(what: &str, is_it: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_it() {
            assert!(start.elapsed() < Duration::from_secs(20), "not in twenty seconds: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn lines_are_written_in_order_and_after_those_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        for start in [0, 1000] {
            let audit = Audit::open(&AuditConfig::new(&path)).unwrap();
            (start..start + 1000).for_each(|n| audit.line(n.to_string()));
            audit.close();
            assert_eq!((audit.written(), audit.lost(), audit.trouble()), (1000, 0, None));
            // After its end it takes nothing, and says so.
            audit.line("late".into());
            assert_eq!(audit.lost(), 1);
        }
        assert_eq!(lines(&path), (0..2000).map(|n| n.to_string()).collect::<Vec<_>>());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_renamed_is_begun_anew_without_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("audit"), folder.path().join("moved"));
        let audit = Audit::open(&AuditConfig::new(&path)).unwrap();
        audit.line("one".into());
        until("it is written", || audit.written() == 1);
        fs::rename(&path, &moved).unwrap();
        until("it is there again", || path.exists());
        audit.line("two".into());
        audit.close();
        assert_eq!((lines(&moved), lines(&path)), (vec!["one".to_owned()], vec!["two".to_owned()]));
    }

    #[test]
    fn what_cannot_be_written_is_told_tried_again_and_what_has_no_room_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (path, inner) = (folder.path().join("logs/audit"), folder.path().join("logs"));
        fs::create_dir(&inner).unwrap();
        let audit = Audit::open_with_room(&AuditConfig::new(&path), 4).unwrap();
        // Neither the file nor its folder is there any more.
        fs::remove_dir_all(&inner).unwrap();
        until("the trouble is told", || audit.trouble().is_some());
        let trouble = audit.trouble().unwrap();
        assert!(trouble.contains("logs/audit cannot be written"), "{trouble}");
        (0..20).for_each(|n| audit.line(n.to_string()));
        let lost = audit.lost();
        assert!((12..20).contains(&lost), "{lost}");
        fs::create_dir(&inner).unwrap();
        until("the rest is written", || audit.written() == 20 - lost && audit.trouble().is_none());
        audit.close();
        let written = lines(&path);
        // The file itself says where lines are missing.
        assert!(written.iter().any(|line| line.contains(&format!("\"lines\":{lost}"))), "{written:?}");
        assert!(written.contains(&"0".to_owned()));
    }
}
