//! The pages of the CRLs: whoever can read them can ask for them, so asking costs next to nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use alcazar_identity::Fingerprint;
use alcazar_service::{Shutdown, process};
use axum::{
    Router,
    extract::{Path, State},
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::Mutex, time::Instant};
use tower::Service;

use super::crl::CrlError;
use crate::{
    ca::Ca,
    strangers::{http, serve_strangers},
};

/// The pages of the CRLs. Before the CA is there, they say to come back later.
pub fn routes(ca: Arc<OnceLock<Ca>>) -> Router {
    Router::new().route("/crl/{name}", get(page)).with_state(Pages { ca, kept: Arc::default() })
}

impl Ca {
    /// Where the CRLs are served by themselves, once they are.
    pub fn crl_address(&self) -> Option<SocketAddr> {
        self.0.revoking.pages.get().copied()
    }

    /// Takes the port of the CRLs.
    pub(crate) async fn bind_crls(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        // A CA serves once in its life.
        self.0.revoking.pages.get_or_init(|| address);
        tracing::info!(%address, "the CRLs are served");
        Ok(listener)
    }

    /// Serves the CRLs on a listener of their own until the end.
    pub(crate) async fn serve_crls(self, listener: TcpListener, shutdown: Shutdown) {
        let pages = routes(Arc::new(OnceLock::from(self)));
        let serve = move |tcp| {
            let pages = pages.clone();
            async move {
                let answer = service_fn(|request: Request<Incoming>| pages.clone().call(request));
                Ok(http().serve_connection(TokioIo::new(tcp), answer).await?)
            }
        };
        serve_strangers(listener, "the CRLs", &shutdown, serve).await;
    }
}

#[derive(Clone)]
struct Pages {
    ca: Arc<OnceLock<Ca>>,
    kept: Arc<Mutex<Issuers>>,
}

/// Whose CRLs can be made here, and the last of each.
#[derive(Default)]
struct Issuers {
    known: BTreeSet<Fingerprint>,
    looked: Option<Instant>,
    lists: BTreeMap<Fingerprint, Slot>,
}

/// Held by whoever makes the list: those who ask meanwhile wait for that one.
type Slot = Arc<Mutex<Option<Kept>>>;

struct Kept {
    /// Of what is revoked.
    version: u64,
    made: Instant,
    list: Result<Vec<u8>, Arc<CrlError>>,
}

impl Kept {
    fn is_fresh(&self, version: u64) -> bool {
        let fresh = if self.list.is_ok() { FRESH } else { REFUSED };
        self.made.elapsed() < fresh && (self.version == version || self.list.is_err())
    }
}

async fn page(State(pages): State<Pages>, Path(name): Path<String>) -> Response {
    let Some(ca) = pages.ca.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the CA is starting\n").into_response();
    };
    let issuer = match name.strip_suffix(".crl") {
        Some("root") => Some(ca.hierarchy().root().fingerprint),
        Some(print) => print.parse().ok(),
        None => None,
    };
    let Some(issuer) = issuer else {
        return (StatusCode::NOT_FOUND, "ask for /crl/root.crl or /crl/<SHA-256 of an issuer>.crl\n").into_response();
    };
    let Some(slot) = pages.slot(ca, issuer).await else { return unknown() };
    match list(ca, issuer, &slot).await {
        Ok(der) => ([(header::CONTENT_TYPE, "application/pkix-crl")], der).into_response(),
        Err(error) if matches!(*error, CrlError::Unknown(_)) => unknown(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the CRL cannot be made now\n").into_response(),
    }
}

impl Pages {
    /// Where the list of an issuer is kept; `None`: nothing of it is here. The disk is looked at now and then, not for each who asks.
    async fn slot(&self, ca: &Ca, issuer: Fingerprint) -> Option<Slot> {
        let mut issuers = self.kept.lock().await;
        if issuers.looked.is_none_or(|at| at.elapsed() > LOOK) {
            let known = ca.issuers_of_crls().await;
            issuers.lists.retain(|issuer, _| known.contains(issuer));
            (issuers.known, issuers.looked) = (known, Some(Instant::now()));
        }
        issuers.known.contains(&issuer).then(|| issuers.lists.entry(issuer).or_default().clone())
    }
}

async fn list(ca: &Ca, issuer: Fingerprint, slot: &Slot) -> Result<Vec<u8>, Arc<CrlError>> {
    let mut kept = slot.lock().await;
    let version = ca.version_of_crls();
    if let Some(kept) = kept.as_ref().filter(|kept| kept.is_fresh(version)) {
        return kept.list.clone();
    }
    let list = ca.crl(issuer).await.map_err(Arc::new);
    if let Err(error) = &list
        && !matches!(**error, CrlError::Unknown(_))
    {
        tracing::error!(%issuer, reason = %process::chain(error), "a CRL could not be made");
    }
    *kept = Some(Kept { version, made: Instant::now(), list: list.clone() });
    list
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "this CA holds no key of such an issuer\n").into_response()
}

/// How long one is given out that says nothing new.
const FRESH: Duration = Duration::from_secs(3600);
/// How long it is said again that there is none.
const REFUSED: Duration = Duration::from_secs(10);
/// How often the disk is looked at for issuers.
const LOOK: Duration = Duration::from_secs(5);
