//! What memory has of a log: enough to append, and to know where everything else is.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{
    facts::{Describe, Facts},
    format::TreeHeader,
    ledger::{Head, LogId},
    merkle::{self, Hash, Levels, Node},
    segment::Growing,
};

/// Everything of a log that is durable.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) log: LogId,
    pub(crate) height: u32,
    /// Shared with whoever reads at this moment.
    pub(crate) sealed: Arc<Vec<TreeHeader>>,
    /// The roots of full segments, and what is above them.
    upper: Levels,
    /// The full segment whose file of hashes and indexes is being written.
    sealing: Option<Arc<Growing>>,
    pub(crate) growing: Growing,
    pub(crate) head: Head,
}

/// Where the hash of a full subtree is.
pub(crate) enum Place {
    Memory(Hash),
    /// In the file of this segment, counted within it.
    Disk(usize, Node),
    /// The log is not that long.
    Nowhere,
}

impl State {
    pub(crate) fn new(log: LogId, height: u32) -> Self {
        let mut growing = Growing::default();
        growing.begin(0);
        let head = Head { size: 0, root: Hash::empty() };
        Self { log, height, sealed: Arc::default(), upper: Levels::default(), sealing: None, growing, head }
    }

    /// How many entries, the head aside: that is told when they are durable.
    pub(crate) fn size(&self) -> u64 {
        self.growing.first + self.growing.len() as u64
    }

    /// How many entries the open segment still takes.
    pub(crate) fn room(&self) -> usize {
        (1usize << self.height).saturating_sub(self.growing.len())
    }

    pub(crate) fn push(&mut self, leaf: Hash, length: usize, facts: &Facts) {
        self.growing.push(leaf, length, facts);
        if let Some(root) = self.growing.root(self.height) {
            self.upper.push(root);
        }
    }

    /// Goes on to the next segment; the full one, which has to be sealed. One at a time.
    pub(crate) fn seal_later(&mut self) -> Arc<Growing> {
        let mut next = Growing::default();
        next.begin(self.size());
        let full = Arc::new(std::mem::replace(&mut self.growing, next));
        self.sealing = Some(full.clone());
        full
    }

    /// The full segment is sealed; where it was the open one, the next one begins.
    pub(crate) fn sealed(&mut self, header: TreeHeader) {
        Arc::make_mut(&mut self.sealed).push(header);
        if self.sealing.take().is_none() {
            self.growing.begin((self.sealed.len() as u64) << self.height);
        }
    }

    /// The full segment that is not sealed yet.
    pub(crate) fn sealing(&self) -> Option<&Arc<Growing>> {
        self.sealing.as_ref()
    }

    /// The segments that are in memory whole, the older one first, each with its number.
    pub(crate) fn in_memory(&self) -> impl Iterator<Item = (usize, &Growing)> {
        let all = self.sealing.as_deref().into_iter().chain([&self.growing]);
        all.enumerate().map(|(after, segment)| (self.sealed.len() + after, segment))
    }

    /// Takes in a sealed segment unread.
    pub(crate) fn adopt(&mut self, header: TreeHeader) {
        self.upper.push(header.root);
        self.sealed(header);
    }

    pub(crate) fn place(&self, node: Node) -> Place {
        if let Some(level) = node.level.checked_sub(self.height) {
            return self.upper.node(Node { level, ..node }).map_or(Place::Nowhere, Place::Memory);
        }
        let shift = self.height - node.level;
        let segment = node.index >> shift;
        let inside = Node { index: node.index - (segment << shift), ..node };
        match usize::try_from(segment) {
            Ok(segment) if segment < self.sealed.len() => Place::Disk(segment, inside),
            Ok(segment) => {
                let of = self.in_memory().find(|(number, _)| *number == segment);
                of.and_then(|(_, of)| of.levels.node(inside)).map_or(Place::Nowhere, Place::Memory)
            }
            Err(_) => Place::Nowhere,
        }
    }

    /// The root of everything. No disk is asked: at the right edge everything is in memory.
    pub(crate) fn root(&self) -> Hash {
        let node = |node| match self.place(node) {
            Place::Memory(hash) => Ok::<_, Infallible>(hash),
            // Not at the right edge.
            Place::Disk(..) | Place::Nowhere => Ok(Hash::empty()),
        };
        let Ok(root) = merkle::root_of(self.size(), node);
        root
    }

    /// Publishes all that was pushed: it is durable now.
    pub(crate) fn publish(&mut self) -> Head {
        self.head = Head { size: self.size(), root: self.root() };
        self.head
    }
}

/// A log, as its writer and its readers share it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) describe: Describe,
    pub(crate) checked: Checked,
    state: RwLock<State>,
}

/// The trees that were read whole in this process, and have their checksums.
#[derive(Debug, Default)]
pub(crate) struct Checked(Mutex<BTreeSet<u64>>);

impl Checked {
    pub(crate) fn has(&self, first: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&first)
    }

    pub(crate) fn note(&self, first: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(first);
    }
}

impl Shared {
    pub(crate) fn new(dir: &Path, describe: Describe, state: State) -> Self {
        Self { dir: dir.to_owned(), describe, checked: Checked::default(), state: RwLock::new(state) }
    }

    /// Nothing that holds the lock can leave it half done by a panic, so that one is of no matter to the others.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
