//! Lengths of time as people write them: `1h`, `90m`, `45s`, `1h30m`.

use std::time::Duration;

/// The length of time that a text says.
///
/// # Errors
/// When a part is not a number followed by `h`, `m` or `s`, or the units are not in falling order.
pub(crate) fn parse(text: &str) -> Result<Duration, ParseTtlError> {
    let wrong = || ParseTtlError(text.to_owned());
    let (mut rest, mut total, mut smallest) = (text, Duration::ZERO, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match tail.chars().next() {
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(wrong()),
        };
        if unit >= smallest {
            return Err(wrong());
        }
        let seconds = number.checked_mul(unit).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_secs(seconds)).ok_or_else(wrong)?;
        (rest, smallest) = (tail.get(1..).unwrap_or_default(), unit);
    }
    if smallest == u64::MAX { Err(wrong()) } else { Ok(total) }
}

/// A length of time in the form that [`parse`] reads.
pub(crate) fn display(ttl: Duration) -> String {
    let seconds = ttl.as_secs();
    let parts = [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A text that says no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a length of time")]
pub(crate) struct ParseTtlError(String);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(parse(text).ok().map(|ttl| ttl.as_secs()), seconds, "{text:?}");
        };
        check("1h", Some(3600));
        check("90m", Some(5400));
        check("45s", Some(45));
        check("1h30m", Some(5400));
        check("1h1m1s", Some(3661));
        check("0s", Some(0));
        for wrong in ["", "h", "1", "3600", "1d", "-1h", "1.5h", "1h 30m", "30m1h", "1h1h", "1hh", "99999999999999999h"]
        {
            check(wrong, None);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0_u64..1_000_000) {
            let ttl = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&display(ttl)), Ok(ttl));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            drop(parse(&text));
        }
    }
}
