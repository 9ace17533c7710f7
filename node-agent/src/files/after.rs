//! What is done after the files have changed.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};

use super::config::After;

/// Tells the program, as its configuration says.
///
/// # Errors
/// When it cannot be told; it has the new files all the same.
pub(crate) async fn tell(after: &After, uid: Option<u32>, gid: Option<u32>) -> Result<(), AfterError> {
    if let (Some(name), Some(file)) = (&after.signal, &after.pid_file) {
        let signal = signal(name).ok_or_else(|| AfterError::Signal(io::ErrorKind::InvalidInput.into()))?;
        let file = file.clone();
        let sending = tokio::task::spawn_blocking(move || send(signal, &file, uid));
        return sending.await.unwrap_or_else(|_panic| Err(AfterError::Signal(io::ErrorKind::Interrupted.into())));
    }
    let Some((program, arguments)) = after.command.split_first() else { return Ok(()) };
    let ours = rustix::process::geteuid();
    // Root leaves all of its groups and capabilities behind when it becomes another user. Nobody else can.
    let other = uid.filter(|uid| *uid != ours.as_raw());
    if let Some(uid) = other.filter(|_| !ours.is_root()) {
        return Err(AfterError::NotRoot { program: program.clone(), uid });
    }
    let mut command = std::process::Command::new(program);
    // What it needs it is given in its arguments; nothing of the agent's surroundings is its business.
    command.args(arguments).env_clear().env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    if let Some(uid) = other {
        command.gid(gid.unwrap_or(uid)).uid(uid);
    }
    let mut command = Command::from(command);
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |source| AfterError::Start { program: program.clone(), source };
    let mut child = command.spawn().map_err(failed)?;
    let mut said = Said::new(child.stderr.take());
    // Not until the end of what it says: it may have started something that goes on.
    let ended = async {
        loop {
            tokio::select! {
                status = child.wait() => break status,
                () = said.more(), if said.is_open() => {}
            }
        }
    };
    let status = tokio::time::timeout(after.timeout, ended).await;
    let status =
        status.map_err(|_late| AfterError::Late { program: program.clone(), after: after.timeout })?.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    drop(tokio::time::timeout(LAST_WORDS, said.all()).await);
    Err(AfterError::Failed { program: program.clone(), status: status.to_string(), said: said.text() })
}

/// What a command complains of, as far as it is repeated.
struct Said {
    from: Option<ChildStderr>,
    bytes: Vec<u8>,
}

impl Said {
    fn new(from: Option<ChildStderr>) -> Self {
        Self { from, bytes: Vec::new() }
    }

    fn is_open(&self) -> bool {
        self.from.is_some()
    }

    async fn more(&mut self) {
        let Some(from) = &mut self.from else { return };
        let mut room = [0; 1024];
        match from.read(&mut room).await {
            Ok(length @ 1..) => {
                let left = (LONGEST * 4).saturating_sub(self.bytes.len());
                self.bytes.extend(room.iter().take(length.min(left)));
            }
            _ => self.from = None,
        }
    }

    async fn all(&mut self) {
        while self.is_open() {
            self.more().await;
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().chars().take(LONGEST).collect()
    }
}

/// The signals by which programs are told to look again.
pub(super) fn signal(name: &str) -> Option<Signal> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Some(Signal::HUP),
        "USR1" => Some(Signal::USR1),
        "USR2" => Some(Signal::USR2),
        "INT" => Some(Signal::INT),
        "TERM" => Some(Signal::TERM),
        _ => None,
    }
}

/// The file may be old, and its number somebody else's by now: the process is held before it is looked at.
fn send(signal: Signal, file: &Path, uid: Option<u32>) -> Result<(), AfterError> {
    let unread = |source| AfterError::PidFile { file: file.into(), source };
    // It lies where the program's user may put anything in its place.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = std::fs::File::from(openat(CWD, file, flags, Mode::empty()).map_err(|source| unread(source.into()))?);
    if !opened.metadata().map_err(unread)?.is_file() {
        return Err(unread(io::Error::other("it is no regular file")));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(opened, 32), &mut text).map_err(unread)?;
    let number = text.trim().parse().ok().filter(|number| *number > 1).and_then(Pid::from_raw);
    let pid = number.ok_or_else(|| AfterError::NoPid { file: file.into() })?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|source| AfterError::Signal(source.into()))?;
    if let Some(uid) = uid {
        use std::os::unix::fs::MetadataExt;
        let owner = std::fs::metadata(format!("/proc/{}", pid.as_raw_nonzero())).map_err(AfterError::Signal)?.uid();
        if owner != uid {
            return Err(AfterError::Stranger { pid: pid.as_raw_nonzero().get(), owner, uid });
        }
    }
    pidfd_send_signal(process, signal).map_err(|source| AfterError::Signal(source.into()))
}

