//! Where the application connects: the explicit proxy, and listeners that each lead to one TCP service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alcazar_service::process::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Outbound;
use super::connect::open;
use super::owner::OwnerCheck;
use crate::authority::Authority;
use crate::io::Io;
use crate::life::Life;
use crate::plane::Plane;
use crate::relay::relay;
use crate::serve::serve_http;
use crate::worker::next_connection;

/// Serves the explicit proxy until the shutdown; to one user alone, if there is a check.
pub(crate) async fn accept(listener: TcpListener, owner: Option<Arc<OwnerCheck>>, plane: Arc<Plane>) {
    let service = Arc::new(Outbound::new(plane.clone()));
    while let Some((stream, from)) = next_connection(&listener, &plane.shutdown).await {
        if is_strangers(owner.as_deref(), &stream, from) {
            plane.serving.spawn(forbid(stream));
            continue;
        }
        let (service, serving) = (service.clone(), plane.serving.clone());
        let life = Life::until(plane.shutdown.clone());
        plane.serving.spawn(async move { serve_http(stream, service, life, &serving).await });
    }
}

/// Joins each connection to the service `to` (`host:port`) until the shutdown; those of one user alone, if there is a check.
pub(crate) async fn forward_tcp(listener: TcpListener, to: String, owner: Option<Arc<OwnerCheck>>, plane: Arc<Plane>) {
    while let Some((mut stream, from)) = next_connection(&listener, &plane.shutdown).await {
        if is_strangers(owner.as_deref(), &stream, from) {
            stream.abort();
            continue;
        }
        let (here, to) = (plane.clone(), to.clone());
        plane.serving.spawn(async move {
            let opened = match Authority::parse(&to) {
                Ok(authority) => open(&here, &authority).await,
                Err(error) => return tracing::error!(to, %error, "a forward leads nowhere"),
            };
            match opened {
                Ok(opened) => {
                    let mut far = opened.stream;
                    match relay(&mut stream, &mut far).await {
                        Ok(relayed) => tracing::debug!(to, ?relayed, "a connection ended"),
                        Err(error) => tracing::debug!(to, %error, "a connection broke"),
                    }
                    drop(opened.in_flight);
                }
                Err(error) => {
                    tracing::warn!(to, error = %chain(&error), "a connection could not be forwarded");
                    stream.abort();
                }
            }
        });
    }
}

/// Whether a connection is not, or not certainly, of the user whose proxy this is.
fn is_strangers(owner: Option<&OwnerCheck>, stream: &TcpStream, from: SocketAddr) -> bool {
    let Some((owner, error)) = owner.and_then(|owner| Some((owner, owner.check(stream, from).err()?))) else {
        return false;
    };
    if let Some(not_logged_before) = owner.line(Instant::now()) {
        let reason = chain(&error);
        tracing::warn!(target: "alcazar::refused", %from, reason, not_logged_before, "somebody else connects as the application");
    }
    true
}

/// Says that the proxy is not this user's. Which workload it would have spoken as is none of his business.
async fn forbid(mut stream: TcpStream) {
    let answer = async {
        stream.write_all(FORBIDDEN).await?;
        stream.shutdown().await?;
        // What is not read would take the answer with it.
        tokio::io::copy(&mut (&mut stream).take(MOST_PASSED_OVER), &mut tokio::io::sink()).await
    };
    // Whether he hears it is not our concern.
    drop(tokio::time::timeout(LAST_WORDS, answer).await);
}

const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 41\r\nconnection: close\r\n\r\nthis proxy serves the application's user\n";
const LAST_WORDS: Duration = Duration::from_secs(1);
const MOST_PASSED_OVER: u64 = 64 * 1024;
