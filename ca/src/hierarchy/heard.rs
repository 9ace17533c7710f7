//! Who has heard of which roots: before a new one signs, everybody who verifies is to believe it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;

use super::{HierarchyError, TrustState, trust::TrustedRoot};
use crate::{
    config::Config,
    patience::Patience,
    records::{Lineage, Records, family, prefix, read},
    rotation::Note,
};

/// What is known of those who verify.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// The nodes with a certificate that is good, when they were given it, with our bundle, and the sequence that each enforces with
    /// all who are on its sockets.
    nodes: Vec<(String, SystemTime, u64)>,
    /// How long it takes until those have heard who are never heard of.
    silent: Duration,
    /// How long each root has been trusted for, as far as looks follow each other: a clock that was set is no time that passed.
    passed: BTreeMap<Fingerprint, Duration>,
    /// The root that a rotation hands out, and whom that waits for: it knows better.
    rotation: Option<(Fingerprint, Vec<String>)>,
}

/// What is over by the clock, and how much time has passed, from look to look.
#[derive(Debug, Default)]
pub(crate) struct HeardPatience {
    nodes: Patience<String>,
    noted: Patience<()>,
    passed: Mutex<Passed>,
}

/// When the last look was, and since when each root has been trusted then.
type Passed = (Option<SystemTime>, BTreeMap<Fingerprint, Duration>);

impl Heard {
    /// What nodes have reported, and what was issued to those who never do.
    /// `patience` is of the looks before; at a start there are none, and the clock is believed.
    pub(super) async fn of(
        records: &Records,
        config: &Config,
        patience: Option<&HeardPatience>,
        now: SystemTime,
    ) -> Result<Self, HierarchyError> {
        let said = records.adopted().await?;
        let family = prefix(family::NODES)?;
        let (mut nodes, mut over) = (Vec::new(), BTreeSet::new());
        for entry in records.store().list(&family).await.map_err(crate::records::RecordError::from)?.entries {
            let Some(name) = family.strip(entry.key()) else { continue };
            let lineage: Lineage = read(&entry)?.record;
            let sequence = said.get(name).map_or(0, |adopted| adopted.sequence);
            nodes.push((name.to_owned(), lineage.latest.issued_at, sequence));
            if lineage.latest.not_after <= now {
                over.insert(name.to_owned());
            }
        }
        if let Some(patience) = patience {
            over = patience.nodes.over(over, now).into_iter().collect();
        }
        // Whose certificate is over joins by a token, and hears of the roots then.
        nodes.retain(|(name, ..)| !over.contains(name));
        // Clients of the CSR API look at the roots when they renew, federated trust domains by the refresh hint.
        let noted = records.unreported(Note::Certificates).await?;
        let mut gone = noted.is_some_and(|noted| noted.until <= now);
        if let Some(patience) = patience {
            gone = !patience.noted.over(gone.then_some(()), now).is_empty();
        }
        let clients = noted.filter(|_| !gone).map(|noted| noted.timed().bundle);
        let federated =
            config.bundle_endpoint.as_ref().map(|endpoint| endpoint.refresh_hint + endpoint.refresh_hint / 4);
        let silent = clients.max(federated).unwrap_or_default();
        Ok(Self { nodes, silent, passed: BTreeMap::new(), rotation: None })
    }

    /// The looks while nobody waits for anybody: what is over by then counts as long as it is. The store is not read for it.
    pub(super) async fn nobody_waits(
        records: &Records,
        patience: &HeardPatience,
        now: SystemTime,
    ) -> Result<Self, HierarchyError> {
        patience.nodes.over(records.lineages_over(now).into_iter().map(|(name, _)| name.into()), now);
        let gone = records.unreported(Note::Certificates).await?.is_some_and(|noted| noted.until <= now);
        patience.noted.over(gone.then_some(()), now);
        Ok(Self::default())
    }

    /// The same, with what a rotation waits for.
    pub(super) fn with_rotation(self, rotation: Option<(Fingerprint, Vec<String>)>) -> Self {
        Self { rotation, ..self }
    }

    /// The same, with the time that each of these roots has been trusted for.
    pub(super) fn measured(self, trust: &TrustState, patience: &HeardPatience, now: SystemTime) -> Self {
        Self { passed: patience.measure(trust, now), ..self }
    }

    /// Who would be cut off if a root signed now; nobody, where it was among the first.
    pub(super) fn waits(&self, root: &TrustedRoot, now: SystemTime) -> Vec<String> {
        let print = Fingerprint::of(&root.certificate);
        if let Some((_, waits)) = self.rotation.as_ref().filter(|(brought, _)| *brought == print) {
            return waits.clone();
        }
        let (Some(since), Some(joined)) = (root.since, root.joined) else { return Vec::new() };
        let passed = now.duration_since(since.0).unwrap_or_default();
        let passed = self.passed.get(&print).map_or(passed, |measured| passed.min(*measured));
        let mut waits = Vec::new();
        let wanted = self.silent.max(SETTLE);
        if passed < wanted {
            let left = (wanted - passed).as_secs();
            waits.push(format!("whoever reports nothing, for {left} s from {}", alcazar_identity::rfc3339(now)));
        }
        let behind = self.nodes.iter().filter(|(_, given, sequence)| *sequence < joined && *given <= since.0);
        waits.extend(behind.map(|(name, ..)| name.clone()));
        waits
    }

