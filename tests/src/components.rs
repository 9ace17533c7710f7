use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};

/// A binary that `cargo xtask tools` brings: the newest `<component>-<version>/<binary>` of its cache. `None` when it is missing
/// and the scenario is passed over.
///
/// # Errors
/// When it is missing in CI.
#[allow(clippy::disallowed_methods, reason = "where tools are, is told by the environment")]
pub fn tool(component: &str, binary: &str) -> Result<Option<PathBuf>> {
    let home = std::env::var("HOME").unwrap_or_default();
    let tools =
        std::env::var("ALCAZAR_TOOLS").map_or_else(|_| Path::new(&home).join(".cache/alcazar/tools"), PathBuf::from);
    let is_its = |path: &PathBuf| {
        let version = path.file_name().and_then(|name| name.to_str()?.strip_prefix(component)?.strip_prefix('-'));
        version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()) && !version.ends_with(".new"))
    };
    let folders = std::fs::read_dir(&tools).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = folders.filter(is_its).map(|folder| folder.join(binary)).filter(|path| path.is_file()).max();
    if found.is_none() {
        passed_over(&format!("{}/{component}-<version>/{binary}; `cargo xtask tools` brings it", tools.display()))?;
    }
    Ok(found)
}

/// Whether a program answers to `arguments`, which it does when it is installed.
pub(crate) fn installed(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The library by which [`wrong_clock`] does it. `None` when it is missing and the scenario is passed over.
///
/// # Errors
/// When it is missing in CI.
pub fn faketime() -> Result<Option<PathBuf>> {
    let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = libraries.map(|path| path.join("faketime/libfaketime.so.1")).find(|path| path.is_file());
    if found.is_none() {
        passed_over("libfaketime (Debian: faketime)")?;
    }
    Ok(found)
}

/// Gives a process another clock: so many seconds ahead of this machine's, or behind. Spans of time stay what they are.
pub fn wrong_clock(command: &mut Command, faketime: &Path, seconds: i64) {
    command.env("LD_PRELOAD", faketime).env("FAKETIME", format!("{seconds:+}s"));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Says that a scenario needs something that is not here.
///
/// # Errors
/// In CI, where everything has to be.
#[allow(clippy::disallowed_methods, reason = "whether this is CI, is told by the environment")]
pub fn passed_over(needs: &str) -> Result<()> {
    ensure!(std::env::var_os("CI").is_none(), "needs {needs}");
    eprintln!("passed over: needs {needs}");
    Ok(())
}

/// A port that nobody listens on at this moment.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
