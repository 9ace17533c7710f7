//! Times in tokens: seconds since the epoch, and as people read them.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Reads a NumericDate (RFC 7519 §2): a number of seconds that may have a fraction.
pub(crate) fn parse(value: &Value) -> Option<SystemTime> {
    let since = match value.as_u64() {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from_secs_f64(value.as_f64()?).ok()?,
    };
    // Whatever adds a leeway later must have room for it.
    (since.as_secs() < LAST).then(|| SystemTime::UNIX_EPOCH + since)
}

/// A moment as people and logs read it: `2026-11-21T15:00:00Z`.
pub(crate) fn show(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "a moment beyond the calendar".into())
}

/// The end of the year 9999, where calendars end.
const LAST: u64 = 253_402_300_800;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_is_a_moment_where_the_calendar_has_it() {
        let check = |value: Value, millis: Option<u64>| {
            let expected = millis.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(parse(&value), expected, "{value}");
        };
        check(json!(0), Some(0));
        check(json!(1_300_819_380), Some(1_300_819_380_000));
        check(json!(1.5), Some(1500));
        check(json!(1e3), Some(1_000_000));
        check(json!(LAST), None);
        for bad in [json!(-1), json!(-0.5), json!(1e300), json!("5"), json!(null), json!([5]), json!(u64::MAX)] {
            check(bad, None);
        }
        assert_eq!(show(SystemTime::UNIX_EPOCH + Duration::from_secs(1_300_819_380)), "2011-03-22T18:43:00Z");
    }
}
