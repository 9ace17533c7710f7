//! What an operator is shown, and what the CA watches of itself.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::rfc3339;
use alcazar_service::{Part, Shutdown, process};

use crate::{
    ca::Ca,
    horizon::{Horizon, Level, Point},
};

/// The last things that went wrong on our side.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    last: Mutex<VecDeque<Trouble>>,
}

/// Something that went wrong on our side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) at: SystemTime,
    pub(crate) what: String,
}

impl Troubles {
    /// Remembers it; the oldest is forgotten.
    pub(crate) fn note(&self, at: SystemTime, what: String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= REMEMBERED {
            last.pop_front();
        }
        last.push_back(Trouble { at, what });
    }

    /// The oldest first.
    pub(crate) fn last(&self) -> Vec<Trouble> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Ca {
    /// Tells of certificates whose end comes near, and whether this CA can issue, until the end.
    pub(crate) async fn watch_horizon(self, issuance: Part, shutdown: Shutdown) {
        let (mut horizon, mut looked) = (Horizon::default(), 0_u32);
        let (mut hierarchy, mut revocations) = (self.0.hierarchy.subscribe(), self.follow_revocations());
        loop {
            // The store is asked for all nodes now and then alone.
            if looked.is_multiple_of(SELDOM)
                && let Err(error) = self.look_for_the_oldest_leaf().await
            {
                tracing::debug!(reason = %process::chain(&error), "the oldest leaf is not known");
            }
            looked = looked.wrapping_add(1);
            let now = (self.0.clock)();
            let points = self.points();
            for (point, level) in horizon.look(&points, now) {
                say(point, level, now);
            }
            let trouble = tokio::select! {
                () = shutdown.cancelled() => return,
                trouble = self.signing_trouble() => trouble,
            };
            let signs = trouble.is_none();
            let health = trouble.map_or_else(
                || self.health(&points, now),
                |trouble| Err(format!("the intermediate's key does not sign, so nothing can be issued: {trouble}")),
            );
            match health {
                Ok(None) => issuance.ready(),
                Ok(Some(concern)) => issuance.degraded(concern),
                Err(reason) => issuance.not_ready(reason),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = hierarchy.changed() => {}
                _ = revocations.changed() => {}
                () = self.0.signing.changed() => {}
                () = tokio::time::sleep(if signs { LOOK } else { SOON }) => {}
            }
        }
    }

    /// Whether it can issue, and what to look at if it can. A certificate that nears its end is no reason to send callers away:
    /// every replica would, together.
    pub(crate) fn health(&self, points: &[Point], now: SystemTime) -> Result<Option<String>, String> {
        let signing = self.hierarchy();
        let bounds = signing.signing().bounds();
        if !bounds.contains(now) {
            let now = rfc3339(now);
            return Err(format!(
                "the intermediate, with what is above it, is good from {bounds}, and the clock here says {now}: nothing can be issued"
            ));
        }
        if let Some((print, revoked)) = self.revoked_issuer() {
            let since = rfc3339(revoked.since);
            return Err(format!(
                "the intermediate {print}, with which this replica signs, is revoked since {since}: nothing is issued until it has another one"
            ));
        }
        // A leaf of a node is for the log: the node may be gone.
        let late = points.iter().filter(|point| point.name != "leaf" && point.level(now) >= Level::Quarter);
        let worst = late.max_by_key(|point| point.level(now));
        Ok(worst.map(|point| {
            let end = rfc3339(point.validity.not_after());
            format!("the {} {} ends at {end}", point.name, point.fingerprint)
        }))
    }
}

fn say(point: &Point, level: Level, now: SystemTime) {
    let (what, fingerprint) = (point.name, point.fingerprint);
    let (not_after, percent_left) = (rfc3339(point.validity.not_after()), point.percent_left(now));
    let mend = point.mend.as_deref();
    match (level, &point.of) {
        (_, Some(of)) => {
            tracing::warn!(target: "alcazar::rotation", what, %fingerprint, of, not_after, percent_left, "a leaf was not renewed at half of its life: its node has trouble, or is gone");
        }
        (Level::Ended, None) => {
            tracing::error!(target: "alcazar::rotation", what, %fingerprint, not_after, mend, "a certificate that the CA stands on has ended");
        }
        (Level::Tenth, None) => {
            tracing::error!(target: "alcazar::rotation", what, %fingerprint, not_after, percent_left, mend, "a certificate that the CA stands on is about to end");
        }
        _ => {
            tracing::warn!(target: "alcazar::rotation", what, %fingerprint, not_after, percent_left, mend, "a certificate that the CA stands on nears its end");
        }
    }
}

const REMEMBERED: usize = 16;
const LOOK: Duration = Duration::from_secs(30);
/// Until the next trial of a key that does not sign.
const SOON: Duration = Duration::from_secs(2);
/// Looks.
const SELDOM: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_troubles_are_remembered() {
        let troubles = Troubles::default();
        for number in 0..20 {
            troubles.note(SystemTime::UNIX_EPOCH, number.to_string());
        }
        let last = troubles.last();
        assert_eq!((last.len(), last[0].what.as_str(), last[15].what.as_str()), (REMEMBERED, "4", "19"));
    }
}
