use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{DEADLINE, Process, binary, until};

/// Two meshes that start at the same time may choose the same ports.
static ONE_STARTS: Mutex<()> = Mutex::new(());

/// A running `alcazar up` in a directory of its own.
#[derive(Debug)]
pub struct Mesh {
    process: Process,
    data_dir: PathBuf,
    /// Goes last, and with it everything on disk.
    home: TempDir,
}

impl Mesh {
    /// The sample.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn sample() -> Result<Self> {
        let home = tempfile::tempdir()?;
        Self::start(home, None)
    }

    /// A mesh of one's own: `mesh.yaml` and its policy files by name, `policies/<name>`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn of(mesh: &str, policies: &[(&str, &str)]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let path = write_mesh(home.path(), mesh, policies)?;
        Self::start(home, Some(&path))
    }

    fn start(home: TempDir, mesh: Option<&Path>) -> Result<Self> {
        let _alone = ONE_STARTS.lock();
        let data_dir = home.path().join("data");
        let process = Process::start(up(&data_dir, mesh)?, &home.path().join("log"))?;
        let mut mesh = Self { process, data_dir, home };
        mesh.wait_ready()?;
        Ok(mesh)
    }

    /// Ends this run at once, as a crash would, and starts another on the same directory.
    ///
    /// # Errors
    /// When the next run does not become ready.
    pub fn kill_and_restart(mut self) -> Result<Self> {
        self.process.kill()?;
        self.restart()
    }

    /// Ends this run as a person would, and starts another on the same directory.
    ///
    /// # Errors
    /// When it does not end well, or the next run does not become ready.
    pub fn stop_and_restart(mut self) -> Result<Self> {
        let status = self.process.terminate()?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        self.restart()
    }

    fn restart(self) -> Result<Self> {
        let _alone = ONE_STARTS.lock();
        let Self { process, data_dir, home } = self;
        drop(process);
        let own = home.path().join("mesh.yaml");
        let command = up(&data_dir, own.exists().then_some(own.as_path()))?;
        let process = Process::start(command, &home.path().join("log"))?;
        let mut mesh = Self { process, data_dir, home };
        mesh.wait_ready()?;
        Ok(mesh)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = until("a mesh that is ready", DEADLINE, || {
            // Not the status of a run before: its socket may still lie there.
            let status = self.status().ok().filter(|status| status.get("pid") == Some(&self.process.id().into()));
            let is_ready = status.is_some_and(|status| status.get("ready") == Some(&Value::Bool(true)));
            let has_ended = self.process.ended().is_ok_and(|ended| ended.is_some());
            (is_ready || has_ended).then_some(is_ready)
        });
        ensure!(matches!(ready, Ok(true)), "the mesh is not ready ({ready:?}); its log:\n{}", self.process.log());
        Ok(())
    }

    /// The process of this run.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything that all runs have said.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the policy files.
    pub fn policies(&self) -> PathBuf {
        let own = self.home.path().join("policies");
        if own.exists() { own } else { self.data_dir.join("shop/policies") }
    }

    /// Where the mesh file is.
    pub fn mesh_file(&self) -> PathBuf {
        let own = self.home.path().join("mesh.yaml");
        if own.exists() { own } else { self.data_dir.join("shop/mesh.yaml") }
    }

    /// The decision log.
    pub fn decisions(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.data_dir.join("decisions.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What a command of `alcazar` says of this mesh.
    ///
    /// # Errors
    /// When it fails.
    pub fn alcazar(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("alcazar")?);
        let output = command.args(arguments).arg("--data-dir").arg(&self.data_dir).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `alcazar status --json` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> Result<Value> {
        let output =
            Command::new(binary("alcazar")?).args(["status", "--json", "--data-dir"]).arg(&self.data_dir).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// One workload of the status, by `<namespace>/<name>`.
    ///
    /// # Errors
    /// When the status does not have it.
    pub fn workload(&self, name: &str) -> Result<Workload> {
        let status = self.status()?;
        let workloads = status.get("workloads").and_then(Value::as_array).context("no workloads")?;
        let text = |workload: &Value, field: &str| {
            workload.get(field).and_then(Value::as_str).map(str::to_owned).unwrap_or_default()
        };
        let found = workloads.iter().find(|one| format!("{}/{}", text(one, "namespace"), text(one, "name")) == name);
        let found = found.with_context(|| format!("no workload {name} in {status}"))?;
        Ok(Workload {
            spiffe_id: text(found, "spiffe_id"),
            serial: text(found, "serial"),
            not_after: found.get("not_after").and_then(Value::as_u64).unwrap_or_default(),
            outbound: text(found, "outbound"),
            inbound: text(found, "inbound"),
            pid: found.get("pid").and_then(Value::as_u64),
        })
    }

    /// The fingerprint of the root.
    ///
    /// # Errors
    /// When the status does not have it.
    pub fn root(&self) -> Result<String> {
        let status = self.status()?;
        let root = status.pointer("/root/fingerprint").and_then(Value::as_str).context("no root")?;
        Ok(root.to_owned())
    }

    /// Ends it as a person would: Ctrl-C is SIGINT, a service manager sends SIGTERM.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.terminate()
    }
}

/// A workload as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its identity.
    pub spiffe_id: String,
    /// The serial of its certificate.
    pub serial: String,
    /// When the certificate ends, in seconds since the Unix epoch.
    pub not_after: u64,
    /// Its outbound proxy: `address:port`.
    pub outbound: String,
    /// Its mesh port: `address:port`.
    pub inbound: String,
    /// The process of its command.
    pub pid: Option<u64>,
}

/// The command `alcazar up`.
///
/// # Errors
/// When the binary has not been built.
pub(crate) fn up(data_dir: &Path, mesh: Option<&Path>) -> Result<Command> {
    let mut command = Command::new(binary("alcazar")?);
    command.arg("up").arg("--data-dir").arg(data_dir);
    if let Some(mesh) = mesh {
        command.arg("--mesh").arg(mesh);
    }
    Ok(command)
}

fn write_mesh(home: &Path, mesh: &str, policies: &[(&str, &str)]) -> Result<PathBuf> {
    fs::create_dir(home.join("policies"))?;
    for (name, text) in policies {
        fs::write(home.join("policies").join(name), text)?;
    }
    let path = home.join("mesh.yaml");
    fs::write(&path, mesh)?;
    Ok(path)
}
