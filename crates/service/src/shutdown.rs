use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// The end of a process, or of a part of it: asked for once, waited for with a deadline.
///
/// Tasks are spawned on it, listen to [`Shutdown::cancelled`], finish what they have begun and return.
#[derive(Clone)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Shutdown {
    /// A tree of its own.
    pub fn new() -> Self {
        Self::with_token(CancellationToken::new())
    }

    /// A tree that ends on SIGINT or SIGTERM.
    ///
    /// # Errors
    /// When the signals cannot be listened to.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let asked = shutdown.clone();
        shutdown.spawn("signals", async move {
            tokio::select! {
                _ = interrupt.recv() => asked.trigger("interrupted"),
                _ = terminate.recv() => asked.trigger("terminated"),
                () = asked.cancelled() => {}
            }
        });
        Ok(shutdown)
    }

    /// A part that ends with this one, or earlier by itself; its tasks are its own.
    pub fn child(&self) -> Self {
        Self::with_token(self.token.child_token())
    }

    /// Runs a task that [`Shutdown::finished`] waits for.
    ///
    /// A task that panics ends the tree: a process that lost a part must not look alive.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running::start(name, &self.running);
        let shutdown = self.clone();
        self.tasks.spawn(async move {
            let outcome = AssertUnwindSafe(task).catch_unwind().await;
            drop(running);
            if outcome.is_err() {
                tracing::error!(task = name, "a task panicked; this part of the process ends");
                shutdown.trigger("a task panicked");
            }
        });
    }

    /// Asks every task to end.
    pub fn trigger(&self, reason: &str) {
        if !self.token.is_cancelled() {
            tracing::debug!(reason, "shutting down");
        }
        self.token.cancel();
    }

    /// Waits until the end is asked for.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Whether the end has been asked for.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The token behind it, for code that takes one.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Waits until every task has ended.
    ///
    /// # Errors
    /// When some have not by the deadline; the error names them.
    pub async fn finished(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.tasks.close();
        tokio::time::timeout(deadline, self.tasks.wait()).await.map_err(|_| {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            Unfinished { tasks: running.keys().copied().collect(), deadline }
        })
    }

    fn with_token(token: CancellationToken) -> Self {
        Self { token, tasks: TaskTracker::new(), running: Arc::default() }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// Tasks that did not end in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("still running after {deadline:?}: {}", tasks.join(", "))]
pub struct Unfinished {
    tasks: Vec<&'static str>,
    deadline: Duration,
}

impl Unfinished {
    /// The names of the tasks.
    pub fn tasks(&self) -> &[&'static str] {
        &self.tasks
    }
}

/// Counts a task among the running ones while it lives.
struct Running {
    name: &'static str,
    all: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Running {
    fn start(name: &'static str, all: &Arc<Mutex<BTreeMap<&'static str, usize>>>) -> Self {
        *all.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, all: all.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                all.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_its_tasks_and_names_those_that_do_not_end() {
        let shutdown = Shutdown::new();
        let listening = shutdown.clone();
        shutdown.spawn("polite", async move { listening.cancelled().await });
        shutdown.spawn("stubborn", std::future::pending());
        shutdown.trigger("test");
        let unfinished = shutdown.finished(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(unfinished.tasks(), ["stubborn"]);
    }

    #[tokio::test]
    async fn a_child_ends_with_its_parent_and_not_the_other_way() {
        let parent = Shutdown::new();
        let (one, two) = (parent.child(), parent.child());
        one.trigger("test");
        assert!(one.is_cancelled() && !parent.is_cancelled() && !two.is_cancelled());
        parent.trigger("test");
        assert!(two.is_cancelled());
        assert_eq!(two.finished(Duration::from_secs(5)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_tree() {
        let shutdown = Shutdown::new();
        shutdown.spawn("broken", async { panic!("as the test wants") });
        shutdown.cancelled().await;
        assert_eq!(shutdown.finished(Duration::from_secs(5)).await, Ok(()));
    }
}
