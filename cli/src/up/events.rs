//! Events as a person follows them: certificates rotate, calls are denied, files are reloaded.
//!
//! A `tracing` layer picks the events whose target starts with `alcazar::` and says each in a line:
//!
//! ```text
//! 15:04:05Z rotated  shop.reviews-v1: 5be0a11c42d7 -> 9c1b70f3a2e4, until 15:05:35Z, next at 15:04:50Z
//! 15:04:09Z denied   cluster.local/ns/reports/sa/nightly GET reviews.shop/ratings at shop/reviews-v1: no role ...
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use alcazar_identity::rfc3339;
use alcazar_service::clock::Clock;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::{Context, Layer};

use super::console::Console;
use super::words::Words;

/// The targets of the events that are shown.
pub(crate) const TARGETS: &str = "alcazar::";

/// The CA's side of a rotation, which the node agent tells.
const ISSUED: &str = "alcazar::issued";

/// How many events of one kind are shown in a second; a flood is counted.
const SHOWN_PER_SECOND: u32 = 20;

/// The layer.
pub(crate) struct Events {
    console: Console,
    clock: Clock,
    colour: bool,
    budgets: Mutex<HashMap<&'static str, Budget>>,
}

impl Events {
    pub(crate) fn new(console: Console, clock: Clock, colour: bool) -> Self {
        Self { console, clock, colour, budgets: Mutex::default() }
    }

    /// Which events reach it.
    pub(crate) fn filter() -> FilterFn {
        filter_fn(|metadata| {
            let target = metadata.target();
            target.starts_with(TARGETS) && target != ISSUED && *metadata.level() <= Level::INFO
        })
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let target = event.metadata().target();
        let now = (self.clock)();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = budgets.entry(target).or_insert_with(|| Budget::new(now)).spend(now);
        drop(budgets);
        let Spent::Show { missed } = spent else { return };
        let mut words = Words::default();
        event.record(&mut words);
        let kind = Kind::of(target, *event.metadata().level());
        if missed > 0 {
            self.console.say(kind.line(now, self.colour, &format!("(and {missed} more before this one)")));
        }
        self.console.say(kind.line(now, self.colour, &words.sentence(target, now)));
    }
}

/// The word that an event starts with, and its colour on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    word: &'static str,
    colour: &'static str,
}

impl Kind {
    fn of(target: &str, level: Level) -> Self {
        let (word, colour) = match target {
            "alcazar::rotation" => ("rotated", "32"),
            "alcazar::decision" => ("denied", "33"),
            "alcazar::refused" => ("refused", "33"),
            "alcazar::reload" => ("reload", "36"),
            "alcazar::supervise" => ("command", "35"),
            _ => ("event", "36"),
        };
        if level == Level::ERROR { Self { word, colour: "31" } } else { Self { word, colour } }
    }

    fn line(self, now: SystemTime, colour: bool, text: &str) -> String {
        let time = rfc3339(now);
        let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time);
        if colour {
            format!("{time} \u{1b}[{}m{:<8}\u{1b}[0m {text}", self.colour, self.word)
        } else {
            format!("{time} {:<8} {text}", self.word)
        }
    }
}

/// How many events of a kind may still be shown in this second.
#[derive(Debug)]
struct Budget {
    second: SystemTime,
    left: u32,
    missed: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Spent {
    Show { missed: u64 },
    Skip,
}

impl Budget {
    fn new(now: SystemTime) -> Self {
        Self { second: now, left: SHOWN_PER_SECOND, missed: 0 }
    }

    fn spend(&mut self, now: SystemTime) -> Spent {
        // A clock that was set back starts a new second as well.
        if now.duration_since(self.second).is_ok_and(|passed| passed < Duration::from_secs(1)) {
            if self.left == 0 {
                self.missed += 1;
                return Spent::Skip;
            }
        } else {
            self.second = now;
            self.left = SHOWN_PER_SECOND;
        }
        self.left -= 1;
        Spent::Show { missed: std::mem::take(&mut self.missed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn colour_is_only_around_the_word() {
        let line = Kind::of("alcazar::rotation", Level::INFO).line(at(0), true, "x");
        assert_eq!(line, "00:00:00Z \u{1b}[32mrotated \u{1b}[0m x");
    }

    #[test]
    fn a_flood_is_counted() {
        let mut budget = Budget::new(at(0));
        for _ in 0..SHOWN_PER_SECOND {
            assert_eq!(budget.spend(at(10)), Spent::Show { missed: 0 });
        }
        assert_eq!(budget.spend(at(20)), Spent::Skip);
        assert_eq!(budget.spend(at(999)), Spent::Skip);
        assert_eq!(budget.spend(at(1_000)), Spent::Show { missed: 2 });
        assert_eq!(budget.spend(at(1_001)), Spent::Show { missed: 0 });
    }
}
