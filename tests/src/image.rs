use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Packs a container image of one layer, as `docker save` writes it, from files of this machine (at these paths in the image) and the
/// arguments with which it runs.
///
/// # Errors
/// When a file cannot be read or the archive not be written.
pub(crate) fn pack(archive: &Path, tags: &[&str], files: &[(&Path, &str)], run: &[&str]) -> Result<()> {
    let work = tempfile::tempdir_in(archive.parent().context("an archive in a folder")?)?;
    let (root, layer) = (work.path().join("root"), work.path().join("layer.tar"));
    for (file, place) in files {
        let place = root.join(place.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().context("a file in a folder")?)?;
        std::fs::copy(file, &place).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    tar(&layer, &root, &["."])?;
    let sum = Command::new("sha256sum").arg(&layer).output()?;
    let sum = String::from_utf8(sum.stdout)?;
    let digest = sum.split_whitespace().next().context("a sum")?;
    let config = serde_json::json!({
        "architecture": architecture()?,
        "os": "linux",
        "config": {"Entrypoint": run},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    std::fs::write(work.path().join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": tags, "Layers": ["layer.tar"]}]);
    std::fs::write(work.path().join("manifest.json"), manifest.to_string())?;
    tar(archive, work.path(), &["manifest.json", "config.json", "layer.tar"])
}

/// As images name this machine's.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("how images name {other} is not known here"),
    }
}

fn tar(archive: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    let status = Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(archive).args(names).status()?;
    ensure!(status.success(), "tar: {status}");
    Ok(())
}

/// The shared libraries that a program needs, its loader too.
pub(crate) fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output()?;
    ensure!(output.status.success(), "ldd {}: {}", program.display(), output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
