//! The store in the objects of a Kubernetes cluster: every value a Secret, every write a compare-and-swap of its
//! `resourceVersion`.
//!
//! ```text
//!  put_if     ──▶ POST, or GET and PUT with the version that was expected ──▶ the new version
//!  delete_if  ──▶ GET, PUT of a tombstone ──▶ its version is the deletion's; then DELETE of the tombstone
//!  page       ──▶ LIST by label, in parts of one version, sorted here
//!  watch      ──▶ WATCH by label with bookmarks; taken up again where it broke off; 410 Gone: Lagged
//! ```
//!
//! Revisions are resource versions, read as the numbers that they are where the API keeps its objects in etcd. The API
//! tells nobody the version of a deletion: hence the tombstone. Reads ask for the latest state, never for a cached one.
//! A write whose answer is lost is not made again: its error says that nobody knows.

mod object;
mod watching;

use std::{error::Error, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use thiserror::Error;
use tokio::time::timeout;

use self::{
    object::{Space, State},
    watching::Follower,
};
use crate::{
    Answer, Entry, Expected, Key, Listing, Prefix, Revision, Store, StoreError, Watch, WriteError, store::MAX_VALUE,
    tasks::Tasks,
};

/// Where in a cluster a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesStoreConfig {
    /// The namespace of its Secrets. Whoever may write Secrets there can write the store.
    pub namespace: String,
    /// Its name, which its objects' names begin with. Stores of different names know nothing of each other.
    pub name: String,
    /// Where the API is, as errors say it.
    pub server: String,
    /// How long an answer may take.
    pub deadline: Duration,
}

impl KubernetesStoreConfig {
    /// A configuration with the defaults.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, server: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), server: server.into(), deadline: DEADLINE }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self) -> Result<(), KubernetesStoreConfigError> {
        for (what, name, longest) in [("name", &self.name, LONGEST_NAME), ("namespace", &self.namespace, 63)] {
            if !is_label(name, longest) {
                return Err(KubernetesStoreConfigError::Name { what, name: name.clone(), longest });
            }
        }
        if !(SHORTEST..=LONGEST).contains(&self.deadline) {
            return Err(KubernetesStoreConfigError::Deadline(self.deadline));
        }
        Ok(())
    }
}

/// What in a configuration makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KubernetesStoreConfigError {
    /// Not a name.
    #[error("{what}: {name:?} is not a name for Kubernetes: lower-case letters, digits and hyphens, at most {longest}")]
    Name {
        /// Of what.
        what: &'static str,
        /// What was given.
        name: String,
        /// The most characters.
        longest: usize,
    },
    /// An answer within no time, or within an age.
    #[error("a deadline of {0:?} is outside of 100ms to 60s")]
    Deadline(Duration),
}

/// A [`Store`] in the Secrets of a namespace, shared by every process that has the same name.
///
/// For state of a few thousand records: a page of a family is read as a whole and sorted here. Dropping it, or closing
/// it, ends its watches.
#[derive(Debug)]
pub struct KubernetesStore {
    objects: Objects,
    tasks: Tasks,
}

impl KubernetesStore {
    /// Opens the store, and asks the API once, so that a missing permission is found here.
    ///
    /// The client must not repeat requests by itself (`default_retry` off): a creation that is made twice looks like
    /// somebody else's.
    ///
    /// # Errors
    /// When the configuration makes no sense, or the API does not answer.
    pub async fn open(client: Client, config: KubernetesStoreConfig) -> Result<Self, OpenKubernetesError> {
        config.check()?;
        let api = Api::namespaced(client, &config.namespace);
        let space = Space { namespace: config.namespace, store: config.name };
        let objects = Objects { api, space, server: config.server.into(), deadline: config.deadline };
        let store = Self { objects, tasks: Tasks::new() };
        let first = ListParams::default().labels(&store.objects.space.selector(&Prefix::all())).limit(1);
        store.objects.ask("read", store.objects.api.list(&first)).await?;
        Ok(store)
    }

    async fn read(&self, key: &Key) -> Result<Option<State>, StoreError> {
        self.tasks.are_open()?;
        let found = self.objects.ask("read", self.objects.api.get_opt(&self.objects.space.name(key))).await?;
        let state = found.map(|object| self.objects.space.read(&object)).transpose()?;
        // Another key of the same digest would not be this one.
        let this = |state: &State| match state {
            State::Live(entry) => entry.key() == key,
            State::Deleted { key: found, .. } => found == key,
        };
        match state {
            Some(state) if !this(&state) => {
                Err(StoreError::Foreign { place: format!("the Secret {}", self.objects.space.name(key)) })
            }
            state => Ok(state),
        }
    }

