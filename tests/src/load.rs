use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The pause of a client between two requests: a steady load, not a flood.
const PAUSE: Duration = Duration::from_millis(5);

/// The longest that a request may take under this load.
const ANSWER: Duration = Duration::from_secs(10);

/// Clients that call one URL through a proxy until they are told to stop.
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Load {
    /// Starts `clients` that each make `requests_per_connection` requests on a connection to `proxy` and then open
    /// another; `u32::MAX` for one connection for ever.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn start(proxy: &str, url: &str, clients: usize, requests_per_connection: u32) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (proxy, url, theirs): (_, Uri, _) = (proxy.to_owned(), url.parse()?, shared.clone());
        let thread = std::thread::spawn(move || {
            let all = (0..clients).map(|_| client(&proxy, &url, requests_per_connection, &theirs));
            runtime.block_on(futures::future::join_all(all));
        });
        Ok(Self { shared, thread })
    }

    /// How many requests were answered with 200 so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Stops, and says how many requests were answered.
    ///
    /// # Errors
    /// When one was not, or not with 200, or a connection was closed on its client; the error has the first ones.
    pub fn finish(self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            bail!("the load panicked");
        }
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = self.shared.answered.load(Ordering::Relaxed);
        let first: Vec<_> = failures.iter().take(5).collect();
        ensure!(
            failures.is_empty(),
            "{} of {} calls failed: {first:#?}",
            failures.len(),
            failures.len() as u64 + answered
        );
        Ok(answered)
    }
}

async fn client(proxy: &str, url: &Uri, requests: u32, shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        if let Err(error) = connection(proxy, url, requests, shared).await {
            shared.failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn connection(proxy: &str, url: &Uri, requests: u32, shared: &Shared) -> Result<()> {
    let stream = TcpStream::connect(proxy).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let calls = async {
        for _ in 0..requests {
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::timeout(ANSWER, call(&mut sender, url)).await.context("no answer")??;
            shared.answered.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    tokio::pin!(calls, connection);
    tokio::select! {
        outcome = &mut calls => outcome,
        outcome = &mut connection => {
            outcome?;
            // A server may close an idle connection; for this load that is a failure too, as it never idles long.
            calls.await.context("the connection was closed")
        }
    }
}

async fn call(sender: &mut SendRequest<Empty<Bytes>>, url: &Uri) -> Result<()> {
    sender.ready().await?;
    let host = url.authority().map(ToString::to_string).unwrap_or_default();
    let request = Request::get(url.clone()).header(header::HOST, host).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}
