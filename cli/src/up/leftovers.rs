//! The commands that a run has started, written down so that the next run can end what a kill left behind.
//!
//! A command leads a process group of its own. The system ends the leader when `up` dies; what the leader had started
//! itself may live on, and would hold its port.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// The variable that tells a command which workload it is, and us that a process is ours.
pub(crate) const WORKLOAD_VARIABLE: &str = "ALCAZAR_WORKLOAD";

/// Notes that this process is about to become the command of a workload and lead its group.
///
/// The command itself does it, before it starts anything: no kill can come between the two.
pub(crate) fn note(path: &Path, workload: &str) -> io::Result<()> {
    let leader = std::process::id();
    let started = Process::read(leader).map_or(0, |process| process.started);
    fs::write(path, format!("{leader} {started} {workload}\n"))
}

/// Takes a note back: nobody is left of the group.
pub(crate) fn forget(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove the note of a command");
        }
        _ => {}
    }
}

/// Ends every noted process group that is still there; says whose they were.
pub(crate) fn end(directory: &Path) -> io::Result<Vec<String>> {
    let mut ended = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if let Some((leader, started, workload)) = parse(&fs::read_to_string(&path)?)
            && is_ours(leader, started, &workload)
            && let Some(group) = i32::try_from(leader).ok().and_then(Pid::from_raw)
        {
            kill_process_group(group, Signal::KILL)?;
            ended.push(workload);
        }
        fs::remove_file(path)?;
    }
    Ok(ended)
}

fn parse(note: &str) -> Option<(u32, u64, String)> {
    let mut words = note.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
}

/// Whether a process group is the one that was noted, and not a stranger that got the number since: its leader started
/// at the noted moment, or, with the leader gone, a member still carries the workload's name.
fn is_ours(leader: u32, started: u64, workload: &str) -> bool {
    if let Some(process) = Process::read(leader) {
        return process.started == started;
    }
    let mark = format!("{WORKLOAD_VARIABLE}={workload}");
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| Process::read(*pid).is_some_and(|process| process.group == leader))
        .any(|pid| environment(pid).split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
}

/// The environment that a process was started with; empty where it is gone or has none.
///
/// A process that is just becoming another program has none for a moment, so an empty one is looked at again.
fn environment(pid: u32) -> Vec<u8> {
    const LOOKS: u32 = 20;
    for _ in 0..LOOKS {
        match fs::read(format!("/proc/{pid}/environ")) {
            Ok(environment) if environment.is_empty() => std::thread::sleep(Duration::from_millis(1)),
            Ok(environment) => return environment,
            Err(_) => break,
        }
    }
    Vec::new()
}

/// What the system says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    group: u32,
    /// Clock ticks since the system started.
    started: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads a line of `/proc/<pid>/stat`. **Source**: proc_pid_stat(5).
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in brackets, and may contain anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The state is field 3; the group is field 5, the start time field 22.
        Some(Self { group: fields.get(2)?.parse().ok()?, started: fields.get(19)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper(script: &str) -> std::process::Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env(WORKLOAD_VARIABLE, "shop/x").process_group(0).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    fn write_note(notes: &Path, leader: u32) {
        let started = Process::read(leader).unwrap().started;
        fs::write(notes.join("shop.x"), format!("{leader} {started} shop/x\n")).unwrap();
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(Process::parse(stat), Some(Process { group: 7, started: 4242 }));
        assert_eq!(Process::parse("7 (a"), None);
        assert!(Process::read(std::process::id()).is_some());
    }

    #[test]
    fn what_a_kill_left_behind_is_ended_and_strangers_are_not() {
        let notes = tempfile::tempdir().unwrap();
        let mut left = sleeper("sleep 60");
        write_note(notes.path(), left.id());
        // The number of a process that started at another time.
        let stranger = std::process::id();
        fs::write(notes.path().join("shop.y"), format!("{stranger} 1 shop/y\n")).unwrap();
        fs::write(notes.path().join("shop.z"), "torn").unwrap();
        assert_eq!(end(notes.path()).unwrap(), ["shop/x"]);
        assert!(!left.wait().unwrap().success());
        assert_eq!(fs::read_dir(notes.path()).unwrap().count(), 0);
    }

    #[test]
    fn members_of_a_group_whose_leader_is_gone_are_ended() {
        use std::io::Read;
        let notes = tempfile::tempdir().unwrap();
        // The leader ends at once; its child holds the pipe open until it is killed.
        let mut leader = sleeper("sleep 60 & true");
        write_note(notes.path(), leader.id());
        let mut pipe = leader.stdout.take().unwrap();
        leader.wait().unwrap();
        assert_eq!(end(notes.path()).unwrap(), ["shop/x"]);
        assert_eq!(pipe.read_to_end(&mut Vec::new()).unwrap(), 0);
    }

    #[test]
    fn a_note_says_who_this_is_and_can_be_taken_back() {
        let notes = tempfile::tempdir().unwrap();
        let path = notes.path().join("shop.x");
        note(&path, "shop/x").unwrap();
        let (leader, started, workload) = parse(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((leader, workload.as_str()), (std::process::id(), "shop/x"));
        assert_eq!(Process::read(leader).unwrap().started, started);
        forget(&path);
        forget(&path);
        assert!(!path.exists());
    }
}
