//! `alcazar root verify-transcript`.

use std::path::Path;
use std::process::ExitCode;

use alcazar_ca::ceremony::{RootFolder, verify_transcript};

use crate::say;

pub(super) fn run(root: &Path) -> anyhow::Result<ExitCode> {
    let info = RootFolder::certificate(root)?;
    let entries = verify_transcript(root, &info.certificate)?;
    let mut text = String::new();
    for entry in &entries {
        let what = if entry.cluster.is_empty() { String::new() } else { format!(" for the cluster {}", entry.cluster) };
        let why = if entry.reason.is_empty() { String::new() } else { format!(" ({})", entry.reason) };
        text += &format!(
            "{:>4}  {}  {}{what}{why}\n      {} until {}\n",
            entry.number, entry.time, entry.act, entry.certificate, entry.not_after
        );
    }
    Ok(say(&format!(
        "{text}{} entries, each signed by the root {}, none missing before the last\n",
        entries.len(),
        info.fingerprint
    )))
}
