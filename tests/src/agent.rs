use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{CaProcess, DEADLINE, Process, binary, free_port, until};

/// A node agent as a process of its own.
#[derive(Debug)]
pub struct AgentProcess {
    process: Process,
    home: PathBuf,
    admin: u16,
}

impl AgentProcess {
    /// Starts one with its files in `home`, as the node `node` of the CA's cluster `local`, and waits until it has joined.
    ///
    /// # Errors
    /// When it does not start, or is not ready by the deadline; the error has its log.
    pub async fn start(home: &Path, ca: &CaProcess, node: &str) -> Result<Self> {
        let (token, admin) = (ca.token(node).await?, free_port()?);
        let text = format!(
            "trustDomain: cluster.local\ncluster: local\nnode: {node}\ncaAddress: {}\njoinToken: {token}\ndataDir: {}\nsocketsDir: {}\nadmin: 127.0.0.1:{admin}\n",
            ca.address(),
            home.join("agent").display(),
            home.join("s").display(),
        );
        fs::write(home.join("agent.yaml"), text)?;
        let agent = Self { process: Self::run(home)?, home: home.to_owned(), admin };
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Ends it at once, as a crash would, and starts it again.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = Self::run(&self.home)?;
        self.wait_ready()
    }

    /// Waits until it is ready: it has all that is registered.
    ///
    /// # Errors
    /// When it is not by the deadline; the error has its log.
    pub fn wait_ready(&self) -> Result<()> {
        self.process.wait_ready(self.admin)
    }

    /// A socket, once it is there: `agent` for the shared one, else a workload's own.
    ///
    /// # Errors
    /// When it is not there by the deadline; the error has the agent's log.
    pub fn socket(&self, name: &str) -> Result<PathBuf> {
        let path = self.home.join("s").join(format!("{name}.sock"));
        until(&format!("the socket {name}"), DEADLINE, || path.exists().then_some(()))
            .with_context(|| self.process.log())?;
        Ok(path)
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn run(home: &Path) -> Result<Process> {
        let mut command = Command::new(binary("alcazar-node-agent")?);
        command.arg("--config").arg(home.join("agent.yaml"));
        Process::start(command, &home.join("agent.log"))
    }
}
