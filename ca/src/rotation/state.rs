//! What is remembered of a rotation.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::records::seconds;

/// A rotation, as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rotation {
    pub(crate) kind: Kind,
    /// What was in use when it began.
    pub(crate) old: Anchor,
    /// What it brings; `None` until it is made.
    pub(crate) new: Option<Anchor>,
    /// The certificate of a root that a person brings, in PEM: its key is elsewhere, and so is whoever signs an intermediate with it.
    #[serde(default)]
    pub(crate) brought: Option<String>,
    /// What lay here when it began: nothing of that was made for it.
    #[serde(default)]
    pub(crate) here: BTreeSet<Anchor>,
    /// The replica that it is of, by its id: an intermediate is rotated by whose it is. `None`: of all.
    #[serde(default)]
    pub(crate) replica: Option<String>,
    /// Whether it was aborted, and goes back to `old`.
    #[serde(default)]
    pub(crate) back: bool,
    /// Whether it ended where it stood, because the replica that drove it is gone.
    #[serde(default)]
    pub(crate) left_as_it_is: bool,
    pub(crate) phase: Phase,
    #[serde(with = "seconds")]
    pub(crate) started: SystemTime,
    #[serde(with = "seconds")]
    pub(crate) entered: SystemTime,
    /// The step that it began with: no other rotation has the same.
    #[serde(default)]
    pub(crate) begun: u64,
    /// The step with which it went where it goes now: the one that it began with, or that of its abort.
    #[serde(default)]
    pub(crate) turned: u64,
    /// Rises with each phase entered, over all rotations there ever were. What is ordered for a step is refused once a later
    /// step has ordered anything.
    pub(crate) step: u64,
    /// How long this phase has been waited in. Measured; time in which nobody looked does not count.
    #[serde(with = "millis")]
    pub(crate) waited: Duration,
    /// Whether time counted when the world was last looked at: only what lies between two such looks is waited for.
    #[serde(skip)]
    pub(crate) counting: bool,
    /// Whom a person has decided not to wait for in this phase, by name.
    #[serde(default)]
    pub(crate) forced: BTreeSet<String>,
}

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// The root: everybody's trust changes.
    Root,
    /// The intermediate under the same root: nobody's trust changes.
    Intermediate,
    /// The key that signs JWT-SVIDs: everybody's trust changes, but no certificate.
    Jwt,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Phase {
    /// The new one is being made.
    Prepare,
    /// Both are trusted, the first signs still; until everybody holds both.
    Distribute,
    /// The other signs; until every CA does so.
    Switch,
    /// Leaves are issued anew; until none is left under the first.
    Reissue,
    /// The other alone is trusted; until everybody holds that.
    Retire,
    /// The key of the first is being removed.
    Forget,
    /// Over.
    Done,
}

/// What trust stands on: the fingerprint of a root or an intermediate, or the id of a JWT key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Anchor(String);

impl Rotation {
    /// A rotation away from `old`, not begun yet. `given` is what a person has brought and need not be made. `after` is the
    /// last step that anything was ordered for.
    pub(crate) fn new(kind: Kind, old: Anchor, given: Option<Anchor>, after: u64, now: SystemTime) -> Self {
        Self {
            kind,
            old,
            new: given,
            brought: None,
            here: BTreeSet::new(),
            replica: None,
            back: false,
            left_as_it_is: false,
            phase: Phase::Prepare,
            started: now,
            entered: now,
            begun: after.saturating_add(1),
            turned: after.saturating_add(1),
            step: after.saturating_add(1),
            waited: Duration::ZERO,
            counting: false,
            forced: BTreeSet::new(),
        }
    }

    /// The same, begun where this lies.
    pub(crate) fn among(self, here: BTreeSet<Anchor>) -> Self {
        Self { here, ..self }
    }

    /// The same, towards a root that a person brings.
    pub(crate) fn bringing(self, certificate: String) -> Self {
        Self { brought: Some(certificate), ..self }
    }

    /// The same, of one replica's own.
    pub(crate) fn of_replica(self, replica: &str) -> Self {
        Self { replica: Some(replica.to_owned()), ..self }
    }

    /// Whether this replica drives it, when it has the lease.
    pub(crate) fn is_driven_by(&self, replica: &str) -> bool {
        self.replica.as_deref().is_none_or(|of| of == replica)
    }

    /// What is being left, in the direction that it goes now. `None` where nothing has been made that could be left.
    pub(crate) fn from(&self) -> Option<&Anchor> {
        if self.back { self.new.as_ref() } else { Some(&self.old) }
    }

    /// What it goes to.
    pub(crate) fn to(&self) -> Option<&Anchor> {
        if self.back { Some(&self.old) } else { self.new.as_ref() }
    }

    /// Whether there is nothing left to do.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Done
    }

    /// The anchors that are to be trusted in this phase, and those that are not. Empty for an intermediate, which nobody
    /// trusts by itself.
    pub(crate) fn trusted(&self) -> (BTreeSet<Anchor>, BTreeSet<Anchor>) {
        let of = |anchor: Option<&Anchor>| anchor.cloned().into_iter().collect::<BTreeSet<_>>();
        match (self.kind, self.phase) {
            (Kind::Intermediate, _) => Default::default(),
            (_, Phase::Prepare) => ([self.old.clone()].into(), of(self.new.as_ref())),
            (_, Phase::Distribute | Phase::Switch | Phase::Reissue) => {
                (of(self.from()).union(&of(self.to())).cloned().collect(), BTreeSet::new())
            }
            (_, Phase::Retire | Phase::Forget | Phase::Done) => (of(self.to()), of(self.from())),
        }
    }

    /// What is to sign in this phase.
    pub(crate) fn signing(&self) -> &Anchor {
        let signing = match self.phase {
            Phase::Prepare => None,
            Phase::Distribute => self.from(),
            _ => self.to(),
        };
        signing.unwrap_or(&self.old)
    }

    /// The same rotation at the beginning of another phase.
    pub(crate) fn entering(&self, phase: Phase, now: SystemTime) -> Self {
        Self {
            phase,
            entered: now,
            step: self.step.saturating_add(1),
            waited: Duration::ZERO,
            counting: false,
            forced: BTreeSet::new(),
            ..self.clone()
        }
    }

    /// The phase after this one.
    pub(crate) fn following(&self) -> Phase {
        match (self.phase, self.kind) {
            (Phase::Prepare, Kind::Intermediate) => Phase::Switch,
            (Phase::Prepare, _) => Phase::Distribute,
            (Phase::Distribute, _) => Phase::Switch,
            (Phase::Switch, _) => Phase::Reissue,
            (Phase::Reissue, Kind::Intermediate) => Phase::Forget,
            (Phase::Reissue, _) => Phase::Retire,
            (Phase::Retire, _) => Phase::Forget,
            (Phase::Forget | Phase::Done, _) => Phase::Done,
        }
    }
}

impl Anchor {
    /// An anchor of this name.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The certificate that it is, where it is one.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        self.0.parse().ok()
    }
}

impl From<Fingerprint> for Anchor {
    fn from(fingerprint: Fingerprint) -> Self {
        Self(fingerprint.to_string())
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::Jwt => "JWT key",
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Distribute => "distribute",
            Self::Switch => "switch",
            Self::Reissue => "reissue",
            Self::Retire => "retire",
            Self::Forget => "forget",
            Self::Done => "done",
        })
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
