//! What `[package.metadata.deb]` says.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// One package.
#[derive(Debug, PartialEq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// In one line.
    pub(super) summary: String,
    /// In paragraphs.
    pub(super) description: String,
    pub(super) maintainer: String,
    pub(super) section: String,
    /// With `$auto` in place of what the programs need.
    pub(super) depends: String,
    pub(super) suggests: Option<String>,
    pub(super) files: Vec<File>,
    /// Those of them that a person may change, from the root.
    pub(super) conf_files: Vec<String>,
    /// The folder of `postinst` and the like.
    pub(super) scripts: Option<PathBuf>,
}

/// A file of a package.
#[derive(Debug, PartialEq)]
pub(super) struct File {
    pub(super) from: From,
    /// From the root, without the slash before.
    pub(super) to: PathBuf,
    pub(super) mode: u32,
}

#[derive(Debug, PartialEq)]
pub(super) enum From {
    /// A program of the workspace, by its name.
    Binary(String),
    Path(PathBuf),
}

/// The packages of a workspace, out of what `cargo metadata` prints.
pub(super) fn packages(metadata: &Value) -> anyhow::Result<Vec<Package>> {
    let all = metadata.get("packages").and_then(Value::as_array).context("cargo metadata names no packages")?;
    let with_deb = all.iter().filter_map(|package| Some((package, package.pointer("/metadata/deb")?)));
    with_deb.map(|(package, deb)| read(package, deb)).collect()
}

fn read(package: &Value, deb: &Value) -> anyhow::Result<Package> {
    let name = text(package, "name")?;
    let said = || format!("[package.metadata.deb] of {name}");
    for key in deb.as_object().with_context(said)?.keys() {
        // `cargo deb` knows more words; what this does not do, it does not pass over.
        ensure!(KEYS.contains(&key.as_str()), "{}: {key:?} is not understood", said());
    }
    let manifest = PathBuf::from(text(package, "manifest_path")?);
    let folder = manifest.parent().context("a manifest without a folder")?;
    let optional = |key| deb.get(key).map(|_| text(deb, key)).transpose();
    let list = |key| deb.get(key).and_then(Value::as_array).into_iter().flatten();
    Ok(Package {
        version: text(package, "version")?,
        summary: text(package, "description")?,
        description: text(deb, "extended-description").with_context(said)?,
        maintainer: text(deb, "maintainer").with_context(said)?,
        section: text(deb, "section").with_context(said)?,
        depends: text(deb, "depends").with_context(said)?,
        suggests: optional("suggests")?,
        files: list("assets").map(|asset| file(folder, asset)).collect::<anyhow::Result<_>>().with_context(said)?,
        conf_files: list("conf-files").filter_map(|path| path.as_str().map(str::to_owned)).collect(),
        scripts: optional("maintainer-scripts")?.map(|scripts| folder.join(scripts)),
        name,
    })
}

fn file(folder: &Path, asset: &Value) -> anyhow::Result<File> {
    let Some([Value::String(from), Value::String(to), Value::String(mode)]) = asset.as_array().map(Vec::as_slice)
    else {
        bail!("an asset is [from, to, mode], and not {asset}");
    };
    let name = Path::new(from).file_name().with_context(|| format!("{from:?} has no name"))?;
    let to = if to.ends_with('/') { Path::new(to).join(name) } else { PathBuf::from(to) };
    ensure!(to.is_relative(), "{} should begin without a slash", to.display());
    Ok(File {
        from: match from.strip_prefix("target/release/") {
            Some(binary) => From::Binary(binary.to_owned()),
            None => From::Path(folder.join(from)),
        },
        to,
        mode: u32::from_str_radix(mode, 8).with_context(|| format!("{mode:?} is no mode in octal"))?,
    })
}

fn text(value: &Value, key: &str) -> anyhow::Result<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("{key:?} is missing, or no text"))
}

const KEYS: &[&str] = &[
    "assets",
    "conf-files",
    "depends",
    "extended-description",
    "maintainer",
    "maintainer-scripts",
    "section",
    "suggests",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_understood_is_not_passed_over() {
        let said = |deb: Value| {
            let package = json!({"name": "web", "version": "1.0", "description": "A web", "manifest_path": "/w/web/Cargo.toml", "metadata": {"deb": deb}});
            packages(&json!({"packages": [package, {"name": "no-package", "metadata": null}]}))
        };
        let good = json!({"maintainer": "A <a@b>", "section": "net", "depends": "$auto", "extended-description": "Long.",
            "assets": [["target/release/web", "usr/bin/", "755"], ["../web.service", "usr/lib/x.service", "644"]]});
        let read = said(good.clone()).unwrap().remove(0);
        let files = [
            File { from: From::Binary("web".into()), to: "usr/bin/web".into(), mode: 0o755 },
            File { from: From::Path("/w/web/../web.service".into()), to: "usr/lib/x.service".into(), mode: 0o644 },
        ];
        assert_eq!((read.files.as_slice(), read.conf_files.len(), read.scripts), (files.as_slice(), 0, None));
        let with = |key: &str, value: Value| {
            let mut deb = good.clone();
            deb[key] = value;
            format!("{:#}", said(deb).unwrap_err())
        };
        assert!(with("triggers-file", json!("x")).contains("\"triggers-file\" is not understood"));
        assert!(with("section", json!(1)).contains("\"section\" is missing"));
        assert!(with("assets", json!([["a", "/usr/", "644"]])).contains("without a slash"));
        assert!(with("assets", json!([["a", "usr/", "999"]])).contains("no mode in octal"));
    }
}
