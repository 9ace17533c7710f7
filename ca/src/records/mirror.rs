//! What every issuance asks, in memory: registrations and lineages.
//!
//! ```text
//!  put, delete of this CA ──▶ store ─ acknowledged ─▶ Mirrors ◀─ list, watch ── changes of other replicas
//!                                                        │
//!                              an issuance asks ─────────┤   (what it does not know, the store is asked)
//!                              a node follows ───────────┘   (its registrations, by a count of changes)
//! ```
//!
//! Of a lineage all but the certificate is here: less than 1 KB a node, under 10 MB for 10,000.
//!
//! - A change that this CA has acknowledged is in the mirror before anybody hears of it; of two that meet, the later revision
//!   stays. A change of another replica is here as soon as the watch brings it.
//! - While nobody follows the store (a CA that is open and does not run, a store that is gone), what is there still serves.
//!   It is replaced when the store was read as a whole, and never before.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use alcazar_identity::SpiffeId;
use alcazar_service::process;
use alcazar_store::{Entry, Event, Revision, WatchError};
use tokio::sync::watch;

use super::{Lineage, RecordError, Records, Registration, Stored, family, prefix, read};

/// The families that are kept in memory.
#[derive(Default)]
pub(crate) struct Mirrors {
    registrations: RwLock<Registrations>,
    /// Rises with each change of a registration; `None` until all of them have been read.
    registered: watch::Sender<Option<u64>>,
    lineages: RwLock<Known<Lineage>>,
    /// Whether every change of a registration comes here by itself.
    follows_registrations: AtomicBool,
}

/// Reading a family anew, one at a time: who comes while that is done shares the next one.
#[derive(Default)]
pub(super) struct Listing {
    turn: tokio::sync::Mutex<()>,
    begun: AtomicU64,
    /// The last one that came to an end, by its number.
    done: AtomicU64,
}

#[derive(Default)]
struct Registrations {
    known: Known<Registration>,
    /// Whose names are registered for a node and an identity.
    by_identity: HashMap<(SpiffeId, SpiffeId), BTreeSet<String>>,
    /// Whose names are registered for a node.
    by_node: HashMap<SpiffeId, BTreeSet<String>>,
}

/// Records by their names. One that was deleted is remembered, lest an older change bring it back.
struct Known<T> {
    by_name: HashMap<Box<str>, (Revision, Option<Arc<T>>)>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { by_name: HashMap::new() }
    }
}

impl<T> Known<T> {
    fn get(&self, name: &str) -> Option<(Revision, Arc<T>)> {
        let (revision, record) = self.by_name.get(name)?;
        record.clone().map(|record| (*revision, record))
    }

    /// What was there before; `None` where the change is older than what is known.
    fn apply(&mut self, name: &str, revision: Revision, record: Option<Arc<T>>) -> Option<Option<Arc<T>>> {
        match self.by_name.get_mut(name) {
            Some((known, _)) if *known >= revision => None,
            Some(known) => Some(std::mem::replace(known, (revision, record)).1),
            None => {
                self.by_name.insert(name.into(), (revision, record));
                Some(None)
            }
        }
    }

    /// Everything up to this revision has been seen in order: nothing older can come.
    fn forget_deleted(&mut self, passed: Revision) {
        self.by_name.retain(|_, (revision, record)| record.is_some() || *revision > passed);
    }
}

impl Registrations {
    fn apply(&mut self, name: &str, revision: Revision, record: Option<Registration>) {
        // Put in by an earlier version. Two of one name at an agent would be one too many.
        if let Some(record) = record.as_ref().filter(|record| record.id().is_of_pods()) {
            tracing::error!(registration = name, spiffe_id = %record.spiffe_id(), "a registration on record has a name that is kept for the pods of the cluster, and gives nothing: put it in under another name, and delete this one");
        }
        let record = record.filter(|record| !record.id().is_of_pods()).map(Arc::new);
        let Some(before) = self.known.apply(name, revision, record.clone()) else { return };
        if let Some(before) = before {
            let key = (before.node().clone(), before.spiffe_id().clone());
            leave(&mut self.by_identity, &key, name);
            leave(&mut self.by_node, before.node(), name);
        }
        if let Some(record) = record {
            let key = (record.node().clone(), record.spiffe_id().clone());
            self.by_identity.entry(key).or_default().insert(name.into());
            self.by_node.entry(record.node().clone()).or_default().insert(name.into());
        }
    }

