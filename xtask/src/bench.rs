//! `cargo xtask bench`: every benchmark, one table; with `--json`, one line a figure.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::process::{cargo, root, run as run_command};

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
        run_command(
            cargo(&["bench", "--quiet", "--package", bench.package, "--bench", bench.name]).stdout(std::io::stderr()),
        )?;
        figures.extend(figures_of(bench.name)?);
    }
    for line in if options.json { figures.iter().map(Figure::json).collect() } else { table(&figures) } {
        println!("{line}");
    }
    Ok(())
}

/// One measured value; ours, and the peer's where one ran in the same run.
#[derive(Debug, PartialEq)]
struct Figure {
    bench: String,
    figure: String,
    /// Nanoseconds for one iteration, the median.
    ours: f64,
    peer: Option<(String, f64)>,
}

impl Figure {
    /// Above 1: ours is better.
    fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(_, value)| value / self.ours)
    }

    fn json(&self) -> String {
        json!({
            "bench": self.bench,
            "figure": self.figure,
            "unit": "ns",
            "ours": self.ours,
            "peer": self.peer.as_ref().map(|(name, _)| name),
            "peer_value": self.peer.as_ref().map(|(_, value)| value),
            "ratio": self.ratio(),
        })
        .to_string()
    }
}

/// Reads what criterion wrote: `target/criterion/<group>/<figure>/new/estimates.json`, figures with a parameter one
/// folder deeper.
fn figures_of(group: &str) -> anyhow::Result<Vec<Figure>> {
    let folder = target().join("criterion").join(group);
    let mut estimates = Vec::new();
    collect(&folder, &mut estimates).with_context(|| format!("cannot read {}", folder.display()))?;
    estimates.sort();
    let mut figures = Vec::new();
    for path in estimates {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: Value = serde_json::from_str(&text)?;
        let ours = value.pointer("/median/point_estimate").and_then(Value::as_f64);
        let figure = path.strip_prefix(&folder)?.parent().and_then(Path::parent).unwrap_or(Path::new(""));
        figures.push(Figure {
            bench: group.to_owned(),
            figure: figure.display().to_string(),
            ours: ours.with_context(|| format!("{} has no median", path.display()))?,
            peer: None,
        });
    }
    ensure!(!figures.is_empty(), "the benchmark {group} left no figure in {}", folder.display());
    Ok(figures)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.ends_with("new/estimates.json") {
            found.push(path);
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a developer command, configured by the environment like cargo itself")]
fn target() -> PathBuf {
    std::env::var("CARGO_TARGET_DIR").map_or_else(|_| root().join("target"), PathBuf::from)
}

fn table(figures: &[Figure]) -> Vec<String> {
    let row = |figure: &Figure| {
        let peer = match (&figure.peer, figure.ratio()) {
            (Some((name, value)), Some(ratio)) => format!("{name} {}, ratio {ratio:.2}", time(*value)),
            _ => "-".to_owned(),
        };
        format!("{:<12} {:<28} {:>12}   {peer}", figure.bench, figure.figure, time(figure.ours))
    };
    let header = format!("{:<12} {:<28} {:>12}   {}", "bench", "figure", "median", "peer");
    std::iter::once(header).chain(figures.iter().map(row)).collect()
}

/// Nanoseconds as a person reads them.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_says_who_is_better() {
        let mut figure = Figure { bench: "decide".into(), figure: "10".into(), ours: 250.0, peer: None };
        assert_eq!(
            figure.json(),
            r#"{"bench":"decide","figure":"10","ours":250.0,"peer":null,"peer_value":null,"ratio":null,"unit":"ns"}"#
        );
        figure.peer = Some(("envoy".to_owned(), 500.0));
        assert_eq!(figure.ratio(), Some(2.0));
        assert!(table(&[figure])[1].ends_with("250 ns   envoy 500 ns, ratio 2.00"));
    }
}