/// Why a program was not told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AfterError {
    /// Only root becomes another user.
    #[error(
        "{program} would have to run as the user {uid}, whose the files are, and the agent is not root; use a signal, or let the program look for itself"
    )]
    NotRoot { program: String, uid: u32 },
    /// It cannot be started.
    #[error("cannot run {program}")]
    Start { program: String, source: io::Error },
    /// It said no.
    #[error("{program} ended with {status}: {said}")]
    Failed { program: String, status: String, said: String },
    /// It takes too long, and was ended.
    #[error("{program} did not end within {after:?}; it was killed (see `timeout`)")]
    Late { program: String, after: Duration },
    /// Nobody says which process it is.
    #[error("cannot read the pidFile {}", file.display())]
    PidFile { file: PathBuf, source: io::Error },
    /// No number stands there.
    #[error("{} has no number of a process", file.display())]
    NoPid { file: PathBuf },
    /// The file is old, or not to be believed.
    #[error("the process {pid} of the pidFile is of the user {owner}, and the files are of {uid}: it is told nothing")]
    Stranger { pid: i32, owner: u32, uid: u32 },
    /// It is gone, or not ours to signal.
    #[error("cannot signal the process")]
    Signal(#[source] io::Error),
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As much as is repeated of what a command complains of.
const LONGEST: usize = 400;
/// How long what a command said last may take to come, once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(command: &[&str]) -> After {
        After {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            signal: None,
            pid_file: None,
            timeout: Duration::from_millis(300),
        }
    }

    #[tokio::test]
    async fn a_command_is_run_without_a_shell_and_its_complaint_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made; touch other");
        tell(&after(&["touch", made.to_str().unwrap()]), None, None).await.unwrap();
        assert!(made.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 1);
        let said = tell(&after(&["ls", "/nonexistent"]), None, None).await.unwrap_err().to_string();
        assert!(said.starts_with("ls ended with exit status") && said.contains("/nonexistent"), "{said}");
        let said = tell(&after(&["sleep", "60"]), None, None).await.unwrap_err().to_string();
        assert!(said.contains("did not end within 300ms"), "{said}");
        assert!(matches!(tell(&after(&["/no/such"]), None, None).await, Err(AfterError::Start { .. })));
        // One that leaves something behind has done its work.
        tell(&after(&["sh", "-c", "sleep 60 & exit 0"]), None, None).await.unwrap();
        let said =
            tell(&after(&["sh", "-c", "echo no >&2; sleep 60 & exit 3"]), None, None).await.unwrap_err().to_string();
        assert!(said.starts_with("sh ended with exit status: 3: no"), "{said}");
    }

    #[tokio::test]
    async fn a_signal_goes_to_the_process_of_the_files_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        // Whoever runs the tests under nohup has them ignore HUP, and all that they start.
        let usr1 = After { signal: Some("USR1".into()), pid_file: Some(file.clone()), ..after(&[]) };
        assert!(matches!(tell(&usr1, None, None).await, Err(AfterError::PidFile { .. })));
        for text in ["", "1", "-5", "four"] {
            std::fs::write(&file, text).unwrap();
            assert!(matches!(tell(&usr1, None, None).await, Err(AfterError::NoPid { .. })), "{text:?}");
        }
        std::fs::remove_file(&file).unwrap();
        for made in ["mkfifo pid", "rm pid && ln -s /dev/zero pid", "rm pid && mkdir pid"] {
            let done = std::process::Command::new("sh").args(["-c", made]).current_dir(folder.path()).status().unwrap();
            assert!(done.success());
            assert!(matches!(tell(&usr1, None, None).await, Err(AfterError::PidFile { .. })), "{made}");
        }
        std::fs::remove_dir(&file).unwrap();
        let mut program = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&file, format!("{}\n", program.id())).unwrap();
        let ours = rustix::process::geteuid().as_raw();
        let refused = tell(&usr1, Some(ours + 1), None).await.unwrap_err();
        assert!(refused.to_string().contains("told nothing"), "{refused}");
        tell(&usr1, Some(ours), None).await.unwrap();
        let status = program.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(10));
        assert!(matches!(tell(&usr1, Some(ours), None).await, Err(AfterError::Signal(_))));
    }
}