    /// Those of a node, by their names.
    fn of_node(&self, node: &SpiffeId) -> Vec<Arc<Registration>> {
        let names = self.by_node.get(node).into_iter().flatten();
        names.filter_map(|name| self.known.get(name).map(|(_, known)| known)).collect()
    }
}

fn leave<K: Eq + Hash>(names: &mut HashMap<K, BTreeSet<String>>, key: &K, name: &str) {
    if let Some(of) = names.get_mut(key) {
        of.remove(name);
        if of.is_empty() {
            names.remove(key);
        }
    }
}

impl Mirrors {
    /// A change of a record, where its family is kept here.
    pub(super) fn note(&self, family: &str, name: &str, entry: &Entry) -> Result<(), RecordError> {
        let revision = entry.revision();
        match family {
            family::REGISTRATIONS => {
                let record = read::<Registration>(entry)?.record;
                write(&self.registrations).apply(name, revision, Some(record));
                self.tell_of_registrations();
            }
            family::NODES => {
                let record = read::<Lineage>(entry)?.record;
                write(&self.lineages).apply(name, revision, Some(Arc::new(record.compact())));
            }
            _ => {}
        }
        Ok(())
    }

    /// A record that is gone.
    pub(super) fn note_deleted(&self, family: &str, name: &str, revision: Revision) {
        match family {
            family::REGISTRATIONS => {
                write(&self.registrations).apply(name, revision, None);
                self.tell_of_registrations();
            }
            family::NODES => drop(write(&self.lineages).apply(name, revision, None)),
            _ => {}
        }
    }

    /// Of the lineages, those of `names` alone were there at this revision.
    fn retain_lineages(&self, names: &HashSet<Box<str>>, at: Revision) {
        let mut known = write(&self.lineages);
        let gone: Vec<_> = known.by_name.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            known.apply(&name, at, None);
        }
        known.forget_deleted(at);
    }

    fn tell_of_registrations(&self) {
        self.registered.send_if_modified(|changes| match changes {
            Some(changes) => {
                *changes = changes.wrapping_add(1);
                true
            }
            // Not all of them are known yet.
            None => false,
        });
    }

    /// Every registration, as the store had it at this revision.
    fn replace_registrations(&self, listed: Vec<Stored<Registration>>, at: Revision) {
        let mut known = write(&self.registrations);
        let names: BTreeSet<_> = listed.iter().map(|stored| stored.record.id().as_str().to_owned()).collect();
        let gone: Vec<_> = known.known.by_name.keys().filter(|name| !names.contains(&***name)).cloned().collect();
        for name in gone {
            known.apply(&name, at, None);
        }
        for Stored { record, revision } in listed {
            let id = record.id().clone();
            known.apply(id.as_str(), revision, Some(record));
        }
        known.known.forget_deleted(at);
        drop(known);
        self.registered.send_modify(|changes| *changes = Some(changes.unwrap_or_default().wrapping_add(1)));
    }
}

impl Records {
    /// The registration of this name.
    pub(crate) async fn registration(&self, id: &str) -> Result<Option<Arc<Registration>>, RecordError> {
        if let Some((_, known)) = lock(&self.mirrors().registrations).known.get(id) {
            return Ok(Some(known));
        }
        // Perhaps another replica has just put it in.
        let found = self.get::<Registration>(family::REGISTRATIONS, id).await?;
        Ok(found.map(|stored| Arc::new(stored.record)))
    }

    /// The registrations that give the identity to the node, as far as is known here.
    pub(crate) fn known_registered(&self, node: &SpiffeId, id: &SpiffeId) -> Vec<Arc<Registration>> {
        let registrations = lock(&self.mirrors().registrations);
        let names = registrations.by_identity.get(&(node.clone(), id.clone())).into_iter().flatten();
        names.filter_map(|name| registrations.known.get(name).map(|(_, known)| known)).collect()
    }

