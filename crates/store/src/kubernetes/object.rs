//! How a record stands in a Kubernetes object, both ways; pure.
//!
//! ```text
//! Secret <store>.<sha-256 of the key>      type alcazar.dev/record
//!   labels       alcazar.dev/store: <store>;  alcazar.dev/under-<n>: the digest of the key's first n segments
//!   annotations  alcazar.dev/key: <the key>;  alcazar.dev/deleted: <revision>, on what is left of a deleted one
//!   data         record: versioned, checksummed, bound to its key; with the revision that it replaced
//! ```
//!
//! The revision inside makes every write a change: Kubernetes gives an update that changes nothing no new version.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use ring::digest;

use crate::{Entry, Key, Prefix, Revision, StoreError, record};

const STORE: &str = "alcazar.dev/store";
const KEY: &str = "alcazar.dev/key";
const DELETED: &str = "alcazar.dev/deleted";
const UNDER: &str = "alcazar.dev/under-";
const TYPE: &str = "alcazar.dev/record";
const RECORD: &str = "record";
/// So many levels of a key can be selected by; what lies deeper is sifted here.
const LEVELS: usize = 8;

/// What an object says of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A value.
    Live(Entry),
    /// What is left of a deleted value until it is swept away; its revision is that of the deletion.
    Deleted {
        /// The key.
        key: Key,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl State {
    /// The value, when there is one.
    pub(super) fn live(self) -> Option<Entry> {
        match self {
            Self::Live(entry) => Some(entry),
            Self::Deleted { .. } => None,
        }
    }
}

/// The objects of one store in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) namespace: String,
    pub(super) store: String,
}

impl Space {
    /// The name of a key's object. Of two keys with one name the second is refused, so a collision would be noticed.
    pub(super) fn name(&self, key: &Key) -> String {
        format!("{}.{}", self.store, hex(key.as_str(), 32))
    }

    /// Selects what may lie under `prefix`, and all of it.
    pub(super) fn selector(&self, prefix: &Prefix) -> String {
        let store = format!("{STORE}={}", self.store);
        match ancestors(prefix.as_str()).last() {
            Some((level, digest)) => format!("{store},{UNDER}{level}={digest}"),
            None => store,
        }
    }

    /// The object that holds `value` instead of what was there at `before`.
    pub(super) fn put(&self, key: &Key, value: Vec<u8>, before: Option<Revision>) -> Secret {
        let bytes = record::encode(&Entry::new(key.clone(), value, before.unwrap_or_default()));
        let data = BTreeMap::from([(RECORD.to_owned(), ByteString(bytes))]);
        Secret { data: Some(data), ..self.object(key, before) }
    }

    /// What is left of the value that was there at `before`.
    pub(super) fn delete(&self, key: &Key, before: Revision) -> Secret {
        let mut object = self.object(key, Some(before));
        object.metadata.annotations.get_or_insert_default().insert(DELETED.into(), before.to_string());
        object
    }

    fn object(&self, key: &Key, before: Option<Revision>) -> Secret {
        let mut labels = BTreeMap::from([(STORE.to_owned(), self.store.clone())]);
        labels.extend(ancestors(key.as_str()).map(|(level, digest)| (format!("{UNDER}{level}"), digest)));
        let metadata = ObjectMeta {
            name: Some(self.name(key)),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(KEY.to_owned(), key.to_string())])),
            resource_version: before.map(|revision| revision.to_string()),
            ..ObjectMeta::default()
        };
        Secret { metadata, type_: Some(TYPE.into()), ..Secret::default() }
    }

    /// Reads an object.
    pub(super) fn read(&self, object: &Secret) -> Result<State, StoreError> {
        let metadata = &object.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let place = || format!("the Secret {}/{name}", self.namespace);
        let foreign = || StoreError::Foreign { place: place() };
        let annotation = |name: &str| metadata.annotations.as_ref().and_then(|annotations| annotations.get(name));
        let key: Key = annotation(KEY).and_then(|key| key.parse().ok()).ok_or_else(foreign)?;
        if self.name(&key) != name {
            return Err(foreign());
        }
        let revision = revision(metadata.resource_version.as_deref()).ok_or_else(foreign)?;
        let stored = object.data.as_ref().and_then(|data| data.get(RECORD));
        match (stored, annotation(DELETED)) {
            (Some(bytes), None) => {
                let entry =
                    record::decode(&key, &bytes.0).map_err(|source| StoreError::Record { place: place(), source })?;
                Ok(State::Live(Entry::new(key, entry.value(), revision)))
            }
            (None, Some(_)) => Ok(State::Deleted { key, revision }),
            _ => Err(foreign()),
        }
    }
}

