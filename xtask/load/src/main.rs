//! The client of `cargo xtask bench ca`: clients that ask a certificate authority for certificates.
//!
//! ```text
//!  setup: keys, identities, what is registered ─▶ "ready" ─▶ (a line on standard input) ─▶ load ─▶ one line of JSON
//! ```
//!
//! A program of its own, so that it is compiled as the CA is, and what it costs is not counted as the CA's. Keys and requests are
//! made before the measurement: what is measured is the CA. Other CAs are asked by their own protocols, with the same loop, the
//! same TLS and the same keys.

mod load;
mod peers;
mod setup;

use std::{io::BufRead, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::{Parser, ValueEnum};

use self::{
    load::{Call, Client, Load},
    peers::{spire, step},
};

/// Asks a CA for certificates, as fast as it answers.
#[derive(Parser)]
struct Arguments {
    /// Which CA it is.
    #[arg(long, value_enum, default_value = "alcazar")]
    ca: Authority,
    /// The CA's administration socket; of step-ca, the folder that was prepared.
    #[arg(long)]
    socket: PathBuf,
    /// Where the CA serves its clients.
    #[arg(long)]
    address: SocketAddr,
    /// Clients, each with a connection of its own.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Certificates in all.
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Identities in all: each belongs to one of the clients.
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
    /// Writes what step-ca starts from into its folder, and ends.
    #[arg(long)]
    prepare: bool,
}

/// Whom it can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Authority {
    /// Ours: nodes, by their certificates.
    Alcazar,
    /// step-ca: `POST /1.0/sign` with a one-time token of a JWK provisioner each.
    StepCa,
    /// SPIRE's server: agents, by `BatchNewX509SVID`.
    Spire,
}

/// Who asks, and how often.
struct Crowd<'a> {
    address: SocketAddr,
    name: &'a str,
    clients: usize,
    identities: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    alcazar_mtls::install_default_provider();
    if arguments.prepare {
        return step::prepare(&arguments.socket, arguments.address);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let Arguments { socket, address, clients, count, identities, call, batch, reconnect, name, .. } = arguments;
        let (crowd, load) =
            (Crowd { address, name: &name, clients, identities }, Load { count, call, batch, reconnect });
        match arguments.ca {
            Authority::Alcazar => measure(load, setup::nodes(&socket, &crowd).await).await,
            Authority::StepCa => measure(load, step::clients(&socket, &crowd).await).await,
            Authority::Spire => measure(load, spire::agents(&socket, &crowd).await).await,
        }
    })
}

async fn measure<C: Client>(load: Load, clients: anyhow::Result<Vec<C>>) -> anyhow::Result<()> {
    let clients = clients.context("cannot set up")?;
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    println!("{}", load.run(clients).await?.json());
    Ok(())
}
