//! Our test client on go-spiffe, built from `tests/go/spiffe-client`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use super::{cache, works};
use crate::process::{root, run as run_command};

/// The version of go-spiffe, which `go.mod` names, too.
const GO_SPIFFE: &str = "2.9.0";

/// All that it is built from. A copy lies beside the binary, so that a change here is seen there.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// The binary, built when its sources have changed. It is static: it runs in any image.
pub(crate) fn client() -> anyhow::Result<PathBuf> {
    let sources = root().join("tests/go/spiffe-client");
    let folder = cache()?.join(format!("spiffe-client-{GO_SPIFFE}"));
    let binary = folder.join("spiffe-client");
    let same = |name: &&str| {
        fs::read(folder.join(name)).is_ok_and(|built| fs::read(sources.join(name)).is_ok_and(|now| now == built))
    };
    if binary.is_file() && SOURCES.iter().all(same) {
        return Ok(binary);
    }
    ensure!(
        works(&["go", "version"]),
        "Go is missing, which the go-spiffe client of the tests is built with: install 1.24 or newer from https://go.dev/dl"
    );
    // Built beside its place and renamed, so that a build that was cut off leaves nothing half there.
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    for name in SOURCES {
        fs::copy(sources.join(name), fresh.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let mut build = Command::new("go");
    build.current_dir(&fresh).env("CGO_ENABLED", "0");
    run_command(build.args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o", "spiffe-client", "."]))?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&fresh, &folder)?;
    Ok(binary)
}
