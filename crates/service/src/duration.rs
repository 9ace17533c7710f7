//! Spans of time as people write them: `90s`, `10m`, `1h30m`, `7d`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;

/// Not a span of time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseDurationError {
    /// It is written in another way.
    #[error("{0:?} is not a span of time; write it as 90s, 10m, 1h30m or 7d")]
    Shape(String),
    /// It is over as it begins.
    #[error("{0:?} is no time at all; write how long it lasts, such as 10m")]
    Zero(String),
}

/// Reads a span of time: numbers with units `d`, `h`, `m`, `s`, the larger first.
///
/// # Errors
/// When it is something else.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let wrong = || ParseDurationError::Shape(text.into());
    let (mut rest, mut total, mut last) = (text, Duration::ZERO, u64::MAX);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (digits, after) = rest.split_at(end);
        let number: u64 = digits.parse().map_err(|_reason| wrong())?;
        let mut after = after.chars();
        let unit = match after.next() {
            Some('d') => 24 * 3600,
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(wrong()),
        };
        if unit >= last {
            return Err(wrong());
        }
        last = unit;
        let part = number.checked_mul(unit).map(Duration::from_secs);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = after.as_str();
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Reads a span of time in which something can happen.
///
/// # Errors
/// When it is no span of time, or one of no length.
pub fn parse_positive(text: &str) -> Result<Duration, ParseDurationError> {
    parse(text).and_then(|span| if span.is_zero() { Err(ParseDurationError::Zero(text.into())) } else { Ok(span) })
}

/// For a field of a configuration.
///
/// # Errors
/// When it is no span of time.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// For a field that may be missing.
///
/// # Errors
/// When it is no span of time.
pub fn deserialize_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Option::<String>::deserialize(deserializer)?.map(|text| parse(&text)).transpose().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_with_units() {
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(parse(text).ok(), seconds.map(Duration::from_secs), "{text:?}")
        };
        check("90s", Some(90));
        check("1h30m", Some(5400));
        check("7d", Some(604_800));
        check("0s", Some(0));
        assert_eq!(parse_positive("0h0s"), Err(ParseDurationError::Zero("0h0s".into())));
        assert_eq!(parse_positive("1s"), Ok(Duration::from_secs(1)));
        for bad in ["", "1", "h", "1h1h", "1m1h", "-1s", "1.5h", "1 h", "99999999999999999999d", "999999999999999999d"]
        {
            check(bad, None);
        }
    }
}
