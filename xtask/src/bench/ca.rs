//! The certificate authority as a process: what it spends on a certificate, how it stands a storm, and what it keeps in memory.
//!
//! The client is a program of its own (`xtask/load`), compiled as the CA is; both run on the same machine. What is counted is the
//! processor time of the CA's process alone, so the client's share of the machine does not matter.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{
    figure::{Figure, Unit},
    measure::{Running, cpu_time, memory, wait_until_it_listens},
};
use crate::process::{cargo, run as run_command, target_folder};

/// How much is asked of it.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Certificates of each measurement over connections that are kept.
    #[arg(long, default_value_t = 50_000)]
    ca_count: usize,
    /// Certificates over a new connection each.
    #[arg(long, default_value_t = 5_000)]
    ca_new: usize,
    /// Identities that ask at once.
    #[arg(long, default_value_t = 10_000)]
    ca_storm: usize,
    /// With what `cargo build` makes without --release: to see that the benchmark works, not what it measures.
    #[arg(long)]
    ca_dev: bool,
}

pub(super) fn figures(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let binaries = Binaries::build(options)?;
    let mut figures = Vec::new();

    // The default limits: nobody who keeps to them is refused.
    let storm = Ca::start(&binaries, Limits::Default)?;
    let spec = Spec {
        name: "storm",
        clients: 64,
        identities: options.ca_storm,
        count: options.ca_storm,
        batch: false,
        new: false,
    };
    let outcome = storm.load(&binaries, &spec)?;
    ensure!(outcome.refused == 0, "{} of {} were refused within the limits", outcome.refused, spec.count);
    figures.push(figure("storm/whole", Unit::Nanoseconds, outcome.seconds * 1e9));
    figures.push(figure("storm/p99", Unit::Nanoseconds, outcome.p99));
    drop(storm);

    let ca = Ca::start(&binaries, Limits::None)?;
    figures.push(figure("memory/at_start", Unit::Bytes, memory(std::slice::from_ref(&ca.running))?));
    let kept = Spec { name: "kept", clients: 8, identities: 64, count: options.ca_count, batch: false, new: false };
    let specs = [
        kept,
        Spec { name: "batch", batch: true, ..kept },
        Spec { name: "new", count: options.ca_new, new: true, ..kept },
    ];
    let mut issued = 0.0;
    for spec in specs {
        let outcome = ca.load(&binaries, &spec)?;
        ensure!(outcome.refused == 0 && outcome.issued > 0.0, "{}: {} refused", spec.name, outcome.refused);
        issued += outcome.issued;
        figures.push(figure(
            &format!("{}/cpu_per_certificate", spec.name),
            Unit::Nanoseconds,
            outcome.cpu / outcome.issued,
        ));
        figures.push(figure(&format!("{}/per_second", spec.name), Unit::PerSecond, outcome.issued / outcome.seconds));
        figures.push(figure(&format!("{}/p99", spec.name), Unit::Nanoseconds, outcome.p99));
    }
    figures.push(figure(&format!("memory/after_{issued:.0}"), Unit::Bytes, memory(std::slice::from_ref(&ca.running))?));
    let kept_bytes = folder_size(ca.folder.path())? - ca.size_at_start;
    figures.push(figure("disk/per_certificate", Unit::Bytes, kept_bytes / issued));
    Ok(figures)
}

fn figure(name: &str, unit: Unit, ours: f64) -> Figure {
    Figure { bench: "ca".to_owned(), figure: name.to_owned(), unit, ours, peer: None }
}

/// What runs.
struct Binaries {
    ca: PathBuf,
    load: PathBuf,
}

impl Binaries {
    fn build(options: &Options) -> anyhow::Result<Self> {
        let mut command = cargo(&["build", "--quiet", "--package", "alcazar-ca", "--package", "xtask-load", "--bins"]);
        if !options.ca_dev {
            command.arg("--release");
        }
        run_command(&mut command)?;
        let folder = target_folder().join(if options.ca_dev { "debug" } else { "release" });
        Ok(Self { ca: folder.join("alcazar-ca"), load: folder.join("xtask-load") })
    }
}

