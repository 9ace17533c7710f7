//! The node agent as a process beside a real CA: what ten thousand identities take, how fast they come, and how fast they reach
//! those who are connected.
//!
//! Each workload is a user of its own on the shared socket (`uid:`), and its client (`xtask/load`) connects as that user, which
//! needs root. Two starts: in the first nothing is due, so that idleness can be measured; in the second those who have streams
//! live a minute, so that they rotate while others look.

mod process;
mod push;
mod spire;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use self::{
    process::{Agent, Clients, register},
    spire::Spent,
};
use super::{
    ca::{
        build::{Spire, programs},
        server::{Limits, Server},
    },
    figure::{Figure, Unit},
    measure::{cpu_time, memory},
};

/// How much it has to do.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Identities in all.
    #[arg(long, default_value_t = 10_000)]
    agent_identities: usize,
    /// Streams that are open, each of another workload.
    #[arg(long, default_value_t = 1_000)]
    agent_streams: usize,
    /// Fetches of each kind.
    #[arg(long, default_value_t = 2_000)]
    agent_fetches: usize,
    /// How long it is looked at while there is nothing to do, in seconds.
    #[arg(long, default_value_t = 20)]
    agent_idle: u64,
    /// How long it is waited for rotations at most, in seconds: they live a minute, and each is due before half of it is over.
    #[arg(long, default_value_t = 60)]
    agent_rotating: u64,
    /// With what `cargo build` makes without --release: to see that the benchmark works, not what it measures.
    #[arg(long)]
    agent_dev: bool,
    /// With the programs in this folder, rather than those of this checkout: to measure what was before a change.
    #[arg(long)]
    agent_programs: Option<PathBuf>,
}

struct Bench<'a> {
    options: &'a Options,
    agent: PathBuf,
    load: PathBuf,
    ca: Server,
    /// What SPIRE's agent spends, where it runs too.
    spire: Option<Spent>,
    figures: Vec<Figure>,
}

pub(super) fn figures(options: &Options, peers: bool) -> anyhow::Result<Vec<Figure>> {
    ensure!(is_root()?, "`bench agent` connects as the user of each workload, which needs root");
    let folder = match &options.agent_programs {
        Some(folder) => folder.clone(),
        None => programs(&["alcazar-ca", "alcazar-node-agent", "xtask-load"], options.agent_dev)?,
    };
    let spire = match peers {
        true => Some(spire::spent(&Spire::build()?, options.agent_identities)?),
        false => None,
    };
    let ca = Server::ours(&folder.join("alcazar-ca"), Limits::None)?;
    let (agent, load) = (folder.join("alcazar-node-agent"), folder.join("xtask-agent-load"));
    let mut bench = Bench { options, agent, load, ca, spire, figures: Vec::new() };
    bench.nothing_is_due()?;
    bench.streams_rotate()?;
    Ok(bench.figures)
}

