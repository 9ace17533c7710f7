use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// One of our binaries, beside the test that asks: `target/debug/alcazar` for `target/debug/deps/scenario-...`.
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(|deps| deps.parent()).context("the test runs from nowhere")?;
    let path = directory.join(name);
    ensure!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    Ok(path)
}
