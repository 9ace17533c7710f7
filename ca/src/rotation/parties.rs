//! What the machine is shown: the CA's own trust state, and everybody who must follow it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Anchor;

/// The world at one moment, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Observations {
    pub(crate) trust: Trust,
    /// What has been made for this rotation, or brought by a person.
    pub(crate) made: Option<Anchor>,
    /// Whether nobody but a person can bring it: its key is kept elsewhere.
    pub(crate) person: bool,
    /// What this CA could sign under, if it were told to.
    pub(crate) able: BTreeSet<Anchor>,
    /// What there is, trusted or not.
    pub(crate) known: BTreeSet<Anchor>,
    pub(crate) parties: Vec<Party>,
    /// Time that has surely passed since the rotation was last looked at, by a clock that nobody can set; zero where another
    /// has looked at it last.
    pub(crate) elapsed: Duration,
}

/// What the CA says that everybody is to believe, and what it signs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trust {
    /// The last step that ordered anything.
    pub(crate) step: u64,
    /// The bundle's sequence.
    pub(crate) sequence: u64,
    pub(crate) trusted: BTreeSet<Anchor>,
    pub(crate) signing: Anchor,
}

/// Somebody who must be able to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Party {
    /// Unique; for people.
    pub(crate) name: String,
    pub(crate) class: Class,
}

/// How it is known that somebody has followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It says so.
    Observed(Observed),
    /// It never says anything: time has to pass.
    Timed(Timed),
}

/// Somebody who reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) role: Role,
    /// How long ago it was last heard; where it never was, for how long it has been known.
    pub(crate) silent: Duration,
    pub(crate) report: Option<Report>,
}

/// What somebody who reports is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A node agent, for itself and all that it serves.
    Node,
    /// A replica of this CA.
    Replica,
    /// The CA of another cluster under the root, for itself and all its nodes.
    Cluster,
}

/// What one party has said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The least bundle sequence that it, or anybody whom it serves, enforces.
    pub(crate) sequence: u64,
    /// The last reissue that it has heard of, once no answer from before is under way.
    pub(crate) round: u64,
    /// How many leaves in use, its own and those it serves, stand under which anchor.
    pub(crate) leaves: BTreeMap<Anchor, usize>,
    /// What it signs under, where it signs.
    pub(crate) signing: Option<Anchor>,
    /// What it could sign under, where it signs.
    pub(crate) able: BTreeSet<Anchor>,
    /// Which of those it serves lag behind; for people.
    pub(crate) behind: Vec<String>,
}

/// Somebody who never reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    /// The longest that it goes without looking at the bundle.
    pub(crate) bundle: Duration,
    /// The longest that what was issued to it lives.
    pub(crate) leaf: Duration,
}

/// How patient the machine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Who is silent for longer is unreachable.
    pub(crate) silence: Duration,
    /// The least that each phase takes.
    pub(crate) settle: Duration,
    /// No leaf lives longer, by anybody's clock.
    pub(crate) longest_life: Duration,
}

impl Observed {
    /// Whether it signs.
    pub(crate) fn is_authority(&self) -> bool {
        matches!(self.role, Role::Replica | Role::Cluster)
    }
}