/// One measurement.
#[derive(Clone, Copy)]
struct Spec {
    name: &'static str,
    clients: usize,
    identities: usize,
    count: usize,
    /// Many certificates in a request, or one.
    batch: bool,
    /// A new connection for each request.
    new: bool,
}

struct Outcome {
    issued: f64,
    refused: u64,
    seconds: f64,
    /// Nanoseconds.
    p99: f64,
    /// Nanoseconds of the CA's processor time.
    cpu: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Limits {
    Default,
    None,
}

/// A CA that runs.
struct Ca {
    running: Running,
    folder: tempfile::TempDir,
    address: SocketAddr,
    size_at_start: f64,
}

impl Ca {
    fn start(binaries: &Binaries, limits: Limits) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let limits = match limits {
            Limits::Default => "",
            Limits::None => "limits: {certificates: {perMinute: 0, burst: 0}, strangers: {perMinute: 0, burst: 0}}\n",
        };
        let config = folder.path().join("ca.yaml");
        let data = folder.path().join("ca");
        std::fs::write(&config, format!("dataDir: {}\nlisten: {address}\n{limits}", data.display()))?;
        // The log is written, as in a deployment; where to is not what is measured.
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(&binaries.ca);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let running = Running(command.spawn().context("cannot start the CA")?);
        wait_until_it_listens(address)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !data.join("admin.sock").exists() {
            ensure!(Instant::now() < deadline, "the CA has no administration socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        let size_at_start = folder_size(folder.path())?;
        Ok(Self { running, folder, address, size_at_start })
    }

    fn load(&self, binaries: &Binaries, spec: &Spec) -> anyhow::Result<Outcome> {
        eprintln!("ca, {}: {} certificates by {} clients", spec.name, spec.count, spec.clients);
        let mut command = Command::new(&binaries.load);
        command.arg("--socket").arg(self.folder.path().join("ca/admin.sock"));
        command.args(["--address", &self.address.to_string(), "--name", spec.name]);
        command.args(["--clients", &spec.clients.to_string(), "--count", &spec.count.to_string()]);
        command.args(["--identities", &spec.identities.to_string()]);
        command.args(["--call", if spec.batch { "batch" } else { "one" }]);
        command.args(spec.new.then_some("--reconnect"));
        let mut client = Client::start(command)?;
        ensure!(client.line()? == "ready", "the client is not ready");
        let before = cpu_time(std::slice::from_ref(&self.running))?;
        client.go()?;
        let report: Value = serde_json::from_str(&client.line()?)?;
        let cpu = cpu_time(std::slice::from_ref(&self.running))?.saturating_sub(before);
        let number = |name: &str| report.get(name).and_then(Value::as_f64).with_context(|| format!("no {name}"));
        Ok(Outcome {
            issued: number("issued")?,
            refused: report.get("refused").and_then(Value::as_u64).unwrap_or(u64::MAX),
            seconds: number("seconds")?,
            p99: number("p99_ns")?,
            cpu: cpu.as_nanos() as f64,
        })
    }
}

/// The load generator: says that it is ready, waits for a line, says what came of it.
struct Client {
    /// Ends with this.
    _running: Running,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Client {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child: Child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the load generator")?;
        let to = child.stdin.take().context("no standard input")?;
        let from = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { _running: Running(child), to, from })
    }

    fn go(&mut self) -> anyhow::Result<()> {
        self.to.write_all(b"\n")?;
        Ok(self.to.flush()?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "the load generator ended early; see above");
        Ok(line.trim().to_owned())
    }
}

/// What a folder holds, in bytes; the log of the process is not counted.
fn folder_size(folder: &Path) -> anyhow::Result<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        if data.is_dir() {
            bytes += folder_size(&entry.path())?;
        } else if entry.file_name() != "log" {
            bytes += data.len() as f64;
        }
    }
    Ok(bytes)
}
