//! Who lives in the fleet.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Anchor, Report, Trust};

/// Something that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) under: Anchor,
    pub(super) expires: u64,
}

/// A CA: a replica of the one that rotates, or that of another cluster.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    pub(super) name: String,
    pub(super) cluster: Option<usize>,
    /// Cut off from the store, but not from its nodes.
    pub(super) cut: bool,
    pub(super) view: Trust,
    pub(super) round: u64,
    pub(super) leaf: Leaf,
    /// What the store has from it.
    pub(super) said: Option<(u64, Report)>,
}

/// A node's agent, and the proxies that it serves.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) cluster: Option<usize>,
    pub(super) cut: bool,
    pub(super) since: u64,
    pub(super) sequence: u64,
    pub(super) round: u64,
    pub(super) leaf: Option<Leaf>,
    /// What the agent holds for each proxy.
    pub(super) held: Vec<Option<Leaf>>,
    pub(super) proxies: Vec<Proxy>,
    /// Answers under way: for which of its leaves, and when they arrive.
    pub(super) coming: Vec<Coming>,
    /// Started anew: until its proxies are back it cannot speak for them.
    pub(super) quiet_until: u64,
    /// Whether a person has decided to go on without it.
    pub(super) given_up: bool,
    pub(super) said: Option<(u64, Report)>,
}

#[derive(Clone, Debug)]
pub(super) struct Coming {
    pub(super) slot: Option<usize>,
    pub(super) asked: u64,
    pub(super) at: u64,
    pub(super) leaf: Leaf,
    pub(super) sequence: u64,
}

/// What a proxy enforces.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxy {
    pub(super) sequence: u64,
    pub(super) leaf: Option<Leaf>,
}

/// A stock client of the CSR API: it looks at the bundle when it renews, and never says anything.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) sequence: u64,
    pub(super) leaf: Leaf,
    pub(super) renews: u64,
}

/// Another trust domain, which verifies ours.
#[derive(Clone, Debug)]
pub(super) struct Federated {
    pub(super) sequence: u64,
    pub(super) polls: u64,
}

impl Node {
    /// What it would say now; nothing while it cannot know.
    pub(super) fn report(&self, now: u64) -> Option<Report> {
        if now < self.quiet_until {
            return None;
        }
        let sequence = self.proxies.iter().map(|proxy| proxy.sequence).fold(self.sequence, u64::min);
        // An answer from before the reissue was heard of may bring anything.
        let pending = self.coming.iter().any(|coming| coming.asked < self.round);
        let mut leaves = BTreeMap::new();
        let proxies = self.proxies.iter().map(|proxy| &proxy.leaf);
        for leaf in proxies.chain(&self.held).chain([&self.leaf]).flatten().filter(|leaf| leaf.expires > now) {
            *leaves.entry(leaf.under.clone()).or_insert(0) += 1;
        }
        let round = if pending { 0 } else { self.round };
        Some(Report { sequence, round, leaves, signing: None, able: BTreeSet::new(), behind: Vec::new() })
    }
}
