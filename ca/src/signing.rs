//! Signatures by keys that are outside of this process: some at a time, within a while, and whether they come at all.
//!
//! ```text
//!  who issues ──▶ a place ──▶ a thread that may wait ──▶ token
//!                   │ too long                              │ failed, or answers again
//!                   └──▶ told to come back                  └──▶ trouble ──▶ readiness; a trial at each look
//! ```
//!
//! A token that hangs holds the threads of its places, and no others: everything else that waits for a disk goes on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use alcazar_service::process;
use thiserror::Error;
use tokio::{
    sync::{Notify, Semaphore},
    task, time,
};

use crate::{ca::Ca, signer::SignError};

/// The signatures that are waited for.
pub(crate) struct Signing {
    places: Arc<Semaphore>,
    /// Why the last one did not come.
    trouble: Mutex<Option<String>>,
    changed: Notify,
}

impl Signing {
    pub(crate) fn new() -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        Self { places, trouble: Mutex::default(), changed: Notify::new() }
    }

    /// Does what may wait for a token, where a thread may wait.
    ///
    /// # Errors
    /// When the token keeps it waiting for longer than anybody waits.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SignError> {
        let failed = |source| SignError(Box::new(source));
        let done = async {
            // Nobody closes the semaphore.
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_closed| failed(NoSignature::Ended))?;
            // Whoever waits may go; the thread keeps its place for as long as the token keeps the thread.
            let acting = task::spawn_blocking(move || {
                let _place = place;
                act()
            });
            acting.await.map_err(|_ending| failed(NoSignature::Ended))
        };
        time::timeout(PATIENCE, done).await.map_err(|_late| failed(NoSignature::Late))?
    }

    /// Takes down whether a signature of the intermediate came.
    pub(crate) fn note(&self, outcome: Result<(), &SignError>) {
        let trouble = outcome.err().map(|error| process::chain(error));
        let mut held = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() != trouble.is_some() {
            self.changed.notify_one();
        }
        *held = trouble;
    }

    /// Returns when signatures have begun to fail since the last time, or to come.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Ca {
    /// Why the intermediate's key does not sign. One outside of this process is tried: nobody may have asked for a while, and
    /// nobody asks a replica that is not ready.
    pub(crate) async fn signing_trouble(&self) -> Option<String> {
        let hierarchy = self.hierarchy();
        if !hierarchy.intermediate().signer().is_remote() {
            return None;
        }
        let tried = self.0.signing.with(move || hierarchy.intermediate().signer().sign(TRIAL)).await;
        self.0.signing.note(tried.and_then(|signed| signed).as_ref().map(drop));
        self.0.signing.trouble()
    }
}

/// Why there is no signature.
#[derive(Debug, Error)]
enum NoSignature {
    #[error("the holder of the key did not answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("signing was interrupted")]
    Ended,
}

/// Most tokens work on fewer at a time. The process has several hundred threads that may wait.
const PLACES: usize = 64;
/// Shorter than anybody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// No certificate, token or list begins like that.
const TRIAL: &[u8] = b"alcazar: a trial, which says nothing";

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_that_hangs_holds_its_places_and_nobody_waits_for_ever() {
        let signing = Signing::new();
        assert_eq!(signing.with(|| 7).await.unwrap(), 7);
        let (hang, hung) = mpsc::channel::<()>();
        let hung = Arc::new(Mutex::new(hung));
        let calls = (0..PLACES * 2).map(|_| {
            let hung = hung.clone();
            signing.with(move || hung.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok())
        });
        // Nothing else lets time pass while a thread waits.
        let (outcomes, ()) = tokio::join!(futures::future::join_all(calls), time::advance(PATIENCE * 2));
        for outcome in outcomes {
            assert!(process::chain(&outcome.unwrap_err()).contains("did not answer within 20 s"));
        }
        assert_eq!(signing.places.available_permits(), 0, "the threads wait still");
        // Other work that blocks is not held up by it.
        assert_eq!(task::spawn_blocking(|| 8).await.unwrap(), 8);
        drop(hang);
        assert_eq!(signing.with(|| 9).await.unwrap(), 9);
    }

    #[tokio::test]
    async fn who_watches_hears_when_signatures_fail_and_when_they_come_again() {
        let signing = Signing::new();
        let error = SignError(Box::new(NoSignature::Late));
        signing.note(Ok(()));
        signing.note(Err(&error));
        signing.changed().await;
        assert!(signing.trouble().is_some_and(|trouble| trouble.contains("did not answer")));
        signing.note(Err(&error));
        signing.note(Ok(()));
        signing.changed().await;
        assert_eq!(signing.trouble(), None);
    }
}
