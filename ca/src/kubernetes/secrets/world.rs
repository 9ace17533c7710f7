//! What the controller has seen of the cluster: namespaces that opted in, accounts, and the Secrets that are ours.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::{ResourceExt, core::PartialObjectMeta, runtime::watcher::Event};

use super::{
    object::{self, Held},
    reconcile::{self, Account},
};

/// An account, by namespace and name.
pub(super) type Place = (String, String);

/// A change that was seen.
pub(super) enum Change {
    Namespace(Event<PartialObjectMeta<Namespace>>),
    Account(Event<PartialObjectMeta<ServiceAccount>>),
    Secret(Event<Secret>),
}

/// The cluster as far as it concerns the controller.
#[derive(Default)]
pub(super) struct World {
    namespaces: Mirror<String, ()>,
    accounts: Mirror<Place, Account>,
    secrets: Mirror<Place, Held>,
}

impl World {
    /// Takes a change in; the accounts to look at.
    pub(super) fn take(&mut self, change: Change) -> BTreeSet<Place> {
        match change {
            Change::Namespace(event) => {
                let changed = self.namespaces.take(event, |namespace| {
                    let name = namespace.name_any();
                    let value = reconcile::opted_in(namespace.labels()).then_some(());
                    Some((name, value))
                });
                let of_these = |place: &&Place| changed.contains(&place.0);
                self.accounts.all.keys().chain(self.secrets.all.keys()).filter(of_these).cloned().collect()
            }
            Change::Account(event) => self.accounts.take(event, |account| {
                let place = (account.namespace().unwrap_or_default(), account.name_any());
                let ends = account.metadata.deletion_timestamp.is_some();
                let (namespace, name) = place.clone();
                let account = Account { namespace, name, uid: account.uid().unwrap_or_default() };
                Some((place, (!ends).then_some(account)))
            }),
            Change::Secret(event) => self.secrets.take(event, |secret| {
                let name = secret.name_any();
                let place = (secret.namespace().unwrap_or_default(), object::account(&name)?.to_owned());
                Some((place, Some(Held::read(secret))))
            }),
        }
    }

    /// Whether everything was listed once. Before that nothing is missing for sure, and nothing superfluous.
    pub(super) fn is_whole(&self) -> bool {
        self.namespaces.is_whole && self.accounts.is_whole && self.secrets.is_whole
    }

    pub(super) fn everybody(&self) -> BTreeSet<Place> {
        self.accounts.all.keys().chain(self.secrets.all.keys()).cloned().collect()
    }

    pub(super) fn opted_in(&self, place: &Place) -> bool {
        self.namespaces.all.contains_key(&place.0)
    }

    pub(super) fn account(&self, place: &Place) -> Option<&Account> {
        self.accounts.all.get(place)
    }

    pub(super) fn secret(&self, place: &Place) -> Option<&Held> {
        self.secrets.all.get(place)
    }
}

/// Objects of one kind, kept up by a watch.
struct Mirror<K, V> {
    all: BTreeMap<K, V>,
    /// What a new listing has brought so far.
    fresh: BTreeMap<K, V>,
    is_whole: bool,
}

impl<K, V> Default for Mirror<K, V> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), fresh: BTreeMap::new(), is_whole: false }
    }
}

impl<K: Ord + Clone, V: PartialEq> Mirror<K, V> {
    /// Takes an event in; the keys that changed by it. `read` gives the key, and the value where there is one to keep.
    fn take<T>(&mut self, event: Event<T>, read: impl Fn(T) -> Option<(K, Option<V>)>) -> BTreeSet<K> {
        match event {
            Event::Init => self.fresh.clear(),
            Event::InitApply(object) => {
                if let Some((key, Some(value))) = read(object) {
                    self.fresh.insert(key, value);
                }
            }
            Event::InitDone => {
                let old = std::mem::replace(&mut self.all, std::mem::take(&mut self.fresh));
                self.is_whole = true;
                let changed = |key: &&K| old.get(*key) != self.all.get(*key);
                return self.all.keys().chain(old.keys()).filter(changed).cloned().collect();
            }
            Event::Apply(object) => {
                if let Some((key, value)) = read(object) {
                    match value {
                        Some(value) => drop(self.all.insert(key.clone(), value)),
                        None => drop(self.all.remove(&key)),
                    }
                    return BTreeSet::from([key]);
                }
            }
            Event::Delete(object) => {
                if let Some((key, _)) = read(object) {
                    self.all.remove(&key);
                    return BTreeSet::from([key]);
                }
            }
        }
        BTreeSet::new()
    }
}
