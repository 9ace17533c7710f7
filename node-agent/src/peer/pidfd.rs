//! The process at the other end of a Unix socket, held by a descriptor that never means another one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::proc;

/// The process that connected.
///
/// # Errors
/// When it has ended already, or the kernel can tell it apart from a later one in no way.
pub(super) fn of(socket: impl AsFd, uid: u32, pid: Option<i32>) -> Result<OwnedFd, PidfdError> {
    match getsockopt(&socket, sockopt::PeerPidfd) {
        Ok(pidfd) => Ok(pidfd),
        // Linux before 6.5.
        Err(Errno::ENOPROTOOPT) => by_number(uid, pid.ok_or(PidfdError::Elsewhere)?),
        Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => Err(PidfdError::Gone),
        Err(error) => Err(PidfdError::Kernel(error.into())),
    }
}

/// The process that has this number now, if it can be the one that connected: it was there when the connection was
/// accepted, and runs as the user who connected. Between the two a number can pass to another process of that user; that is
/// what the kernel's own way is better at.
fn by_number(uid: u32, pid: i32) -> Result<OwnedFd, PidfdError> {
    let accepted = uptime_in_ticks().map_err(PidfdError::Kernel)?;
    let number = Pid::from_raw(pid).ok_or(PidfdError::Elsewhere)?;
    let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => PidfdError::Gone,
        error => PidfdError::Kernel(error.into()),
    })?;
    let status = proc::read(pid, "status").map_err(PidfdError::Kernel)?;
    let stat = proc::read(pid, "stat").map_err(PidfdError::Kernel)?;
    let same_user = proc::effective_uid(&status) == Some(uid);
    // A process is older than the connection that it made.
    let older = proc::started(&stat).is_some_and(|started| started < accepted);
    if same_user && older && !has_ended(&pidfd) { Ok(pidfd) } else { Err(PidfdError::Gone) }
}

/// Whether its process has ended, reaped or not.
pub(super) fn has_ended(pidfd: impl AsFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    // What cannot be asked is not believed to be alive.
    !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
}

/// The number of its process; `None` where that is in another namespace of processes, or has ended.
pub(super) fn number(pidfd: impl AsFd) -> io::Result<Option<i32>> {
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    Ok(proc::pid_of(&fdinfo).filter(|pid| *pid > 0))
}

/// How long the kernel has been up, in the ticks of `/proc/<pid>/stat`.
fn uptime_in_ticks() -> io::Result<u64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up = Duration::try_from(now).map_err(io::Error::other)?;
    let hz = rustix::param::clock_ticks_per_second();
    Ok(up.as_secs() * hz + u64::from(up.subsec_millis()) * hz / 1000)
}

/// Why a process cannot be held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidfdError {
    /// It has ended: whoever has its connection now is another.
    #[error("the process that connected has ended")]
    Gone,
    /// Its number means nothing here.
    #[error(
        "the process that connected is in another namespace of processes, and this kernel cannot show it: run the agent in the \
         host's (hostPID in Kubernetes)"
    )]
    Elsewhere,
    /// The kernel refused.
    #[error("the kernel does not show the process that connected")]
    Kernel(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_held_until_it_ends_and_its_number_is_never_anothers() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        let own = rustix::process::geteuid().as_raw();
        // A child of this very tick is too young to be told from one that came after.
        while proc::started(&proc::read(pid, "stat").unwrap()).unwrap() >= uptime_in_ticks().unwrap() {
            std::thread::yield_now();
        }
        let pidfd = by_number(own, pid).unwrap();
        assert_eq!(number(&pidfd).unwrap(), Some(pid));
        assert!(!has_ended(&pidfd));
        assert!(matches!(by_number(own + 1, pid), Err(PidfdError::Gone)), "another user has that number now");
        drop(child.stdin.take());
        // Not reaped yet, and ended all the same.
        while !has_ended(&pidfd) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(has_ended(&pidfd));
        assert_eq!(number(&pidfd).unwrap(), None);
        assert!(matches!(by_number(own, pid), Err(PidfdError::Gone | PidfdError::Kernel(_))));
    }

    #[test]
    fn the_kernel_says_who_connected() {
        let (here, _there) = UnixStream::pair().unwrap();
        let own = std::process::id().cast_signed();
        let pidfd = of(&here, rustix::process::geteuid().as_raw(), Some(own)).unwrap();
        assert_eq!(number(&pidfd).unwrap(), Some(own));
        assert!(!has_ended(&pidfd));
    }
}
