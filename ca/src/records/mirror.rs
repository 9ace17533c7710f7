//! What every issuance asks, in memory: registrations and lineages.
//!
//! ```text
//!  put, delete of this CA ──▶ store ─ acknowledged ─▶ Mirrors ◀─ watch ── changes of other replicas
//!                                                        │
//!                              an issuance asks ─────────┘   (what it does not know, the store is asked)
//! ```
//!
//! - A change that this CA has acknowledged is in the mirror before anybody hears of it; of two that meet, the later revision
//!   stays. A change of another replica is here as soon as the watch brings it.
//! - While nobody follows the store (a CA that is open and does not run, a store that is gone), what is there still serves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use alcazar_identity::SpiffeId;
use alcazar_store::{Entry, Event, Revision, WatchError};

use super::{Lineage, RecordError, Records, Registration, Stored, family, prefix, read};

/// The families that are kept in memory.
#[derive(Default)]
pub(crate) struct Mirrors {
    registrations: RwLock<Registrations>,
    lineages: RwLock<Known<Lineage>>,
}

#[derive(Default)]
struct Registrations {
    known: Known<Registration>,
    /// Whose names are registered for a node and an identity.
    by_identity: HashMap<(SpiffeId, SpiffeId), BTreeSet<String>>,
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
        let record = record.map(Arc::new);
        let Some(before) = self.known.apply(name, revision, record.clone()) else { return };
        if let Some(before) = before {
            let key = (before.node().clone(), before.spiffe_id().clone());
            if let Some(names) = self.by_identity.get_mut(&key) {
                names.remove(name);
                if names.is_empty() {
                    self.by_identity.remove(&key);
                }
            }
        }
        if let Some(record) = record {
            let key = (record.node().clone(), record.spiffe_id().clone());
            self.by_identity.entry(key).or_default().insert(name.into());
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
            }
            family::NODES => {
                let record = read::<Lineage>(entry)?.record;
                write(&self.lineages).apply(name, revision, Some(Arc::new(record)));
            }
            _ => {}
        }
        Ok(())
    }

    /// A record that is gone.
    pub(super) fn note_deleted(&self, family: &str, name: &str, revision: Revision) {
        match family {
            family::REGISTRATIONS => write(&self.registrations).apply(name, revision, None),
            family::NODES => drop(write(&self.lineages).apply(name, revision, None)),
            _ => {}
        }
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

    /// The registrations that give the identity to the node.
    pub(crate) async fn registered(
        &self,
        node: &SpiffeId,
        id: &SpiffeId,
    ) -> Result<Vec<Arc<Registration>>, RecordError> {
        let key = (node.clone(), id.clone());
        let known = || {
            let registrations = lock(&self.mirrors().registrations);
            let names = registrations.by_identity.get(&key).into_iter().flatten();
            names.filter_map(|name| registrations.known.get(name).map(|(_, known)| known)).collect::<Vec<_>>()
        };
        let found = known();
        if !found.is_empty() {
            return Ok(found);
        }
        // One at a time: who asks for what is not registered makes no load.
        let _turn = self.listing().lock().await;
        self.load_registrations().await?;
        Ok(known())
    }

    /// The lineage of the node with this principal, which may be older than what another replica has just made of it.
    pub(crate) fn known_lineage(&self, principal: &str) -> Option<Stored<Lineage>> {
        let (revision, lineage) = lock(&self.mirrors().lineages).get(principal)?;
        Some(Stored { record: (*lineage).clone(), revision })
    }

    /// The lineage of the node with this principal, as the store has it.
    pub(crate) async fn lineage(&self, principal: &str) -> Result<Option<Stored<Lineage>>, RecordError> {
        let found = self.get::<Lineage>(family::NODES, principal).await?;
        if let Some(Stored { record, revision }) = &found {
            write(&self.mirrors().lineages).apply(principal, *revision, Some(Arc::new(record.clone())));
        }
        Ok(found)
    }

    /// Reads all registrations into memory.
    pub(crate) async fn load_registrations(&self) -> Result<Revision, RecordError> {
        let (listed, revision) = self.list::<Registration>(family::REGISTRATIONS).await?;
        self.mirrors().replace_registrations(listed, revision);
        Ok(revision)
    }

    /// Follows what other replicas change, until the store ends.
    pub(crate) async fn follow_changes(&self, family: &str) -> Result<(), RecordError> {
        let prefix = prefix(family)?;
        loop {
            let from = match family {
                family::REGISTRATIONS => self.load_registrations().await?,
                _ => {
                    let from = self.store().page(&prefix, None, 1).await?.revision;
                    // What was missed is not known: each lineage is read again when it is asked for.
                    write(&self.mirrors().lineages).by_name.clear();
                    from
                }
            };
            let mut watch = self.store().watch(&prefix, from).await?;
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

fn lock<T>(of: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    of.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(of: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    of.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        known.apply("shop.web", Revision::new(4), None);
        known.apply("shop.web", Revision::new(3), Some(registration("b").unwrap()));
        assert!(known.by_identity.is_empty() && known.known.get("shop.web").is_none());
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
