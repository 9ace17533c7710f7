//! The path that rules see, which is also the path that is forwarded.

use std::borrow::Cow;
use std::fmt;

/// A request path after normalisation, with its query kept aside.
///
/// In this order: percent-encoded unreserved characters are decoded, dot segments are removed
/// (RFC 3986 §5.2.4), repeated slashes are merged. Percent-encodings that stay are in upper case, and
/// characters that a URI may not carry raw are encoded. Normalising twice changes nothing.
/// The query takes no part in decisions and is forwarded as it came.
///
/// Borrowed, without allocation, when the path was normal already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizedPath<'a> {
    path: Cow<'a, str>,
    query: Option<&'a str>,
}

/// What to do with an encoded slash (`%2F`), which some servers take for a slash and others do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EncodedSlash {
    /// Refuse the request.
    #[default]
    Refuse,
    /// Take it for a slash, and forward it as one.
    Decode,
}

impl<'a> NormalizedPath<'a> {
    /// Normalises the path and query of a request target (`/a/b?c`); the empty path is `/`.
    ///
    /// The asterisk form (`OPTIONS *`) stands for itself: `*`.
    ///
    /// # Errors
    /// When servers differ on what such a path means, or it is none.
    pub fn parse(target: &'a str, slash: EncodedSlash) -> Result<Self, RefusedPath> {
        if target.contains('#') {
            return Err(RefusedPath::Fragment);
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        if let Some(byte) = query.unwrap_or_default().bytes().find(|b| b.is_ascii_control() || *b == b' ') {
            return Err(RefusedPath::Control(byte));
        }
        match path {
            "" => return Ok(Self { path: Cow::Borrowed("/"), query }),
            "*" => return Ok(Self { path: Cow::Borrowed("*"), query }),
            _ if !path.starts_with('/') => return Err(RefusedPath::NotAbsolute),
            _ => {}
        }
        if is_normal(path) {
            return Ok(Self { path: Cow::Borrowed(path), query });
        }
        let decoded = decode(path, slash)?;
        let without_dots = remove_dot_segments(&decoded)?;
        let normal = merge_slashes(&without_dots);
        let path = if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) };
        Ok(Self { path, query })
    }

    /// The path that rules are matched against: no query.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The query, without its `?`, as it came.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// Whether normalisation changed the path.
    pub fn is_changed(&self) -> bool {
        matches!(self.path, Cow::Owned(_))
    }

    /// Path and query as they must be forwarded.
    pub fn forward(&self) -> Cow<'_, str> {
        match self.query {
            None => Cow::Borrowed(&self.path),
            Some(query) => Cow::Owned(format!("{}?{query}", self.path)),
        }
    }
}

/// The path that rules see, without the query.
impl fmt::Display for NormalizedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Why a path is refused before any rule sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedPath {
    /// A `#` never belongs in a request target; where it ends the path differs between servers.
    #[error("the path contains a '#'")]
    Fragment,
    /// Neither empty nor starting with a slash.
    #[error("the path does not start with '/'")]
    NotAbsolute,
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("the path contains a '%' that is not followed by two hexadecimal digits")]
    BadEncoding,
    /// `%2F`, unless the setting is to decode it.
    #[error("the path contains an encoded slash (%2F)")]
    EncodedSlash,
    /// A backslash, raw or as `%5C`: some servers take it for a slash.
    #[error("the path contains a backslash")]
    Backslash,
    /// `..;x`: some servers drop the parameter and then climb.
    #[error("the path contains a dot segment with a parameter")]
    DotSegmentParameter,
    /// A control character or a space, raw; or NUL and other control characters in percent-encoding.
    #[error("the path or query contains the control character or space 0x{0:02x}")]
    Control(u8),
}

/// Whether `path` is what normalising it would yield. May say no where the answer is yes.
fn is_normal(path: &str) -> bool {
    let mut at_segment_start = false;
    for byte in path.bytes() {
        match byte {
            b'/' if at_segment_start => return false,
            b'/' => at_segment_start = true,
            b'.' if at_segment_start => return false,
            _ if !is_plain(byte) => return false,
            _ => at_segment_start = false,
        }
    }
    true
}

/// Whether a byte of a path stands for itself and stays as it is.
fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
        )
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn decode(path: &str, slash: EncodedSlash) -> Result<String, RefusedPath> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit));
                let (Some(high), Some(low)) = digits else { return Err(RefusedPath::BadEncoding) };
                match high * 16 + low {
                    b'/' if slash == EncodedSlash::Decode => out.push('/'),
                    b'/' => return Err(RefusedPath::EncodedSlash),
                    b'\\' => return Err(RefusedPath::Backslash),
                    control if control.is_ascii_control() => return Err(RefusedPath::Control(control)),
                    plain if is_unreserved(plain) => out.push(char::from(plain)),
                    other => push_encoded(&mut out, other),
                }
            }
            b'\\' => return Err(RefusedPath::Backslash),
            _ if byte.is_ascii_control() || byte == b' ' => return Err(RefusedPath::Control(byte)),
            _ if is_plain(byte) => out.push(char::from(byte)),
            _ => push_encoded(&mut out, byte),
        }
    }
    Ok(out)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn push_encoded(out: &mut String, byte: u8) {
    out.push('%');
    for digit in [byte >> 4, byte & 0xf] {
        out.extend(char::from_digit(digit.into(), 16).map(|c| c.to_ascii_uppercase()));
    }
}

