//! When to look at a foreign endpoint again.

use std::time::Duration;

/// How long to wait before the next poll: as long as the bundle's owner suggests; after failures at first sooner than that, then
/// less and less often. `chance` spreads those who began together, by a tenth to either side.
///
/// **Source**: SPIFFE Federation §4.1, §6.2.
pub(crate) fn wait(hint: Option<Duration>, failures: u32, chance: f64) -> Duration {
    let usual = hint.unwrap_or(DEFAULT).clamp(SHORTEST, LONGEST);
    let wait = match failures {
        0 => usual,
        // Half an hour of trouble is not a day's.
        failures => SHORTEST.saturating_mul(1 << failures.min(12).saturating_sub(1)).min(usual.max(DEFAULT)),
    };
    wait.mul_f64(0.9 + 0.2 * chance.clamp(0.0, 1.0))
}

/// Whether a bundle that was last seen so long ago deserves a warning: three polls were missed.
pub(crate) fn is_stale(hint: Option<Duration>, age: Duration) -> bool {
    age > 3 * hint.unwrap_or(DEFAULT).clamp(SHORTEST, LONGEST)
}

const DEFAULT: Duration = Duration::from_secs(300);
/// Whatever its owner says: an endpoint is not to be hammered, nor forgotten.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_owner_suggests_and_trouble_slows_down() {
        let seconds = |hint: Option<u64>, failures| wait(hint.map(Duration::from_secs), failures, 0.5).as_secs();
        assert_eq!(seconds(Some(60), 0), 60);
        assert_eq!(seconds(None, 0), 300);
        assert_eq!((seconds(Some(0), 0), seconds(Some(1 << 40), 0)), (10, 24 * 3600));
        let waits: Vec<_> = (1..8).map(|failures| seconds(Some(3600), failures)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640]);
        assert_eq!((seconds(Some(3600), 30), seconds(Some(60), 30)), (3600, 300));
    }

    #[test]
    fn three_missed_polls_are_worth_a_word() {
        let hint = Some(Duration::from_secs(60));
        assert!(!is_stale(hint, Duration::from_secs(180)));
        assert!(is_stale(hint, Duration::from_secs(181)));
    }

    proptest! {
        #[test]
        fn a_wait_is_never_nothing_and_never_for_ever(
            hint in proptest::option::of(any::<u64>()), failures: u32, chance: f64,
        ) {
            let wait = wait(hint.map(Duration::from_secs), failures, chance);
            prop_assert!(wait >= SHORTEST.mul_f64(0.89) && wait <= LONGEST.mul_f64(1.11));
        }
    }
}
