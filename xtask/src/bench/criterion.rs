//! Figures of the criterion benchmarks, from the files that criterion leaves.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::figure::{Figure, Unit};
use crate::process::target_folder;

/// Reads what criterion wrote: `target/criterion/<group>/<figure>/new/estimates.json`, figures with a parameter one
/// folder deeper.
pub(super) fn figures_of(group: &str) -> anyhow::Result<Vec<Figure>> {
    let folder = target_folder().join("criterion").join(group);
    let mut estimates = Vec::new();
    collect(&folder, &mut estimates).with_context(|| format!("cannot read {}", folder.display()))?;
    estimates.sort();
    let mut figures = Vec::new();
    for path in estimates {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: Value = serde_json::from_str(&text)?;
        let ours = value.pointer("/median/point_estimate").and_then(Value::as_f64);
        let figure = path.strip_prefix(&folder)?.parent().and_then(Path::parent).unwrap_or(Path::new(""));
        figures.push(Figure {
            bench: group.to_owned(),
            figure: figure.display().to_string(),
            unit: Unit::Nanoseconds,
            ours: ours.with_context(|| format!("{} has no median", path.display()))?,
            peer: None,
        });
    }
    ensure!(!figures.is_empty(), "the benchmark {group} left no figure in {}", folder.display());
    Ok(figures)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.ends_with("new/estimates.json") {
            found.push(path);
        }
    }
    Ok(())
}
