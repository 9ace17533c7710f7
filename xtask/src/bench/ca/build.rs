//! What runs: ours, the load generator, and the peers, which are built once from published Go modules.
//!
//! The peers lie beside the tools' cache, in a folder named by their versions. The test command never builds them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use super::server::Server;
use crate::{
    process::{cargo, run as run_command, target_folder},
    tools,
};

/// What runs.
pub(super) struct Binaries {
    pub(super) ours: PathBuf,
    pub(super) load: PathBuf,
    pub(super) step_ca: Option<PathBuf>,
    pub(super) spire: Option<PathBuf>,
}

/// Builds the programs of some packages; the folder that they are in.
pub(in crate::bench) fn programs(packages: &[&str], dev: bool) -> anyhow::Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet", "--bins"]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    if !dev {
        command.arg("--release");
    }
    run_command(&mut command)?;
    Ok(target_folder().join(if dev { "debug" } else { "release" }))
}

/// Starts a peer.
type Start = fn(&Binaries) -> anyhow::Result<Server>;

impl Binaries {
    pub(super) fn build(dev: bool, peers: bool) -> anyhow::Result<Self> {
        let folder = programs(&["alcazar-ca", "xtask-load"], dev)?;
        let (step_ca, spire) = match peers {
            true => (Some(built(&STEP_CA)?), Some(built(&SPIRE)?)),
            false => (None, None),
        };
        Ok(Self { ours: folder.join("alcazar-ca"), load: folder.join("xtask-load"), step_ca, spire })
    }

    /// The peers that were built, and how each is started.
    pub(super) fn peers(&self) -> Vec<(&'static str, Start)> {
        let mut peers: Vec<(&'static str, Start)> = Vec::new();
        if self.step_ca.is_some() {
            peers.push((STEP_CA.name, Server::step_ca));
        }
        if self.spire.is_some() {
            peers.push((SPIRE.name, |binaries| {
                Server::spire(binaries.spire.as_ref().context("SPIRE's server was not built")?)
            }));
        }
        peers
    }
}

/// SPIRE, both halves.
pub(in crate::bench) struct Spire {
    pub(in crate::bench) server: PathBuf,
    pub(in crate::bench) agent: PathBuf,
}

impl Spire {
    pub(in crate::bench) fn build() -> anyhow::Result<Self> {
        Ok(Self { server: built(&SPIRE)?, agent: built(&SPIRE_AGENT)? })
    }
}

/// A program that is published as Go modules.
struct Peer {
    name: &'static str,
    version: &'static str,
    /// The module it is in, and others at versions that its own list would not choose.
    modules: &'static [(&'static str, &'static str)],
    package: &'static str,
    binary: &'static str,
    /// Whether a part of it is C: SQLite.
    cgo: bool,
}

const STEP_CA: Peer = Peer {
    name: "step-ca",
    version: "0.30.2",
    modules: &[("github.com/smallstep/certificates", "v0.30.2")],
    package: "github.com/smallstep/certificates/cmd/step-ca",
    binary: "step-ca",
    cgo: false,
};

const SPIRE: Peer = Peer {
    name: "SPIRE",
    version: "1.13.0",
    modules: &[
        ("github.com/spiffe/spire", "v1.13.0"),
        // The checksums of what it names are not published any more.
        ("github.com/aws/aws-sdk-go-v2/service/acmpca", "v1.56.10"),
        ("github.com/aws/aws-sdk-go-v2/service/rolesanywhere", "v1.33.1"),
    ],
    package: "github.com/spiffe/spire/cmd/spire-server",
    binary: "spire-server",
    cgo: true,
};

const SPIRE_AGENT: Peer = Peer { package: "github.com/spiffe/spire/cmd/spire-agent", binary: "spire-agent", ..SPIRE };

/// The binary, built at the first call.
fn built(peer: &Peer) -> anyhow::Result<PathBuf> {
    let folder = cache()?.join(format!("{}-{}", peer.binary, peer.version));
    let binary = folder.join(peer.binary);
    if binary.is_file() {
        return Ok(binary);
    }
    let go = Command::new("go").arg("version").output();
    ensure!(
        go.is_ok_and(|output| output.status.success()),
        "{} is built with Go 1.25 or newer, which is missing",
        peer.name
    );
    eprintln!("{} {}: is built once, which takes some minutes", peer.name, peer.version);
    // Built beside its place and renamed, so that a build that was cut off leaves nothing half there.
    let fresh = folder.with_added_extension("new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    std::fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    let requires = peer.modules.iter().map(|(module, version)| format!("\t{module} {version}\n")).collect::<String>();
    std::fs::write(fresh.join("go.mod"), format!("module peer\n\ngo 1.25.0\n\nrequire (\n{requires})\n"))?;
    let mut build = Command::new("go");
    build.current_dir(&fresh).env("CGO_ENABLED", if peer.cgo { "1" } else { "0" });
    build.args(["build", "-mod=mod", "-trimpath", "-ldflags", "-s -w", "-o", peer.binary, peer.package]);
    run_command(&mut build)?;
    std::fs::rename(&fresh, &folder)?;
    Ok(binary)
}

/// Beside the tools that tests meet: what is here is for benchmarks alone.
fn cache() -> anyhow::Result<PathBuf> {
    let tools = tools::cache()?;
    Ok(tools.parent().map_or_else(|| tools.clone(), Path::to_owned).join("peers"))
}
