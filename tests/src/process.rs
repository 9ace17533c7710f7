use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Curl, DEADLINE, binary, until};

/// A process of ours with its output in a file. Ended when it is dropped: asked first, so that it ends what it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command; both of its outputs go to the file `log`, after what is there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Starts one of our programs as `<name>.yaml` in `folder` says; it runs there, and its log is beside that file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn component(program: &str, folder: &Path, name: &str) -> Result<Self> {
        let mut command = Command::new(binary(program)?);
        command.arg("--config").arg(folder.join(format!("{name}.yaml"))).current_dir(folder);
        Self::start(command, &folder.join(format!("{name}.log")))
    }

    /// Waits until it says at its administration port that it is ready.
    ///
    /// # Errors
    /// When it is not by the deadline; the error has the log.
    pub fn wait_ready(&self, admin: u16) -> Result<()> {
        let url = format!("http://127.0.0.1:{admin}/readyz");
        let ready = || Curl::default().get(&url).is_ok_and(|answer| answer.code == 200);
        self.until("readiness", DEADLINE, || ready().then_some(()))
    }

    /// Looks until there is something to see, and returns it.
    ///
    /// # Errors
    /// When the deadline passes, or at once when it has ended and there is still nothing; the error has the log.
    pub fn until<T>(&self, what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let seen = until(what, deadline, || {
            // Before the look: what it did at its end counts.
            let is_over = self.is_over();
            look().map(Ok).or_else(|| is_over.then(|| Err(anyhow!("it has ended, before {what}"))))
        });
        seen.flatten().with_context(|| format!("the log of process {}:\n{}", self.id(), self.log()))
    }

    /// The first process that it has started.
    ///
    /// # Errors
    /// When it starts none.
    pub fn child(&self) -> Result<i32> {
        let id = self.id();
        self.until("its child", DEADLINE, || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line in the log.
    ///
    /// # Errors
    /// When it does not come; the error has the log.
    pub fn wait_for_line(&self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        until(what, DEADLINE, || self.log().lines().find(|line| is_it(line)).map(str::to_owned))
            .with_context(|| format!("the log of process {}:\n{}", self.id(), self.log()))
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end by the deadline; the error has the log.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        until("the end of the process", deadline, || self.child.try_wait().ok().flatten())
            .with_context(|| format!("the log of process {}:\n{}", self.child.id(), self.log()))
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(DEADLINE)
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::KILL)?;
        self.wait(DEADLINE)
    }

    /// Stops it where it is (SIGSTOP): it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // The signal is sent before each of its threads has stopped: one that runs may give an answer yet.
        let tasks = format!("/proc/{}/task", self.id());
        until("a process that stands still", DEADLINE, || {
            let mut tasks = fs::read_dir(&tasks).ok()?;
            tasks.all(|task| task.is_ok_and(|task| is_stopped(&task.path()))).then_some(())
        })
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Whether it has ended: nobody has waited for it yet, so that its number is its own.
    fn is_over(&self) -> bool {
        state(&Path::new("/proc").join(self.id().to_string())).is_none_or(|state| ['Z', 'X'].contains(&state))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("no process")?;
        Ok(kill_process(pid, signal)?)
    }
}

/// Whether a thread is stopped, by its folder in `/proc`. One that has just ended is.
fn is_stopped(task: &Path) -> bool {
    state(task).is_none_or(|state| ['T', 't', 'Z', 'X'].contains(&state))
}

/// The state of a process or a thread, by its folder in `/proc`.
fn state(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // It stands behind the name, which is in parentheses and may hold anything.
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// How long a process may take to end when a scenario is over.
const DROP: Duration = Duration::from_secs(10);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        if matches!(self.ended(), Ok(None)) && self.signal(Signal::TERM).is_ok() {
            drop(self.resume());
            drop(self.wait(DROP));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
