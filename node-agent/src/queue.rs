//! Who is to be asked for next, and whose certificate ends next: told without a look at everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How a registration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// When its next certificate is to be asked for; `None`: at once.
    pub(crate) due: Option<SystemTime>,
    /// When the one that is held ends, where one is held.
    pub(crate) expires: Option<SystemTime>,
    /// A request is under way.
    pub(crate) asked: bool,
}

/// The registrations by their times.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    standing: BTreeMap<Arc<str>, Standing>,
    /// Whose time has not come when this was last looked at.
    later: BTreeSet<(SystemTime, Arc<str>)>,
    /// Whose time has come, by the end of what they hold.
    due: BTreeSet<(SystemTime, Arc<str>)>,
    /// Whose time has come, and who hold nothing.
    bare: BTreeSet<Arc<str>>,
    /// Who hold a certificate, asked for another or not.
    expiring: BTreeSet<(SystemTime, Arc<str>)>,
}

impl Queue {
    /// This one stands so from now on.
    pub(crate) fn put(&mut self, id: &Arc<str>, standing: Standing) {
        if self.standing.get(id) == Some(&standing) {
            return;
        }
        self.remove(id);
        self.standing.insert(id.clone(), standing);
        if let Some(end) = standing.expires {
            self.expiring.insert((end, id.clone()));
        }
        match (standing.asked, standing.due, standing.expires) {
            (true, _, _) => {}
            (false, Some(due), _) => drop(self.later.insert((due, id.clone()))),
            (false, None, expires) => self.now_due(id.clone(), expires),
        }
    }

    /// This one is gone.
    pub(crate) fn remove(&mut self, id: &Arc<str>) {
        let Some(Standing { due, expires, .. }) = self.standing.remove(id) else { return };
        if let Some(due) = due {
            self.later.remove(&(due, id.clone()));
        }
        match expires {
            Some(end) => {
                self.due.remove(&(end, id.clone()));
                self.expiring.remove(&(end, id.clone()));
            }
            None => drop(self.bare.remove(id)),
        }
    }

    /// Who is to be asked for first of those whose time has come; it counts as asked for. Whose certificate ends first comes
    /// first. Who has none waits already, but whoever is about to lose one comes before.
    pub(crate) fn take_due(&mut self, now: SystemTime) -> Option<Arc<str>> {
        while self.later.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, id)) = self.later.pop_first() else { break };
            let expires = self.standing.get(&id).and_then(|standing| standing.expires);
            self.now_due(id, expires);
        }
        let is_urgent = self.due.first().is_some_and(|(end, _)| *end < now + ABOUT_TO_END);
        let bare = if is_urgent { None } else { self.bare.pop_first() };
        let id = bare.or_else(|| self.due.pop_first().map(|(_, id)| id))?;
        if let Some(standing) = self.standing.get_mut(&id) {
            standing.asked = true;
        }
        Some(id)
    }

    /// When the next request is due; the past when one is overdue, `None` when none ever will be.
    pub(crate) fn next_due(&self) -> Option<SystemTime> {
        match self.due.is_empty() && self.bare.is_empty() {
            true => self.later.first().map(|(due, _)| *due),
            false => Some(SystemTime::UNIX_EPOCH),
        }
    }

    /// When the first of the certificates that are held ends.
    pub(crate) fn next_expiry(&self) -> Option<SystemTime> {
        self.expiring.first().map(|(end, _)| *end)
    }

    /// Whose certificates have ended.
    pub(crate) fn expired(&self, now: SystemTime) -> Vec<Arc<str>> {
        self.expiring.iter().take_while(|(end, _)| *end <= now).map(|(_, id)| id.clone()).collect()
    }

    fn now_due(&mut self, id: Arc<str>, expires: Option<SystemTime>) {
        match expires {
            Some(end) => drop(self.due.insert((end, id))),
            None => drop(self.bare.insert(id)),
        }
    }
}

/// Who has no certificate stands where one stands that ends so soon.
const ABOUT_TO_END: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// What a look at everybody says.
    #[derive(Default)]
    struct Scan(BTreeMap<Arc<str>, Standing>);

    impl Scan {
        fn take_due(&mut self, now: SystemTime) -> Option<Arc<str>> {
            let due = self.0.iter_mut().filter(|(_, one)| !one.asked && one.due.is_none_or(|due| due <= now));
            let (id, one) = due.min_by_key(|(_, one)| match one.expires {
                Some(end) => (end, one.expires.is_some()),
                None => (now + ABOUT_TO_END, false),
            })?;
            one.asked = true;
            Some(id.clone())
        }

        fn next_due(&self, now: SystemTime) -> Option<SystemTime> {
            let next =
                self.0.values().filter(|one| !one.asked).map(|one| one.due.unwrap_or(SystemTime::UNIX_EPOCH)).min();
            // That it is overdue is what matters, not since when.
            next.map(|due| if due <= now { SystemTime::UNIX_EPOCH } else { due })
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Put(u8, Option<u64>, Option<u64>, bool),
        Remove(u8),
        Take(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let time = || proptest::option::of(0..300_u64);
        let act = prop_oneof![
            (0..12_u8, time(), time(), any::<bool>()).prop_map(|(id, due, end, asked)| Act::Put(id, due, end, asked)),
            (0..12_u8).prop_map(Act::Remove),
            (0..20_u64).prop_map(Act::Take),
        ];
        proptest::collection::vec(act, 0..80)
    }

    proptest! {
        #[test]
        fn it_says_what_a_look_at_everybody_says(acts in acts()) {
            let (mut queue, mut scan, mut now) = (Queue::default(), Scan::default(), 0);
            for act in acts {
                match act {
                    Act::Put(id, due, end, asked) => {
                        let standing = Standing { due: due.map(at), expires: end.map(at), asked };
                        let id: Arc<str> = id.to_string().into();
                        queue.put(&id, standing);
                        scan.0.insert(id, standing);
                    }
                    Act::Remove(id) => {
                        let id: Arc<str> = id.to_string().into();
                        queue.remove(&id);
                        scan.0.remove(&id);
                    }
                    Act::Take(passed) => {
                        now += passed;
                        prop_assert_eq!(queue.take_due(at(now)), scan.take_due(at(now)));
                    }
                }
                let next = queue.next_due().map(|due| if due <= at(now) { SystemTime::UNIX_EPOCH } else { due });
                prop_assert_eq!(next, scan.next_due(at(now)));
                let ends = scan.0.values().filter_map(|one| one.expires);
                prop_assert_eq!(queue.next_expiry(), ends.min());
                let expired = scan.0.iter().filter(|(_, one)| one.expires.is_some_and(|end| end <= at(now)));
                let mut found = queue.expired(at(now));
                found.sort();
                prop_assert_eq!(found, expired.map(|(id, _)| id.clone()).collect::<Vec<_>>());
            }
        }
    }
}
