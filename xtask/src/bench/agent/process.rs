//! The agent, and its clients, as processes.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    bench::{ca::server::Server, measure::Running},
    process::output,
};

/// The node's name.
const NODE: &str = "bench";

/// Registers workloads at the CA; a join token.
pub(super) fn register(load: &Path, ca: &Server, count: usize, ttl: u64) -> anyhow::Result<String> {
    let mut command = Command::new(load);
    command.arg("register").arg("--socket").arg(ca.admin()).args(["--node", NODE, "--count", &count.to_string()]);
    Ok(output(command.args(["--ttl", &ttl.to_string()]))?.trim().to_owned())
}

/// An agent that runs, in a folder of its own.
pub(super) struct Agent {
    pub(super) process: Running,
    folder: tempfile::TempDir,
}

impl Agent {
    pub(super) fn start(program: &Path, ca: &Server, token: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        // Its clients are other users.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        let (config, at) = (folder.path().join("agent.yaml"), folder.path().display());
        let text = format!(
            "trustDomain: cluster.local\ncluster: local\nnode: {NODE}\ncaAddress: {}\njoinToken: {token}\ndataDir: {at}/data\nsocketsDir: {at}/s\n",
            ca.address(),
        );
        fs::write(&config, text)?;
        let log = File::create(folder.path().join(LOG))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self { process: Running(command.spawn().context("cannot start the agent")?), folder })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("s/agent.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.path().join(LOG)
    }

    /// Waits until it has said of as many workloads that they have their first certificate; how long that took.
    pub(super) fn until_all_are_obtained(&self, count: usize) -> anyhow::Result<Duration> {
        until_said(&self.log(), "a workload has its first certificate", count, DEADLINE)
    }
}

/// Waits until as many lines of a log have these words; how long that took.
pub(super) fn until_said(log: &Path, words: &str, count: usize, deadline: Duration) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut log = BufReader::new(File::open(log)?);
    let (mut obtained, mut line) = (0, String::new());
    while obtained < count {
        ensure!(begun.elapsed() < deadline, "the agent has {obtained} certificates of {count} after {deadline:?}");
        if log.read_line(&mut line)? == 0 {
            std::thread::sleep(LOOK);
        } else if line.ends_with('\n') {
            obtained += usize::from(line.contains(words));
            line.clear();
        }
    }
    Ok(begun.elapsed())
}

/// Workloads that are connected to an agent.
pub(super) struct Clients {
    /// Ends with this.
    _running: Running,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Clients {
    pub(super) fn start(load: &Path, agent: &Agent, streams: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(load);
        command.arg("clients").arg("--socket").arg(agent.socket()).args(["--streams", &streams.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start clients")?;
        let to = child.stdin.take().context("no standard input")?;
        let from = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut clients = Self { _running: Running(child), to, from };
        ensure!(clients.line()? == "ready", "the clients are not ready");
        Ok(clients)
    }

    pub(super) fn ask(&mut self, words: &str) -> anyhow::Result<Value> {
        writeln!(self.to, "{words}")?;
        self.to.flush()?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "the clients ended early; see above");
        Ok(line.trim().to_owned())
    }
}

const LOG: &str = "log";
const LOOK: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(180);
