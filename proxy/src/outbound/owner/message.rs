//! What is said to the kernel to learn whose socket one is, and what it answers.
//!
//! **Source**: sock_diag(7), `linux/inet_diag.h`, RFC 3549 §2.2.

use std::net::{IpAddr, SocketAddr};

/// Asks for the one TCP socket whose own end is `local` and whose other end is `remote`.
pub(super) fn ask(sequence: u32, local: SocketAddr, remote: SocketAddr) -> [u8; ASK] {
    let mut message = [0; ASK];
    let [header, rest] = [(0, HEADER), (HEADER, ASK)];
    let mut write = |at: usize, bytes: &[u8]| {
        for (place, byte) in message.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    write(header.0, &ASK_LENGTH.to_ne_bytes());
    write(header.0 + 4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    write(header.0 + 6, &NLM_F_REQUEST.to_ne_bytes());
    write(header.0 + 8, &sequence.to_ne_bytes());
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    write(rest.0, &[family, IPPROTO_TCP]);
    // Of every state: which of them count is for the answer.
    write(rest.0 + 4, &u32::MAX.to_ne_bytes());
    write(rest.0 + 8, &ends(local, remote));
    // Any interface; no cookie of an earlier answer.
    write(rest.0 + 8 + ENDS + 4, &[0xff; 8]);
    message
}

/// Whose the socket is that was asked for.
///
/// # Errors
/// When there is none, it is not (or no longer) an end of a connection, or the answer is none to this question.
pub(super) fn answered(
    message: &[u8],
    sequence: u32,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<u32, AnswerError> {
    let number = |at: usize| {
        let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(AnswerError::Short)
    };
    let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if number(8)? != sequence {
        return Err(AnswerError::Stale);
    }
    match kind {
        Some(NLMSG_ERROR) => {
            let code = number(HEADER)?.cast_signed();
            return Err(if code == -ENOENT { AnswerError::NoSocket } else { AnswerError::Kernel(-code) });
        }
        Some(SOCK_DIAG_BY_FAMILY) => {}
        _ => return Err(AnswerError::Other),
    }
    // Where nothing has these two ends, the kernel may answer with a listener.
    let found = message.get(HEADER + 4..HEADER + 4 + ENDS).ok_or(AnswerError::Short)?;
    if !is_same(found, local, remote) {
        return Err(AnswerError::NoSocket);
    }
    let state = *message.get(HEADER + 1).ok_or(AnswerError::Short)?;
    let (uid, inode) = (number(HEADER + 64)?, number(HEADER + 68)?);
    // What no process holds any more is shown as root's.
    if inode == 0 || !CONNECTED.contains(&state) {
        return Err(AnswerError::Ended);
    }
    Ok(uid)
}

/// Ports in the order of the network, then addresses of 16 bytes each.
fn ends(local: SocketAddr, remote: SocketAddr) -> [u8; ENDS] {
    let mut bytes = [0; ENDS];
    let parts = [
        local.port().to_be_bytes().to_vec(),
        remote.port().to_be_bytes().to_vec(),
        address(local.ip()).to_vec(),
        address(remote.ip()).to_vec(),
    ];
    for (place, byte) in bytes.iter_mut().zip(parts.concat()) {
        *place = byte;
    }
    bytes
}

fn address(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    for (place, byte) in bytes.iter_mut().zip(octets) {
        *place = byte;
    }
    bytes
}

/// Whether the ends are these. A socket of IPv6 that speaks IPv4 is shown with addresses that are IPv4's within IPv6.
fn is_same(found: &[u8], local: SocketAddr, remote: SocketAddr) -> bool {
    let mapped = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
        IpAddr::V6(_) => end,
    };
    found == ends(local, remote) || found == ends(mapped(local), mapped(remote))
}

/// Why nobody is known to own a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Nothing has these two ends.
    #[error("no process of this host has its other end")]
    NoSocket,
    /// No process holds it any more, or it is no connection yet.
    #[error("its other end has ended")]
    Ended,
    /// The kernel says so.
    #[error("the kernel refuses to say whose it is (error {0})")]
    Kernel(i32),
    /// Neither an answer nor an error.
    #[error("the kernel answers with something else")]
    Other,
    /// It ends in the middle.
    #[error("the kernel's answer is too short")]
    Short,
    /// It has another number.
    #[error("the kernel's answer is to an earlier question")]
    Stale,
}

const HEADER: usize = 16;
const ENDS: usize = 36;
const ASK: usize = 72;
const ASK_LENGTH: u32 = 72;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const ENOENT: i32 = 2;
/// ESTABLISHED, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT: a process may hold it, and speak or listen.
const CONNECTED: [u8; 4] = [1, 4, 5, 8];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// An answer of the kernel's.
    fn answer(sequence: u32, local: SocketAddr, remote: SocketAddr, state: u8, uid: u32, inode: u32) -> Vec<u8> {
        let mut message = vec![0; HEADER + 72];
        message[..4].copy_from_slice(&88_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message[8..12].copy_from_slice(&sequence.to_ne_bytes());
        message[HEADER + 1] = state;
        message[HEADER + 4..HEADER + 4 + ENDS].copy_from_slice(&ends(local, remote));
        message[HEADER + 64..HEADER + 68].copy_from_slice(&uid.to_ne_bytes());
        message[HEADER + 68..].copy_from_slice(&inode.to_ne_bytes());
        message
    }

    #[test]
    fn a_question_is_laid_out_as_the_kernel_reads_it() {
        let message = ask(7, end("127.0.0.1:258"), end("127.0.0.2:3"));
        assert_eq!(message[HEADER..HEADER + 4], [AF_INET, IPPROTO_TCP, 0, 0]);
        assert_eq!(message[HEADER + 8..HEADER + 12], [1, 2, 0, 3]);
        assert_eq!(message[HEADER + 12..HEADER + 16], [127, 0, 0, 1]);
        assert_eq!(message[HEADER + 28..HEADER + 32], [127, 0, 0, 2]);
        assert_eq!(message[HEADER + 44..HEADER + 48], [0; 4], "any interface");
        assert_eq!(message[HEADER + 48..], [0xff; 8]);
        assert_eq!(ask(7, end("[::1]:258"), end("[::1]:3"))[HEADER], AF_INET6);
    }

    #[test]
    fn an_answer_counts_when_it_is_of_this_very_connection_and_somebody_holds_it() {
        let (local, remote) = (end("127.0.0.1:40000"), end("127.0.0.1:15101"));
        let whose = |message: &[u8]| answered(message, 7, local, remote);
        assert_eq!(whose(&answer(7, local, remote, 1, 1000, 5)), Ok(1000));
        assert_eq!(whose(&answer(7, local, remote, 8, 1000, 5)), Ok(1000));
        let mapped = |text: &str| end(&format!("[::ffff:127.0.0.1]:{text}"));
        assert_eq!(whose(&answer(7, mapped("40000"), mapped("15101"), 1, 1000, 5)), Ok(1000));
        assert_eq!(whose(&answer(8, local, remote, 1, 1000, 5)), Err(AnswerError::Stale));
        assert_eq!(whose(&answer(7, local, remote, 1, 0, 0)), Err(AnswerError::Ended), "an orphan is shown as root's");
        for state in [0, 2, 3, 6, 7, 9, 10, 11, 12] {
            assert_eq!(whose(&answer(7, local, remote, state, 1000, 5)), Err(AnswerError::Ended), "{state}");
        }
        // A listener on the port from which the connection came.
        let listener = answer(7, local, end("0.0.0.0:0"), 10, 1000, 5);
        assert_eq!(whose(&listener), Err(AnswerError::NoSocket));
        let error = |code: i32| {
            let mut message = answer(7, local, remote, 1, 0, 0);
            message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message[HEADER..HEADER + 4].copy_from_slice(&code.to_ne_bytes());
            whose(&message)
        };
        assert_eq!(error(-ENOENT), Err(AnswerError::NoSocket));
        assert_eq!(error(-95), Err(AnswerError::Kernel(95)));
        let whole = answer(7, local, remote, 1, 1000, 5);
        for length in 0..whole.len() {
            assert!(whose(&whole[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_at_all_is_anybodys(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(answered(&message, 7, end("127.0.0.1:40000"), end("127.0.0.1:15101")).is_err());
        }
    }
}
