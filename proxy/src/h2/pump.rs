//! Sends a body over an HTTP/2 stream as fast as the peer takes it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::{Error, Reason, SendStream};
use http_body::Body as _;

use crate::body::{Body, Part};

/// Sends all of `body`. A peer that does not want it ends the sending; a body that breaks resets the stream.
pub(crate) async fn pump(mut body: Body, mut stream: SendStream<Bytes>) {
    loop {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(reset));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        });
        let part = match frame.await {
            // The peer does not want it (or the connection is gone): what is left is dropped.
            Err(_) => return,
            Ok(None) => return ended(stream.send_data(Bytes::new(), true)),
            Ok(Some(Ok(frame))) => Part::of(frame),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "a body broke off; its stream is reset");
                return stream.send_reset(Reason::CANCEL);
            }
        };
        match part {
            Some(Part::Data(data)) => {
                let end = body.is_end_stream();
                if let Err(error) = send(&mut stream, data, end).await {
                    tracing::debug!(%error, "a stream does not take its body");
                    return;
                }
                if end {
                    return;
                }
            }
            Some(Part::Trailers(trailers)) => return ended(stream.send_trailers(trailers)),
            None => {}
        }
    }
}

/// Sends `data` in as many pieces as the windows ask for.
pub(super) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), Error> {
    if data.is_empty() {
        return if end { stream.send_data(data, true) } else { Ok(()) };
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(capacity) => capacity?.min(data.len()),
            None => return Err(Reason::STREAM_CLOSED.into()),
        };
        let piece = data.split_to(capacity);
        if !piece.is_empty() {
            stream.send_data(piece, end && data.is_empty())?;
        }
    }
    Ok(())
}

fn ended(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a stream ended before its body");
    }
}
