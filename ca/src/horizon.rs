//! How far the certificates reach that the CA stands on, and who is told when: plain data in, plain data out.
//!
//! Each certificate is spoken of once at a half, once at a quarter and once at a tenth of its life left, and once when it has
//! ended; where a person must do something, each day again. What renews itself at half of its life is not spoken of at a half, but
//! soon after: then its renewal has failed.

pub(crate) mod points;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use alcazar_identity::{Fingerprint, Validity, rfc3339};

/// A certificate that something stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// What it is: `root`, `upper`, `intermediate`, `serving`, `leaf`.
    pub(crate) name: &'static str,
    /// Whom it names, where that is somebody else.
    pub(crate) of: Option<String>,
    /// Which one.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) validity: Validity,
    /// Whether it is renewed without a person, at half of its life.
    pub(crate) renews_itself: bool,
    /// What a person must do, and with which commands.
    pub(crate) mend: Option<String>,
}

/// How much of a life is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Good,
    Half,
    Quarter,
    Tenth,
    Ended,
}

impl Level {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Good => "more than half of its life is left",
            Self::Half => "less than half of its life is left",
            Self::Quarter => "less than 25 % of its life is left",
            Self::Tenth => "less than 10 % of its life is left",
            Self::Ended => "it has ended",
        }
    }
}

impl Point {
    /// What a person must do about it, once half of its life is over.
    pub(crate) fn errand(&self, now: SystemTime) -> Option<(Level, String)> {
        let (level, mend) = (self.level(now), self.mend.as_ref()?);
        let end = rfc3339(self.validity.not_after());
        (level >= Level::Half).then(|| (level, format!("the {} ends {end}: {}; {mend}", self.name, level.words())))
    }

    pub(crate) fn left(&self, now: SystemTime) -> Duration {
        self.validity.not_after().duration_since(now).unwrap_or_default()
    }

    /// Of its life, in hundredths.
    pub(crate) fn percent_left(&self, now: SystemTime) -> u32 {
        let life = self.validity.lifetime().as_secs().max(1);
        u32::try_from((self.left(now).as_secs() * 100 / life).min(100)).unwrap_or(100)
    }

    pub(crate) fn level(&self, now: SystemTime) -> Level {
        if now > self.validity.not_after() {
            return Level::Ended;
        }
        // In thousandths of its life, the last one begun.
        let life = self.validity.lifetime().as_secs().max(1);
        let left = (self.left(now).as_secs() * 1000).div_ceil(life);
        let half = if self.renews_itself { LATE } else { 500 };
        match left {
            0..=100 => Level::Tenth,
            101..=250 => Level::Quarter,
            left if left <= half => Level::Half,
            _ => Level::Good,
        }
    }
}

/// What has been said of which certificate.
#[derive(Debug, Default)]
pub(crate) struct Horizon {
    said: BTreeMap<Fingerprint, (Level, SystemTime)>,
}

impl Horizon {
    /// The certificates that have reached a level of which nothing was said yet, or for a day. Those that are gone are forgotten.
    pub(crate) fn look<'a>(&mut self, points: &'a [Point], now: SystemTime) -> Vec<(&'a Point, Level)> {
        self.said.retain(|fingerprint, _| points.iter().any(|point| point.fingerprint == *fingerprint));
        let mut news = Vec::new();
        for point in points {
            let level = point.level(now);
            let (said, at) = self.said.entry(point.fingerprint).or_insert((Level::Good, now));
            let day = now.duration_since(*at).is_ok_and(|passed| passed >= DAY);
            let again = day && level >= Level::Half && point.mend.is_some();
            if level > *said || again {
                (*said, *at) = (level.max(*said), now);
                news.push((point, level));
            }
        }
        news
    }
}

/// A renewal at half of a life may take its time and some tries.
const LATE: u64 = 450;
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn point(name: &'static str, renews_itself: bool) -> Point {
        let validity = Validity::new(at(1_000), at(2_000)).unwrap();
        Point { name, of: None, fingerprint: Fingerprint::of(name.as_bytes()), validity, renews_itself, mend: None }
    }

    #[test]
    fn a_life_has_levels() {
        let check = |seconds, by_hand, by_itself| {
            assert_eq!(point("root", false).level(at(seconds)), by_hand, "{seconds}");
            assert_eq!(point("serving", true).level(at(seconds)), by_itself, "{seconds}");
        };
        check(1_000, Level::Good, Level::Good);
        check(1_499, Level::Good, Level::Good);
        check(1_500, Level::Half, Level::Good);
        check(1_550, Level::Half, Level::Half);
        check(1_750, Level::Quarter, Level::Quarter);
        check(1_900, Level::Tenth, Level::Tenth);
        check(2_000, Level::Tenth, Level::Tenth);
        check(2_001, Level::Ended, Level::Ended);
        assert_eq!(point("root", false).percent_left(at(1_750)), 25);
    }

    #[test]
    fn each_level_is_said_once_and_a_renewal_begins_anew() {
        let mut horizon = Horizon::default();
        let points = [point("root", false)];
        let mut levels = Vec::new();
        for seconds in 1_000..2_100 {
            // A clock that stutters makes nothing be said twice.
            for seconds in [seconds, seconds - 3] {
                levels.extend(horizon.look(&points, at(seconds)).into_iter().map(|(_, level)| level));
            }
        }
        assert_eq!(levels, [Level::Half, Level::Quarter, Level::Tenth, Level::Ended]);
        // One that is found late is said at the level that it has.
        let other = [point("intermediate", true)];
        assert_eq!(horizon.look(&other, at(1_950)), [(&other[0], Level::Tenth)]);
        // The first is forgotten.
        assert_eq!(horizon.look(&points, at(1_600)), [(&points[0], Level::Half)]);
    }

    #[test]
    fn what_a_person_must_do_is_said_each_day_with_the_commands() {
        let day = 24 * 3600;
        let validity = Validity::new(at(0), at(100 * day)).unwrap();
        let point = Point { validity, mend: Some("run this".into()), ..point("intermediate", false) };
        let mut horizon = Horizon::default();
        let mut said = Vec::new();
        for hour in 0..(24 * 101) {
            let now = at(hour * 3600);
            said.extend(
                horizon.look(std::slice::from_ref(&point), now).into_iter().map(|(_, level)| (hour / 24, level)),
            );
            let errand = point.errand(now).map(|(_, what)| what);
            assert_eq!(errand.is_some(), hour >= 50 * 24, "{hour}");
            assert!(errand.is_none_or(
                |what| what.ends_with("of its life is left; run this") || what.ends_with("has ended; run this")
            ));
        }
        assert!((51..=53).contains(&said.len()), "{said:?}");
        let first = |level| said.iter().find(|(_, said)| *said == level).map(|(day, _)| *day);
        assert_eq!([first(Level::Half), first(Level::Quarter), first(Level::Tenth)], [Some(50), Some(75), Some(90)]);
    }
}
