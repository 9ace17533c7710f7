use std::{
    path::PathBuf,
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{DEADLINE, Process, components::installed, free_port, passed_over, until};

/// A real etcd of one member, in a folder of its own, on this machine alone. Ended when it is dropped.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    folder: TempDir,
    port: u16,
    peers: u16,
    tls: bool,
    jwt: bool,
}

impl Etcd {
    /// Starts it and waits until it answers; `None` when etcd is not installed.
    ///
    /// # Errors
    /// When it does not start, or is missing in CI.
    pub fn start() -> Result<Option<Self>> {
        Self::begin(false, false)
    }

    /// Starts it with TLS; clients must have a certificate of the same authority: [`Etcd::pem`].
    ///
    /// # Errors
    /// When it does not start, or is missing in CI.
    pub fn start_with_tls() -> Result<Option<Self>> {
        Self::begin(true, false)
    }

    /// Starts it with TLS, and with signed tokens for its users.
    ///
    /// # Errors
    /// When it does not start, or is missing in CI.
    pub fn start_with_signed_tokens() -> Result<Option<Self>> {
        Self::begin(true, true)
    }

    fn begin(tls: bool, jwt: bool) -> Result<Option<Self>> {
        if !installed("etcd", &["--version"]) || !installed("etcdctl", &["version"]) {
            passed_over("etcd; Debian's packages etcd-server and etcd-client have it")?;
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        if tls {
            crate::authority::write(folder.path(), &["localhost", "127.0.0.1"])?;
        }
        let (port, peers) = (free_port()?, free_port()?);
        let process = Process::start(command(&folder, port, peers, tls, jwt), &folder.path().join("log"))?;
        let etcd = Self { process, folder, port, peers, tls, jwt };
        etcd.wait()?;
        Ok(Some(etcd))
    }

    /// Where clients reach it.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    /// A PEM file of the TLS that it was started with: `ca.pem`, `cert.pem`, `key.pem`.
    pub fn pem(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Starts it again where it was, after it ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let command = command(&self.folder, self.port, self.peers, self.tls, self.jwt);
        self.process = Process::start(command, &self.folder.path().join("log"))?;
        self.wait()
    }

    /// Runs `etcdctl`; what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint())).args(arguments);
        if self.tls {
            for (flag, file) in [("--cacert", "ca.pem"), ("--cert", "cert.pem"), ("--key", "key.pem")] {
                command.arg(flag).arg(self.pem(file));
            }
        }
        let output = command.output()?;
        ensure!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn wait(&self) -> Result<()> {
        until("etcd answers", DEADLINE, || self.ctl(&["endpoint", "health"]).ok())
            .map(drop)
            .with_context(|| self.process.log())
    }
}

fn command(folder: &TempDir, port: u16, peers: u16, tls: bool, jwt: bool) -> Command {
    let clients = format!("{}://127.0.0.1:{port}", if tls { "https" } else { "http" });
    let peers = format!("http://127.0.0.1:{peers}");
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(folder.path().join("data")).args(["--name", "etcd", "--log-level", "warn"]);
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("etcd={peers}")]);
    if tls {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(folder.path().join("ca.pem"));
        command.arg("--cert-file").arg(folder.path().join("cert.pem"));
        command.arg("--key-file").arg(folder.path().join("key.pem"));
    }
    if jwt {
        let pem = |name| folder.path().join(name).display().to_string();
        let keys = format!("pub-key={},priv-key={}", pem("cert.pem"), pem("key.pem"));
        command.args(["--auth-token", &format!("jwt,{keys},sign-method=ES256,ttl=10m")]);
    }
    command
}
