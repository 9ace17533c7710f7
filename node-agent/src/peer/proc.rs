//! What the kernel writes of a process under `/proc`.

use std::fs;
use std::io;

/// The supplementary groups in a `/proc/<pid>/status`.
pub(super) fn groups(status: &str) -> Option<Vec<u32>> {
    field(status, "Groups:")?.split_whitespace().map(|gid| gid.parse().ok()).collect()
}

/// The effective user in a `/proc/<pid>/status`.
pub(super) fn effective_uid(status: &str) -> Option<u32> {
    field(status, "Uid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// The process of a pidfd, from its `/proc/self/fdinfo/<fd>`: `None` where it is not in our namespace of processes,
/// negative when it has ended.
pub(super) fn pid_of(fdinfo: &str) -> Option<i32> {
    field(fdinfo, "Pid:")?.trim().parse().ok().filter(|pid| *pid != 0)
}

/// When a process began, in ticks of the kernel since it booted, from its `/proc/<pid>/stat`.
///
/// **Source**: proc_pid_stat(5), field 22; the second one, the command, may have anything in it.
pub(super) fn started(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// Reads `/proc/<pid>/<name>`.
pub(super) fn read(pid: i32, name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let status = "Name:\tweb\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t5\t5\t5\nGroups:\t4 27 100 \nNStgid:\t1\n";
        assert_eq!(groups(status), Some(vec![4, 27, 100]));
        assert_eq!(groups("Groups:\t \n"), Some(vec![]));
        assert_eq!(groups("Groups:\tx\n"), None);
        assert_eq!(groups(""), None);
        assert_eq!(effective_uid(status), Some(1001));
        assert_eq!(pid_of("pos:\t0\nPid:\t42\nNSpid:\t42\n"), Some(42));
        assert_eq!(pid_of("Pid:\t-1\n"), Some(-1));
        assert_eq!(pid_of("Pid:\t0\n"), None);
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        assert_eq!(started(stat), Some(12345));
        assert!(started(&read(std::process::id().cast_signed(), "stat").unwrap()).is_some());
    }
}
