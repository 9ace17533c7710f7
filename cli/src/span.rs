//! Spans of time as people say them.

use std::time::Duration;

/// `45 s`, `12 min`, `3 h 20 min`, `364 days`: two units where one would mislead.
pub(crate) fn of(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 if seconds.is_multiple_of(60) || seconds >= 600 => format!("{} min", seconds / 60),
        120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        7_200..172_800 => match seconds / 60 % 60 {
            0 => format!("{} h", seconds / 3_600),
            minutes => format!("{} h {minutes} min", seconds / 3_600),
        },
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_people_say_them() {
        for (seconds, expected) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (125, "2 min 5 s"),
            (3_599, "59 min"),
            (3_600, "60 min"),
            (7_200, "2 h"),
            (12_000, "3 h 20 min"),
            (315_360_000, "3650 days"),
        ] {
            assert_eq!(of(Duration::from_secs(seconds)), expected);
        }
    }
}
