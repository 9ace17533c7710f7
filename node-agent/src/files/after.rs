//! What is done after the files have changed.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;

use super::config::After;

/// Tells the program, as its configuration says.
///
/// # Errors
/// When it cannot be told; it has the new files all the same.
pub(crate) async fn tell(after: &After, uid: Option<u32>, gid: Option<u32>) -> Result<(), AfterError> {
    if let (Some(name), Some(file)) = (&after.signal, &after.pid_file) {
        let signal = signal(name).ok_or_else(|| AfterError::Signal(io::ErrorKind::InvalidInput.into()))?;
        return send(signal, file, uid);
    }
    let Some((program, arguments)) = after.command.split_first() else { return Ok(()) };
    let mut command = std::process::Command::new(program);
    // What it needs it is given in its arguments; nothing of the agent's surroundings is its business.
    command.args(arguments).env_clear().env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    if let Some(gid) = gid {
        command.gid(gid);
    }
    if let Some(uid) = uid {
        command.uid(uid);
    }
    let mut command = Command::from(command);
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |source| AfterError::Start { program: program.clone(), source };
    let child = command.spawn().map_err(failed)?;
    let ended = tokio::time::timeout(after.timeout, child.wait_with_output()).await;
    let output =
        ended.map_err(|_late| AfterError::Late { program: program.clone(), after: after.timeout })?.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(LONGEST).collect();
    Err(AfterError::Failed { program: program.clone(), status: output.status.to_string(), said })
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
    let text = std::fs::read_to_string(file).map_err(unread)?;
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
    }

    #[tokio::test]
    async fn a_signal_goes_to_the_process_of_the_files_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let hup = After { signal: Some("HUP".into()), pid_file: Some(file.clone()), ..after(&[]) };
        assert!(matches!(tell(&hup, None, None).await, Err(AfterError::PidFile { .. })));
        for text in ["", "1", "-5", "four"] {
            std::fs::write(&file, text).unwrap();
            assert!(matches!(tell(&hup, None, None).await, Err(AfterError::NoPid { .. })), "{text:?}");
        }
        let mut program = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&file, format!("{}\n", program.id())).unwrap();
        let ours = rustix::process::geteuid().as_raw();
        let refused = tell(&hup, Some(ours + 1), None).await.unwrap_err();
        assert!(refused.to_string().contains("told nothing"), "{refused}");
        tell(&hup, Some(ours), None).await.unwrap();
        let status = program.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(1));
        assert!(matches!(tell(&hup, Some(ours), None).await, Err(AfterError::Signal(_))));
    }
}
