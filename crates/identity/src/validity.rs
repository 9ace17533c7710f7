use std::fmt;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// When a certificate is good: from `not_before` to `not_after`, both included.
///
/// **Source**: RFC 5280 §4.1.2.5.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Validity {
    /// A span of time; `None` when it would end before it starts.
    pub fn new(not_before: SystemTime, not_after: SystemTime) -> Option<Self> {
        (not_before <= not_after).then_some(Self { not_before, not_after })
    }

    /// The first moment at which the certificate is good.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last moment at which the certificate is good.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the certificate is good at `now`.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// How long the certificate is still good; zero once it is not.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// From the first good moment to the last.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", rfc3339(self.not_before), rfc3339(self.not_after))
    }
}

impl fmt::Debug for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Validity({self})")
    }
}

/// A moment as people and logs read it, in UTC to the second: `2026-11-21T15:00:00Z`.
pub fn rfc3339(at: SystemTime) -> String {
    let seconds = match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).ok(),
        Err(before) => i64::try_from(before.duration().as_secs()).ok().map(i64::saturating_neg),
    };
    // A record or a peer may hold any moment, and the calendar ends: that must not end the process.
    let at = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "a moment beyond the calendar".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn both_ends_are_included() {
        let validity = Validity::new(at(10), at(20)).unwrap();
        let inside = |s| validity.contains(at(s));
        assert_eq!([inside(9), inside(10), inside(20), inside(21)], [false, true, true, false]);
        assert_eq!(validity.remaining(at(15)), Duration::from_secs(5));
        assert_eq!(validity.remaining(at(25)), Duration::ZERO);
        assert_eq!(validity.lifetime(), Duration::from_secs(10));
        assert!(Validity::new(at(20), at(10)).is_none());
    }

    #[test]
    fn it_reads_as_a_person_writes_dates() {
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(1) + Duration::from_nanos(999_999_999)), "1970-01-01T00:00:01Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339(at(253_402_300_799)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_moment_beyond_the_calendar_is_no_panic() {
        for seconds in [253_402_300_800, 1 << 50, i64::MAX as u64] {
            assert_eq!(rfc3339(at(seconds)), "a moment beyond the calendar", "{seconds}");
        }
    }
}
