//! Who has heard of which roots: before a new one signs, everybody who verifies is to believe it.

use std::time::{Duration, SystemTime};

use super::{HierarchyError, trust::TrustedRoot};
use crate::{
    config::Config,
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
}

impl Heard {
    /// What nodes have reported, and what was issued to those who never do.
    pub(super) async fn of(records: &Records, config: &Config, now: SystemTime) -> Result<Self, HierarchyError> {
        let said = records.adopted().await?;
        let family = prefix(family::NODES)?;
        let mut nodes = Vec::new();
        for entry in records.store().list(&family).await.map_err(crate::records::RecordError::from)?.entries {
            let Some(name) = family.strip(entry.key()) else { continue };
            let lineage: Lineage = read(&entry)?.record;
            // Whose certificate is over joins by a token, and hears of the roots then.
            if lineage.latest.not_after > now {
                let sequence = said.get(name).map_or(0, |adopted| adopted.sequence);
                nodes.push((name.to_owned(), lineage.latest.issued_at, sequence));
            }
        }
        // Clients of the CSR API look at the roots when they renew, federated trust domains by the refresh hint.
        let clients = records
            .unreported(Note::Certificates)
            .await?
            .filter(|noted| noted.until > now)
            .map(|noted| noted.timed().bundle);
        let federated =
            config.bundle_endpoint.as_ref().map(|endpoint| endpoint.refresh_hint + endpoint.refresh_hint / 4);
        Ok(Self { nodes, silent: clients.max(federated).unwrap_or_default() })
    }

    /// Who would be cut off if a root signed now; nobody, where it was among the first.
    pub(super) fn waits(&self, root: &TrustedRoot, now: SystemTime) -> Vec<String> {
        let (Some(since), Some(joined)) = (root.since, root.joined) else { return Vec::new() };
        let passed = now.duration_since(since.0).unwrap_or_default();
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

/// From the moment that a new root is trusted until its intermediate signs, whoever has reported what.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchy::TrustState;

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
            let heard = Heard { nodes, silent: Duration::from_secs(silent) };
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
        let heard = Heard { nodes: vec![("late".into(), at(1), 0)], silent: Duration::ZERO };
        assert!(heard.waits(&root(&both, 0), at(120)).is_empty());
    }
}
