//! The mesh port: what is not mutual TLS of our mesh ends here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alcazar_mtls::{Accepted, Acceptor, Clients, PeerIdentity};
use alcazar_service::process::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::slots::{Slot, Slots};
use super::{Inbound, Peer};
use crate::h2;
use crate::life::Life;
use crate::plane::Plane;
use crate::pool::{ALPN_ALCAZAR, ALPN_HBONE, READ_BUFFER};
use crate::worker::next_connection;
use crate::xfcc;

/// Accepts connections until the shutdown; so many handshakes at a time, and the rest waits in the system's queue.
pub(crate) async fn accept(listener: TcpListener, plane: Arc<Plane>) {
    let acceptor =
        Acceptor::new(plane.credentials.clone(), Clients::Required, &[ALPN_ALCAZAR, ALPN_HBONE], plane.clock.clone())
            .with_deadline(HANDSHAKE_DEADLINE);
    let mut handshakes = Slots::new(HANDSHAKES);
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(connection) = open.clone().acquire_owned().await else { return };
        let Some((stream, address)) = next_connection(&listener, &plane.shutdown).await else { return };
        let taken = tokio::select! {
            slot = handshakes.take() => slot,
            () = plane.shutdown.cancelled() => return,
        };
        let Some(slot) = taken else { return };
        let (plane_here, acceptor) = (plane.clone(), acceptor.clone());
        plane.serving.spawn(async move {
            let handshake = handshake(stream, address, &acceptor, &plane_here, slot);
            match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
                Ok(Some((accepted, life))) => serve(accepted, life, address, plane_here).await,
                Ok(None) => {}
                Err(_) => refused(address, "the handshake was not complete in time"),
            }
            drop(connection);
        });
    }
}

type Handshaken = Accepted<BufReader<TcpStream>>;

/// A stream whose peer is proved, or nothing: then the log says why.
async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: &Acceptor,
    plane: &Plane,
    mut slot: Slot,
) -> Option<(Handshaken, Life)> {
    let first = tokio::select! {
        first = tokio::time::timeout(FIRST_BYTE_DEADLINE, first_byte(&stream)) => first,
        () = slot.wanted() => {
            refused(address, "nothing came, and others wait");
            return None;
        }
    };
    slot.spoke();
    match first {
        Ok(Ok(Some(TLS_HANDSHAKE))) => {}
        Ok(Ok(Some(first))) => {
            refused(address, "what came is not TLS: plaintext is not served here");
            refuse_plaintext(stream, first).await;
            return None;
        }
        // Port scans and health checks: they say nothing.
        Ok(Ok(None) | Err(_)) => return None,
        Err(_) => {
            refused(address, "nothing came in time");
            return None;
        }
    }
    // From before the handshake, so that a rotation during it is not missed.
    let life = Life::until(plane.shutdown.clone()).on(plane.credentials.clone());
    // TLS reads in small pieces; the system is asked in large ones.
    match acceptor.accept(BufReader::with_capacity(READ_BUFFER, stream)).await {
        Ok(accepted) => Some((accepted, life)),
        Err(error) => {
            refused(address, &chain(&error));
            None
        }
    }
}

async fn serve(accepted: Handshaken, life: Life, address: SocketAddr, plane: Arc<Plane>) {
    let Some(identity) = accepted.peer else {
        return refused(address, "the client presented no certificate");
    };
    let tunnels_only = match accepted.alpn.as_deref() {
        Some(ALPN_ALCAZAR) => false,
        Some(ALPN_HBONE) => true,
        _ => return refused(address, "the client does not offer the mesh's protocol (ALPN)"),
    };
    let now = (plane.clock)();
    let ours = plane.credentials.borrow().clone();
    let forwarded = match xfcc::element(ours.svid().id(), identity.fingerprint(), identity.id()) {
        Ok(forwarded) => forwarded,
        Err(error) => return refused(address, &chain(&error)),
    };
    let life = life.not_after(identity.validity().not_after().min(ours.svid().validity().not_after()), now);
    let life = life.while_believed(identity.clone(), plane.credentials.clone());
    let who = identity.clone();
    let home = ours.svid().id().trust_domain().clone();
    let peer = Peer { identity, home, ip: address.ip(), server_name: accepted.server_name, forwarded, tunnels_only };
    let serving = plane.serving.clone();
    let service = Arc::new(Inbound { plane, peer: Arc::new(peer), port: None });
    if let Err(error) = h2::serve(accepted.stream, service, life, &serving).await {
        tell_end(&who, &error);
    }
}

fn tell_end(peer: &PeerIdentity, error: &::h2::Error) {
    // Clients may simply go; what they did wrong is theirs to find.
    tracing::debug!(%peer, %error, "a connection ended");
}

fn refused(address: SocketAddr, reason: &str) {
    tracing::warn!(target: "alcazar::refused", %address, reason, "a connection to the mesh port was refused");
}

async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    let peeked = stream.peek(&mut first).await?;
    Ok(first.first().copied().filter(|_| peeked > 0))
}

/// Tells a client that speaks HTTP what to do; others get nothing.
async fn refuse_plaintext(mut stream: TcpStream, first: u8) {
    if !first.is_ascii_uppercase() {
        return;
    }
    let answered = async {
        stream.write_all(PLAINTEXT_REFUSED).await?;
        stream.shutdown().await?;
        // Read what comes, so that the answer is not overtaken by a reset.
        let mut dropped = [0; 4096];
        let mut left: usize = 64 * 1024;
        while left > 0 {
            match stream.read(&mut dropped).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // The client may be gone: it was only a courtesy.
    drop(tokio::time::timeout(COURTESY, answered).await);
}

const PLAINTEXT_REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 60\r\n\
connection: close\r\n\r\nthis port speaks mutual TLS; plaintext requests are refused\n";
/// The type of the TLS record that a handshake begins with.
const TLS_HANDSHAKE: u8 = 22;
const HANDSHAKES: usize = 1024;
/// Open ones of a worker; the rest waits in the system's queue.
const CONNECTIONS: usize = 16 * 1024;
/// For all that comes before a peer is proved.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Clients speak first in TLS: one that has connected has something to say.
const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(3);
const COURTESY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_a_whole_response() {
        let text = std::str::from_utf8(PLAINTEXT_REFUSED).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
