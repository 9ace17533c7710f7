//! What memory has of a log: enough to append, and to know where everything else is.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
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
        Self { log, height, sealed: Arc::default(), upper: Levels::default(), growing, head }
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

    /// Goes on to the next segment: the full one is sealed.
    pub(crate) fn sealed(&mut self, header: TreeHeader) {
        Arc::make_mut(&mut self.sealed).push(header);
        self.growing.begin((self.sealed.len() as u64) << self.height);
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
            Ok(segment) if segment == self.sealed.len() => {
                self.growing.levels.node(inside).map_or(Place::Nowhere, Place::Memory)
            }
            _ => Place::Nowhere,
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
    state: RwLock<State>,
}

impl Shared {
    pub(crate) fn new(dir: &Path, describe: Describe, state: State) -> Self {
        Self { dir: dir.to_owned(), describe, state: RwLock::new(state) }
    }

    /// Nothing that holds the lock can leave it half done by a panic, so that one is of no matter to the others.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
