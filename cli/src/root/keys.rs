//! Where the key of a root is.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alcazar_ca::{FileKeys, KeyStore, Pkcs11Config, Pkcs11Keys, read_passphrase};
use alcazar_identity::TrustDomain;
use anyhow::{Context, bail, ensure};
use zeroize::Zeroizing;

/// The passphrase of its file, or its token.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// A file whose first line is the passphrase of the key; without it, you are asked
    #[arg(long, value_name = "FILE", conflicts_with = "pkcs11")]
    passphrase_file: Option<PathBuf>,
    /// The module of a PKCS#11 token that holds the key
    #[arg(long, value_name = "MODULE", requires_all = ["token_label", "pin_file"])]
    pkcs11: Option<PathBuf>,
    /// The label of the token
    #[arg(long, value_name = "LABEL", requires = "pkcs11")]
    token_label: Option<String>,
    /// A file whose first line is the PIN of the token
    #[arg(long, value_name = "FILE", requires = "pkcs11")]
    pin_file: Option<PathBuf>,
}

impl KeyArgs {
    /// The keys of the root in `folder`; a passphrase for a new key is asked for twice.
    pub(super) fn store(&self, folder: &Path, domain: &TrustDomain, new: bool) -> anyhow::Result<Arc<dyn KeyStore>> {
        if let (Some(module), Some(token_label), Some(pin_file)) = (&self.pkcs11, &self.token_label, &self.pin_file) {
            let config =
                Pkcs11Config { module: module.clone(), token_label: token_label.clone(), pin_file: pin_file.clone() };
            return Ok(Arc::new(Pkcs11Keys::new(config, domain.to_string())));
        }
        let passphrase = match &self.passphrase_file {
            Some(file) => read_passphrase(file)?,
            None => ask(new)?,
        };
        ensure!(
            !new || passphrase.len() >= SHORTEST,
            "the passphrase has fewer than {SHORTEST} characters; a root is worth more"
        );
        Ok(Arc::new(FileKeys::sealed(folder, passphrase)))
    }

    /// Whether the key is in a token.
    pub(super) fn is_token(&self) -> bool {
        self.pkcs11.is_some()
    }
}

const SHORTEST: usize = 12;

fn ask(new: bool) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the passphrase on; give --passphrase-file FILE");
    }
    let read = |prompt: &str| {
        let text = rpassword::prompt_password(prompt).context("cannot read the passphrase")?;
        anyhow::Ok(Zeroizing::new(text.into_bytes()))
    };
    let passphrase = read("Passphrase of the root's key: ")?;
    if new {
        ensure!(read("The same again: ")? == passphrase, "the two passphrases differ");
    }
    Ok(passphrase)
}