/// RFC 3986 §5.2.4, for a path that starts with a slash. `..` at the top stays at the top.
fn remove_dot_segments(path: &str) -> Result<String, RefusedPath> {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_directory = false;
    for segment in path.split('/').skip(1) {
        // Encoded (in upper case by now) it is a parameter to servers that decode first.
        if [".;", "..;", ".%3B", "..%3B"].iter().any(|start| segment.starts_with(start)) {
            return Err(RefusedPath::DotSegmentParameter);
        }
        ends_in_directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    if ends_in_directory {
        kept.push("");
    }
    Ok(format!("/{}", kept.join("/")))
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, expected: Result<&str, RefusedPath>) {
        let got = NormalizedPath::parse(target, EncodedSlash::Refuse).map(|path| path.as_str().to_owned());
        assert_eq!(got, expected.map(str::to_owned), "{target:?}");
    }

    #[test]
    fn paths_that_mean_the_same_become_the_same() {
        check("/", Ok("/"));
        check("", Ok("/"));
        check("?a=b", Ok("/"));
        check("*", Ok("*"));
        check("/a/b", Ok("/a/b"));
        check("/a/b/", Ok("/a/b/"));
        check("/a/b?c=/../d", Ok("/a/b"));
        check("/a/./b", Ok("/a/b"));
        check("/a/../b", Ok("/b"));
        check("/a/..", Ok("/"));
        check("/a/b/..", Ok("/a/"));
        check("/a/b/.", Ok("/a/b/"));
        check("/..", Ok("/"));
        check("/../../etc", Ok("/etc"));
        check("//a///b//", Ok("/a/b/"));
        check("/a//../b", Ok("/a/b"));
        check("/.hidden/...", Ok("/.hidden/..."));
        check("/%61dmin", Ok("/admin"));
        check("/%7Eme/%2e%2E/x", Ok("/x"));
        check("/a%2fb%20c", Err(RefusedPath::EncodedSlash));
        check("/a%3fb%20c%c3%a9", Ok("/a%3Fb%20c%C3%A9"));
        check("/é|{x}", Ok("/%C3%A9%7C%7Bx%7D"));
        check("/%2561", Ok("/%2561"));
        check("/a;v=1/b", Ok("/a;v=1/b"));
    }

    #[test]
    fn paths_on_which_servers_differ_are_refused() {
        check("/a#b", Err(RefusedPath::Fragment));
        check("/a?b#c", Err(RefusedPath::Fragment));
        check("a/b", Err(RefusedPath::NotAbsolute));
        check("http://x/", Err(RefusedPath::NotAbsolute));
        check("/a%", Err(RefusedPath::BadEncoding));
        check("/a%4", Err(RefusedPath::BadEncoding));
        check("/a%zz", Err(RefusedPath::BadEncoding));
        check("/a%+1", Err(RefusedPath::BadEncoding));
        check("/a\\b", Err(RefusedPath::Backslash));
        check("/a%5Cb", Err(RefusedPath::Backslash));
        check("/a%5cb", Err(RefusedPath::Backslash));
        check("/a\0b", Err(RefusedPath::Control(0)));
        check("/a%00b", Err(RefusedPath::Control(0)));
        check("/a%0d%0ab", Err(RefusedPath::Control(13)));
        check("/a b", Err(RefusedPath::Control(32)));
        check("/a?b\nc", Err(RefusedPath::Control(10)));
        check("/public/..;/admin", Err(RefusedPath::DotSegmentParameter));
        check("/public/%2e%2e;x/admin", Err(RefusedPath::DotSegmentParameter));
        check("/public/..%3b/admin", Err(RefusedPath::DotSegmentParameter));
        check("/public/.%3Bx/admin", Err(RefusedPath::DotSegmentParameter));
    }

    #[test]
    fn an_encoded_slash_is_a_slash_when_the_setting_says_so() {
        let path = NormalizedPath::parse("/a%2F..%2fb?x=%2F", EncodedSlash::Decode).unwrap();
        assert_eq!(path.as_str(), "/b");
        assert_eq!(path.forward(), "/b?x=%2F");
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        for target in ["/", "", "/a/b.html?q", "/pkg.Service/Method", "/a/b/", "/.a"] {
            let path = NormalizedPath::parse(target, EncodedSlash::Refuse).unwrap();
            assert!(!path.is_changed(), "{target:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn normalising_twice_changes_nothing(target in "(/|[a-c.%25;~?]|%2e|%2E|%2f|%61|%c3|\\PC){0,12}") {
            for slash in [EncodedSlash::Refuse, EncodedSlash::Decode] {
                let Ok(once) = NormalizedPath::parse(&target, slash) else { continue };
                let forwarded = once.forward().into_owned();
                let twice = NormalizedPath::parse(&forwarded, EncodedSlash::Refuse).unwrap();
                proptest::prop_assert_eq!(twice.as_str(), once.as_str());
                proptest::prop_assert_eq!(twice.forward(), forwarded.as_str());
                proptest::prop_assert!(!once.as_str().contains("//"));
                proptest::prop_assert!(!once.as_str().split('/').any(|s| s == "." || s == ".."));
                proptest::prop_assert!(once.as_str() == "*" || once.as_str().starts_with('/'));
            }
        }
    }
}
