//! A store that is known to be away is not waited for.
//!
//! ```text
//!           an answer                 a call fails because the store is away
//!   up ◀───────────────── doubted ◀───────────────────────────────────────── up
//!    ▲                       │ a look of our own fails too, or takes a second
//!    └───── a look succeeds ─┴▶ away: whoever waits is answered, whoever asks is answered at once
//! ```
//!
//! One failure alone changes nothing: a member that goes down is not the store. Nobody pays a deadline for what the call
//! before has found out, and what comes back is found by one task, however many ask.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    Answer, Entry, Expected, Key, Listing, ParseKeyError, Prefix, Revision, Store, StoreError, Watch, WriteError,
    tasks::Tasks,
};

/// A [`Store`] that answers at once while the store behind it does not: with [`StoreError::Away`].
pub struct Sentinel {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    inner: Arc<dyn Store>,
    state: watch::Sender<State>,
    /// What is looked for to see whether there is an answer. Nobody writes it.
    look: Key,
}

#[derive(Clone, Debug)]
enum State {
    Up,
    /// A call has failed, and a look is under way.
    Doubted,
    Away(StoreError),
}

impl Sentinel {
    /// Watches over `inner`.
    ///
    /// # Errors
    /// Never: the key that is looked for is a constant.
    pub fn new(inner: Arc<dyn Store>) -> Result<Self, ParseKeyError> {
        let shared = Shared { inner, state: watch::Sender::new(State::Up), look: LOOK.parse()? };
        Ok(Self { shared: Arc::new(shared), tasks: Tasks::new() })
    }

    async fn ask<T, E>(&self, call: Answer<'_, Result<T, E>>) -> Result<T, E>
    where
        E: From<StoreError> + OfTheStore,
    {
        let mut state = self.shared.state.subscribe();
        if let State::Away(error) = &*state.borrow_and_update() {
            return Err(error.clone().into());
        }
        let away = async {
            let found = match state.wait_for(|state| matches!(state, State::Away(_))).await.as_deref() {
                Ok(State::Away(error)) => Some(error.clone()),
                _ => None,
            };
            match found {
                Some(error) => error,
                // The sender is ours.
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = call => outcome,
            // Whether a write was made is as unknown as after a deadline.
            error = away => Err(error.into()),
        };
        if let Err(error) = &outcome
            && let Some(error) = error.of_the_store().filter(|error| error.is_away())
        {
            self.doubt(error);
        }
        outcome
    }

    fn doubt(&self, error: &StoreError) {
        let first = self.shared.state.send_if_modified(|state| {
            let first = matches!(state, State::Up);
            if first {
                *state = State::Doubted;
            }
            first
        });
        // A store that is closed answers nobody any more.
        if first && self.tasks.spawn(self.shared.clone().look(error.clone())).is_err() {
            self.shared.state.send_replace(State::Up);
        }
    }
}

impl Shared {
    /// Looks until there is an answer.
    async fn look(self: Arc<Self>, mut error: StoreError) {
        let (since, mut pause) = (Instant::now(), PAUSE);
        loop {
            let mut look = self.inner.get(&self.look);
            let outcome = match timeout(PATIENCE, &mut look).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => {
                    self.away(&error);
                    look.await
                }
            };
            match outcome {
                Err(again) if again.is_away() => error = again,
                // Whatever it says, it is there.
                _ => break,
            }
            self.away(&error);
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if let State::Away(_) = self.state.send_replace(State::Up) {
            tracing::info!(target: "alcazar::store", seconds = since.elapsed().as_secs(), "the store answers again");
        }
    }

    fn away(&self, error: &StoreError) {
        let found = self.state.send_if_modified(|state| {
            let found = !matches!(state, State::Away(_));
            if found {
                *state = State::Away(StoreError::Away { source: Arc::new(error.clone()) });
            }
            found
        });
        if found {
            tracing::error!(target: "alcazar::store", reason = %crate::error::chain(error), "the store is away; nobody waits for it until it answers again");
        }
    }
}

/// What of an error is the store's.
trait OfTheStore {
    fn of_the_store(&self) -> Option<&StoreError>;
}

impl OfTheStore for StoreError {
    fn of_the_store(&self) -> Option<&StoreError> {
        Some(self)
    }
}

impl OfTheStore for WriteError {
    fn of_the_store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl Store for Sentinel {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(self.ask(self.shared.inner.get(key)))
    }

    fn put_if<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected,
        value: Vec<u8>,
    ) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.ask(self.shared.inner.put_if(key, expected, value)))
    }

    fn delete_if<'a>(&'a self, key: &'a Key, expected: Revision) -> Answer<'a, Result<Revision, WriteError>> {
        Box::pin(self.ask(self.shared.inner.delete_if(key, expected)))
    }

    fn page<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> Answer<'a, Result<Listing, StoreError>> {
        Box::pin(self.ask(self.shared.inner.page(prefix, after, limit)))
    }

    fn watch<'a>(&'a self, prefix: &'a Prefix, after: Revision) -> Answer<'a, Result<Watch, StoreError>> {
        Box::pin(self.ask(self.shared.inner.watch(prefix, after)))
    }

    fn stopped(&self) -> Answer<'_, StoreError> {
        self.shared.inner.stopped()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            self.tasks.close().await;
            self.shared.state.send_replace(State::Up);
            self.shared.inner.close().await;
        })
    }
}

impl fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinel").field("state", &*self.shared.state.borrow()).finish_non_exhaustive()
    }
}

const LOOK: &str = "sentinel/look";
/// A look that takes longer says that the store is away, and goes on.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
#[cfg(feature = "etcd")]
mod tests;
