//! Where a value lives: `/`-separated paths.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// The longest key, in bytes. Enough for the longest SPIFFE ID with a few segments before it.
pub(crate) const MAX_KEY: usize = 4096;

/// A key: one or more non-empty segments separated by `/`, UTF-8, without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key as text, without a leading or trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

/// The start of a family of keys, in whole segments: `nodes` holds `nodes/a` and `nodes/a/b`, not
/// `nodes-old/a` and not `nodes` itself. The empty prefix holds every key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// The prefix of every key.
    pub fn all() -> Self {
        Self("".into())
    }

    /// The text every key under this prefix begins with: empty, or ending in `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `key` lies under this prefix.
    pub fn contains(&self, key: &Key) -> bool {
        key.as_str().starts_with(self.as_str())
    }

    /// The key `rest` under this prefix.
    ///
    /// # Errors
    /// When the whole is not a key.
    pub fn key(&self, rest: &str) -> Result<Key, ParseKeyError> {
        format!("{}{rest}", self.0).parse()
    }

    /// What of `key` comes after this prefix, when it lies under it.
    pub fn strip<'k>(&self, key: &'k Key) -> Option<&'k str> {
        key.as_str().strip_prefix(self.as_str())
    }
}

/// Why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseKeyError {
    /// No text at all.
    #[error("a key must not be empty")]
    Empty,
    /// Too long.
    #[error("a key of {0} bytes is longer than {MAX_KEY}")]
    TooLong(usize),
    /// Two slashes together, or one at an end.
    #[error("the key {0:?} has an empty segment")]
    EmptySegment(String),
    /// A control character.
    #[error("the key {0:?} has a control character")]
    Control(String),
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        check(text)?;
        Ok(Self(text.into()))
    }
}

/// A prefix is written as a key is; a trailing slash may be there or not.
impl FromStr for Prefix {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let bare = text.strip_suffix('/').unwrap_or(text);
        check(bare)?;
        Ok(Self(format!("{bare}/").into()))
    }
}

fn check(text: &str) -> Result<(), ParseKeyError> {
    if text.is_empty() {
        return Err(ParseKeyError::Empty);
    }
    if text.len() > MAX_KEY {
        return Err(ParseKeyError::TooLong(text.len()));
    }
    if text.split('/').any(str::is_empty) {
        return Err(ParseKeyError::EmptySegment(text.into()));
    }
    if text.chars().any(char::is_control) {
        return Err(ParseKeyError::Control(text.into()));
    }
    Ok(())
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_non_empty_segments() {
        for good in ["a", "a/b", "nodes/cluster.local/node/east/vm-1", "ä/ö"] {
            assert_eq!(good.parse::<Key>().map(|k| k.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "/", "a//b", "/a", "a/", "a\nb", "a/\0", &"x".repeat(MAX_KEY + 1)] {
            assert!(bad.parse::<Key>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_holds_whole_segments_only() {
        let nodes: Prefix = "nodes".parse().unwrap();
        assert_eq!(nodes, "nodes/".parse().unwrap());
        let holds = |text: &str| nodes.contains(&text.parse().unwrap());
        assert!(holds("nodes/a") && holds("nodes/a/b"));
        assert!(!holds("nodes") && !holds("nodes-old/a"));
        assert!(Prefix::all().contains(&"x".parse().unwrap()));
        let key = nodes.key("east/vm").unwrap();
        assert_eq!(nodes.strip(&key), Some("east/vm"));
        assert_eq!(key.name(), "vm");
    }
}
