//! `cargo xtask bench`: every benchmark, one table; with `--json`, one line a figure.

mod criterion;
mod envoy;
mod figure;
mod load;
mod relay;

use anyhow::ensure;

use crate::process::{cargo, run as run_command};

/// Which benchmarks, and how to print them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the benchmark of this name: issue_svid, decide, handshake, relay.
    name: Option<String>,
    /// One JSON object a line in place of the table.
    #[arg(long)]
    json: bool,
}

/// A criterion benchmark: its group's name is its own, and its file's.
struct Bench {
    name: &'static str,
    package: &'static str,
}

const BENCHES: &[Bench] = &[
    Bench { name: "issue_svid", package: "alcazar-ca" },
    Bench { name: "decide", package: "alcazar-policy" },
    Bench { name: "handshake", package: "alcazar-mtls" },
    Bench { name: "relay", package: "alcazar-proxy" },
];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let wanted: Vec<&Bench> =
        BENCHES.iter().filter(|bench| options.name.as_ref().is_none_or(|name| name == bench.name)).collect();
    let names = BENCHES.iter().map(|bench| bench.name).collect::<Vec<_>>().join(", ");
    ensure!(!wanted.is_empty(), "there is no such benchmark; there are {names}");
    let mut figures = Vec::new();
    for bench in wanted {
        eprintln!("==> {}", bench.name);
        let mut command = cargo(&["bench", "--quiet", "--package", bench.package, "--bench", bench.name]);
        // Standard output is for the figures alone.
        run_command(command.stdout(std::io::stderr()))?;
        figures.extend(criterion::figures_of(bench.name)?);
        if bench.name == "relay" {
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
