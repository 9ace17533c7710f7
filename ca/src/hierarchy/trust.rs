//! Which roots are trusted: the trust state, and how it changes.
//!
//! It lives in the store, where every replica reads the same; files hold certificates and keys and decide nothing.

use std::time::SystemTime;

use alcazar_identity::{CertificateDer, Fingerprint};
use serde::{Deserialize, Serialize};

use super::HierarchyError;
use crate::{
    authority::AuthorityInfo,
    jwt_authority::keys::JwtKey,
    records::{seconds, text},
};

/// The roots of the trust domain and its keys for JWT-SVIDs, and which version of both this is. Record `ca/trust/state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrustState {
    pub(crate) sequence: u64,
    pub(crate) roots: Vec<TrustedRoot>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) jwt_keys: Vec<JwtKey>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrustedRoot {
    #[serde(with = "base64_der")]
    pub(crate) certificate: CertificateDer<'static>,
    /// From when on nothing stands on it any more, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retire_at: Option<Seconds>,
    /// When it joined the others, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Seconds>,
}

/// A moment, as whole seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Seconds(#[serde(with = "seconds")] pub(crate) SystemTime);

/// The intermediate that this replica signs with. Record `ca/trust/active-<replica>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Active {
    #[serde(with = "text")]
    pub(crate) intermediate: Fingerprint,
}

impl TrustState {
    /// The first state, or one that goes on at `sequence`.
    pub(crate) fn new(sequence: u64, roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let roots = roots.into_iter().map(|certificate| TrustedRoot { certificate, retire_at: None, since: None });
        Self { sequence, roots: roots.collect(), jwt_keys: Vec::new() }
    }

    /// The next state, with these keys for JWT-SVIDs.
    pub(crate) fn with_jwt_keys(&self, jwt_keys: Vec<JwtKey>) -> Self {
        Self { sequence: self.sequence + 1, roots: self.roots.clone(), jwt_keys }
    }

