//! What applications and other proxies do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::Credentials;
use alcazar_mtls::{Connected, Connector, Expected};
use alcazar_service::clock;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::SOON;

/// A response, whole.
pub(crate) type Whole = Response<Bytes>;

/// A kept connection to an outbound proxy, as applications have.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn new(outbound: SocketAddr) -> Self {
        let stream = TcpStream::connect(outbound).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { sender }
    }

    pub(crate) async fn try_send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Whole> {
        let response = tokio::time::timeout(SOON, async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        });
        response.await.unwrap()
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Whole {
        self.try_send(request).await.unwrap()
    }

    pub(crate) async fn get(&mut self, url: &str) -> Whole {
        self.send(get(url, &[])).await
    }
}

/// An absolute-form request.
pub(crate) fn get(url: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let uri: http::Uri = url.parse().unwrap();
    let mut request = Request::builder().method(Method::GET).uri(url);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", uri.authority().unwrap().as_str());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

/// Sends raw bytes and reads until the other side closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    raw_over(&mut stream, bytes).await
}

/// The same, over a connection that is there.
pub(crate) async fn raw_over<IO>(stream: &mut IO, bytes: &[u8]) -> String
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let mut piece = [0; 4096];
        // An end by reset is an end.
        while let Ok(read) = stream.read(&mut piece).await {
            if read == 0 {
                break;
            }
            answer.extend_from_slice(&piece[..read]);
        }
    };
    tokio::time::timeout(SOON, exchange).await.expect("the connection was not closed");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads a head, up to its blank line.
pub(crate) async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap();
    String::from_utf8(head).unwrap()
}

/// A tunnel through an outbound proxy: the stream after `200`.
pub(crate) async fn connect(outbound: SocketAddr, to: &str) -> Result<TcpStream, String> {
    let mut stream = TcpStream::connect(outbound).await.unwrap();
    let request = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    if head.starts_with("HTTP/1.1 200") { Ok(stream) } else { Err(head) }
}

/// Mutual TLS to a mesh port.
pub(crate) async fn mesh(address: SocketAddr, credentials: Credentials, alpn: &[&[u8]]) -> Connected<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, live) = watch::channel(Arc::new(credentials));
    let connector = Connector::new(live, alpn, clock::system());
    let connected = connector.connect(stream, &Expected::Any).await.unwrap();
    drop(sender);
    connected
}

/// HTTP/2 over any stream.
pub(crate) async fn h2<IO>(io: IO) -> h2::client::SendRequest<Bytes>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

/// A whole exchange over HTTP/2: status and body.
pub(crate) async fn h2_get(sender: &h2::client::SendRequest<Bytes>, request: Request<()>) -> (u16, String) {
    let exchange = async {
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            text.extend_from_slice(&data);
        }
        (head.status.as_u16(), String::from_utf8(text).unwrap())
    };
    tokio::time::timeout(SOON, exchange).await.unwrap()
}

/// Long enough that something that should not happen would have happened.
pub(crate) const WHILE: Duration = Duration::from_millis(300);
