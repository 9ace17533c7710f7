use std::{convert::Infallible, net::SocketAddr};

use futures::{channel::mpsc, poll};
use http_body_util::{BodyExt, StreamBody};
use tower::service_fn;

use super::*;

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>;

/// A request from this address whose message comes in frames.
fn request(from: &str) -> (Frames, Request<Body>) {
    let (sender, frames) = mpsc::unbounded();
    let remote_addr = SocketAddr::new(from.parse().unwrap(), 1);
    let mut request = Request::new(Body::new(StreamBody::new(frames)));
    request.extensions_mut().insert(PeerInfo { peer: None, remote_addr });
    (sender, request)
}

fn send(frames: &Frames, bytes: usize) {
    frames.unbounded_send(Ok(Frame::data(Bytes::from(vec![0; bytes])))).unwrap();
}

/// A handler that reads the message as gRPC does, and says what came of it.
fn handler(
    bounds: &Bounds,
) -> impl FnMut(Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> + use<> {
    let mut service = bounds.layer(service_fn(|request: Request<Body>| async move {
        let status = match request.into_body().collect().await {
            Ok(_) => Status::ok("all came"),
            Err(status) => status,
        };
        Ok(status.into_http())
    }));
    move |request| service.call(request)
}

fn code(answer: Result<Response<Body>, Infallible>) -> Code {
    Status::from_header_map(answer.unwrap().headers()).unwrap().code()
}

fn bounds() -> Bounds {
    Bounds::new(&Metrics::new())
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_stranger_has_a_size_and_has_to_arrive() {
    let bounds = bounds();
    let mut call = handler(&bounds);
    let (frames, honest) = request("10.0.0.1");
    send(&frames, 10_000);
    drop(frames);
    assert_eq!(code(call(honest).await), Code::Ok);
    let (frames, large) = request("10.0.0.1");
    for _ in 0..3 {
        send(&frames, 100 << 10);
    }
    assert_eq!(code(call(large).await), Code::OutOfRange);
    // All but the last byte, and then silence.
    let (frames, slow) = request("10.0.0.1");
    send(&frames, 200 << 10);
    assert_eq!(code(call(slow).await), Code::DeadlineExceeded);
    drop(frames);
    assert_eq!(bounds.state().strangers, Taken::default());
    assert!(bounds.state().by_sender.is_empty());
}

#[tokio::test(start_paused = true)]
async fn strangers_hold_no_more_than_their_share_of_memory_and_others_have_theirs() {
    let bounds = bounds();
    let mut call = handler(&bounds);
    let mut silent = Vec::new();
    // As many as one address may hold, each 200 KiB and then silence.
    for _ in 0..100 {
        let (frames, request) = request("10.0.0.1");
        send(&frames, 200 << 10);
        let mut answer = call(request);
        match poll!(&mut answer) {
            Poll::Pending => silent.push((frames, answer)),
            Poll::Ready(answer) => assert_eq!(code(answer), Code::ResourceExhausted),
        }
    }
    assert_eq!(silent.len(), 20);
    assert!(bounds.state().strangers.bytes <= 4 << 20);
    // Another address, the same host's network of IPv6 counting as one; and all of them together.
    for net in 0..10 {
        for host in 0..30 {
            let (frames, request) = request(&format!("2001:db8:0:{net}::{host}"));
            send(&frames, 200 << 10);
            let mut answer = call(request);
            if poll!(&mut answer).is_pending() {
                silent.push((frames, answer));
            }
        }
    }
    let held = bounds.state().strangers;
    assert!((15 << 20..=16 << 20).contains(&held.bytes), "{held:?}");
    // Whoever goes away takes nothing with it.
    drop(silent);
    assert_eq!(bounds.state().strangers, Taken::default());
    let (frames, honest) = request("10.0.0.1");
    send(&frames, 10_000);
    drop(frames);
    assert_eq!(code(call(honest).await), Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_message_are_counted_as_well() {
    let bounds = bounds();
    let mut call = handler(&bounds);
    let mut silent = Vec::new();
    for _ in 0..5000 {
        let (frames, request) = request("10.0.0.1");
        let mut answer = call(request);
        if poll!(&mut answer).is_pending() {
            silent.push((frames, answer));
        }
    }
    assert_eq!(silent.len(), 4096);
    assert_eq!(bounds.0.turned_away.value(), 904);
    drop(silent);
    assert_eq!(bounds.state().strangers, Taken::default());
}