    /// Puts where nothing is.
    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision, WriteError> {
        self.tasks.are_open()?;
        loop {
            let fresh = self.objects.space.put(key, value.clone(), None);
            match self.objects.write(self.objects.api.create(&PostParams::default(), &fresh)).await? {
                Written::At(revision) => return Ok(revision),
                Written::Missed => {}
            }
            match self.read(key).await? {
                // It went away meanwhile: once more.
                None => {}
                Some(State::Live(entry)) => {
                    return Err(WriteError::Conflict { key: key.clone(), found: Some(entry.revision()) });
                }
                Some(State::Deleted { revision, .. }) => {
                    let over = self.objects.space.put(key, value.clone(), Some(revision));
                    if let Written::At(revision) = self.replace(key, &over).await? {
                        return Ok(revision);
                    }
                }
            }
        }
    }

    /// Puts `object` where the value of `expected` is.
    async fn swap(&self, key: &Key, expected: Revision, object: &Secret) -> Result<Revision, WriteError> {
        let found = self.read(key).await?.and_then(State::live).map(|entry| entry.revision());
        if found != Some(expected) {
            return Err(WriteError::Conflict { key: key.clone(), found });
        }
        match self.replace(key, object).await? {
            Written::At(revision) => Ok(revision),
            Written::Missed => {
                let found = self.read(key).await?.and_then(State::live).map(|entry| entry.revision());
                Err(WriteError::Conflict { key: key.clone(), found })
            }
        }
    }

    async fn replace(&self, key: &Key, object: &Secret) -> Result<Written, StoreError> {
        let name = self.objects.space.name(key);
        self.objects.write(self.objects.api.replace(&name, &PostParams::default(), object)).await
    }

    async fn delete(&self, key: &Key, expected: Revision) -> Result<Revision, WriteError> {
        let deleted = self.swap(key, expected, &self.objects.space.delete(key, expected)).await?;
        self.objects.sweep(key, deleted).await;
        Ok(deleted)
    }

    async fn read_page(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        self.tasks.are_open()?;
        let (mut entries, left, revision) = loop {
            match self.list_all(prefix).await {
                // The moment of the first part was forgotten before the last was read: begin again.
                Err(StoreError::Remote { source, .. }) if code(&*source) == Some(410) => {}
                outcome => break outcome?,
            }
        };
        if !left.is_empty() {
            // Whoever deleted them ended, or was not heard, before it had swept.
            let objects = self.objects.clone();
            self.tasks.spawn(async move {
                for (key, deleted) in left.into_iter().take(SWEEP) {
                    objects.sweep(&key, deleted).await;
                }
            })?;
        }
        entries.retain(|entry| prefix.contains(entry.key()) && after.is_none_or(|after| entry.key() > after));
        entries.sort_by(|one, other| one.key().cmp(other.key()));
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Listing { entries, revision, more })
    }

    /// The values, what is left of deleted ones, and the moment.
    async fn list_all(&self, prefix: &Prefix) -> Result<(Vec<Entry>, Vec<(Key, Revision)>, Revision), StoreError> {
        let mut parameters = ListParams::default().labels(&self.objects.space.selector(prefix)).limit(PART);
        let (mut entries, mut left, mut at) = (Vec::new(), Vec::new(), None);
        loop {
            let part = self.objects.ask("list", self.objects.api.list(&parameters)).await?;
            let version = part.metadata.resource_version.as_deref();
            let version = object::revision(version).ok_or_else(|| self.objects.not_a_number("list", version))?;
            let revision = *at.get_or_insert(version);
            for object in &part.items {
                match self.objects.space.read(object)? {
                    State::Live(entry) => entries.push(entry),
                    State::Deleted { key, revision } => left.push((key, revision)),
                }
            }
            match part.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok((entries, left, revision)),
            }
        }
    }
}