    /// The same, after a look at the store: another replica may just have put one in.
    pub(crate) async fn registered(
        &self,
        node: &SpiffeId,
        id: &SpiffeId,
    ) -> Result<Vec<Arc<Registration>>, RecordError> {
        let listing = self.listing();
        let begun = listing.begun.load(Ordering::SeqCst);
        // One at a time, and one for all who wait: who asks for what is not registered makes no load.
        let _turn = listing.turn.lock().await;
        if listing.done.load(Ordering::SeqCst) <= begun {
            let number = listing.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.load_registrations().await?;
            listing.done.store(number, Ordering::SeqCst);
        }
        Ok(self.known_registered(node, id))
    }

    /// Whether a registration that another replica puts in is here as soon as the watch brings it.
    pub(crate) fn follows_registrations(&self) -> bool {
        self.mirrors().follows_registrations.load(Ordering::SeqCst)
    }

    /// Every registration of the node by its name, as far as is known here.
    pub(crate) fn known_registrations(&self, node: &SpiffeId) -> Vec<Arc<Registration>> {
        lock(&self.mirrors().registrations).of_node(node)
    }

    /// When registrations change; `None` until all of them have been read.
    pub(crate) fn registration_changes(&self) -> watch::Receiver<Option<u64>> {
        self.mirrors().registered.subscribe()
    }

    /// The lineage of the node with this principal, which may be older than what another replica has just made of it. The latest
    /// certificate itself is not here.
    pub(crate) fn known_lineage(&self, principal: &str) -> Option<Stored<Lineage>> {
        let (revision, lineage) = lock(&self.mirrors().lineages).get(principal)?;
        Some(Stored { record: (*lineage).clone(), revision })
    }

    /// The lineages whose latest certificate ended before `end`, by the node's principal, as far as is known here.
    pub(crate) fn lineages_over(&self, end: SystemTime) -> Vec<(Box<str>, Revision)> {
        let known = lock(&self.mirrors().lineages);
        let is_over = |lineage: &Lineage| lineage.latest.not_after < end;
        let over = known.by_name.iter().filter(|(_, (_, lineage))| lineage.as_deref().is_some_and(is_over));
        over.map(|(name, (revision, _))| (name.clone(), *revision)).collect()
    }

    /// The lineage of the node with this principal, as the store has it.
    pub(crate) async fn lineage(&self, principal: &str) -> Result<Option<Stored<Lineage>>, RecordError> {
        let found = self.get::<Lineage>(family::NODES, principal).await?;
        if let Some(Stored { record, revision }) = &found {
            let record = record.clone().compact();
            write(&self.mirrors().lineages).apply(principal, *revision, Some(Arc::new(record)));
        }
        Ok(found)
    }

    /// Reads all registrations into memory.
    pub(crate) async fn load_registrations(&self) -> Result<Revision, RecordError> {
        let (listed, revision) = self.list::<Registration>(family::REGISTRATIONS).await?;
        self.mirrors().replace_registrations(listed, revision);
        Ok(revision)
    }

    /// Reads all lineages into memory, a page at a time; the revision to follow them from.
    pub(crate) async fn load_lineages(&self) -> Result<Revision, RecordError> {
        self.load_lineages_by(PAGE).await
    }

    async fn load_lineages_by(&self, size: usize) -> Result<Revision, RecordError> {
        let prefix = prefix(family::NODES)?;
        let (mut names, mut from, mut after) = (HashSet::new(), None, None);
        loop {
            let page = self.store().page(&prefix, after.as_ref(), size).await?;
            let from = *from.get_or_insert(page.revision);
            for entry in &page.entries {
                let name = prefix.strip(entry.key()).unwrap_or_default();
                names.insert(name.into());
                // One that cannot be read is its node's trouble, which hears of it when it asks.
                if let Err(error) = self.mirrors().note(family::NODES, name, entry) {
                    tracing::error!(node = name, reason = %process::chain(&error), "the lineage of a node cannot be read");
                }
            }
            after = page.entries.last().map(|entry| entry.key().clone());
            if !page.more || after.is_none() {
                self.mirrors().retain_lineages(&names, from);
                tracing::info!(nodes = names.len(), "the lineages of all nodes are known");
                return Ok(from);
            }
        }
    }

