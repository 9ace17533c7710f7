//! The clients of `cargo xtask bench agent`: what is registered for a node, and the workloads that come to its agent's socket.

mod connect;
mod fetch;
mod register;
mod streams;

use std::{
    io::{BufRead, Write},
    path::PathBuf,
};

use alcazar_service::Shutdown;
use anyhow::Context;
use clap::Parser;

#[derive(Parser)]
#[command(name = "xtask-agent-load", about)]
enum Command {
    /// Registers workloads for a node, each known by a user of its own; prints a join token for the node.
    Register(register::Options),
    /// Opens a stream for each of some workloads, and prints `ready` when each has its certificate. Then it takes words on its
    /// standard input, and prints a line of JSON for each: `fetch N` (how long it takes, of N each), `rotations N SECONDS`
    /// (the serials of N certificates that come on the streams, and when).
    Clients {
        /// The agent's shared socket.
        #[arg(long)]
        socket: PathBuf,
        /// How many streams.
        #[arg(long)]
        streams: u32,
    },
}

fn main() -> anyhow::Result<()> {
    alcazar_mtls::install_default_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Command::parse() {
        Command::Register(options) => {
            println!("{}", runtime.block_on(register::register(&options))?);
            Ok(())
        }
        Command::Clients { socket, streams } => {
            let shutdown = Shutdown::new();
            let mut streams = runtime
                .block_on(streams::open(&socket, streams, &shutdown))
                .with_context(|| format!("cannot open streams at {}", socket.display()))?;
            say("ready")?;
            for line in std::io::stdin().lock().lines() {
                let line = line?;
                let mut words = line.split_whitespace();
                let answer = match (words.next(), words.next(), words.next()) {
                    (Some("fetch"), Some(count), None) => runtime.block_on(fetch::fetch(&socket, count.parse()?))?,
                    (Some("rotations"), Some(count), Some(seconds)) => {
                        runtime.block_on(streams.rotations(count.parse()?, seconds.parse()?))?
                    }
                    _ => anyhow::bail!("what is {line:?}?"),
                };
                say(&answer)?;
            }
            Ok(())
        }
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
