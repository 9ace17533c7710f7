//! The client of `cargo xtask bench ca`: nodes that ask a certificate authority for certificates.
//!
//! ```text
//!  setup: tokens, nodes, registrations ─▶ "ready" ─▶ (a line on standard input) ─▶ load ─▶ one line of JSON
//! ```
//!
//! A program of its own, so that it is compiled as the CA is, and what it costs is not counted as the CA's. Keys and requests are
//! made before the measurement: what is measured is the CA.

mod load;
mod setup;

use std::{io::BufRead, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Parser;

use self::load::{Call, Load};

/// Asks a CA for certificates, as fast as it answers.
#[derive(Parser)]
struct Arguments {
    /// The CA's administration socket.
    #[arg(long)]
    socket: PathBuf,
    /// Where the CA serves nodes.
    #[arg(long)]
    address: SocketAddr,
    /// Nodes, each with a connection of its own.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Certificates in all.
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Identities in all: each belongs to one of the nodes.
    #[arg(long, default_value_t = 64)]
    identities: usize,
    /// How they are asked for.
    #[arg(long, value_enum, default_value = "one")]
    call: Call,
    /// Certificates in a request, of those that can have many.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// A new connection for each request.
    #[arg(long)]
    reconnect: bool,
    /// Tells apart what several runs register at one CA.
    #[arg(long, default_value = "load")]
    name: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    alcazar_mtls::install_default_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let Arguments { socket, address, clients, count, identities, call, batch, reconnect, name } = arguments;
        let nodes = setup::nodes(&socket, address, &name, clients, identities).await.context("cannot set up")?;
        println!("ready");
        std::io::stdin().lock().read_line(&mut String::new())?;
        let load = Load { count, call, batch, reconnect };
        println!("{}", load.run(nodes).await?.json());
        Ok(())
    })
}
