//! `alcazar ledger verify --dir`: files that no CA has open.

use std::path::Path;
use std::process::ExitCode;

use alcazar_ca::ledger::verify_files_at;

use super::error::LedgerCommandError;
use super::state::State;
use crate::say;

/// Verifies the files, and that they go on from the head that was seen last, where there is a state.
pub(super) fn verify(dir: &Path, state: Option<&Path>) -> Result<ExitCode, LedgerCommandError> {
    let seen = state.map(|path| State::read(path).map(|state| (path, state))).transpose()?;
    let seen = seen.and_then(|(path, state)| state.map(|state| (path, state)));
    let report = verify_files_at(dir, seen.as_ref().map(|(_, state)| state.size).unwrap_or_default())?;
    if !report.damages.is_empty() {
        report.damages.iter().for_each(|damage| eprintln!("alcazar: {damage}"));
        return Ok(ExitCode::FAILURE);
    }
    let mut text = format!("ledger      {}\n", report.log);
    text.push_str(&format!("head        {} entries, root {}\n", report.head.size, report.head.root));
    text.push_str(&format!("files       {} segments, {} bytes\n", report.segments, report.bytes));
    if report.torn > 0 {
        text.push_str(&format!(
            "tail        {} bytes at the end are no whole entries, and nobody is known to have been told of them; the CA removes them when it starts\n",
            report.torn
        ));
    }
    match (seen, state) {
        (Some((path, state)), _) => {
            let found = report.log.to_string();
            if found != state.ledger {
                let (known, path) = (state.ledger, path.to_owned());
                return Err(LedgerCommandError::OtherFiles { found, known, path });
            }
            let (known, seen) = (state.size, state.seen());
            match report.early {
                None => return Err(LedgerCommandError::OlderFiles { found: report.head.size, known, seen }),
                Some(root) if root != state.root() => return Err(LedgerCommandError::ChangedFiles { known, seen }),
                Some(_) => text.push_str(&format!("consistent  with the {known} entries that were seen at {seen}\n")),
            }
        }
        (None, Some(path)) => {
            text.push_str(&format!("consistent  not known: nothing was verified with {} before\n", path.display()));
        }
        (None, None) => {
            text.push_str(
                "consistent  not asked: name the file with --state that an earlier verification of the CA wrote\n",
            );
        }
    }
    Ok(say(&text))
}
