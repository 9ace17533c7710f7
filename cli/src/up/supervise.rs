//! A workload's command: started, told where to listen and whom to ask, started again when it ends, ended with us.
//!
//! ```text
//!   task per workload ──(command)──▶ Spawner, on the main thread ──▶ alcazar supervised ──exec──▶ the command
//! ```
//!
//! A command is bound to the life of the thread that started it, so one thread that lives as long as the process
//! starts them all.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use alcazar_service::Shutdown;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::console::Console;
use super::leftovers::{self, WORKLOAD_VARIABLE};
use super::words::printable;
use crate::supervised::{OUR_NAME, THIS_PROGRAM};

/// How long a command may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(3);

/// The first pause before a command is started again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A command that ran this long is not to blame for the one before.
const SETTLED: Duration = Duration::from_secs(30);

/// The longest piece of a command's output that is shown as one line.
const LINE_LIMIT: usize = 2000;

/// What to run for a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    /// `<namespace>/<workload>`.
    pub(crate) workload: String,
    /// Where the process is noted while it runs; absolute, because the command runs elsewhere.
    pub(crate) note: PathBuf,
    pub(crate) command: Vec<String>,
    /// Where the command runs: relative paths in it are relative to the mesh file.
    pub(crate) directory: PathBuf,
    /// `PORT`, where the workload has one.
    pub(crate) port: Option<u16>,
    /// `http_proxy`, where the workload has one.
    pub(crate) outbound: Option<SocketAddr>,
}

impl Job {
    fn command(&self) -> Command {
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0(OUR_NAME).args(["supervised", "--parent"]).arg(std::process::id().to_string());
        command.arg("--note").arg(&self.note).args(["--workload", &self.workload, "--"]);
        command.args(&self.command).current_dir(&self.directory).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env(WORKLOAD_VARIABLE, &self.workload);
        if let Some(port) = self.port {
            command.env("PORT", port.to_string());
        }
        // Whatever this shell's own proxy is, it is not the workload's.
        for name in ["http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        if let Some(outbound) = self.outbound {
            command.env("http_proxy", format!("http://{outbound}"));
        }
        command
    }
}

/// Starts commands on the thread that serves it.
#[derive(Debug, Clone)]
pub(crate) struct Spawner(mpsc::Sender<Order>);

/// A command to start, and whom to give it to.
pub(crate) type Order = (Command, oneshot::Sender<io::Result<Child>>);

impl Spawner {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Order>) {
        let (sender, orders) = mpsc::channel(16);
        (Self(sender), orders)
    }

    /// Carries out an order; to be called on the main thread.
    pub(crate) fn carry_out((mut command, give): Order) {
        if let Err(Ok(mut unwanted)) = give.send(command.spawn()) {
            // Whoever asked is gone; the command is bound to our life, and ends now.
            if let Err(error) = unwanted.start_kill() {
                tracing::warn!(%error, "cannot end a command that nobody waits for");
            }
        }
    }

    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (give, take) = oneshot::channel();
        let closed = || io::Error::other("alcazar is ending");
        self.0.send((command, give)).await.map_err(|_| closed())?;
        take.await.map_err(|_| closed())?
    }
}

/// Runs a workload's command, again and again, until the shutdown; then ends it.
///
/// `running` says the process that runs at the moment.
pub(crate) async fn supervise(
    job: Job,
    spawner: Spawner,
    console: Console,
    running: watch::Sender<Option<u32>>,
    shutdown: Shutdown,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let why = match run_once(&job, &spawner, &console, &running, &shutdown).await {
            Outcome::Ended => return,
            Outcome::Exited(status) => format!("the command has ended ({status})"),
            Outcome::Failed(error) => format!("the command cannot be started: {error}"),
        };
        if started.elapsed() > SETTLED {
            pause = FIRST_PAUSE;
        }
        let workload = job.workload.as_str();
        tracing::warn!(target: "alcazar::supervise", "{workload}: {why}; it is started again in {pause:?}");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

enum Outcome {
    /// By us, for the shutdown.
    Ended,
    Exited(ExitStatus),
    Failed(io::Error),
}

async fn run_once(
    job: &Job,
    spawner: &Spawner,
    console: &Console,
    running: &watch::Sender<Option<u32>>,
    shutdown: &Shutdown,
) -> Outcome {
    let mut child = match spawner.spawn(job.command()).await {
        Ok(child) => child,
        Err(error) => return Outcome::Failed(error),
    };
    let Some(leader) = child.id() else { return Outcome::Failed(io::Error::other("the command has no process")) };
    running.send_replace(Some(leader));
    if let Some(output) = child.stdout.take() {
        shutdown.spawn("output of a command", show(output, job.workload.clone(), console.clone()));
    }
    if let Some(output) = child.stderr.take() {
        shutdown.spawn("output of a command", show(output, job.workload.clone(), console.clone()));
    }
    let outcome = tokio::select! {
        status = child.wait() => status.map_or_else(Outcome::Failed, Outcome::Exited),
        () = shutdown.cancelled() => {
            signal_group(leader, Signal::TERM);
            if timeout(GRACE, child.wait()).await.is_err() {
                tracing::warn!(target: "alcazar::supervise", "{}: the command did not end when asked, and is killed", job.workload);
            }
            Outcome::Ended
        }
    };
    // What the command started itself ends with it.
    signal_group(leader, Signal::KILL);
    if let Err(error) = child.wait().await {
        tracing::warn!(workload = job.workload, %error, "cannot wait for a command");
    }
    running.send_replace(None);
    leftovers::forget(&job.note);
    outcome
}

fn signal_group(leader: u32, signal: Signal) {
    let Some(group) = i32::try_from(leader).ok().and_then(Pid::from_raw) else { return };
    match kill_process_group(group, signal) {
        // Nobody is left in it.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!(leader, error = %io::Error::from(error), "cannot signal a command"),
    }
}

/// Repeats what a command says, line by line, with the workload's name before it.
async fn show(output: impl AsyncRead + Unpin, workload: String, console: Console) {
    let mut reader = BufReader::with_capacity(LINE_LIMIT, output);
    let mut line = Vec::new();
    loop {
        let Ok(chunk) = reader.fill_buf().await else { return };
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |at| at + 1);
        let is_over = chunk.is_empty();
        line.extend_from_slice(chunk.get(..end.unwrap_or(taken)).unwrap_or_default());
        reader.consume(taken);
        if (end.is_some() || is_over || line.len() >= LINE_LIMIT) && !(is_over && line.is_empty()) {
            console.say(format!("{workload}: {}", printable(&String::from_utf8_lossy(&line))));
            line.clear();
        }
        if is_over {
            return;
        }
    }
}
