//! Follows the messages of an HTTP/1 connection and refuses what is not beyond doubt.

use super::RefusedHead;
use super::chunks::{Chunks, line};
use super::fields::{Body, Head};

/// Follows one connection's requests. Plain data in, plain data out.
#[derive(Debug, Default)]
pub struct Scanner {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Before or within a head, of which this many bytes were looked at.
    Head { head: Head, looked_at: usize },
    /// Within a body of known length.
    Length { left: u64, may_switch: bool },
    /// Within a chunked body.
    Chunked(Chunks, bool),
    /// After a message that may change the protocol.
    Held,
    /// No longer HTTP.
    Switched,
}

impl Default for State {
    fn default() -> Self {
        Self::Head { head: Head::default(), looked_at: 0 }
    }
}

/// What [`Scanner::scan`] found at the start of what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// These bytes are blank lines before a head: to be dropped.
    Skip(usize),
    /// These bytes are a whole head: a message begins with them.
    Head(usize),
    /// These bytes belong to the body, or to what follows a change of protocol.
    Body(usize),
    /// More bytes are needed.
    More,
    /// Nothing passes until it is known whether the protocol changes ([`Scanner::resume`], [`Scanner::switch`]).
    Hold,
}

impl Scanner {
    /// Looks at bytes that were not passed yet: always those after what the last call let pass or skipped.
    ///
    /// # Errors
    /// When the message is not beyond doubt. The scanner is of no use afterwards.
    pub fn scan(&mut self, input: &[u8]) -> Result<Scan, RefusedHead> {
        match &mut self.state {
            State::Head { .. } => self.scan_head(input),
            State::Length { left: 0, may_switch } | State::Chunked(Chunks::Data(0), may_switch) => {
                let may_switch = *may_switch;
                self.message_ended(may_switch);
                self.scan(input)
            }
            State::Held => Ok(Scan::Hold),
            _ if input.is_empty() => Ok(Scan::More),
            State::Switched => Ok(Scan::Body(input.len())),
            State::Length { left, .. } => {
                let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= bytes as u64;
                Ok(Scan::Body(bytes))
            }
            State::Chunked(chunks, may_switch) => {
                let followed = chunks.follow(input)?;
                let may_switch = *may_switch;
                if followed.end {
                    self.message_ended(may_switch);
                }
                Ok(if followed.bytes == 0 { Scan::More } else { Scan::Body(followed.bytes) })
            }
        }
    }

    /// How many bytes to come may pass without being looked at: the rest of a body, or of a chunk.
    pub fn opaque(&self) -> u64 {
        match &self.state {
            State::Length { left, .. } => *left,
            State::Chunked(chunks, _) => chunks.opaque(),
            State::Switched => u64::MAX,
            State::Head { .. } | State::Held => 0,
        }
    }

    /// So many of them have passed.
    pub fn passed(&mut self, bytes: u64) {
        match &mut self.state {
            State::Length { left, .. } => *left = left.saturating_sub(bytes),
            State::Chunked(chunks, _) => chunks.passed(bytes),
            State::Head { .. } | State::Held | State::Switched => {}
        }
    }

    /// Whether what comes next is a head, or the rest of one.
    pub fn is_at_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// The protocol stays: the next message may come.
    pub fn resume(&mut self) {
        self.state = State::default();
    }

    /// The protocol has changed: whatever comes passes.
    pub fn switch(&mut self) {
        self.state = State::Switched;
    }

