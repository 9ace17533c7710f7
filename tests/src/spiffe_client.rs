use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{DEADLINE, Process, tool, until};

/// A workload on go-spiffe, as `tests/go/spiffe-client` is one.
#[derive(Debug)]
pub struct SpiffeClient {
    process: Process,
}

impl SpiffeClient {
    /// Starts it at a socket; what it says goes to the file `log`. `None` when it has not been built.
    ///
    /// # Errors
    /// When it cannot be started, or is missing in CI.
    pub fn start(socket: &Path, arguments: &[&str], log: PathBuf) -> Result<Option<Self>> {
        let Some(binary) = tool("spiffe-client", "spiffe-client")? else { return Ok(None) };
        let mut command = Command::new(binary);
        command.args(arguments).env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()));
        Ok(Some(Self { process: Process::start(command, &log)? }))
    }

    /// What it has said so far.
    pub fn said(&self) -> Vec<Value> {
        self.process.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until it says such a thing.
    ///
    /// # Errors
    /// When it does not by the deadline; the error has all that it said.
    pub fn until_it_says(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        until(what, DEADLINE, || self.said().into_iter().find(|said| is_it(said))).with_context(|| self.process.log())
    }

    /// Waits for its end by itself, and returns all that it said: what is JSON, and the text.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Result<(bool, Vec<Value>, String)> {
        let status = self.process.wait(DEADLINE)?;
        Ok((status.success(), self.said(), self.process.log()))
    }

    /// Asks it to end, and returns all that it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(mut self) -> Result<Vec<Value>> {
        self.process.terminate()?;
        Ok(self.said())
    }
}