impl Store for KubernetesStore {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.read(key).await?.and_then(State::live)) })
    }

    fn put_if<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected,
        value: Vec<u8>,
    ) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(async move {
            if value.len() > MAX_VALUE {
                return Err(WriteError::TooLarge { key: key.clone(), size: value.len() });
            }
            match expected {
                Expected::Absent => self.create(key, value).await,
                Expected::At(expected) => {
                    self.swap(key, expected, &self.objects.space.put(key, value, Some(expected))).await
                }
            }
        })
    }

    fn delete_if<'a>(&'a self, key: &'a Key, expected: Revision) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.delete(key, expected))
    }

    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>> {
        Box::pin(self.read_page(prefix, after, limit))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>> {
        Box::pin(async move {
            self.tasks.are_open()?;
            let (feed, watch) = Watch::channel(prefix.clone(), WATCH_CAPACITY);
            let follower = Follower { objects: self.objects.clone(), prefix: prefix.clone(), seen: after, feed };
            if let Some(changes) = follower.begin().await? {
                self.tasks.spawn(follower.run(changes))?;
            }
            Ok(watch)
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(self.tasks.close())
    }
}

/// The API, and what of it is ours.
#[derive(Clone, Debug)]
struct Objects {
    api: Api<Secret>,
    space: Space,
    server: Arc<str>,
    deadline: Duration,
}

/// What became of a write that expects a state.
enum Written {
    /// It was made.
    At(Revision),
    /// The state was another.
    Missed,
}

impl Objects {
    /// Waits for an answer until the deadline.
    async fn ask<T>(
        &self,
        doing: &'static str,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, StoreError> {
        match timeout(self.deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                Err(StoreError::Remote { doing, server: self.server.to_string(), source: Arc::new(error) })
            }
            Err(_elapsed) => Err(StoreError::Silent { doing, server: self.server.to_string(), after: self.deadline }),
        }
    }

    async fn write(&self, answer: impl Future<Output = Result<Secret, kube::Error>>) -> Result<Written, StoreError> {
        match self.ask("write", answer).await {
            Ok(object) => {
                let version = object.metadata.resource_version.as_deref();
                object::revision(version).map(Written::At).ok_or_else(|| self.not_a_number("write", version))
            }
            Err(error) if is_missed(&error) => Ok(Written::Missed),
            Err(error) => Err(error),
        }
    }

    /// Removes what is left of a deleted value, if it is that still. It is in nobody's way: the next creation takes its place.
    async fn sweep(&self, key: &Key, deleted: Revision) {
        let version = Some(deleted.to_string());
        let only_this = DeleteParams {
            preconditions: Some(Preconditions { resource_version: version, uid: None }),
            ..DeleteParams::default()
        };
        if let Err(error) = self.ask("sweep", self.api.delete(&self.space.name(key), &only_this)).await
            && !is_missed(&error)
        {
            tracing::debug!(target: "alcazar::store", reason = %crate::error::chain(&error), "a deleted record was not swept away");
        }
    }

    fn not_a_number(&self, doing: &'static str, version: Option<&str>) -> StoreError {
        let error = NotANumber(version.unwrap_or_default().to_owned());
        StoreError::Remote { doing, server: self.server.to_string(), source: Arc::new(error) }
    }
}

/// An API that does not keep its objects in etcd.
#[derive(Debug, Error)]
#[error("its resource version {0:?} is not a number; the store needs an API that keeps its objects in etcd")]
struct NotANumber(String);

/// Why the store did not open.
#[derive(Debug, Error)]
pub enum OpenKubernetesError {
    /// The configuration makes no sense.
    #[error("the store in Kubernetes is not set up rightly")]
    Config(#[from] KubernetesStoreConfigError),
    /// The API does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a write was refused because the object is not in the state that it expected. A namespace that is missing is not that.
fn is_missed(error: &StoreError) -> bool {
    let StoreError::Remote { source, .. } = error else { return false };
    match source.downcast_ref() {
        Some(kube::Error::Api(status)) => match status.code {
            409 => matches!(status.reason.as_str(), "AlreadyExists" | "Conflict"),
            404 => status.details.as_ref().is_some_and(|details| details.kind == "secrets"),
            _ => false,
        },
        _ => false,
    }
}

/// Whether an error says that the API did not answer, and not that it refused.
pub(crate) fn is_away(error: &crate::RemoteError) -> bool {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => status.code >= 500 || status.code == 429,
        Some(kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_)) => true,
        _ => false,
    }
}

fn code(error: &(dyn Error + Send + Sync + 'static)) -> Option<u16> {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn is_label(text: &str, longest: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=longest).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

const DEADLINE: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// What is left of so many deletions is swept away at a time.
const SWEEP: usize = 32;
const LONGEST_NAME: usize = 40;
/// Objects in one answer.
const PART: u32 = 500;
/// Unread events a watcher may have.
const WATCH_CAPACITY: usize = 1024;