    /// Follows what other replicas change, until the store ends.
    pub(crate) async fn follow_changes(&self, family: &str) -> Result<(), RecordError> {
        let outcome = self.follow(family).await;
        if family == family::REGISTRATIONS {
            self.mirrors().follows_registrations.store(false, Ordering::SeqCst);
        }
        outcome
    }

    async fn follow(&self, family: &str) -> Result<(), RecordError> {
        let prefix = prefix(family)?;
        loop {
            let follows = |yes: bool| {
                if family == family::REGISTRATIONS {
                    self.mirrors().follows_registrations.store(yes, Ordering::SeqCst);
                }
            };
            follows(false);
            let from = match family {
                family::REGISTRATIONS => self.load_registrations().await?,
                _ => self.load_lineages().await?,
            };
            let mut watch = self.store().watch(&prefix, from).await?;
            follows(true);
            loop {
                // A node's name has several segments.
                let name = |key| prefix.strip(key).unwrap_or_default();
                match watch.next().await {
                    Ok(Event::Put(entry)) => self.mirrors().note(family, name(entry.key()), &entry)?,
                    Ok(Event::Deleted { key, revision }) => self.mirrors().note_deleted(family, name(&key), revision),
                    Err(WatchError::Lagged) => break,
                    Err(WatchError::Closed) => return Ok(()),
                }
            }
        }
    }
}

/// Lineages that are read at a time.
const PAGE: usize = 1000;

