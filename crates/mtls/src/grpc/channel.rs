use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::stream::{Bounded, Limit};
use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::refusal::Causes;
use crate::{ConnectError, Connector, Expected, Refusal, TlsStream, VerifyPeerError};

/// A channel to a server that must be the expected one.
///
/// It connects at the first call, and again after each loss, with the credentials of that moment; a call made
/// while there is no connection fails, and the next one tries again. It ends a connection when the server's
/// certificate does. Proxies in the environment are not looked for. To be used within a tokio runtime.
///
/// A failed call's `tonic::Status` carries the cause: [`VerifyPeerError::find`] and [`Refusal::find`] dig it out.
pub fn channel(target: impl Into<Target>, connector: Connector, expected: Expected) -> Channel {
    let Target(authority) = target.into();
    let dial = {
        let authority = authority.clone();
        service_fn(move |_: Uri| {
            let (authority, connector, expected) = (authority.clone(), connector.clone(), expected.clone());
            async move {
                let connected = dial(&authority, &connector, &expected).await;
                connected.map(TokioIo::new).inspect_err(|error| report(&authority, error))
            }
        })
    };
    Endpoint::from(uri("http", &authority))
        // What the server sees as scheme; the endpoint's own stays http so that tonic adds no TLS of its own.
        .origin(uri("https", &authority))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(dial)
}

async fn dial(
    authority: &Authority,
    connector: &Connector,
    expected: &Expected,
) -> Result<Bounded<TlsStream<TcpStream>>, DialError> {
    let unreachable = |source| DialError::Unreachable { target: authority.clone(), source };
    let connecting = timeout(CONNECT_DEADLINE, TcpStream::connect(authority.as_str()));
    let tcp = match connecting.await {
        Ok(tcp) => tcp.map_err(unreachable)?,
        Err(_) => return Err(unreachable(io::ErrorKind::TimedOut.into())),
    };
    tcp.set_nodelay(true).map_err(unreachable)?;
    let refused = |source| DialError::Handshake { target: authority.clone(), source };
    let mut connected = connector.connect(tcp, expected).await.map_err(refused)?;
    let first = verdict(&mut connected.stream).await.map_err(refused)?;
    let end = Limit::for_peer(Some(&connected.peer), connector.clock()());
    let bounded = Bounded::new(connected.stream, end, connector.clock()).after(&first);
    Ok(match connector.credentials() {
        Some(credentials) => bounded.until_revoked(connected.peer, credentials.clone()),
        None => bounded,
    })
}

/// Waits for the server's first bytes, which tell that it let us in.
///
/// In TLS 1.3 a client is done before it is judged. A refusal that came later would reach the caller as the
/// text of a broken HTTP/2 connection; here it still is a [`Refusal`]. HTTP/2 servers speak first, nearly all.
async fn verdict(stream: &mut TlsStream<TcpStream>) -> Result<Vec<u8>, ConnectError> {
    let mut first = [0; 128];
    match timeout(VERDICT_DEADLINE, stream.read(&mut first)).await {
        Ok(Ok(0)) => Err(ConnectError::Io { source: io::ErrorKind::UnexpectedEof.into() }),
        Ok(Ok(length)) => Ok(first.get(..length).unwrap_or_default().to_vec()),
        Ok(Err(error)) => Err(match Refusal::find(&error) {
            Some(refusal) => ConnectError::Refused { source: refusal.clone() },
            None => ConnectError::Io { source: error },
        }),
        // One that waits for our preface.
        Err(_) => Ok(Vec::new()),
    }
}

/// Says in the log what tonic would fold into "transport error".
fn report(authority: &Authority, error: &DialError) {
    let reason = Causes(error).to_string();
    if VerifyPeerError::find(error).is_some() {
        tracing::warn!(target: "alcazar::refused", server = %authority, reason, "refused a server");
    } else if Refusal::find(error).is_some() {
        tracing::warn!(target: "alcazar::refused", server = %authority, reason, "a server refused us");
    } else {
        tracing::debug!(server = %authority, reason, "could not connect");
    }
}

/// Where a channel leads: `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(Authority);

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        // An address is an authority in any case; should it ever not be, nothing listens on this one.
        Self(address.to_string().parse().unwrap_or_else(|_| Authority::from_static("0.0.0.0:0")))
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseTargetError(text.to_owned());
        let authority: Authority = text.parse().map_err(|_| wrong())?;
        let plain = !text.contains('@') && !authority.host().is_empty();
        match authority.port_u16() {
            Some(port) if port != 0 && plain => Ok(Self(authority)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A text that is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: it should be host:port, as in ca.example:15012")]
pub struct ParseTargetError(String);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot reach {target}")]
    Unreachable { target: Authority, source: io::Error },
    #[error("cannot connect to {target}")]
    Handshake { target: Authority, source: ConnectError },
}

fn uri(scheme: &str, authority: &Authority) -> Uri {
    let uri = Uri::builder().scheme(scheme).authority(authority.clone()).path_and_query("/").build();
    // All three parts are there, so it cannot fail; the default would lead nowhere.
    uri.unwrap_or_default()
}

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const VERDICT_DEADLINE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_host_and_port() {
        for good in ["127.0.0.1:1", "[::1]:15012", "ca.example:15012", "localhost:80"] {
            assert_eq!(good.parse::<Target>().map(|target| target.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "ca.example", ":80", "ca.example:0", "ca.example:65536", "http://ca:80", "a b:80", "me@ca:80"] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
        let address: SocketAddr = "[::1]:15012".parse().unwrap();
        assert_eq!(Target::from(address).to_string(), "[::1]:15012");
    }
}
