//! `cargo xtask bench`: every benchmark, one table; with `--json`, one line a figure.

mod agent;
mod ca;
mod criterion;
mod envoy;
mod figure;
mod load;
mod measure;
mod relay;

use anyhow::ensure;

use crate::process::{cargo, run as run_command};

/// Which benchmarks, and how to print them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the benchmark of this name: issue_svid, decide, handshake, relay, ca, agent.
    name: Option<String>,
    /// One JSON object a line in place of the table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ca: ca::Options,
    #[command(flatten)]
    agent: agent::Options,
}

/// The criterion benchmarks: each is a file and a group of its name.
const BENCHES: &[&str] = &["issue_svid", "decide", "handshake", "relay"];

/// The CA and the node agent as processes; criterion has no part in them.
const CA: &str = "ca";
const AGENT: &str = "agent";

/// Where they are. Always built together, so that no two runs compile the same crates with other features.
const PACKAGES: &[&str] = &["alcazar-ca", "alcazar-policy", "alcazar-mtls", "alcazar-proxy"];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let wanted: Vec<&str> = BENCHES
        .iter()
        .copied()
        .chain([CA, AGENT])
        .filter(|bench| options.name.as_ref().is_none_or(|name| name == bench))
        .collect();
    ensure!(!wanted.is_empty(), "there is no such benchmark; there are {}, {CA}, {AGENT}", BENCHES.join(", "));
    let mut figures = Vec::new();
    for bench in wanted {
        eprintln!("==> {bench}");
        if bench == CA {
            figures.extend(ca::figures(&options.ca)?);
            continue;
        }
        if bench == AGENT {
            if options.name.is_none() && !agent::is_root()? {
                eprintln!("passed over: it connects as the users of workloads, which needs root");
                continue;
            }
            figures.extend(agent::figures(&options.agent, options.ca.peers)?);
            continue;
        }
        let mut command = cargo(&["bench", "--quiet", "--bench", bench]);
        command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        // Standard output is for the figures alone.
        run_command(command.stdout(std::io::stderr()))?;
        figures.extend(criterion::figures_of(bench)?);
        if bench == "relay" {
            figures.extend(relay::figures()?);
        }
    }
    let lines = match options.json {
        true => figures.iter().map(figure::Figure::json).collect(),
        false => figure::table(&figures),
    };
    for line in lines {
        println!("{line}");
    }
    Ok(())
}
