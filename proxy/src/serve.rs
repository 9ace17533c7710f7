//! HTTP of whichever version the client speaks.

use std::sync::Arc;

use crate::h1;
use crate::h2;
use crate::io::{Io, Rewound, Spoken, what_is_spoken};
use crate::life::Life;
use crate::reply::Service;
use crate::tasks::Tasks;

/// Serves HTTP/1 or HTTP/2, by what the client begins with.
pub(crate) async fn serve_http<IO, S>(mut io: IO, service: Arc<S>, mut life: Life, tasks: &Tasks)
where
    IO: Io + 'static,
    S: Service,
{
    let spoken = tokio::select! {
        spoken = what_is_spoken(&mut io) => spoken,
        // It has not begun: nothing is lost.
        _ = life.drain() => return,
    };
    match spoken {
        Ok((Spoken::H2, read)) => {
            if let Err(error) = h2::serve(Rewound::new(read, io), service, life, tasks).await {
                tracing::debug!(%error, "an HTTP/2 connection ended");
            }
        }
        Ok((Spoken::H1, read)) => {
            if let Err(error) = h1::serve(io, read, service, life, tasks).await {
                tracing::debug!(%error, "an HTTP/1 connection ended");
            }
        }
        Err(error) => tracing::debug!(%error, "a connection ended before it said anything"),
    }
}