    /// Whether there is nobody at all who could be cut off.
    pub(super) fn is_nobody(&self) -> bool {
        self.nodes.is_empty() && self.silent.is_zero()
    }
}

impl HeardPatience {
    /// How long each root has been trusted for. Of one that is seen for the first time the clock says it.
    fn measure(&self, trust: &TrustState, now: SystemTime) -> BTreeMap<Fingerprint, Duration> {
        let mut held = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, before) = &*held;
        let since = |then: SystemTime| now.duration_since(then).unwrap_or_default();
        let step = last.map_or(Duration::ZERO, since).min(STEP);
        let of = |root: &TrustedRoot| {
            let print = Fingerprint::of(&root.certificate);
            let first = root.since.map_or(Duration::ZERO, |joined| since(joined.0));
            (print, before.get(&print).map_or(first, |passed| *passed + step))
        };
        let passed: BTreeMap<_, _> = trust.roots.iter().map(of).collect();
        *held = (Some(now), passed.clone());
        passed
    }
}

/// From the moment that a new root is trusted until its intermediate signs, whoever has reported what.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);
/// Looks are closer to each other than that.
const STEP: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second)
    }

    #[test]
    fn a_new_root_waits_for_who_reports_by_name_and_for_others_by_time() {
        let (old, new) = (vec![1].into(), vec![2].into());
        let first = TrustState::new(4, [old]);
        let both = first.moving_to([new], at(0), None).unwrap();
        let root = |state: &TrustState, place: usize| state.roots[place].clone();
        let check = |nodes: &[u64], silent, passed, expected: &[&str]| {
            let nodes = nodes.iter().enumerate().map(|(name, sequence)| (name.to_string(), at(0), *sequence)).collect();
            let heard = Heard { nodes, silent: Duration::from_secs(silent), ..Heard::default() };
            let waits = heard.waits(&root(&both, 0), at(passed));
            let names: Vec<_> = waits.iter().map(|name| name.split(' ').next().unwrap()).collect();
            assert_eq!(names, expected, "{passed}");
            assert!(heard.waits(&root(&first, 0), at(passed)).is_empty(), "it was among the first");
        };
        check(&[], 0, 119, &["whoever"]);
        check(&[], 0, 120, &[]);
        check(&[5, 4], 0, 119, &["whoever", "1"]);
        check(&[5, 4, 0], 0, 3600, &["1", "2"]);
        check(&[5, 6], 0, 3600, &[]);
        check(&[5], 375, 374, &["whoever"]);
        check(&[5], 375, 375, &[]);
        // One that was given a certificate since was given the roots with it.
        let heard = Heard { nodes: vec![("late".into(), at(1), 0)], ..Heard::default() };
        assert!(heard.waits(&root(&both, 0), at(120)).is_empty());
        // Of a root that a rotation hands out the rotation decides.
        let decided = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let print = Fingerprint::of(&root(&both, 0).certificate);
            Heard::default().with_rotation(Some((print, names))).waits(&root(&both, 0), at(90_000))
        };
        assert_eq!(decided(&["the cluster west"]), ["the cluster west"]);
        assert!(decided(&[]).is_empty());
        assert!(
            heard
                .with_rotation(Some((Fingerprint::of(b"another"), vec!["west".into()])))
                .waits(&root(&both, 0), at(120))
                .is_empty()
        );
    }

    #[test]
    fn a_clock_that_jumps_is_no_time_that_passed() {
        let first = TrustState::new(4, [vec![1].into()]);
        let both = first.joined_by(vec![2].into(), at(0)).unwrap();
        let (root, patience) = (both.roots[1].clone(), HeardPatience::default());
        let waits = |second: u64| {
            let heard = Heard { silent: Duration::from_secs(600), ..Heard::default() };
            !heard.measured(&both, &patience, at(second)).waits(&root, at(second)).is_empty()
        };
        assert!(waits(10) && waits(30));
        assert!(waits(90_000), "a day ahead for a moment");
        assert!(waits(50) && waits(200));
        // The clock is right again, and says less than was measured.
        assert!(waits(359) && waits(439));
        assert!(!waits(601));
        // At a start nothing was measured, and the clock is all that there is.
        let late = Heard { silent: Duration::from_secs(600), ..Heard::default() };
        assert!(late.waits(&root, at(600)).is_empty());
    }
}
