//! The lines of a head: request line and fields, and what they say about framing.

use crate::authority::{Authority, RefusedAuthority};

/// What a head says, as far as framing depends on it.
#[derive(Debug, Default)]
pub(super) struct Head {
    lines: usize,
    http_10: bool,
    connect: bool,
    upgrade: bool,
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
}

/// How the message goes on after its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) body: Body,
    /// What follows the message may not be HTTP: `CONNECT`, `Upgrade`.
    pub(super) may_switch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
}

impl Head {
    /// Takes one line, without its CRLF; the first is the request line.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), RefusedHead> {
        self.lines += 1;
        if self.lines == 1 {
            return self.request_line(line);
        }
        if self.lines > MAX_FIELDS + 1 {
            return Err(RefusedHead::TooManyFields);
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            self.host(value)
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length(value)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.transfer_encoding(value)
        } else {
            self.upgrade |= name.eq_ignore_ascii_case(b"upgrade");
            Ok(())
        }
    }

    /// The head is complete.
    pub(super) fn framing(&self) -> Result<Framing, RefusedHead> {
        if self.hosts == 0 && !self.http_10 {
            return Err(RefusedHead::NoHost);
        }
        if self.chunked && self.content_length.is_some() {
            return Err(RefusedHead::LengthAndEncoding);
        }
        if self.chunked && self.http_10 {
            return Err(RefusedHead::TransferEncoding);
        }
        if self.connect && (self.chunked || self.content_length.is_some_and(|length| length > 0)) {
            return Err(RefusedHead::ConnectWithBody);
        }
        let body = if self.chunked { Body::Chunked } else { Body::Length(self.content_length.unwrap_or(0)) };
        Ok(Framing { body, may_switch: self.connect || (self.upgrade && !self.http_10) })
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), RefusedHead> {
        let mut parts = line.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(RefusedHead::RequestLine);
        };
        if !is_token(method) || method == super::STAND_IN_METHOD.as_bytes() {
            return Err(RefusedHead::Method);
        }
        // Bytes beyond ASCII are left to the normalisation of paths, which encodes them. A fragment stays at home; some
        // servers cut it off, others take it for the path.
        if target.is_empty() || target.iter().any(|b| *b <= b' ' || matches!(b, 0x7f | b'#')) {
            return Err(RefusedHead::Target);
        }
        self.connect = method == b"CONNECT";
        self.http_10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(RefusedHead::Version),
        };
        Ok(())
    }

    fn host(&mut self, value: &[u8]) -> Result<(), RefusedHead> {
        self.hosts += 1;
        if self.hosts > 1 {
            return Err(RefusedHead::ManyHosts);
        }
        let text = std::str::from_utf8(value).map_err(|_| RefusedHead::Value)?;
        Authority::parse(text).map(drop).map_err(RefusedHead::Host)
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), RefusedHead> {
        if self.content_length.is_some() {
            return Err(RefusedHead::ManyLengths);
        }
        // Digits alone: no sign, no list.
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        match length {
            Some(length) if length <= MAX_LENGTH => {
                self.content_length = Some(length);
                Ok(())
            }
            _ => Err(RefusedHead::ContentLength),
        }
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), RefusedHead> {
        // Whatever is not exactly one "chunked" is read differently by different servers.
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(RefusedHead::TransferEncoding);
        }
        self.chunked = true;
        Ok(())
    }
}

/// Reads a field line, of a head or of trailers.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), RefusedHead> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(RefusedHead::Folded);
    }
    let colon = memchr::memchr(b':', line).ok_or(RefusedHead::Field)?;
    let (name, value) = line.split_at(colon);
    if !is_token(name) {
        return Err(RefusedHead::Field);
    }
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(RefusedHead::Value);
    }
    Ok((name, value))
}

/// RFC 9110 §5.6.2.
fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

const MAX_FIELDS: usize = 100;
/// What both we and hyper can count.
const MAX_LENGTH: u64 = u64::MAX >> 2;

/// Why the head or the framing of a request is refused.
///
/// **Source**: RFC 9112 §2.2, §3, §5, §6, §7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedHead {
    /// Not `method target version` with single spaces; HTTP/0.9 has no version.
    #[error("the request line is not a method, a target and a version")]
    RequestLine,
    /// Not a token.
    #[error("the method is not a token")]
    Method,
    /// Control characters or nothing.
    #[error("the request target contains a character that it cannot")]
    Target,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// A line that does not end with CRLF, or a CR within one.
    #[error("a line ends with something other than CR LF")]
    LineEnd,
    /// No colon, or a name that is not a token: white space before the colon, too.
    #[error("a header line is not a name, a colon and a value")]
    Field,
    /// NUL, or another control character.
    #[error("a header value contains a control character")]
    Value,
    /// A line that starts with white space.
    #[error("a header line is folded")]
    Folded,
    /// More than a hundred.
    #[error("there are more than {MAX_FIELDS} header fields")]
    TooManyFields,
    /// More than 64 KiB.
    #[error("the head is longer than {} bytes", super::scanner::MAX_HEAD)]
    TooLong,
    /// It takes too long to arrive.
    #[error("the head was not complete in time")]
    TooSlow,
    /// HTTP/1.1 without `Host`.
    #[error("there is no Host")]
    NoHost,
    /// More than one `Host`.
    #[error("there is more than one Host")]
    ManyHosts,
    /// A `Host` that is none.
    #[error("the Host is not one: {0}")]
    Host(#[source] RefusedAuthority),
    /// More than one `Content-Length`.
    #[error("there is more than one Content-Length")]
    ManyLengths,
    /// Not a number.
    #[error("the Content-Length is not a number")]
    ContentLength,
    /// Anything but one `chunked`, or with HTTP/1.0.
    #[error("the Transfer-Encoding is something other than chunked")]
    TransferEncoding,
    /// Both: the classic of request smuggling.
    #[error("there are both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    /// A tunnel has no body.
    #[error("a CONNECT has a body")]
    ConnectWithBody,
    /// Not hexadecimal digits, too many of them, or a chunk that does not end where it said.
    #[error("a chunk's size is wrong")]
    Chunk,
    /// A field that frames or routes, after the body.
    #[error("a trailer field is one that belongs into the head")]
    Trailer,
}
