//! `alcazar root revoke-intermediate`.

use std::path::Path;
use std::process::ExitCode;

use alcazar_ca::ceremony::RootFolder;
use alcazar_identity::RevocationReason;
use alcazar_service::clock;
use anyhow::Context;

use super::{keys::KeyArgs, sign::agreed};
use crate::say;

pub(super) fn run(
    intermediate: &str,
    root: &Path,
    reason: RevocationReason,
    out: Option<&Path>,
    yes: bool,
    args: &KeyArgs,
) -> anyhow::Result<ExitCode> {
    let (_, domain) = RootFolder::about(root)?;
    let keys = args.store(root, &domain, false)?;
    let opened = RootFolder::open(root, &*keys)?;
    let taking = opened.propose_revocation(intermediate, reason, clock::now())?;
    eprintln!("{taking}");
    if !yes && !agreed("Take it back?")? {
        eprintln!("nothing was taken back");
        return Ok(ExitCode::FAILURE);
    }
    let revoked = opened.revoke(&taking)?;
    if let Some(out) = out {
        std::fs::copy(&revoked.file, out).with_context(|| format!("cannot write {}", out.display()))?;
    }
    let carried = out.unwrap_or(&revoked.file).display();
    Ok(say(&format!(
        "taken back\n  the list     {carried}\n  as a CRL     {}\n  on record    {}\n\
         Next, at each CA under this root: alcazar revocations import {carried} --ca <dataDir>/admin.sock\n",
        revoked.crl.display(),
        revoked.entry.display(),
    )))
}
