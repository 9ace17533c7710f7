//! A runtime of one thread for one future: what that spawns stays on the thread, and waking it costs no other.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// A future that runs on a thread of its own, and is waited for like any other.
///
/// Dropping it ends the future and all that it has spawned. A panic goes on in whoever waits.
#[derive(Debug)]
pub struct Lane<T> {
    running: JoinHandle<T>,
    runtime: Option<Runtime>,
}

impl<T: Send + 'static> Lane<T> {
    /// Starts it; the thread bears `name`.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor for it.
    pub fn start(name: &str, future: impl Future<Output = T> + Send + 'static) -> io::Result<Self> {
        // One worker, and not the runtime without any: several wake-ups from outside cost it one system call.
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?;
        let running = runtime.spawn(future);
        Ok(Self { running, runtime: Some(runtime) })
    }
}

impl<T> Future for Lane<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match ready!(Pin::new(&mut self.running).poll(cx)) {
            Ok(output) => Poll::Ready(output),
            Err(ending) if ending.is_panic() => std::panic::resume_unwind(ending.into_panic()),
            // Nobody cancels it while it is waited for.
            Err(_) => Poll::Pending,
        }
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped where nothing may block.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_spawns_stays_on_its_thread() {
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        #[allow(clippy::disallowed_methods, reason = "the test is of what is spawned")]
        let lane = Lane::start("a-lane", async move {
            let spawned = tokio::spawn(async move { name() }).await.unwrap();
            (name(), spawned)
        });
        assert_eq!(lane.unwrap().await, ("a-lane".to_owned(), "a-lane".to_owned()));
    }

    #[tokio::test]
    async fn who_drops_it_ends_it() {
        let (held, gone) = tokio::sync::oneshot::channel::<()>();
        let (began, begun) = tokio::sync::oneshot::channel();
        let lane = Lane::start("a-lane", async move {
            let _held = held;
            began.send(()).unwrap();
            std::future::pending::<()>().await;
        })
        .unwrap();
        begun.await.unwrap();
        drop(lane);
        assert!(gone.await.is_err());
    }

    #[tokio::test]
    #[should_panic(expected = "as the test wants")]
    async fn a_panic_goes_on_in_who_waits() {
        Lane::start("a-lane", async { panic!("as the test wants") }).unwrap().await
    }
}
