//! A CA that has issued very much: whether its memory stays, what its ledger takes, and how long it takes to start with it.

use anyhow::ensure;

use super::{
    Binaries, Options, Values,
    client::Spec,
    note,
    server::{End, Limits, Server},
};
use crate::bench::figure::Unit;

/// Issues so many in tenths, and looks at the memory after each; then ends the CA both ways and starts it again.
pub(super) fn run(binaries: &Binaries, options: &Options, values: &mut Values) -> anyhow::Result<()> {
    let mut server = Server::ours(&binaries.ours, Limits::None)?;
    note(values, "many/memory/0_at_start", Unit::Bytes, server.memory()?);
    let mut issued = 0.0;
    for name in TENTHS {
        let count = options.ca_many / TENTHS.len();
        let spec = Spec { name, clients: 8, identities: 64, count, batch: true, new: false };
        issued += server.load(binaries, &spec)?.issued;
        note(values, &format!("many/memory/{name}"), Unit::Bytes, server.memory()?);
    }
    ensure!(issued >= options.ca_many as f64 * 0.99, "{issued} of {} were issued", options.ca_many);
    note(values, "many/disk/per_certificate", Unit::Bytes, server.grown()? / issued);
    note(values, "many/disk/ledger_per_certificate", Unit::Bytes, server.ledger()? / issued);
    for (name, end) in [("many/start/after_an_end", End::Asked), ("many/start/after_a_kill", End::Killed)] {
        let took = server.start_again(binaries, end)?;
        note(values, name, Unit::Nanoseconds, took.as_nanos() as f64);
        note(values, &format!("{name}/memory"), Unit::Bytes, server.memory()?);
    }
    Ok(())
}

/// In the order in which a table sorts them; parts of names of sockets, so without underscores.
const TENTHS: [&str; 10] = [
    "1-tenth", "2-tenths", "3-tenths", "4-tenths", "5-tenths", "6-tenths", "7-tenths", "8-tenths", "9-tenths",
    "a-whole",
];
