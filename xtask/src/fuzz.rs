//! `cargo xtask fuzz`: libFuzzer over every target, for a bounded time, on the stable toolchain.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::process::{cargo, root, run as run_command, target_folder};

/// How long, and what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the target of this name.
    target: Option<String>,
    /// How long to run each target, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
}

/// Builds the targets with coverage and runs them one after the other, from what `fuzz/seeds` has for them; a crash fails the
/// command and leaves its input in `fuzz/artifacts`. What seeds hold of private keys was made for them.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let names: Vec<String> =
        targets()?.into_iter().filter(|name| options.target.as_ref().is_none_or(|wanted| wanted == name)).collect();
    ensure!(!names.is_empty(), "there is no such fuzz target");
    // With a target named, build scripts and macros are compiled without the coverage, which they could not be linked with.
    let host = host()?;
    let mut build =
        cargo(&["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--locked", "--target-dir", "fuzz/target"]);
    build.args(["--target", &host]);
    build.args(options.target.iter().flat_map(|target| ["--bin", target]));
    run_command(build.env("RUSTFLAGS", COVERAGE))?;
    for name in names {
        println!("==> {name}");
        let folder = |kind: &str| root().join("fuzz").join(kind).join(&name);
        for kind in ["corpus", "artifacts"] {
            std::fs::create_dir_all(folder(kind))?;
        }
        let mut fuzzer = Command::new(root().join("fuzz/target").join(&host).join("release").join(&name));
        // What writes files writes them where no disk has to keep up.
        if Path::new(MEMORY).is_dir() {
            fuzzer.env("TMPDIR", MEMORY);
        }
        // The first folder is written to, the others are read.
        fuzzer
            .arg(folder("corpus"))
            .args(Some(folder("seeds")).filter(|seeds| seeds.is_dir()))
            .arg(format!("-artifact_prefix={}/", folder("artifacts").display()))
            .args([
                &format!("-max_total_time={}", options.seconds),
                "-print_final_stats=1",
                "-timeout=10",
                "-rss_limit_mb=2048",
            ]);
        run_command(&mut fuzzer)?;
    }
    Ok(())
}

/// Checks that every target compiles and is listed.
pub(crate) fn check() -> anyhow::Result<()> {
    let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).context("cannot read fuzz/Cargo.toml")?;
    for name in targets()? {
        ensure!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml does not list the target {name}");
    }
    // In the workspace's own target folder, so that what is compiled there serves twice.
    let mut clippy = cargo(&["clippy", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--locked"]);
    clippy.arg("--target-dir").arg(target_folder());
    run_command(clippy.args(["--", "-D", "warnings"]))
}

/// The machine for which this one compiles, as rustc calls it.
fn host() -> anyhow::Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let said = String::from_utf8(said.stdout)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    Ok(host.to_owned())
}

fn targets() -> anyhow::Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(Path::new).map(|stem| stem.display().to_string()));
        }
    }
    names.sort();
    Ok(names)
}

const MEMORY: &str = "/dev/shm";

/// What cargo-fuzz asks of rustc, less the sanitizer, which needs a nightly toolchain.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