    /// The next state, with these roots too; `None` where all of them are trusted already.
    pub(crate) fn with_roots(&self, roots: &[CertificateDer<'static>]) -> Option<Self> {
        let mut next = Self { sequence: self.sequence + 1, ..self.clone() };
        for root in roots {
            if !next.trusts(Fingerprint::of(root)) {
                next.roots.push(TrustedRoot { certificate: root.clone(), retire_at: None, since: None });
            }
        }
        (next.roots.len() > self.roots.len()).then_some(next)
    }

    /// The next state, without this root; `None` where it is not trusted, or the only one.
    pub(crate) fn without_root(&self, root: Fingerprint) -> Option<Self> {
        let mut next = Self { sequence: self.sequence + 1, ..self.clone() };
        next.roots.retain(|trusted| Fingerprint::of(&trusted.certificate) != root);
        (next.roots.len() < self.roots.len() && !next.roots.is_empty()).then_some(next)
    }

    fn next_with(&self, roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self { jwt_keys: self.jwt_keys.clone(), ..Self::new(self.sequence + 1, roots) }
    }

    /// The roots, parsed.
    pub(crate) fn infos(&self) -> Result<Vec<AuthorityInfo>, HierarchyError> {
        let parsed = self.roots.iter().map(|root| AuthorityInfo::parse(root.certificate.clone()));
        parsed.collect::<Result<_, _>>().map_err(HierarchyError::Record)
    }

    pub(crate) fn trusts(&self, root: Fingerprint) -> bool {
        self.roots.iter().any(|trusted| Fingerprint::of(&trusted.certificate) == root)
    }

    /// The next state, in which exactly these are trusted; `None` where nothing changes.
    pub(crate) fn exactly(&self, roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Option<Self> {
        let next = self.next_with(roots);
        (!next.is_like(self)).then_some(next)
    }

    /// The next state, in which these are trusted from `now` on, and the present others until `retire_at`: what was issued under
    /// them is in use until then. `None` where nothing changes.
    pub(crate) fn moving_to(
        &self,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        now: SystemTime,
        retire_at: SystemTime,
    ) -> Option<Self> {
        let mut next = self.next_with(roots);
        for root in &mut next.roots {
            let present = self.roots.iter().find(|present| present.certificate == root.certificate);
            root.since = present.map_or(Some(Seconds::of(now)), |present| present.since);
        }
        for old in &self.roots {
            if !next.trusts(Fingerprint::of(&old.certificate)) {
                let retire_at = old.retire_at.or(Some(Seconds::of(retire_at)));
                next.roots.push(TrustedRoot { retire_at, ..old.clone() });
            }
        }
        (!next.is_like(self)).then_some(next)
    }

    /// Since when a root is trusted; `None` where it has been from the beginning, or is not.
    pub(crate) fn since(&self, root: Fingerprint) -> Option<SystemTime> {
        let mut roots = self.roots.iter();
        let found = roots.find(|trusted| Fingerprint::of(&trusted.certificate) == root)?;
        found.since.map(|since| since.0)
    }

    /// Whether both trust the same until the same moments.
    fn is_like(&self, other: &Self) -> bool {
        let ends = |state: &Self| {
            let roots = state.roots.iter().map(|root| (root.certificate.to_vec(), root.retire_at));
            roots.collect::<std::collections::BTreeSet<_>>()
        };
        ends(self) == ends(other)
    }

    /// The next state, without the roots whose time is over; `None` where there are none of them.
    pub(crate) fn without_retired(&self, now: SystemTime) -> Option<Self> {
        let over = |root: &TrustedRoot| root.retire_at.is_some_and(|at| at.0 <= now);
        if !self.roots.iter().any(over) {
            return None;
        }
        let roots: Vec<_> = self.roots.iter().filter(|root| !over(root)).cloned().collect();
        (!roots.is_empty()).then_some(Self { sequence: self.sequence + 1, roots, jwt_keys: self.jwt_keys.clone() })
    }
}

impl Seconds {
    fn of(at: SystemTime) -> Self {
        Self(crate::issue::whole_seconds(at))
    }
}

mod base64_der {
    use alcazar_identity::CertificateDer;
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(der: &CertificateDer<'_>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(der))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<CertificateDer<'static>, D::Error> {
        let der = STANDARD.decode(String::deserialize(d)?).map_err(D::Error::custom)?;
        Ok(der.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn der(name: u8) -> CertificateDer<'static> {
        vec![name].into()
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn names(state: &TrustState) -> Vec<(u8, Option<u64>)> {
        let until = |root: &TrustedRoot| root.retire_at.map(|at| seconds::of(at.0));
        state.roots.iter().map(|root| (root.certificate[0], until(root))).collect()
    }

    #[test]
    fn each_change_raises_the_sequence_by_one_and_no_other_does() {
        let one = TrustState::new(7, [der(1)]);
        assert_eq!(one.exactly([der(1)]), None);
        let both = one.exactly([der(2), der(1)]).unwrap();
        assert_eq!((both.sequence, names(&both)), (8, vec![(2, None), (1, None)]));
        assert_eq!(both.exactly([der(1), der(2)]), None, "the order means nothing");
    }

    #[test]
    fn a_root_that_is_moved_away_from_stays_until_its_time_is_over() {
        let one = TrustState::new(1, [der(1)]);
        let moved = one.moving_to([der(2)], at(50), at(100)).unwrap();
        assert_eq!((moved.sequence, names(&moved)), (2, vec![(2, None), (1, Some(100))]));
        assert_eq!(moved.moving_to([der(2)], at(60), at(200)), None, "looking again does not prolong it");
        assert_eq!(moved.without_retired(at(99)), None);
        let alone = moved.without_retired(at(100)).unwrap();
        assert_eq!((alone.sequence, names(&alone)), (3, vec![(2, None)]));
        let newer = |state: &TrustState| state.since(Fingerprint::of(&der(2)));
        assert_eq!((newer(&one), newer(&moved)), (None, Some(at(50))));
        let back = moved.moving_to([der(1), der(2)], at(70), at(300)).unwrap();
        assert_eq!((back.sequence, names(&back)), (3, vec![(1, None), (2, None)]));
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let state = TrustState::new(1, [der(1)]).moving_to([der(2)], at(50), at(100)).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TrustState>(&text).unwrap(), state);
    }
}
