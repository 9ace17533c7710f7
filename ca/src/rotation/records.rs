//! What of a rotation is in the store: the rotation, the last step that was ordered, and what nodes have said.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use alcazar_identity::{Fingerprint, SpiffeId};
use alcazar_store::{Expected, Revision};
use serde::{Deserialize, Serialize};

use super::{Kind, Rotation, Timed};
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

/// How long what was issued may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lives {
    /// The longest life that any replica ever allowed.
    longest_seconds: u64,
}

/// Since when steps are counted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Epoch {
    began: u64,
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

    /// The last rotation of the root, where one of something else has begun since.
    pub(crate) async fn last_of_root(&self) -> Result<Option<Rotation>, RecordError> {
        Ok(self.get::<Current>(family::ROTATION, LAST_OF_ROOT).await?.map(|stored| stored.record.rotation))
    }

    /// Keeps how a rotation of the root ended, before another takes its place: other clusters are told of it all the time.
    pub(crate) async fn keep_last_of_root(&self, over: &Rotation) -> Result<(), RecordError> {
        if over.kind != Kind::Root {
            return Ok(());
        }
        loop {
            let found = self.get::<Current>(family::ROTATION, LAST_OF_ROOT).await?;
            let expected = match found {
                Some(found) if found.record.rotation.step >= over.step => return Ok(()),
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.put(family::ROTATION, LAST_OF_ROOT, expected, &Current::new(over.clone())).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
    }

    /// When this store began to count steps, in seconds since 1970; now, where it has not.
    pub(crate) async fn epoch(&self, now: SystemTime) -> Result<u64, RecordError> {
        loop {
            if let Some(found) = self.get::<Epoch>(family::ROTATION, EPOCH).await? {
                return Ok(found.record.began);
            }
            let epoch = Epoch { began: seconds::of(now) };
            match self.put(family::ROTATION, EPOCH, Expected::Absent, &epoch).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(|_revision| epoch.began),
            }
        }
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

    /// The longest life that any replica of this CA ever allowed a leaf.
    pub(crate) async fn longest_life(&self) -> Result<Duration, RecordError> {
        let lives = self.get::<Lives>(family::ROTATION, LIVES).await?;
        Ok(lives.map_or(Duration::ZERO, |lives| Duration::from_secs(lives.record.longest_seconds)))
    }

    /// Notes that leaves may live for so long from now on. What was allowed before is in use yet, so the note never falls.
    pub(crate) async fn allow_life(&self, life: Duration) -> Result<(), RecordError> {
        let longest_seconds = life.as_secs();
        loop {
            let found = self.get::<Lives>(family::ROTATION, LIVES).await?;
            let expected = match found {
                Some(found) if found.record.longest_seconds >= longest_seconds => return Ok(()),
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.put(family::ROTATION, LIVES, expected, &Lives { longest_seconds }).await {
                Err(error) if error.is_conflict() => {}
                outcome => return outcome.map(drop),
            }
        }
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
const LIVES: &str = "lives";
const LAST_OF_ROOT: &str = "last-of-root";
const EPOCH: &str = "epoch";
/// How old what is kept of a node may become while the node goes on saying the same.
const REFRESH: Duration = Duration::from_secs(50);
