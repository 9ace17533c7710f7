//! The chunked coding, followed byte by byte so that we and hyper agree on where a body ends.

use super::RefusedHead;
use super::fields::field;

/// Where in a chunked body we are.
#[derive(Debug, Default)]
pub(super) enum Chunks {
    /// At the start of a line with a size.
    #[default]
    Size,
    /// Within a chunk: this many bytes are left of it.
    Data(u64),
    /// At the CRLF after a chunk.
    DataEnd,
    /// In the trailer section, of which so many bytes have come.
    Trailers(usize),
}

/// How far the coding could be followed.
pub(super) struct Followed {
    /// Bytes that are right.
    pub(super) bytes: usize,
    /// The body ended with them.
    pub(super) end: bool,
}

impl Chunks {
    /// Follows as much of `input` as is complete.
    pub(super) fn follow(&mut self, input: &[u8]) -> Result<Followed, RefusedHead> {
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            match self {
                Self::Size => {
                    let Some(line) = line(rest, MAX_SIZE_LINE)? else { break };
                    at += line.len() + 2;
                    *self = match size(line)? {
                        0 => Self::Trailers(0),
                        size => Self::Data(size),
                    };
                }
                Self::Data(left) => {
                    let here = u64::try_from(rest.len()).unwrap_or(u64::MAX).min(*left);
                    at += usize::try_from(here).unwrap_or(usize::MAX);
                    *left -= here;
                    if *left > 0 {
                        break;
                    }
                    *self = Self::DataEnd;
                }
                Self::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(RefusedHead::Chunk),
                },
                Self::Trailers(seen) => {
                    let Some(line) = line(rest, MAX_TRAILERS)? else { break };
                    at += line.len() + 2;
                    *seen += line.len() + 2;
                    if line.is_empty() {
                        return Ok(Followed { bytes: at, end: true });
                    }
                    if *seen > MAX_TRAILERS {
                        return Err(RefusedHead::TooLong);
                    }
                    trailer(line)?;
                }
            }
        }
        Ok(Followed { bytes: at, end: false })
    }

    /// Bytes that may pass without a look at them.
    pub(super) fn opaque(&self) -> u64 {
        match self {
            Self::Data(left) => *left,
            _ => 0,
        }
    }

    /// So many opaque bytes have passed.
    pub(super) fn passed(&mut self, bytes: u64) {
        if let Self::Data(left) = self {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                *self = Self::DataEnd;
            }
        }
    }
}

/// The first line of `input` without its CRLF; `None` until it is complete.
pub(super) fn line(input: &[u8], limit: usize) -> Result<Option<&[u8]>, RefusedHead> {
    let Some(newline) = memchr::memchr(b'\n', input) else {
        // A CR may only be the last byte that has come so far.
        return match memchr::memchr(b'\r', input) {
            Some(at) if at + 1 != input.len() => Err(RefusedHead::LineEnd),
            _ if input.len() > limit => Err(RefusedHead::TooLong),
            _ => Ok(None),
        };
    };
    let line = input.get(..newline).and_then(|line| line.strip_suffix(b"\r")).ok_or(RefusedHead::LineEnd)?;
    if memchr::memchr(b'\r', line).is_some() {
        return Err(RefusedHead::LineEnd);
    }
    if line.len() > limit { Err(RefusedHead::TooLong) } else { Ok(Some(line)) }
}

/// `1*HEXDIG [chunk-ext]`, without the white space that some allow before the extension.
fn size(line: &[u8]) -> Result<u64, RefusedHead> {
    let (digits, extension) = match memchr::memchr(b';', line) {
        Some(at) => line.split_at(at),
        None => (line, &[][..]),
    };
    if digits.is_empty() || digits.len() > MAX_DIGITS || extension.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(RefusedHead::Chunk);
    }
    digits.iter().try_fold(0u64, |size, digit| {
        let value = char::from(*digit).to_digit(16).ok_or(RefusedHead::Chunk)?;
        Ok(size << 4 | u64::from(value))
    })
}

fn trailer(line: &[u8]) -> Result<(), RefusedHead> {
    let (name, _) = field(line)?;
    let framing = ["content-length", "transfer-encoding", "host", "connection", "trailer", "te", "authorization"];
    match framing.iter().any(|f| name.eq_ignore_ascii_case(f.as_bytes())) {
        true => Err(RefusedHead::Trailer),
        false => Ok(()),
    }
}

const MAX_SIZE_LINE: usize = 256;
const MAX_TRAILERS: usize = 8 * 1024;
/// 60 bits: no sum of them overflows.
const MAX_DIGITS: usize = 15;
