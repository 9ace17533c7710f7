//! Whose a connection to the application's proxy is: on a host with several users, only the application's own user may speak as
//! the application.

mod message;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

pub use message::AnswerError;

/// Lets one user's connections through.
#[derive(Debug)]
pub(crate) struct OwnerCheck {
    uid: u32,
    kernel: Mutex<Kernel>,
}

#[derive(Debug)]
struct Kernel {
    socket: OwnedFd,
    sequence: u32,
    lines: Lines,
}

/// Lines of the log that other users cause.
#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    silent: u64,
}

impl OwnerCheck {
    /// Opens the way to the kernel, and tries it.
    ///
    /// # Errors
    /// When this host cannot tell whose a connection is: then nobody would be let through.
    pub(crate) fn open(uid: u32) -> Result<Self, OwnerError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG));
        let socket = socket.map_err(|error| OwnerError::Open(error.into()))?;
        let lines = Lines { since: Instant::now(), written: 0, silent: 0 };
        let check = Self { uid, kernel: Mutex::new(Kernel { socket, sequence: 0, lines }) };
        check.try_out()?;
        Ok(check)
    }

    /// Whether a connection is its user's.
    ///
    /// # Errors
    /// When it is another's, or nobody's that is known.
    pub(crate) fn check(&self, stream: impl AsFd, client: SocketAddr) -> Result<(), OwnerError> {
        let here = rustix::net::getsockname(stream).ok().and_then(|address| SocketAddr::try_from(address).ok());
        let here = here.ok_or(OwnerError::Whose(AnswerError::Ended))?;
        match self.owner(client, here)? {
            uid if uid == self.uid => Ok(()),
            uid => Err(OwnerError::Other { uid, expected: self.uid }),
        }
    }

    /// After how many that were not logged this refusal is to be; `None`: it is not.
    pub(crate) fn line(&self, now: Instant) -> Option<u64> {
        let lines = &mut self.kernel.lock().unwrap_or_else(PoisonError::into_inner).lines;
        if now.duration_since(lines.since) >= WINDOW {
            (lines.since, lines.written) = (now, 0);
        }
        if lines.written == MOST_LINES {
            lines.silent += 1;
            return None;
        }
        lines.written += 1;
        Some(std::mem::take(&mut lines.silent))
    }

    /// The user who has the end of a connection that is `client`.
    fn owner(&self, client: SocketAddr, here: SocketAddr) -> Result<u32, OwnerError> {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (client, here) = (plain(client), plain(here));
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel.sequence = kernel.sequence.wrapping_add(1);
        let ask = message::ask(kernel.sequence, client, here);
        sendto(&kernel.socket, &ask, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
            .map_err(|error| OwnerError::Ask(error.into()))?;
        // The kernel answers before it has taken the question: nothing is waited for.
        let mut buffer = [0; 4096];
        for _ in 0..MOST_STALE {
            let (_, length) =
                recv(&kernel.socket, &mut buffer, RecvFlags::empty()).map_err(|error| OwnerError::Ask(error.into()))?;
            let answer = buffer.get(..length).unwrap_or_default();
            match message::answered(answer, kernel.sequence, client, here) {
                Err(AnswerError::Stale) => {}
                answered => return answered.map_err(OwnerError::Whose),
            }
        }
        Err(OwnerError::Whose(AnswerError::Stale))
    }

    /// Looks for the owner of a connection of our own.
    fn try_out(&self) -> Result<(), OwnerError> {
        let connect = || -> io::Result<_> {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            Ok((listener, client.local_addr()?, client.peer_addr()?, client))
        };
        let (_listener, client, here, _client) = connect().map_err(OwnerError::Ask)?;
        self.owner(client, here).map(drop)
    }
}

/// Why a connection is not the application's.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// There is no way to the kernel.
    #[error("this host does not tell whose a connection is: its kernel gives no NETLINK_SOCK_DIAG socket")]
    Open(#[source] io::Error),
    /// The kernel cannot be asked.
    #[error("the kernel cannot be asked whose a connection is")]
    Ask(#[source] io::Error),
    /// The kernel knows no owner.
    #[error("it is not known whose the connection is: {0}")]
    Whose(AnswerError),
    /// It is another's.
    #[error("it is a connection of the user {uid}; this proxy is the user {expected}'s")]
    Other {
        /// Whose it is.
        uid: u32,
        /// Whose it must be.
        expected: u32,
    },
}

const WINDOW: Duration = Duration::from_secs(60);
const MOST_LINES: u32 = 10;
/// Answers to earlier questions that are passed over: there is never one, unless a process was stopped in between.
const MOST_STALE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(listen: &str, connect: &str) -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let client = TcpStream::connect((connect, listener.local_addr().unwrap().port())).unwrap();
        let (server, from) = listener.accept().unwrap();
        (client, server, from)
    }

    #[test]
    fn a_connection_is_its_users_while_somebody_holds_it() {
        let own = rustix::process::geteuid().as_raw();
        let [mine, others] = [own, own + 1].map(|uid| OwnerCheck::open(uid).unwrap());
        // The last is IPv4 on a socket of IPv6.
        for (listen, connect) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")] {
            let (client, server, from) = pair(listen, connect);
            mine.check(&server, from).unwrap();
            let refused = others.check(&server, from).unwrap_err().to_string();
            assert_eq!(refused, format!("it is a connection of the user {own}; this proxy is the user {}'s", own + 1));
            // It has said all that it wants to say.
            client.shutdown(std::net::Shutdown::Write).unwrap();
            mine.check(&server, from).unwrap();
            drop(client);
            assert!(matches!(mine.check(&server, from), Err(OwnerError::Whose(_))), "{listen}");
        }
    }

    #[test]
    fn a_listener_on_the_clients_port_is_not_the_client() {
        let mine = OwnerCheck::open(rustix::process::geteuid().as_raw()).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let nobody = mine.owner(listener.local_addr().unwrap(), "127.0.0.1:1".parse().unwrap());
        assert!(matches!(nobody, Err(OwnerError::Whose(_))), "{nobody:?}");
    }

    #[test]
    fn refusals_are_not_written_without_end() {
        let check = OwnerCheck::open(0).unwrap();
        let start = Instant::now();
        for _ in 0..MOST_LINES {
            assert_eq!(check.line(start), Some(0));
        }
        assert_eq!((check.line(start), check.line(start)), (None, None));
        assert_eq!(check.line(start + WINDOW), Some(2));
    }
}
