//! One package: its tree, its control files, and `dpkg-deb` over them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::metadata::{From, Package};
use crate::process::{output, run};

pub(super) fn pack(
    package: &Package,
    architecture: &str,
    binaries: &Path,
    out: &Path,
    fast: bool,
) -> anyhow::Result<PathBuf> {
    let staged = tempfile::Builder::new().prefix("alcazar-deb-").tempdir_in(out)?;
    let root = staged.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    let mut glibc = None;
    for file in &package.files {
        let to = root.join(&file.to);
        make_folders(root, &to)?;
        match &file.from {
            From::Path(from) => copy(from, &to)?,
            From::Binary(name) => {
                copy(&binaries.join(name), &to)?;
                run(Command::new("strip").arg(&to))?;
                glibc = glibc.max(needed_glibc(&fs::read(&to)?));
            }
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(file.mode))?;
    }
    let control = root.join("DEBIAN");
    fs::create_dir(&control)?;
    fs::set_permissions(&control, fs::Permissions::from_mode(0o755))?;
    fs::write(control.join("control"), fields(package, architecture, glibc))?;
    if !package.conf_files.is_empty() {
        for path in &package.conf_files {
            ensure!(root.join(path.trim_start_matches('/')).is_file(), "the conf-file {path} is not among the assets");
        }
        fs::write(control.join("conffiles"), package.conf_files.join("\n") + "\n")?;
    }
    for script in SCRIPTS {
        let from = package.scripts.as_ref().map(|folder| folder.join(script)).filter(|path| path.is_file());
        if let Some(from) = from {
            copy(&from, &control.join(script))?;
            fs::set_permissions(control.join(script), fs::Permissions::from_mode(0o755))?;
        }
    }
    fs::write(control.join("md5sums"), sums(package, root)?)?;
    let deb = out.join(format!("{}_{}_{architecture}.deb", package.name, package.version));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "--build"]).args(if fast { &["-Zgzip", "-z1"][..] } else { &[] });
    output(command.arg(root).arg(&deb))?;
    Ok(deb)
}

fn fields(package: &Package, architecture: &str, glibc: Option<(u32, u32)>) -> String {
    let Package { name, version, summary, maintainer, section, .. } = package;
    let needed = match glibc {
        Some((major, minor)) => format!("libc6 (>= {major}.{minor}), libgcc-s1"),
        None => "libc6".to_owned(),
    };
    let depends = package.depends.replace("$auto", &needed);
    let suggests = package.suggests.as_ref().map(|other| format!("Suggests: {other}\n")).unwrap_or_default();
    // A paragraph ends with a dot; each line begins with a space.
    let lines = package.description.trim().lines().map(|line| if line.trim().is_empty() { "." } else { line.trim() });
    let description: String = lines.map(|line| format!(" {line}\n")).collect();
    format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {maintainer}\n\
         Section: {section}\nPriority: optional\nDepends: {depends}\n{suggests}Description: {summary}\n{description}"
    )
}

/// The newest version of the C library that a program names: it runs with none that is older.
fn needed_glibc(program: &[u8]) -> Option<(u32, u32)> {
    const NAME: &[u8] = b"GLIBC_";
    let starts = program.windows(NAME.len()).enumerate().filter(|(_, bytes)| *bytes == NAME);
    let version = |at: usize| {
        let rest = program.get(at + NAME.len()..)?;
        let end = rest.iter().position(|byte| !(byte.is_ascii_digit() || *byte == b'.'))?;
        let mut numbers = std::str::from_utf8(rest.get(..end)?).ok()?.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    starts.filter_map(|(at, _)| version(at)).max()
}

fn sums(package: &Package, root: &Path) -> anyhow::Result<String> {
    let paths = package.files.iter().map(|file| &file.to);
    output(Command::new("md5sum").args(paths).current_dir(root))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

/// Whatever the umask of this process is.
fn make_folders(root: &Path, to: &Path) -> anyhow::Result<()> {
    let parent = to.parent().context("a file needs a folder")?;
    fs::create_dir_all(parent)?;
    for folder in parent.ancestors().take_while(|folder| *folder != root) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_that_a_program_names_is_needed() {
        assert_eq!(needed_glibc(b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0"), Some((2, 34)));
        assert_eq!(needed_glibc(b"nothing GLIBC_"), None);
    }
}