impl Bench<'_> {
    fn nothing_is_due(&mut self) -> anyhow::Result<()> {
        let Options { agent_identities: count, agent_streams: streams, agent_fetches, agent_idle, .. } = *self.options;
        eprintln!("{count} registrations");
        let token = register(&self.load, &self.ca, count, 0)?;
        let agent = self.cold_start(&token)?;
        self.note("memory/identities", Unit::Bytes, resident(&agent)?);
        self.beside(|spent| spent.memory);

        eprintln!("{streams} streams");
        let mut clients = Clients::start(&self.load, &agent, streams)?;
        self.note("memory/and_streams", Unit::Bytes, resident(&agent)?);
        let fetched = clients.ask(&format!("fetch {agent_fetches}"))?;
        for (figure, name) in FETCHES {
            let value = fetched.get(name).and_then(Value::as_f64).with_context(|| format!("no {name}"))?;
            self.note(figure, Unit::Nanoseconds, value);
        }
        // What was opened a moment ago is still told to the CA.
        std::thread::sleep(SETTLE);
        eprintln!("idle");
        let before = spent_by(&agent)?;
        std::thread::sleep(Duration::from_secs(agent_idle));
        let spent = spent_by(&agent)?.saturating_sub(before);
        self.note("idle/cpu", Unit::Percent, spent.as_secs_f64() / agent_idle.max(1) as f64 * 100.0);
        Ok(())
    }

    fn streams_rotate(&mut self) -> anyhow::Result<()> {
        let Options { agent_streams: streams, agent_rotating, .. } = *self.options;
        let token = register(&self.load, &self.ca, streams, SHORT_LIFE)?;
        let agent = self.cold_start(&token)?;
        let mut clients = Clients::start(&self.load, &agent, streams)?;
        eprintln!("rotations");
        let before = spent_by(&agent)?;
        let came = clients.ask(&format!("rotations {streams} {agent_rotating}"))?;
        let spent = spent_by(&agent)?.saturating_sub(before);
        let accepted = push::latencies(&push::told(&agent.log(), "rotated a workload's certificate")?, &came)?;
        let issued = push::latencies(&push::told(&self.ca.log(), "issued a certificate")?, &came)?;
        ensure!(accepted.len() * 10 > streams * 9, "{} of {streams} streams got a new certificate", accepted.len());
        for (from, latencies) in [("accepted", accepted), ("issued", issued)] {
            let [p50, p99] = [0.5, 0.99].map(|part| push::quantile(&latencies, part));
            self.note(&format!("push/from_{from}_p50"), Unit::Nanoseconds, p50);
            self.note(&format!("push/from_{from}_p99"), Unit::Nanoseconds, p99);
        }
        self.note("push/cpu_per_rotation", Unit::Nanoseconds, spent.as_nanos() as f64 / streams as f64);
        self.note("memory/after_rotations", Unit::Bytes, resident(&agent)?);
        Ok(())
    }

    /// Starts an agent, and waits until it has everything.
    fn cold_start(&mut self, token: &str) -> anyhow::Result<Agent> {
        let count = self.options.agent_identities;
        let before = cpu_time(std::slice::from_ref(self.ca.process()))?;
        let agent = Agent::start(&self.agent, &self.ca, token)?;
        let took = agent.until_all_are_obtained(count)?;
        let of_the_ca = cpu_time(std::slice::from_ref(self.ca.process()))?.saturating_sub(before);
        let of_the_agent = spent_by(&agent)?;
        eprintln!("  {count} in {took:.1?}; processor time of the agent {of_the_agent:.1?}, of the CA {of_the_ca:.1?}");
        let is_first = !self.figures.iter().any(|figure| figure.figure.starts_with("cold_start"));
        if is_first {
            self.note("cold_start/whole", Unit::Nanoseconds, took.as_nanos() as f64);
            let each = of_the_agent.as_nanos() as f64 / count as f64;
            self.note("cold_start/cpu_per_identity", Unit::Nanoseconds, each);
            self.beside(|spent| spent.processor.as_nanos() as f64 / count as f64);
            self.note(
                "cold_start/cpu_beside_the_ca",
                Unit::Times,
                of_the_agent.as_secs_f64() / of_the_ca.as_secs_f64(),
            );
        }
        Ok(agent)
    }

    fn note(&mut self, figure: &str, unit: Unit, ours: f64) {
        self.figures.push(Figure { bench: "agent".to_owned(), figure: figure.to_owned(), unit, ours, peer: None });
    }

    /// What was noted last is compared with this of SPIRE's agent.
    fn beside(&mut self, value: impl Fn(&Spent) -> f64) {
        if let (Some(spent), Some(figure)) = (&self.spire, self.figures.last_mut()) {
            figure.peer = Some(("SPIRE", value(spent)));
        }
    }
}

/// In hundredths of a second: what is longer idle is told more finely.
fn spent_by(agent: &Agent) -> anyhow::Result<Duration> {
    cpu_time(std::slice::from_ref(&agent.process))
}

fn resident(agent: &Agent) -> anyhow::Result<f64> {
    memory(std::slice::from_ref(&agent.process))
}

/// Whether this process may act for any user.
pub(super) fn is_root() -> anyhow::Result<bool> {
    let status = fs::read_to_string(Path::new("/proc/self/status"))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no Uid")?;
    Ok(uids.split_whitespace().nth(1) == Some("0"))
}

/// What is noted of fetches, and what the clients call it.
const FETCHES: [(&str, &str); 4] = [
    ("fetch/sds_p50", "sds_p50_ns"),
    ("fetch/sds_p99", "sds_p99_ns"),
    ("fetch/workload_api_p50", "workload_api_p50_ns"),
    ("fetch/workload_api_p99", "workload_api_p99_ns"),
];
/// Seconds.
const SHORT_LIFE: u64 = 60;
const SETTLE: Duration = Duration::from_secs(3);
