//! `alcazar root sign`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use alcazar_ca::CrlUrl;
use alcazar_ca::ceremony::RootFolder;
use alcazar_service::clock;
use anyhow::bail;

use super::keys::KeyArgs;
use crate::say;

pub(super) fn run(
    request: &Path,
    root: &Path,
    out: Option<&Path>,
    life: Duration,
    crl: Option<CrlUrl>,
    yes: bool,
    args: &KeyArgs,
) -> anyhow::Result<ExitCode> {
    let (_, domain) = RootFolder::about(root)?;
    let keys = args.store(root, &domain, false)?;
    let opened = RootFolder::open(root, &*keys)?;
    let proposal = opened.propose(request, life, crl, clock::now())?;
    eprintln!("{proposal}");
    if !yes && !agreed("Sign it?")? {
        eprintln!("nothing was signed");
        return Ok(ExitCode::FAILURE);
    }
    let out = out.map_or_else(|| beside(request, proposal.cluster()), Path::to_path_buf);
    let signed = opened.sign(&proposal, &out)?;
    Ok(say(&format!(
        "signed {}\n  the set      {}: ca-cert.pem, cert-chain.pem, root-cert.pem, ca-crl.pem\n  on record    {}\n\
         Next, where the cluster's CA runs: alcazar ca install {} --config ca.yaml\n",
        signed.intermediate.fingerprint,
        signed.folder.display(),
        signed.entry.display(),
        signed.folder.display(),
    )))
}

pub(super) fn agreed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask on; read what is above, and give --yes if it is right");
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn beside(request: &Path, cluster: &str) -> PathBuf {
    request.with_file_name(format!("cacerts-{cluster}"))
}
