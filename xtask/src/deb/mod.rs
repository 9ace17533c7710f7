//! `cargo xtask deb`: the Debian packages. What is in them stands in each crate's `[package.metadata.deb]`, in the words of the
//! command `cargo deb`; here they are packed by `dpkg-deb` alone, within seconds and with nothing to install.

mod metadata;
mod pack;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::process::{cargo, output, run as run_command, target_folder};

/// What is packed, and whereto.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where the programs are. Without it, they are built for release.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where the packages go. Default: `debian` beside what cargo builds.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Packs in a hurry: several times as large.
    #[arg(long)]
    fast: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let described = output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let described = serde_json::from_str(&described).context("cannot read the output of cargo metadata")?;
    let packages = metadata::packages(&described)?;
    ensure!(!packages.is_empty(), "no crate has a [package.metadata.deb]");
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => {
            let mut build = cargo(&["build", "--release", "--locked", "--bins"]);
            packages.iter().for_each(|package| {
                build.args(["--package", &package.name]);
            });
            run_command(&mut build)?;
            target_folder().join("release")
        }
    };
    let out = options.out.clone().unwrap_or_else(|| target_folder().join("debian"));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    for package in &packages {
        let packed = pack::pack(package, architecture.trim(), &binaries, &out, options.fast)
            .with_context(|| format!("the package {}", package.name))?;
        println!("{}", packed.display());
    }
    Ok(())
}
