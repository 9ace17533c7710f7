//! Becomes a command that the system ends when its parent does, however the parent ends.
//!
//! `alcazar up` starts every command through this: the request has to be made by the child itself, between being
//! started and becoming the command.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::up::leftovers;

/// This very program, also after its file has been replaced by a newer build.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// The first word of a command that means this very program.
pub(crate) const OUR_NAME: &str = "alcazar";

/// Becomes `command` of `workload`, bound to the life of `parent` and noted in a file. Returns only when that fails.
pub(crate) fn exec(parent: u32, note: &Path, workload: &str, command: &[String]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        return ExitCode::from(2);
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("alcazar: cannot bind {program} to the life of its parent: {}", io::Error::from(error));
        return ExitCode::FAILURE;
    }
    // The parent may have ended before the request was made.
    if getppid().is_none_or(|pid| pid.as_raw_nonzero().get().unsigned_abs() != parent) {
        return ExitCode::FAILURE;
    }
    if let Err(error) = leftovers::note(note, workload) {
        eprintln!("alcazar: cannot write {}: {error}", note.display());
        return ExitCode::FAILURE;
    }
    let error = program_of(program).args(arguments).exec();
    eprintln!("alcazar: cannot start {program}: {error}");
    // As a shell says it: 127 not found, 126 found and not startable.
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

fn program_of(word: &str) -> Command {
    if word == OUR_NAME {
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0(OUR_NAME);
        command
    } else {
        Command::new(word)
    }
}
