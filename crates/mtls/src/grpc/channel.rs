use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
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
/// It connects at the first call, and again after each loss, with the credentials of that moment; of several addresses, to the
/// one that answered last, or else to the others in turn. A call made while there is no connection fails, and the next one tries
/// again. It ends a connection when the server's
/// certificate does. Proxies in the environment are not looked for. To be used within a tokio runtime.
///
/// A failed call's `tonic::Status` carries the cause: [`VerifyPeerError::find`] and [`Refusal::find`] dig it out.
pub fn channel(target: impl Into<Target>, connector: Connector, expected: Expected) -> Channel {
    let target = target.into();
    let authority = target.first.clone();
    let dial = {
        service_fn(move |_: Uri| {
            let (target, connector, expected) = (target.clone(), connector.clone(), expected.clone());
            async move { target.dial(&connector, &expected).await.map(TokioIo::new) }
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

impl Target {
    /// Tries each address, first the one that answered last; of several failures, the one that tells most.
    async fn dial(
        &self,
        connector: &Connector,
        expected: &Expected,
    ) -> Result<Bounded<TlsStream<TcpStream>>, DialError> {
        let mut failed: Option<DialError> = None;
        for (place, authority) in self.in_turn() {
            match dial(authority, connector, expected).await {
                Ok(stream) => {
                    self.answered.store(place, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => {
                    report(authority, &error);
                    if failed.as_ref().is_none_or(|known| matches!(known, DialError::Unreachable { .. })) {
                        failed = Some(error);
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| DialError::Unreachable {
            target: self.first.clone(),
            source: io::ErrorKind::NotFound.into(),
        }))
    }

    /// Every address with its place, beginning with the one that answered last.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Authority)> {
        let all = || std::iter::once(&self.first).chain(self.others.iter()).enumerate();
        let last = self.answered.load(Ordering::Relaxed);
        all().skip(last).chain(all().take(last))
    }
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

/// Where a channel leads: `host:port`, or several of them, separated by commas, for servers that stand for each other. Clones
/// remember together which one answered last.
#[derive(Debug, Clone)]
pub struct Target {
    first: Authority,
    others: Arc<[Authority]>,
    answered: Arc<AtomicUsize>,
}

impl Target {
    fn new(first: Authority, others: Vec<Authority>) -> Self {
        Self { first, others: others.into(), answered: Arc::default() }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.first == other.first && self.others == other.others
    }
}

impl Eq for Target {}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        // An address is an authority in any case; should it ever not be, nothing listens on this one.
        let authority = address.to_string().parse();
        Self::new(authority.unwrap_or_else(|_| Authority::from_static("0.0.0.0:0")), Vec::new())
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseTargetError(text.to_owned());
        let one = |text: &str| {
            let authority: Authority = text.trim().parse().map_err(|_| wrong())?;
            let plain = !text.contains('@') && !authority.host().is_empty();
            match authority.port_u16() {
                Some(port) if port != 0 && plain => Ok(authority),
                _ => Err(wrong()),
            }
        };
        let mut all = text.split(',').map(one);
        let first = all.next().ok_or_else(wrong)??;
        Ok(Self::new(first, all.collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.first, f)?;
        self.others.iter().try_for_each(|other| write!(f, ",{other}"))
    }
}

/// A text that is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address: it should be host:port, as in ca.example:15012, or several of them separated by commas"
)]
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
        for good in ["127.0.0.1:1", "[::1]:15012", "ca.example:15012", "localhost:80", "a:1,b:2"] {
            assert_eq!(good.parse::<Target>().map(|target| target.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "ca.example",
            ":80",
            "ca.example:0",
            "ca.example:65536",
            "http://ca:80",
            "a b:80",
            "me@ca:80",
            "a:1,",
            ",a:1",
            "a:1,b",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
        let address: SocketAddr = "[::1]:15012".parse().unwrap();
        assert_eq!(Target::from(address).to_string(), "[::1]:15012");
    }

    #[test]
    fn the_one_that_answered_last_is_tried_first() {
        let target: Target = "a:1, b:2,c:3".parse().unwrap();
        let order = || target.in_turn().map(|(place, at)| format!("{place}{at}")).collect::<Vec<_>>();
        assert_eq!(order(), ["0a:1", "1b:2", "2c:3"]);
        target.clone().answered.store(1, Ordering::Relaxed);
        assert_eq!(order(), ["1b:2", "2c:3", "0a:1"]);
    }
}
