//! The certificate authority as a process: what it spends on a certificate, how it stands a storm, and what it keeps in memory;
//! with `--peers`, beside step-ca and SPIRE's server.
//!
//! The client is a program of its own (`xtask/load`), compiled as the CA is; all run on the same machine. What is counted is the
//! processor time of the CA's process alone, so the client's share of the machine does not matter. The rounds of all CAs take
//! turns, and a figure is the median of the rounds.

pub(super) mod build;
mod client;
mod many;
pub(super) mod server;

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use self::{
    build::Binaries,
    client::{Outcome, Spec},
    server::{Limits, Server},
};
use super::figure::{Figure, Unit};

/// How much is asked of it.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Certificates of each measurement over connections that are kept.
    #[arg(long, default_value_t = 20_000)]
    ca_count: usize,
    /// Certificates over a new connection each.
    #[arg(long, default_value_t = 4_000)]
    ca_new: usize,
    /// Identities that ask at once.
    #[arg(long, default_value_t = 10_000)]
    ca_storm: usize,
    /// Only this: so many certificates by one CA, its memory meanwhile, and its start afterwards. 1000000 takes a quarter of an
    /// hour and a gigabyte of disk.
    #[arg(long, default_value_t = 0)]
    ca_many: usize,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    ca_rounds: usize,
    /// With what `cargo build` makes without --release: to see that the benchmark works, not what it measures.
    #[arg(long)]
    ca_dev: bool,
    /// Beside step-ca and SPIRE's server, and the agent beside SPIRE's. They are built once from the Go module proxy, which takes
    /// a quarter of an hour.
    #[arg(long)]
    pub(super) peers: bool,
}

/// The values of each round, by the figure.
type Values = BTreeMap<String, (Unit, Vec<f64>)>;

pub(super) fn figures(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let binaries = Binaries::build(options.ca_dev, options.peers)?;
    if options.ca_many > 0 {
        let mut values = Values::new();
        many::run(&binaries, options, &mut values)?;
        return Ok(compared(values, &BTreeMap::new()));
    }
    let (mut ours, mut peers) = (Values::new(), BTreeMap::<&'static str, Values>::new());
    for round in 1..=options.ca_rounds.max(1) {
        eprintln!("round {round} of {}", options.ca_rounds.max(1));
        round_of_ours(&binaries, options, &mut ours)?;
        for (name, start) in binaries.peers() {
            round_of_a_peer(&|| start(&binaries), &binaries, options, peers.entry(name).or_default())
                .with_context(|| name.to_owned())?;
        }
    }
    Ok(compared(ours, &peers))
}

fn round_of_ours(binaries: &Binaries, options: &Options, values: &mut Values) -> anyhow::Result<()> {
    // The default limits: nobody who keeps to them is refused.
    let outcome = Server::ours(&binaries.ours, Limits::Default)?.load(binaries, &storm(options))?;
    note_storm(values, &outcome);

    let server = Server::ours(&binaries.ours, Limits::None)?;
    note(values, "memory/at_start", Unit::Bytes, server.memory()?);
    let mut issued = 0.0;
    for spec in specs(options.ca_count, options.ca_new) {
        let outcome = server.load(binaries, &spec)?;
        issued += outcome.issued;
        note_spent(values, &spec, &outcome);
    }
    note(values, "memory/at_the_end", Unit::Bytes, server.memory()?);
    note(values, "disk/per_certificate", Unit::Bytes, server.grown()? / issued);
    Ok(())
}

/// What takes ten times as long is asked for less of it.
fn round_of_a_peer(
    start: &dyn Fn() -> anyhow::Result<Server>,
    binaries: &Binaries,
    options: &Options,
    values: &mut Values,
) -> anyhow::Result<()> {
    let outcome = start()?.load(binaries, &storm(options))?;
    note_storm(values, &outcome);
    let server = start()?;
    note(values, "memory/at_start", Unit::Bytes, server.memory()?);
    for spec in specs(options.ca_count / 5, options.ca_new / 4) {
        if spec.batch && !server.has_batches {
            continue;
        }
        let outcome = server.load(binaries, &spec)?;
        note_spent(values, &spec, &outcome);
    }
    note(values, "memory/at_the_end", Unit::Bytes, server.memory()?);
    Ok(())
}

fn storm(options: &Options) -> Spec {
    let count = options.ca_storm;
    Spec { name: "storm", clients: 64, identities: count, count, batch: false, new: false }
}

fn specs(count: usize, new: usize) -> [Spec; 3] {
    let kept = Spec { name: "kept", clients: 8, identities: 64, count, batch: false, new: false };
    [kept, Spec { name: "batch", batch: true, ..kept }, Spec { name: "new", count: new, new: true, ..kept }]
}

fn note(values: &mut Values, name: &str, unit: Unit, value: f64) {
    values.entry(name.to_owned()).or_insert_with(|| (unit, Vec::new())).1.push(value);
}

fn note_storm(values: &mut Values, outcome: &Outcome) {
    note(values, "storm/whole", Unit::Nanoseconds, outcome.seconds * 1e9);
    note(values, "storm/p99", Unit::Nanoseconds, outcome.p99);
}

fn note_spent(values: &mut Values, spec: &Spec, outcome: &Outcome) {
    let mut each = |what: &str, unit, value| note(values, &format!("{}/{what}", spec.name), unit, value);
    each("cpu_per_certificate", Unit::Nanoseconds, (outcome.user + outcome.system) / outcome.issued);
    each("of_that_in_the_kernel", Unit::Nanoseconds, outcome.system / outcome.issued);
    each("per_second", Unit::PerSecond, outcome.issued / outcome.seconds);
    each("p99", Unit::Nanoseconds, outcome.p99);
}

/// A figure of ours for each peer that has it, or one alone.
fn compared(ours: Values, peers: &BTreeMap<&'static str, Values>) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (figure, (unit, values)) in ours {
        let ours = median(values);
        let beside = peers.iter().filter_map(|(name, values)| Some((*name, median(values.get(&figure)?.1.clone()))));
        let mut beside: Vec<_> = beside.map(Some).collect();
        if beside.is_empty() {
            beside.push(None);
        }
        let figure = |peer| Figure { bench: "ca".to_owned(), figure: figure.clone(), unit, ours, peer };
        figures.extend(beside.into_iter().map(figure));
    }
    figures
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Nobody may have been refused: then the figures are of another load.
fn whole(outcome: &Outcome, spec: &Spec) -> anyhow::Result<()> {
    ensure!(outcome.refused == 0 && outcome.issued > 0.0, "{}: {} were refused", spec.name, outcome.refused);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_row_and_what_no_peer_has_stands_alone() {
        let values = |value: f64| (Unit::Nanoseconds, vec![value, value * 3.0, value * 2.0]);
        let ours = Values::from([("kept".to_owned(), values(1.0)), ("disk".to_owned(), values(5.0))]);
        let theirs = |value: f64| Values::from([("kept".to_owned(), values(value))]);
        let peers = BTreeMap::from([("SPIRE", theirs(10.0)), ("step-ca", theirs(20.0))]);
        let rows: Vec<_> = compared(ours, &peers).into_iter().map(|row| (row.figure, row.ours, row.peer)).collect();
        let kept = |name, value| ("kept".to_owned(), 2.0, Some((name, value)));
        assert_eq!(rows, [("disk".to_owned(), 10.0, None), kept("SPIRE", 20.0), kept("step-ca", 40.0)]);
    }
}
