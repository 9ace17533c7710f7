//! The tasks behind a store's watches: they end with the store.

use std::sync::{Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::StoreError;

/// The tasks of an open store; none of a closed one.
#[derive(Debug)]
pub(crate) struct Tasks(Mutex<Option<JoinSet<()>>>);

impl Tasks {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<(), StoreError> {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tasks = tasks.as_mut().ok_or(StoreError::Closed)?;
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
        Ok(())
    }

    pub(crate) fn are_open(&self) -> Result<(), StoreError> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if open { Ok(()) } else { Err(StoreError::Closed) }
    }

    /// Ends them all; nothing can be asked of the store from here on.
    pub(crate) async fn close(&self) {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }
}
