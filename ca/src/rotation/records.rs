//! What of a rotation is in the store: the rotation, the last step that was ordered, and what nodes have said.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use alcazar_identity::{Fingerprint, SpiffeId};
use alcazar_store::{Expected, Revision};
use serde::{Deserialize, Serialize};

use super::{Rotation, Timed};
use crate::records::{RecordError, Records, Stored, family, prefix, read, seconds};

/// The record of the rotation, with the version of its form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Current {
    version: u32,
    pub(crate) rotation: Rotation,
}

/// The last step that anything was ordered for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Fence {
    pub(crate) step: u64,
}

/// What a node said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Adopted {
    #[serde(with = "seconds")]
    pub(crate) heard: SystemTime,
    pub(crate) sequence: u64,
    pub(crate) round: u64,
    /// How many leaves, by the fingerprint of their issuer.
    pub(crate) leaves: BTreeMap<String, usize>,
    #[serde(default)]
    pub(crate) behind: Vec<String>,
}

/// What was issued to those who never report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unreported {
    /// The last of it ends then.
    #[serde(with = "seconds")]
    pub(crate) until: SystemTime,
    /// The longest life that was given.
    pub(crate) longest_seconds: u64,
}

/// Of what it is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Certificates.
    Certificates,
    /// JWT-SVIDs: nobody who holds one says so.
    Tokens,
}

impl Note {
    fn name(self) -> &'static str {
        match self {
            Self::Certificates => "unreported",
            Self::Tokens => "tokens",
        }
    }
}

impl Current {
    pub(crate) fn new(rotation: Rotation) -> Self {
        Self { version: VERSION, rotation }
    }
}

impl Adopted {
    /// The leaves, by their issuer; what cannot be read is nobody's.
    pub(crate) fn issuers(&self) -> impl Iterator<Item = (Option<Fingerprint>, usize)> {
        self.leaves.iter().map(|(issuer, count)| (issuer.parse().ok(), *count))
    }

    /// Whether it says the same as another, whenever that was.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        let at = self.heard;
        *self == Self { heard: at, ..other.clone() }
    }
}

impl Unreported {
    /// Whether what was issued then, until then, is covered by the note.
    pub(crate) fn covers(&self, issued: SystemTime, until: SystemTime) -> bool {
        let life = until.duration_since(issued).unwrap_or_default();
        self.until >= until && self.longest_seconds >= life.as_secs()
    }

    /// The note that covers this beside what was noted before. It runs ahead of what is issued, so that not every certificate is
    /// a write.
    pub(crate) fn ahead(noted: Option<Self>, issued: SystemTime, until: SystemTime) -> Self {
        let life = until.duration_since(issued).unwrap_or_default();
        let longest_seconds = noted.map_or(0, |noted| noted.longest_seconds).max(life.as_secs());
        Self { until: until + life / 4, longest_seconds }
    }

    /// Both notes in one.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { until: self.until.max(other.until), longest_seconds: self.longest_seconds.max(other.longest_seconds) }
    }

    /// How long those who hold it may go without a look at the bundle, and how long it lives.
    pub(crate) fn timed(&self) -> Timed {
        let longest = Duration::from_secs(self.longest_seconds);
        Timed { bundle: longest, leaf: longest }
    }
}

impl Records {
    pub(crate) async fn rotation(&self) -> Result<Option<Stored<Current>>, RecordError> {
        self.get(family::ROTATION, CURRENT).await
    }

    /// Writes the rotation over what was read at `expected`.
    pub(crate) async fn put_rotation(&self, expected: Expected, rotation: &Rotation) -> Result<Revision, RecordError> {
        self.put(family::ROTATION, CURRENT, expected, &Current::new(rotation.clone())).await
    }

    pub(crate) async fn fence(&self) -> Result<Fence, RecordError> {
        Ok(self.get::<Fence>(family::ROTATION, FENCE).await?.map(|stored| stored.record).unwrap_or_default())
    }

