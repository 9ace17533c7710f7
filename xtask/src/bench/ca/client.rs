//! The load generator, driven over its standard input and output.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::bench::measure::Running;

/// One measurement.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) clients: usize,
    pub(super) identities: usize,
    pub(super) count: usize,
    /// Many certificates in a request, or one.
    pub(super) batch: bool,
    /// A new connection for each request.
    pub(super) new: bool,
}

pub(super) struct Outcome {
    pub(super) issued: f64,
    pub(super) refused: u64,
    pub(super) seconds: f64,
    /// Nanoseconds.
    pub(super) p99: f64,
    /// Nanoseconds of the CA's processor time in its own code.
    pub(super) user: f64,
    /// And in the kernel.
    pub(super) system: f64,
}

impl Outcome {
    /// What the load generator says, and what the CA spent meanwhile.
    pub(super) fn read(line: &str, user: Duration, system: Duration) -> anyhow::Result<Self> {
        let report: Value = serde_json::from_str(line)?;
        let number = |name: &str| report.get(name).and_then(Value::as_f64).with_context(|| format!("no {name}"));
        Ok(Self {
            issued: number("issued")?,
            refused: report.get("refused").and_then(Value::as_u64).unwrap_or(u64::MAX),
            seconds: number("seconds")?,
            p99: number("p99_ns")?,
            user: user.as_nanos() as f64,
            system: system.as_nanos() as f64,
        })
    }
}

/// The load generator: says that it is ready, waits for a line, says what came of it.
pub(super) struct Client {
    /// Ends with this.
    _running: Running,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Client {
    pub(super) fn start(mut command: Command, spec: &Spec) -> anyhow::Result<Self> {
        command.args(["--name", spec.name, "--call", if spec.batch { "batch" } else { "one" }]);
        for (option, number) in
            [("--clients", spec.clients), ("--count", spec.count), ("--identities", spec.identities)]
        {
            command.args([option, &number.to_string()]);
        }
        command.args(spec.new.then_some("--reconnect"));
        let mut child: Child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the load generator")?;
        let to = child.stdin.take().context("no standard input")?;
        let from = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut client = Self { _running: Running(child), to, from };
        ensure!(client.line()? == "ready", "the client is not ready");
        Ok(client)
    }

    /// Lets it go; what it reports.
    pub(super) fn run(mut self) -> anyhow::Result<String> {
        self.to.write_all(b"\n")?;
        self.to.flush()?;
        self.line()
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "the load generator ended early; see above");
        Ok(line.trim().to_owned())
    }
}
