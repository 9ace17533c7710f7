//! `alcazar root init`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use alcazar_ca::ceremony::{RootFolder, RootKey};
use alcazar_ca::{KeyAlgorithm, KeyLabel};
use alcazar_identity::{TrustDomain, rfc3339};
use alcazar_service::clock;

use super::keys::KeyArgs;
use crate::say;

/// The kinds of key.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Algorithm {
    P256,
    P384,
}

pub(super) fn run(
    out: &Path,
    trust_domain: &TrustDomain,
    algorithm: Algorithm,
    life: Duration,
    args: &KeyArgs,
) -> anyhow::Result<ExitCode> {
    let keys = args.store(out, trust_domain, true)?;
    // A token may hold the roots of several generations.
    let label = if args.is_token() { KeyLabel::random("root")? } else { "root".parse()? };
    let algorithm = match algorithm {
        Algorithm::P256 => KeyAlgorithm::P256,
        Algorithm::P384 => KeyAlgorithm::P384,
    };
    let root = RootFolder::init(out, trust_domain, &RootKey { keys, label }, algorithm, life, clock::now())?;
    let info = root.info();
    let out = out.display();
    let key = if args.is_token() { "in the token".to_owned() } else { format!("{out}/root-key.pem, encrypted") };
    Ok(say(&format!(
        "a root of {trust_domain}\n  fingerprint  {}\n  good until   {}\n  certificate  {out}/root-cert.pem\n  key          {key}\n\
         Keep two copies of it in two places. Next, where a cluster's CA runs: alcazar ca request --config ca.yaml\n",
        info.fingerprint,
        rfc3339(info.validity.not_after()),
    )))
}
