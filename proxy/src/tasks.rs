//! The tasks of a worker's connections and streams.

use std::future::Future;

use tokio_util::task::TaskTracker;

/// Spawns what lives as long as a connection or a stream, on the runtime of the caller, and waits for all of it.
///
/// Long-lived parts run on [`alcazar_service::Shutdown`], where a panic ends the process. A panic here ends the one
/// connection: a peer that finds a fault in our code must not end everybody's traffic with it.
#[derive(Clone, Default)]
pub(crate) struct Tasks(TaskTracker);

impl Tasks {
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.0.spawn(task));
    }

    /// Waits until all of them have ended; none may be spawned by others than themselves meanwhile.
    pub(crate) async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
