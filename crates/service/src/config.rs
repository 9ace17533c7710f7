//! Configuration files: one struct per binary, YAML, unknown fields refused.

use std::path::{Path, PathBuf};

use alcazar_yaml::{SourceFile, YamlError};
use serde::de::DeserializeOwned;

/// Reads a configuration file.
///
/// `T` refuses unknown fields by `#[serde(deny_unknown_fields)]` and documents its defaults on its fields.
///
/// # Errors
/// When the file cannot be read, or does not say what `T` needs; the error then shows the place.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(alcazar_yaml::parse(&SourceFile::new(path.display().to_string(), text))?)
}

/// Why a configuration file could not be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ConfigError {
    /// The file is not there or cannot be opened.
    #[error("cannot read the configuration file {}", path.display())]
    #[diagnostic(help("check the path given with --config, and that this user may read it"))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be; shown with a caret.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Yaml(#[from] YamlError),
}
