use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;

use alcazar_api::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use alcazar_api::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use alcazar_api::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use anyhow::{Context, Result, ensure};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// A gRPC server over plaintext HTTP/2, as an application has it. It speaks Istio's CSR service only because that is a
/// gRPC service that is at hand: the answer greets whoever is named in the field `csr`.
#[derive(Debug)]
pub struct Greeter {
    address: SocketAddr,
}

impl Greeter {
    /// Starts it on a free port of loopback; it ends with the test.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
                let service = IstioCertificateServiceServer::new(Greetings);
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?;
                anyhow::Ok(())
            })
        });
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

struct Greetings;

#[tonic::async_trait]
impl IstioCertificateService for Greetings {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.metadata().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
        let caller = caller.unwrap_or("nobody").to_owned();
        let name = request.into_inner().csr;
        if name.is_empty() {
            return Err(Status::invalid_argument("nobody to greet"));
        }
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![format!("hello {name}"), caller] }))
    }
}

/// Greets `name` by a gRPC client that tunnels through the proxy (`CONNECT host:80`), as gRPC clients do by
/// `http_proxy`. Returns the greeting and the `x-forwarded-client-cert` that the server saw.
///
/// # Errors
/// When the tunnel or the call fails.
pub fn greet_by_connect(proxy: &str, host: &str, name: &str) -> Result<Vec<String>> {
    let (proxy, authority) = (proxy.to_owned(), format!("{host}:80"));
    let connector = tower::service_fn(move |_: Uri| {
        let (proxy, authority) = (proxy.clone(), authority.clone());
        let tunnel = async move { Ok::<_, anyhow::Error>(TokioIo::new(tunnel(&proxy, &authority).await?)) };
        Box::pin(tunnel) as Pin<Box<dyn Future<Output = _> + Send>>
    });
    let endpoint = Endpoint::from_str(&format!("http://{host}"))?;
    runtime()?.block_on(async { greet(endpoint.connect_with_connector(connector).await?, name).await })
}

/// Greets `name` by a gRPC client that speaks HTTP/2 to the proxy at once, with the service as `:authority`.
///
/// # Errors
/// When the call fails.
pub fn greet_by_prior_knowledge(proxy: &str, host: &str, name: &str) -> Result<Vec<String>> {
    let endpoint = Endpoint::from_str(&format!("http://{proxy}"))?.origin(format!("http://{host}").parse()?);
    runtime()?.block_on(async { greet(endpoint.connect().await?, name).await })
}

async fn greet(channel: Channel, name: &str) -> Result<Vec<String>> {
    let request = IstioCertificateRequest { csr: name.to_owned(), ..Default::default() };
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(answer.into_inner().cert_chain)
}

async fn tunnel(proxy: &str, authority: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("the proxy closed the tunnel")?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    ensure!(head.starts_with("HTTP/1.1 200"), "no tunnel: {head}");
    Ok(stream)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
