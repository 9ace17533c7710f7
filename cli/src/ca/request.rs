//! `alcazar ca request`: what a root that is kept elsewhere is asked to sign.

use std::path::Path;
use std::process::ExitCode;

use alcazar_ca::{Config, ceremony};
use alcazar_service::config;
use anyhow::Context;

use crate::say;

pub(super) fn run(file: &Path, out: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config: Config = config::load(file)?;
    let made = ceremony::request(&config, &config.key_store())?;
    if let Some(out) = out {
        std::fs::write(out, &made.pem).with_context(|| format!("cannot write {}", out.display()))?;
    }
    let shown = out.unwrap_or(&made.file);
    Ok(say(&format!(
        "a request for the certificate authority of a cluster\n  trust domain  {}\n  cluster       {}\n  its key       SHA-256 {}\n  request       {}\n\
         The key stays here. Carry the request to where the root is kept, compare the key there, and run:\n  alcazar root sign {} --root DIR\n",
        config.trust_domain,
        config.cluster,
        made.key_hash,
        shown.display(),
        shown.file_name().unwrap_or_default().to_string_lossy(),
    )))
}
