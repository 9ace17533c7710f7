//! Where the keys are, in `ca.yaml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::FileKeys;

/// How the CA's keys are kept. Default: files in the data folder, for its own user alone, not encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KeysConfig {
    /// A file with the passphrase that the key files are encrypted with, such as a systemd credential. It is read each time that a
    /// key is opened. Key files that are there and not encrypted are encrypted when they are opened. Default: none.
    pub passphrase_file: Option<PathBuf>,
}

impl KeysConfig {
    /// The key files in this folder.
    pub fn files(&self, folder: &Path) -> FileKeys {
        FileKeys::new(folder, self.passphrase_file.clone())
    }
}