fn lock<T>(of: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    of.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(of: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    of.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use alcazar_store::{Expected, SledStore};
    use proptest::prelude::*;

    use super::*;
    use crate::{csr::KeyHash, records::Leaf};

    #[test]
    fn a_registration_that_moves_leaves_its_old_place() {
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let registration = |node: &str| {
            let selectors = ["uid:1".parse().unwrap()];
            let node = id(&format!("spiffe://td/node/c/{node}"));
            Registration::new("shop.web".parse().unwrap(), node, id("spiffe://td/ns/shop/sa/web"), selectors, None)
        };
        let mut known = Registrations::default();
        let of = |known: &Registrations, node: &str| {
            let key = (id(&format!("spiffe://td/node/c/{node}")), id("spiffe://td/ns/shop/sa/web"));
            known.by_identity.get(&key).map_or(0, BTreeSet::len)
        };
        known.apply("shop.web", Revision::new(1), Some(registration("a").unwrap()));
        assert_eq!((of(&known, "a"), of(&known, "b")), (1, 0));
        known.apply("shop.web", Revision::new(3), Some(registration("b").unwrap()));
        // Late.
        known.apply("shop.web", Revision::new(2), Some(registration("a").unwrap()));
        assert_eq!((of(&known, "a"), of(&known, "b")), (0, 1));
        let of_node =
            |known: &Registrations, node: &str| known.of_node(&id(&format!("spiffe://td/node/c/{node}"))).len();
        assert_eq!((of_node(&known, "a"), of_node(&known, "b")), (0, 1));
        known.apply("shop.web", Revision::new(4), None);
        known.apply("shop.web", Revision::new(3), Some(registration("b").unwrap()));
        assert!(known.by_identity.is_empty() && known.by_node.is_empty() && known.known.get("shop.web").is_none());
    }

    #[test]
    fn nobody_is_told_of_a_few_registrations_before_all_are_read() {
        let mirrors = Mirrors::default();
        let mut changes = mirrors.registered.subscribe();
        mirrors.note_deleted(family::REGISTRATIONS, "a", Revision::new(1));
        assert!(!changes.has_changed().unwrap());
        mirrors.replace_registrations(Vec::new(), Revision::new(2));
        assert!(changes.borrow_and_update().is_some());
        mirrors.note_deleted(family::REGISTRATIONS, "a", Revision::new(3));
        assert!(changes.has_changed().unwrap());
    }

    fn replicas(folder: &tempfile::TempDir) -> [Records; 2] {
        let store = Arc::new(SledStore::open(folder.path().join("store")).unwrap());
        ["00000000000000aa", "00000000000000bb"].map(|name| Records::new(store.clone(), name.parse().unwrap()))
    }

    #[tokio::test]
    async fn lineages_are_all_known_after_a_look_and_stay_when_the_next_one_fails() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = replicas(&folder);
        let name = |number: u32| format!("td/node/c/n{number}");
        let mut revisions = Vec::new();
        for number in 0..5 {
            let lineage = Lineage::begin(Leaf::sample(number, KeyHash::of(b"key")), Revision::new(1));
            revisions.push(one.put(family::NODES, &name(number), Expected::Absent, &lineage).await.unwrap());
        }
        let known = |records: &Records| (0..5).map(|n| records.known_lineage(&name(n)).is_some()).collect::<Vec<_>>();
        two.load_lineages_by(2).await.unwrap();
        assert_eq!(known(&two), [true; 5]);
        let lineage = two.known_lineage(&name(3)).unwrap();
        assert!(!lineage.record.latest.is_whole() && lineage.revision == revisions[3]);
        assert!(two.lineage(&name(3)).await.unwrap().unwrap().record.latest.is_whole());

        one.delete(family::NODES, &name(1), revisions[1]).await.unwrap();
        assert_eq!(known(&two), [true; 5], "nobody follows");
        two.load_lineages_by(2).await.unwrap();
        assert_eq!(known(&two), [true, false, true, true, true]);
        one.store().close().await;
        assert!(two.load_lineages_by(2).await.is_err() && two.follow_changes(family::NODES).await.is_err());
        assert_eq!(known(&two), [true, false, true, true, true]);
    }

    #[tokio::test]
    async fn who_looks_for_what_is_not_registered_shares_the_look() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = replicas(&folder);
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let (node, web) = (id("spiffe://td/node/c/n"), id("spiffe://td/ns/shop/sa/web"));
        // All have asked before the first of them looks.
        let looks = async || {
            let held = two.listing().turn.lock().await;
            let mut looks: Vec<_> = (0..50).map(|_| Box::pin(two.registered(&node, &web))).collect();
            for look in &mut looks {
                assert!(futures::poll!(look).is_pending());
            }
            drop(held);
            futures::future::join_all(looks).await
        };
        assert!(looks().await.into_iter().all(|found| found.unwrap().is_empty()));
        assert_eq!(two.listing().begun.load(Ordering::SeqCst), 1);
        // What another replica has just put in is found.
        let selectors = ["uid:1".parse().unwrap()];
        let registration =
            Registration::new("shop.web".parse().unwrap(), node.clone(), web.clone(), selectors, None).unwrap();
        one.put(family::REGISTRATIONS, "shop.web", Expected::Absent, &registration).await.unwrap();
        assert!(two.known_registered(&node, &web).is_empty());
        assert!(looks().await.into_iter().all(|found| found.unwrap().len() == 1));
        assert_eq!(two.listing().begun.load(Ordering::SeqCst), 2);
        assert_eq!(two.known_registrations(&node).len(), 1);
        one.store().close().await;
    }

    proptest! {
        /// In whatever order changes come, and however often, the latest of each name is what is known.
        #[test]
        fn the_latest_change_is_known(changes in proptest::collection::vec((0u8..4, 1u64..50, any::<bool>()), 1..60)) {
            let mut known = Known::default();
            // A revision is of one change.
            let change = |revision: u64| changes.iter().find(|(_, at, _)| *at == revision);
            for (_, revision, _) in &changes {
                let (name, _, put) = change(*revision).unwrap();
                let record = put.then(|| Arc::new(*revision));
                known.apply(&name.to_string(), Revision::new(*revision), record);
            }
            for name in 0u8..4 {
                let of = |at: &u64| change(*at).is_some_and(|(of, ..)| *of == name);
                let latest = changes.iter().map(|(_, at, _)| *at).filter(of).max();
                let expected = latest.and_then(change).filter(|(.., put)| *put).map(|(_, at, _)| *at);
                prop_assert_eq!(known.get(&name.to_string()).map(|(_, record)| *record), expected);
            }
        }
    }
}