    /// Puts up the fence of `step`; whether nothing later has been ordered.
    pub(crate) async fn raise_fence(&self, step: u64) -> Result<bool, RecordError> {
        loop {
            let found = self.get::<Fence>(family::ROTATION, FENCE).await?;
            let expected = match found {
                Some(found) if found.record.step > step => return Ok(false),
                Some(found) if found.record.step == step => return Ok(true),
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.put(family::ROTATION, FENCE, expected, &Fence { step }).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_revision| true),
            }
        }
    }

    /// Keeps what a node has said. What is the same as before is written again only when that was long ago: nobody waits for
    /// the disk because of a minute's heartbeat.
    pub(crate) async fn put_adopted(&self, node: &SpiffeId, said: &Adopted) -> Result<(), RecordError> {
        loop {
            let found = self.get::<Adopted>(family::ADOPTION, node.principal()).await?;
            let expected = match &found {
                Some(found) if found.record.says_as(said) && !is_old(found.record.heard, said.heard) => return Ok(()),
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.put(family::ADOPTION, node.principal(), expected, said).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// What every node has said, by its name.
    pub(crate) async fn adopted(&self) -> Result<BTreeMap<String, Adopted>, RecordError> {
        let family = prefix(family::ADOPTION)?;
        let listing = self.store().list(&family).await?;
        let named = listing.entries.iter().filter_map(|entry| Some((family.strip(entry.key())?.to_owned(), entry)));
        named.map(|(name, entry)| Ok((name, read(entry)?.record))).collect()
    }

    /// Forgets what a node has said: it is a node no more.
    pub(crate) async fn forget_adopted(&self, node: &SpiffeId) -> Result<(), RecordError> {
        while let Some(found) = self.get::<Adopted>(family::ADOPTION, node.principal()).await? {
            match self.delete(family::ADOPTION, node.principal(), found.revision).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome,
            }
        }
        Ok(())
    }

    pub(crate) async fn unreported(&self, what: Note) -> Result<Option<Unreported>, RecordError> {
        Ok(self.get(family::ROTATION, what.name()).await?.map(|stored| stored.record))
    }

    /// Notes that something was issued to somebody who never reports. Written when it says much more than is noted.
    pub(crate) async fn note_unreported(
        &self,
        what: Note,
        issued: SystemTime,
        until: SystemTime,
    ) -> Result<Unreported, RecordError> {
        loop {
            let found = self.get::<Unreported>(family::ROTATION, what.name()).await?;
            let (expected, noted) = match &found {
                Some(found) => (Expected::At(found.revision), Some(found.record)),
                None => (Expected::Absent, None),
            };
            if let Some(noted) = noted.filter(|noted| noted.covers(issued, until)) {
                return Ok(noted);
            }
            let next = Unreported::ahead(noted, issued, until);
            match self.put(family::ROTATION, what.name(), expected, &next).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_revision| next),
            }
        }
    }

    /// Adds a note to what is noted.
    pub(crate) async fn add_unreported(&self, what: Note, more: Unreported) -> Result<(), RecordError> {
        loop {
            let found = self.get::<Unreported>(family::ROTATION, what.name()).await?;
            let (expected, next) = match &found {
                Some(found) => (Expected::At(found.revision), found.record.and(more)),
                None => (Expected::Absent, more),
            };
            if found.is_some_and(|found| found.record == next) {
                return Ok(());
            }
            match self.put(family::ROTATION, what.name(), expected, &next).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
    }
}

fn is_old(heard: SystemTime, now: SystemTime) -> bool {
    let apart = now.duration_since(heard).or_else(|_| heard.duration_since(now));
    apart.unwrap_or_default() >= REFRESH
}

const VERSION: u32 = 1;
const CURRENT: &str = "current";
const FENCE: &str = "fence";
/// How old what is kept of a node may become while the node goes on saying the same.
const REFRESH: Duration = Duration::from_secs(50);