    fn scan_head(&mut self, input: &[u8]) -> Result<Scan, RefusedHead> {
        let State::Head { head, looked_at } = &mut self.state else { return Ok(Scan::More) };
        loop {
            let rest = input.get(*looked_at..).unwrap_or_default();
            if *looked_at == 0 {
                match rest {
                    // Blank lines between messages (RFC 9112 §2.2).
                    [b'\r', b'\n', ..] => return Ok(Scan::Skip(2)),
                    [] | [b'\r'] => return Ok(Scan::More),
                    [first, ..] if !first.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~".contains(first) => {
                        return Err(RefusedHead::RequestLine);
                    }
                    _ => {}
                }
            }
            let Some(line) = line(rest, MAX_HEAD - (*looked_at).min(MAX_HEAD))? else { return Ok(Scan::More) };
            *looked_at += line.len() + 2;
            if *looked_at > MAX_HEAD {
                return Err(RefusedHead::TooLong);
            }
            if !line.is_empty() {
                head.line(line)?;
                continue;
            }
            let (framing, bytes) = (head.framing()?, *looked_at);
            self.state = match framing.body {
                Body::Chunked => State::Chunked(Chunks::default(), framing.may_switch),
                Body::Length(left) => State::Length { left, may_switch: framing.may_switch },
            };
            return Ok(Scan::Head(bytes));
        }
    }

    fn message_ended(&mut self, may_switch: bool) {
        self.state = if may_switch { State::Held } else { State::default() };
    }
}

