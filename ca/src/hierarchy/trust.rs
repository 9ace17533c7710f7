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
    /// The first sequence that it was in, where it joined others and nothing has signed under it yet: who enforces that one has
    /// heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) joined: Option<u64>,
    /// Whether the operator added it by hand: no file takes it away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) by_hand: bool,
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
        Self { sequence, roots: roots.into_iter().map(TrustedRoot::new).collect(), jwt_keys: Vec::new() }
    }

    /// The next state, with these keys for JWT-SVIDs.
    pub(crate) fn with_jwt_keys(&self, jwt_keys: Vec<JwtKey>) -> Self {
        Self { sequence: self.sequence + 1, roots: self.roots.clone(), jwt_keys }
    }

    /// The next state, with these roots too, by the operator's hand; `None` where all of them are trusted already.
    pub(crate) fn with_roots(&self, roots: &[CertificateDer<'static>]) -> Option<Self> {
        let mut next = Self { sequence: self.sequence + 1, ..self.clone() };
        for root in roots {
            if !next.trusts(Fingerprint::of(root)) {
                next.roots.push(TrustedRoot { by_hand: true, ..TrustedRoot::new(root.clone()) });
            }
        }
        (next.roots.len() > self.roots.len()).then_some(next)
    }

    /// The next state, without this root; `None` where it is not trusted, or the only one.
    pub(crate) fn without_root(&self, root: Fingerprint) -> Option<Self> {
        self.without(&[root])
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

    /// The next state, in which exactly these are trusted; `None` where nothing changes. What is known of each stays.
    pub(crate) fn exactly(&self, roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Option<Self> {
        let mut next = self.next_with(roots);
        for root in &mut next.roots {
            if let Some(present) = self.find(Fingerprint::of(&root.certificate)) {
                *root = present.clone();
            }
        }
        (!next.is_like(self)).then_some(next)
    }

    /// The next state, with a root that joins the others now, by the operator's hand: nothing is to sign under it before everybody has heard of it. `None`
    /// where it is trusted already.
    pub(crate) fn joined_by(&self, root: CertificateDer<'static>, now: SystemTime) -> Option<Self> {
        let mut next = Self { sequence: self.sequence + 1, ..self.clone() };
        let (since, joined) = (Some(Seconds::of(now)), Some(next.sequence));
        let known = self.trusts(Fingerprint::of(&root));
        next.roots.push(TrustedRoot { by_hand: true, since, joined, ..TrustedRoot::new(root) });
        (!known).then_some(next)
    }

    /// The next state, in which these are trusted from `now` on. Where one of them signs, the present others are trusted until a
    /// moment, because what was issued under them is in use until then; without it, for the time being. Those that the operator
    /// added stay. `None` where nothing changes.
    pub(crate) fn moving_to(
        &self,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        now: SystemTime,
        signs: Option<(Fingerprint, SystemTime)>,
    ) -> Option<Self> {
        let retire_at = signs.map(|(_, retire_at)| retire_at);
        let mut next = self.next_with(roots);
        for root in &mut next.roots {
            let (since, joined) = (Some(Seconds::of(now)), Some(next.sequence));
            let new = TrustedRoot { since, joined, ..root.clone() };
            let present = self.roots.iter().find(|present| present.certificate == root.certificate);
            *root = present.map_or(new, |present| TrustedRoot { retire_at: None, ..present.clone() });
            if signs.is_some_and(|(signing, _)| signing == Fingerprint::of(&root.certificate)) {
                // From now on the files say how long it stays.
                (root.joined, root.by_hand) = (None, false);
            }
        }
        for old in &self.roots {
            if !next.trusts(Fingerprint::of(&old.certificate)) {
                let retire_at = old.retire_at.or(retire_at.map(Seconds::of)).filter(|_| !old.by_hand);
                next.roots.push(TrustedRoot { retire_at, ..old.clone() });
            }
        }
        (!next.is_like(self)).then_some(next)
    }

    /// What is known of a root that is trusted.
    pub(crate) fn find(&self, root: Fingerprint) -> Option<&TrustedRoot> {
        self.roots.iter().find(|trusted| Fingerprint::of(&trusted.certificate) == root)
    }

    /// Whether both trust the same until the same moments, and stand on the same.
    fn is_like(&self, other: &Self) -> bool {
        let ends = |state: &Self| {
            let roots = state.roots.iter().map(|root| (root.certificate.to_vec(), root.retire_at, root.joined));
            roots.collect::<std::collections::BTreeSet<_>>()
        };
        ends(self) == ends(other)
    }

    /// The roots whose time is over.
    pub(crate) fn retired(&self, now: SystemTime) -> Vec<Fingerprint> {
        let over = self.roots.iter().filter(|root| root.retire_at.is_some_and(|at| at.0 <= now));
        over.map(|root| Fingerprint::of(&root.certificate)).collect()
    }

    /// The next state, without these roots; `None` where none of them is trusted, or no other one.
    pub(crate) fn without(&self, gone: &[Fingerprint]) -> Option<Self> {
        let kept = |root: &&TrustedRoot| !gone.contains(&Fingerprint::of(&root.certificate));
        let roots: Vec<_> = self.roots.iter().filter(kept).cloned().collect();
        let fewer = roots.len() < self.roots.len() && !roots.is_empty();
        fewer.then(|| Self { sequence: self.sequence + 1, roots, jwt_keys: self.jwt_keys.clone() })
    }
}

impl TrustedRoot {
    fn new(certificate: CertificateDer<'static>) -> Self {
        Self { certificate, retire_at: None, since: None, joined: None, by_hand: false }
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
        let told = one.moving_to([der(2)], at(40), None).unwrap();
        assert_eq!(
            (told.sequence, names(&told)),
            (2, vec![(2, None), (1, None)]),
            "nothing signs under the new one yet"
        );
        assert_eq!(told.moving_to([der(2)], at(45), None), None);
        let until = |second| Some((Fingerprint::of(&der(2)), at(second)));
        let moved = told.moving_to([der(2)], at(50), until(100)).unwrap();
        assert_eq!((moved.sequence, names(&moved)), (3, vec![(2, None), (1, Some(100))]));
        assert_eq!(moved.moving_to([der(2)], at(60), until(200)), None, "looking again does not prolong it");
        assert!(moved.retired(at(99)).is_empty());
        let alone = moved.without(&moved.retired(at(100))).unwrap();
        assert_eq!((alone.sequence, names(&alone)), (4, vec![(2, None)]));
        assert_eq!(alone.without(&[Fingerprint::of(&der(2))]), None, "the last one is not given up");
        let newer = |state: &TrustState| {
            let found = state.find(Fingerprint::of(&der(2)));
            found.map(|root| (root.since.map(|since| since.0), root.joined))
        };
        assert_eq!((newer(&one), newer(&told)), (None, Some((Some(at(40)), Some(2)))));
        assert_eq!(newer(&moved), Some((Some(at(40)), None)), "it signs: nobody is waited for any more");
        let back = moved.moving_to([der(1), der(2)], at(70), until(300)).unwrap();
        assert_eq!((back.sequence, names(&back)), (4, vec![(1, None), (2, None)]));
    }

    #[test]
    fn a_root_that_joined_is_known_as_such_until_something_signs_under_it() {
        let both = TrustState::new(7, [der(1)]).joined_by(der(2), at(40)).unwrap();
        assert_eq!(both.joined_by(der(2), at(50)), None);
        let of = |state: &TrustState| {
            let root = state.find(Fingerprint::of(&der(2))).unwrap();
            (root.since, root.joined)
        };
        let joined = (Some(Seconds(at(40))), Some(8));
        assert_eq!((both.sequence, of(&both)), (8, joined));
        assert_eq!(of(&both.exactly([der(3), der(2)]).unwrap()), joined, "also when others come and go");
        let until = Some((Fingerprint::of(&der(2)), at(900)));
        assert_eq!(of(&both.moving_to([der(2)], at(60), until).unwrap()), (joined.0, None));
    }

    #[test]
    fn what_the_operator_added_is_not_taken_away_by_a_file() {
        let one = TrustState::new(1, [der(1)]).with_roots(&[der(7)]).unwrap();
        let until = |name, second| Some((Fingerprint::of(&der(name)), at(second)));
        let moved = one.moving_to([der(2)], at(50), until(2, 100)).unwrap();
        assert_eq!(names(&moved), vec![(2, None), (1, Some(100)), (7, None)]);
        assert_eq!(moved.moving_to([der(2)], at(60), until(2, 200)), None);
        let exactly = moved.exactly([der(2), der(7)]).unwrap();
        assert_eq!(
            names(&exactly.moving_to([der(3)], at(70), until(3, 300)).unwrap())[2],
            (7, None),
            "after a rotation, too"
        );
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let state = TrustState::new(1, [der(1)]).with_roots(&[der(9)]).unwrap();
        let state = state.moving_to([der(2)], at(50), Some((Fingerprint::of(&der(1)), at(100)))).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TrustState>(&text).unwrap(), state);
    }
}
