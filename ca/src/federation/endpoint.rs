//! The bundle endpoint: our bundle document over HTTPS, for everybody.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use alcazar_api::spiffe::{BundleDocumentError, write_bundle};
use alcazar_identity::{Fingerprint, TrustBundle};
use alcazar_mtls::web::{LOOK_AT_FILES, ServerFiles, ServerFilesError, WebAcceptor};
use alcazar_service::{Shutdown, clock::Clock, process};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    task, time,
};

use super::config::{BundleEndpointConfig, EndpointProfile};
use crate::{
    ca::Ca,
    strangers::{Gone, http, serve_strangers},
};

/// The endpoint, before it serves.
pub(crate) struct Endpoint {
    ca: Ca,
    listener: TcpListener,
    acceptor: WebAcceptor,
}

/// What it serves with, where that is in files. Also tried before the CA makes anything.
pub(crate) async fn web(config: &BundleEndpointConfig, clock: &Clock) -> Result<Option<WebAcceptor>, EndpointError> {
    let EndpointProfile::Web { cert_file, key_file } = &config.profile else { return Ok(None) };
    let files = ServerFiles { certificate: cert_file.clone(), key: key_file.clone() };
    let clock = Arc::clone(clock);
    let loading = task::spawn_blocking(move || WebAcceptor::from_files(files, clock));
    Ok(Some(loading.await.map_err(|_panic| EndpointError::Interrupted)??))
}

impl Endpoint {
    /// Takes the port, and reads the certificate.
    pub(crate) async fn bind(ca: &Ca, config: &BundleEndpointConfig) -> Result<Self, EndpointError> {
        let clock = Arc::clone(&ca.0.clock);
        let acceptor = match web(config, &clock).await? {
            Some(acceptor) => acceptor,
            None => WebAcceptor::spiffe(ca.0.serving.subscribe(), clock),
        };
        let failed = |source| EndpointError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        // A CA serves once in its life.
        ca.0.federation.endpoint.get_or_init(|| address);
        tracing::info!(%address, "the bundle endpoint serves");
        Ok(Self { ca: ca.clone(), listener, acceptor })
    }

    /// Serves until the end.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let (ca, acceptor) = (self.ca, self.acceptor.clone());
        let served = serve_strangers(self.listener, "the bundle endpoint", &shutdown, move |tcp| {
            serve(ca.clone(), acceptor.clone(), tcp)
        });
        tokio::select! {
            () = served => {}
            () = look_after_files(self.acceptor) => {}
        }
    }
}

/// Takes over a certificate that was exchanged, for as long as it is asked.
async fn look_after_files(acceptor: WebAcceptor) {
    let mut look = time::interval(LOOK_AT_FILES);
    loop {
        look.tick().await;
        let acceptor = acceptor.clone();
        match task::spawn_blocking(move || acceptor.reload()).await {
            Ok(Ok(true)) => tracing::info!(target: "alcazar::reload", "the bundle endpoint has a new certificate"),
            Ok(Ok(false)) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::error!(target: "alcazar::reload", reason = %process::chain(&error), "the bundle endpoint's certificate cannot be read; the present one stays");
            }
        }
    }
}

async fn serve(ca: Ca, acceptor: WebAcceptor, tcp: TcpStream) -> Result<(), Gone> {
    let tls = acceptor.accept(tcp).await?;
    let answer = service_fn(move |request: Request<Incoming>| {
        let ca = ca.clone();
        async move { Ok::<_, Infallible>(ca.answer(request.method(), request.uri().path(), request.headers())) }
    });
    http().serve_connection(TokioIo::new(tls), answer).await?;
    Ok(())
}

impl Ca {
    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if path == crate::rotation::STATE_PATH && *method == Method::GET {
            let state = self.0.rotations.state.borrow().clone();
            return state.map_or_else(|| plain(StatusCode::SERVICE_UNAVAILABLE, "try again later\n"), json);
        }
        if !matches!(path, "/" | "/bundle.json") {
            return plain(StatusCode::NOT_FOUND, "the bundle is at / and at /bundle.json\n");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "the bundle can be read\n");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match self.own_bundle().ok_or(EndpointError::NoBundle).and_then(|bundle| Ok(document(&bundle, headers)?)) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(reason = %process::chain(&error), "our own bundle cannot be served");
                plain(StatusCode::SERVICE_UNAVAILABLE, "try again later\n")
            }
        }
    }
}

fn json(text: Arc<str>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(text.to_string().into()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// The document, or that it is the one that the client has.
fn document(bundle: &TrustBundle, headers: &HeaderMap) -> Result<Response<Full<Bytes>>, BundleDocumentError> {
    let text = write_bundle(bundle)?;
    let hash: String = Fingerprint::of(text.as_bytes()).to_string().chars().take(16).collect();
    let etag = format!("\"{}-{hash}\"", bundle.sequence());
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|value| value.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    let unchanged = known.into_iter().any(|tag| tag == etag || tag == "*");
    let mut answer = Response::new(Full::new(if unchanged { Bytes::new() } else { text.into() }));
    if unchanged {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    // A cache on the way may hold it for a part of the time after which clients come again.
    let age = bundle.refresh_hint().unwrap_or_default().as_secs() / 5;
    let fields = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CACHE_CONTROL, format!("public, max-age={age}")),
        (header::ETAG, etag),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            answer.headers_mut().insert(name, value);
        }
    }
    Ok(answer)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer
}

/// Why the bundle endpoint does not serve.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The port.
    #[error("the bundle endpoint cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate.
    #[error("the bundle endpoint's certificate cannot be used")]
    Files(#[from] ServerFilesError),
    /// The bundle has no document.
    #[error("our own bundle cannot be written")]
    Document(#[from] BundleDocumentError),
    /// There is none.
    #[error("there is no bundle of our own")]
    NoBundle,
    /// The process ends.
    #[error("starting the bundle endpoint was interrupted")]
    Interrupted,
}