/// The longest head: request line and fields.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The method of the request that stands in for one that was refused; no peer can send it.
pub(crate) const STAND_IN_METHOD: &str = "ALCAZAR-REFUSED";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scans a whole connection that arrives in pieces of `step` bytes: what passed, and the refusal at its end.
    fn run(input: &[u8], step: usize) -> (Vec<u8>, Vec<usize>, Option<RefusedHead>) {
        let (mut scanner, mut passed, mut heads) = (Scanner::default(), Vec::new(), Vec::new());
        let (mut at, mut come) = (0, 0);
        loop {
            match scanner.scan(&input[at..come]) {
                Err(refused) => return (passed, heads, Some(refused)),
                Ok(Scan::Skip(n)) => at += n,
                Ok(Scan::Head(n)) => {
                    heads.push(at);
                    passed.extend_from_slice(&input[at..at + n]);
                    at += n;
                }
                Ok(Scan::Body(n)) => {
                    passed.extend_from_slice(&input[at..at + n]);
                    at += n;
                }
                Ok(Scan::Hold) => scanner.resume(),
                Ok(Scan::More) if come == input.len() => return (passed, heads, None),
                Ok(Scan::More) => come = (come + step).min(input.len()),
            }
        }
    }

    fn check(input: &str, heads: usize, refused: Option<RefusedHead>) {
        for step in [1, 7, 4096] {
            let (_, found, why) = run(input.as_bytes(), step);
            assert_eq!((found.len(), why), (heads, refused), "{input:?} by {step}");
        }
    }

    #[test]
    fn messages_that_are_beyond_doubt_pass() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, None);
        check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, None);
        check("GET / HTTP/1.0\r\n\r\n", 1, None);
        check("GET http://a/ HTTP/1.1\r\nHost:a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 2, None);
        check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2, None);
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
        check(&format!("{chunked}3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\n\r\n{chunked}"), 2, None);
        check(&format!("{chunked}0\r\nx-sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 2, None);
        check("CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2, None);
        check("GET / HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n", 1, None);
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        use RefusedHead::*;
        let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        for (fields, why) in [
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", LengthAndEncoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", LengthAndEncoding),
            ("Content-Length: 3\r\nContent-Length: 4\r\n", ManyLengths),
            ("Content-Length: 3\r\ncontent-length: 3\r\n", ManyLengths),
            ("Content-Length: 3, 3\r\n", ContentLength),
            ("Content-Length: +3\r\n", ContentLength),
            ("Content-Length: -3\r\n", ContentLength),
            ("Content-Length: 0x3\r\n", ContentLength),
            ("Content-Length:\r\n", ContentLength),
            ("Content-Length: 99999999999999999999\r\n", ContentLength),
            ("Transfer-Encoding: gzip, chunked\r\n", TransferEncoding),
            ("Transfer-Encoding: identity\r\n", TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", TransferEncoding),
            ("Transfer-Encoding: \u{b}chunked\r\n", Value),
            ("Transfer-Encoding : chunked\r\n", Field),
            (" Transfer-Encoding: chunked\r\n", Folded),
            ("X: a\r\n b\r\n", Folded),
            ("X: a\r\n\tb\r\n", Folded),
            ("X : a\r\n", Field),
            ("X\r\n", Field),
            (": a\r\n", Field),
            ("X\0: a\r\n", Field),
            ("X: a\0b\r\n", Value),
            ("X: a\rb\r\n", LineEnd),
            ("X: a\nY: b\r\n", LineEnd),
            ("Host: b\r\n", ManyHosts),
        ] {
            check(&get(fields), 0, Some(why));
        }
        for (head, why) in [
            ("GET / HTTP/1.1\r\n\r\n", NoHost),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Host(crate::authority::RefusedAuthority::UserInfo)),
            ("GET /\r\n\r\n", RequestLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", RequestLine),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Target),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
            ("GET / HTTP/1.1\nHost: a\n\n", LineEnd),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", Version),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Method),
            ("ALCAZAR-REFUSED / HTTP/1.1\r\nHost: a\r\n\r\n", Method),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
            ("CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\nContent-Length: 1\r\n\r\nx", ConnectWithBody),
            ("\u{16}\u{3}\u{1}", RequestLine),
        ] {
            check(head, 0, Some(why));
        }
    }

    #[test]
    fn a_chunk_is_what_it_says_or_the_connection_ends() {
        use RefusedHead::*;
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, why) in [
            ("x\r\n", Chunk),
            ("-1\r\n", Chunk),
            ("0x3\r\nabc\r\n", Chunk),
            ("3 \r\nabc\r\n", Chunk),
            ("\r\n", Chunk),
            (";x\r\n", Chunk),
            ("3\nabc\r\n", LineEnd),
            ("3;a\rb\r\nabc\r\n", LineEnd),
            ("3\r\nabcd\r\n", Chunk),
            ("3\r\nabc\n0\r\n\r\n", Chunk),
            ("fffffffffffffffff\r\n", Chunk),
            ("0\r\ncontent-length: 1\r\n\r\n", Trailer),
            ("0\r\nx : 1\r\n\r\n", Field),
            ("0\r\nx: 1\n\r\n", LineEnd),
        ] {
            check(&format!("{chunked}{body}"), 1, Some(why));
        }
    }

    #[test]
    fn a_head_has_an_end() {
        let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(n));
        check(&fields(99), 1, None);
        check(&fields(100), 0, Some(RefusedHead::TooManyFields));
        let long = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(n));
        for (input, heads, why) in [
            (long(60_000), 1, None),
            (long(70_000), 0, Some(RefusedHead::TooLong)),
            ("a".repeat(70_000), 0, Some(RefusedHead::TooLong)),
        ] {
            let (_, found, refused) = run(input.as_bytes(), 4096);
            assert_eq!((found.len(), refused), (heads, why));
        }
    }

    proptest! {
        #[test]
        fn however_it_arrives_the_same_passes(
            input in "((GET|POST|CONNECT) (/|a:1) HTTP/1\\.[01]\r\n(Host: a\r\n|Content-Length: [0-9]\r\n|Transfer-Encoding: chunked\r\n|Upgrade: x\r\n|x:\\PC{0,4}\r?\n){0,4}\r\n([0-9a-f]\r\n|[ -~]{0,5}){0,4}(0\r\n\r\n)?){0,3}",
            step in 1usize..9,
        ) {
            let (passed, heads, refused) = run(input.as_bytes(), 4096);
            let (again, heads_again, refused_again) = run(input.as_bytes(), step);
            prop_assert_eq!(&heads, &heads_again);
            prop_assert_eq!(refused, refused_again);
            prop_assert!(passed.starts_with(&again) || again.starts_with(&passed));
        }
    }
}
