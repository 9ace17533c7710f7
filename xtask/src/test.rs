//! `cargo xtask test`: what CI runs and what a developer runs are the same.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};

use crate::process::{self, cargo};
use crate::{arrows, fuzz};

/// Runs everything, and closes with one line that counts the tests.
pub(crate) fn run() -> anyhow::Result<()> {
    let counts = run_all()?;
    println!("\n{} passed, {} failed", counts.passed, counts.failed);
    ensure!(counts.passed > 0, "no test ran");
    ensure!(counts.failed == 0 && counts.succeeded, "the tests failed");
    Ok(())
}

fn run_step(name: &str, step: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("==> {name}");
    step().with_context(|| format!("the step \"{name}\" failed"))
}

fn run_all() -> anyhow::Result<Counts> {
    run_step("formatting", || process::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    run_step("import arrows", arrows::check)?;
    run_step("clippy", || {
        process::run(&mut cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    run_step("documentation", || {
        process::run(
            cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items", "--locked"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    run_step("fuzz targets compile", fuzz::check)?;
    // Scenario tests run the real binaries.
    run_step("binaries", || process::run(&mut cargo(&["build", "--quiet", "--workspace", "--bins", "--locked"])))?;
    println!("==> tests");
    tests()
}

/// How many tests ran, over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    succeeded: bool,
}

fn tests() -> anyhow::Result<Counts> {
    let mut child = cargo(&["test", "--workspace", "--no-fail-fast", "--locked"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let Some(stdout) = child.stdout.take() else { bail!("cargo test has no output") };
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the output of cargo test")?;
        println!("{line}");
        counts.add(&line);
    }
    counts.succeeded = child.wait()?.success();
    Ok(counts)
}

impl Counts {
    /// Adds a closing line of one test program: `test result: ok. 3 passed; 0 failed; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split([';', '.']) {
            match part.trim().split_once(' ') {
                Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s");
        counts.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.05s");
        counts.add("12 passed");
        assert_eq!(counts, Counts { passed: 15, failed: 2, succeeded: false });
    }
}
