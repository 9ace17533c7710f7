//! Certificate authorities that run, each in a folder of its own.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{
    Binaries,
    client::{Client, Outcome, Spec},
    whole,
};
use crate::{
    bench::measure::{Running, memory, times, wait_until_it_listens},
    process::run as run_command,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Limits {
    Default,
    None,
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Asked,
    Killed,
}

/// A certificate authority that runs.
pub(in crate::bench) struct Server {
    running: Running,
    folder: tempfile::TempDir,
    address: SocketAddr,
    /// As the load generator calls it.
    kind: &'static str,
    /// What the load generator reaches it by.
    socket: PathBuf,
    /// Whether many certificates can be had in one request.
    pub(super) has_batches: bool,
    size_at_start: f64,
}

impl Server {
    pub(in crate::bench) fn ours(program: &Path, limits: Limits) -> anyhow::Result<Self> {
        let limits = match limits {
            Limits::Default => "",
            Limits::None => "limits: {certificates: {perMinute: 0, burst: 0}, strangers: {perMinute: 0, burst: 0}}\n",
        };
        let (folder, address) = place()?;
        let (config, data) = (folder.path().join("ca.yaml"), folder.path().join("ca"));
        fs::write(&config, format!("dataDir: {}\nlisten: {address}\n{limits}", data.display()))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&config);
        Self::start(command, folder, address, ("alcazar", data.join("admin.sock"), true))
    }

    /// With badger as its database, which is its default.
    pub(super) fn step_ca(binaries: &Binaries) -> anyhow::Result<Self> {
        let (folder, address) = place()?;
        let mut prepare = Command::new(&binaries.load);
        prepare.args(["--ca", "step-ca", "--prepare", "--address", &address.to_string(), "--socket"]);
        run_command(prepare.arg(folder.path()))?;
        let mut command = Command::new(binaries.step_ca.as_ref().context("step-ca was not built")?);
        command.arg(folder.path().join("ca.json")).env("STEPPATH", folder.path());
        let socket = folder.path().to_owned();
        Self::start(command, folder, address, ("step-ca", socket, false))
    }

    /// With SQLite as its database, which is its default, and without the limits that it has by default.
    pub(in crate::bench) fn spire(program: &Path) -> anyhow::Result<Self> {
        let (folder, address) = place()?;
        let at = folder.path().display();
        let config = format!(
            r#"server {{
  bind_address = "{}"
  bind_port = "{}"
  socket_path = "{at}/api.sock"
  trust_domain = "example.org"
  data_dir = "{at}/data"
  log_level = "WARN"
  ratelimit {{ attestation = false signing = false }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{at}/data/datastore.sqlite3" }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{at}/data/keys.json" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#,
            address.ip(),
            address.port(),
        );
        fs::create_dir(folder.path().join("data"))?;
        let (file, socket) = (folder.path().join("server.conf"), folder.path().join("api.sock"));
        fs::write(&file, config)?;
        let mut command = Command::new(program);
        command.args(["run", "-config"]).arg(&file);
        Self::start(command, folder, address, ("spire", socket, true))
    }

    fn start(
        mut command: Command,
        folder: tempfile::TempDir,
        address: SocketAddr,
        (kind, socket, has_batches): (&'static str, PathBuf, bool),
    ) -> anyhow::Result<Self> {
        // The log is written, as in a deployment; where to is not what is measured.
        let log = File::create(folder.path().join(LOG))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let running = Running(command.spawn().with_context(|| format!("cannot start {kind}"))?);
        wait_until_it_listens(address)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            ensure!(Instant::now() < deadline, "{kind} does not make {}", socket.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        let size_at_start = folder_size(folder.path())?;
        Ok(Self { running, folder, address, kind, socket, has_batches, size_at_start })
    }

    /// Its process.
    pub(in crate::bench) fn process(&self) -> &Running {
        &self.running
    }

    /// Where nodes come to.
    pub(in crate::bench) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operator comes to.
    pub(in crate::bench) fn admin(&self) -> &Path {
        &self.socket
    }

    /// What it has said.
    pub(in crate::bench) fn log(&self) -> PathBuf {
        self.folder.path().join(LOG)
    }

    pub(super) fn load(&self, binaries: &Binaries, spec: &Spec) -> anyhow::Result<Outcome> {
        eprintln!("{}, {}: {} certificates by {} clients", self.kind, spec.name, spec.count, spec.clients);
        let mut command = Command::new(&binaries.load);
        command.args(["--ca", self.kind, "--address", &self.address.to_string(), "--socket"]).arg(&self.socket);
        let client = Client::start(command, spec)?;
        let (user, system) = times(&self.running)?;
        let report = client.run()?;
        let (user_after, system_after) = times(&self.running)?;
        let spent = (user_after.saturating_sub(user), system_after.saturating_sub(system));
        let outcome = Outcome::read(&report, spent.0, spent.1)?;
        whole(&outcome, spec)?;
        eprintln!(
            "  {:.1} us of processor time each, {:.1} of that in the kernel; p99 {:.2} ms; {:.0} a second",
            (outcome.user + outcome.system) / outcome.issued / 1e3,
            outcome.system / outcome.issued / 1e3,
            outcome.p99 / 1e6,
            outcome.issued / outcome.seconds,
        );
        Ok(outcome)
    }

    /// Ends it and starts it again with what it has; how long it took to serve.
    pub(super) fn start_again(&mut self, binaries: &Binaries, end: End) -> anyhow::Result<Duration> {
        if end == End::Asked {
            run_command(Command::new("kill").arg(self.running.0.id().to_string()))?;
        } else {
            self.running.0.kill()?;
        }
        self.running.0.wait()?;
        let log = self.folder.path().join(LOG);
        let (file, begun) = (File::create(&log)?, Instant::now());
        let mut command = Command::new(&binaries.ours);
        command.arg("--config").arg(self.folder.path().join("ca.yaml"));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        self.running = Running(command.spawn().with_context(|| format!("cannot start {}", self.kind))?);
        let deadline = begun + Duration::from_secs(120);
        while !fs::read_to_string(&log)?.contains("the certificate authority serves") {
            ensure!(Instant::now() < deadline, "{} does not serve", self.kind);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }

    /// What its ledger holds.
    pub(super) fn ledger(&self) -> anyhow::Result<f64> {
        folder_size(&self.folder.path().join("ca/ledger"))
    }

    pub(super) fn memory(&self) -> anyhow::Result<f64> {
        memory(std::slice::from_ref(&self.running))
    }

    /// What its folder has grown by since the start.
    pub(super) fn grown(&self) -> anyhow::Result<f64> {
        Ok(folder_size(self.folder.path())? - self.size_at_start)
    }
}

/// A folder and a free port.
fn place() -> anyhow::Result<(tempfile::TempDir, SocketAddr)> {
    Ok((tempfile::tempdir()?, TcpListener::bind("127.0.0.1:0")?.local_addr()?))
}

/// What a folder holds, in bytes; the log of the process is not counted.
fn folder_size(folder: &Path) -> anyhow::Result<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        if data.is_dir() {
            bytes += folder_size(&entry.path())?;
        } else if entry.file_name() != LOG {
            bytes += data.len() as f64;
        }
    }
    Ok(bytes)
}

const LOG: &str = "log";
