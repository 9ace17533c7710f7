//! Where the keys are, in `ca.yaml`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{FileKeys, KeyStore, Pkcs11Config, Pkcs11Keys};

/// How the CA's keys are kept. Default: files in the data folder, for its own user alone, not encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KeysConfig {
    /// A file with the passphrase that the key files are encrypted with, such as a systemd credential. It is read each time that a
    /// key is opened. Key files that are there and not encrypted are encrypted when they are opened. Default: none.
    pub passphrase_file: Option<PathBuf>,
    /// A PKCS#11 token that makes the keys and keeps them. Default: none.
    pub pkcs11: Option<Pkcs11Config>,
}

impl KeysConfig {
    /// Where the keys are: in a token under names with this prefix, or in files in this folder.
    pub fn store(&self, folder: &Path, prefix: &str) -> Arc<dyn KeyStore> {
        match &self.pkcs11 {
            Some(token) => Arc::new(Pkcs11Keys::new(token.clone(), prefix)),
            None => Arc::new(FileKeys::new(folder, self.passphrase_file.clone())),
        }
    }
}
