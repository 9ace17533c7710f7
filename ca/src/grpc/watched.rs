//! What a node follows on a stream of its own.

use std::pin::Pin;

use alcazar_service::Shutdown;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Response, Status};

/// The messages of such a stream.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where they are put: one waits for the reader, so that who is slow is told the newest when it is ready for it.
pub(super) type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// Sends what `push` has to say, until it has no more, the reader is gone, or the CA ends.
pub(super) fn watched<T, F>(
    shutdown: &Shutdown,
    name: &'static str,
    push: impl FnOnce(Sender<T>) -> F,
) -> Response<Messages<T>>
where
    T: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let (until, reader, push) = (shutdown.clone(), sender.clone(), push(sender));
    shutdown.spawn(name, async move {
        tokio::select! {
            () = until.cancelled() => {}
            () = reader.closed() => {}
            () = push => {}
        }
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}