/// A resource version as a number, which it is in every cluster whose API keeps its objects in etcd.
pub(super) fn revision(version: Option<&str>) -> Option<Revision> {
    version?.parse().ok().filter(|number| *number > 0).map(Revision::new)
}

/// The prefixes that `path` lies under (or is), each with how many segments it has.
fn ancestors(path: &str) -> impl Iterator<Item = (usize, String)> {
    path.match_indices('/').take(LEVELS).enumerate().filter_map(move |(level, (at, _))| {
        let prefix = path.get(..=at)?;
        Some((level + 1, hex(prefix, 16)))
    })
}

/// The first bytes of the SHA-256 of a text, in hexadecimal.
fn hex(text: &str, bytes: usize) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> Space {
        Space { namespace: "ns".into(), store: "alcazar".into() }
    }

    fn at(mut object: Secret, version: &str) -> Secret {
        object.metadata.resource_version = Some(version.into());
        object
    }

    fn selects(selector: &str, object: &Secret) -> bool {
        let labels = object.metadata.labels.as_ref().unwrap();
        selector.split(',').all(|term| {
            let (name, value) = term.split_once('=').unwrap();
            labels.get(name).is_some_and(|found| found == value)
        })
    }

    proptest! {
        #[test]
        fn an_object_reads_back(path in "[a-zäö.:_-]{1,20}(/[a-z0-9]{1,9}){0,12}", value in proptest::collection::vec(any::<u8>(), 0..99)) {
            let key: Key = path.parse().unwrap();
            let object = at(space().put(&key, value.clone(), Some(Revision::new(6))), "7");
            prop_assert_eq!(space().read(&object).unwrap(), State::Live(Entry::new(key.clone(), value, Revision::new(7))));
            let gone = at(space().delete(&key, Revision::new(7)), "8");
            prop_assert_eq!(space().read(&gone).unwrap(), State::Deleted { key: key.clone(), revision: Revision::new(8) });
            // Whatever lies under a prefix is selected by it.
            for (slash, _) in path.match_indices('/') {
                let prefix: Prefix = path[..slash].parse().unwrap();
                prop_assert!(selects(&space().selector(&prefix), &object));
            }
            prop_assert!(selects(&space().selector(&Prefix::all()), &object));
        }
    }

    #[test]
    fn names_and_labels_are_such_that_kubernetes_takes_them() {
        let longest: Key = "ä/".repeat(1365).trim_end_matches('/').parse().unwrap();
        let object = space().put(&longest, vec![], None);
        let name = object.metadata.name.unwrap();
        assert!(name.len() <= 253 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.'));
        let labels = object.metadata.labels.unwrap();
        assert!(labels.len() == LEVELS + 1 && labels.values().all(|value| value.len() <= 63));
    }

    #[test]
    fn a_prefix_selects_whole_segments_only() {
        let object = space().put(&"nodes-old/a".parse().unwrap(), vec![], None);
        assert!(!selects(&space().selector(&"nodes".parse().unwrap()), &object));
    }

    #[test]
    fn what_was_altered_or_is_strange_is_refused() {
        let key: Key = "a/b".parse().unwrap();
        let good = || at(space().put(&key, vec![1, 2, 3], None), "7");
        let check = |object: Secret| space().read(&object).unwrap_err();
        let mut flipped = good();
        flipped.data.as_mut().unwrap().get_mut(RECORD).unwrap().0[9] ^= 1;
        assert!(matches!(check(flipped), StoreError::Record { .. }));
        let mut renamed = good();
        renamed.metadata.annotations.as_mut().unwrap().insert(KEY.into(), "a/c".into());
        assert!(matches!(check(renamed), StoreError::Foreign { .. }));
        for version in ["", "0", "-1", "seven"] {
            assert!(matches!(check(at(good(), version)), StoreError::Foreign { .. }), "{version}");
        }
        let emptied = Secret { data: None, ..good() };
        assert!(matches!(check(emptied), StoreError::Foreign { .. }));
        assert!(matches!(check(Secret::default()), StoreError::Foreign { .. }));
    }
}
