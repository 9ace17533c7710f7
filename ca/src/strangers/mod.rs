//! Listeners for everybody: what they publish costs whoever asks nothing, so whoever asks is bounded.
//!
//! So many connections at a time, so many of them from one address, each for so long; who waits for a place gets that of the
//! one that has had its own for the longest.

mod places;

use std::{error::Error, time::Duration};

use alcazar_service::{Shutdown, process};
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use self::places::{Bounds, Places};

/// Why a connection ended before its time.
pub(crate) type Gone = Box<dyn Error + Send + Sync + 'static>;

/// Serves the connections of strangers until the end, each as `serve` does; `what` is the name of what they come to.
pub(crate) async fn serve_strangers<F>(
    listener: TcpListener,
    what: &'static str,
    shutdown: &Shutdown,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let mut places = Places::new(Bounds::default());
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, what, "a connection could not be accepted");
                // The system may have no more sockets for now.
                time::sleep(PAUSE).await;
                continue;
            }
        };
        // One waits for a place; whoever comes after waits in the queue of the system.
        let place = tokio::select! {
            () = shutdown.cancelled() => return,
            place = places.take(from.ip()) => place,
        };
        let Some(mut place) = place else {
            tracing::debug!(%from, what, "closed a connection: as many from there as may be are served");
            continue;
        };
        let (serving, end) = (time::timeout(CONNECTION, serve(tcp)), shutdown.clone());
        shutdown.spawn("a stranger", async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = place.is_wanted() => {}
                served = serving => {
                    if let Ok(Err(error)) = served {
                        tracing::debug!(%from, what, reason = %process::chain(&*error), "a stranger went away");
                    }
                }
            }
            drop(place);
        });
    }
}

/// HTTP for strangers: a small head, soon, and one answer. Who has it has no more to ask.
pub(crate) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD).max_headers(HEADERS);
    http.keep_alive(false);
    http
}

/// All that one of them gets, handshake included.
const CONNECTION: Duration = Duration::from_secs(20);
const HEAD_TIME: Duration = Duration::from_secs(5);
const HEAD: usize = 16 << 10;
const HEADERS: usize = 64;
const PAUSE: Duration = Duration::from_millis(200);
