//! What other replicas change of the trust state, taken over as it changes.

use std::time::Duration;

use alcazar_service::{Shutdown, process};
use alcazar_store::WatchError;

use crate::{
    ca::Ca,
    records::{RecordError, family, prefix},
};

impl Ca {
    /// Takes over what other replicas change of the trust state, until the end. What cannot be taken over is told by whoever looks
    /// after the hierarchy.
    pub(crate) async fn follow_trust(self, shutdown: Shutdown) {
        if !self.0.config.store.is_shared() {
            return;
        }
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.watch_trust() => outcome,
            };
            if let Err(error) = outcome {
                tracing::debug!(reason = %process::chain(&error), "the trust state cannot be watched; it is tried again");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn watch_trust(&self) -> Result<(), RecordError> {
        let prefix = prefix(family::TRUST)?;
        loop {
            let store = self.0.records.store();
            let revision = store.page(&prefix, None, 1).await?.revision;
            let mut watch = store.watch(&prefix, revision).await?;
            // What was changed before the watch began.
            self.take_over_trust().await;
            loop {
                match watch.next().await {
                    Ok(event) if event.key().name() == STATE => self.take_over_trust().await,
                    Ok(_) => {}
                    Err(WatchError::Lagged) => break,
                    Err(WatchError::Closed) => return Ok(()),
                }
            }
        }
    }

    async fn take_over_trust(&self) {
        if let Err(error) = self.look_after_hierarchy().await {
            tracing::debug!(reason = %process::chain(&error), "what another replica changed of the trust state is not taken over yet");
        }
    }
}

const STATE: &str = "state";
const RETRY: Duration = Duration::from_secs(2);
