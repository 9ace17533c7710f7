//! The keys of an issuer of tokens: fetched when they are needed, kept, and fetched again.

use std::{
    error::Error,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex as StdMutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use alcazar_jwt::{Claims, Expectations, Jwks, JwksError, Token, VerifyError};
use alcazar_mtls::web::{FetchError, HttpsUrl, WebClient};
use alcazar_service::{Shutdown, clock::Clock, process};
use futures::future::BoxFuture;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::Mutex;

use super::{error::CallerError, roots::RootsFile};

/// Where an issuer's keys are.
pub(crate) trait FetchKeys: fmt::Display + Send + Sync {
    /// The JWKS document of the moment.
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, FetchKeysError>>;

    /// How long a document is used before it is asked for again.
    fn good_for(&self) -> Duration {
        Duration::from_secs(600)
    }

    /// How long to wait after one attempt before the next, whatever tokens say.
    fn pause(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// The keys of one issuer. Cheap to ask: the source is asked now and then, by one caller for all, and behind everybody's back
/// where there are keys that will do.
pub(crate) struct IssuerKeys {
    kept: Arc<Kept>,
    /// Who asks behind everybody's back.
    tasks: Shutdown,
}

struct Kept {
    source: Box<dyn FetchKeys>,
    clock: Clock,
    known: RwLock<Option<Known>>,
    /// When the source was asked last.
    asked: StdMutex<Option<SystemTime>>,
    /// Held while it is asked.
    turn: Mutex<()>,
}

#[derive(Clone)]
struct Known {
    keys: Arc<Jwks>,
    at: SystemTime,
}

impl IssuerKeys {
    pub(crate) fn new(source: Box<dyn FetchKeys>, clock: Clock) -> Self {
        let (known, asked, turn) = (RwLock::new(None), StdMutex::new(None), Mutex::new(()));
        Self { kept: Arc::new(Kept { source, clock, known, asked, turn }), tasks: Shutdown::new() }
    }

    /// What a token says, if the issuer signed it and it is for us, now. A token whose key is not known makes the source be
    /// asked once more, though not more often than its pause lets it.
    ///
    /// # Errors
    /// When it is refused, or the keys cannot be had.
    pub(crate) async fn verify(&self, token: Token<'_>, expected: &Expectations<'_>) -> Result<Claims, CallerError> {
        let known = self.keys().await.map_err(CallerError::Keys)?;
        let verified = match token.clone().verify(&known.keys) {
            Err(VerifyError::UnknownKey(_)) => {
                let newer = self.kept.fetched(Some(known.at)).await.map_err(CallerError::Keys)?;
                token.verify(&newer.keys)
            }
            outcome => outcome,
        };
        let claims = verified.map_err(CallerError::Verify)?;
        claims.meet(expected).map_err(|source| CallerError::Verify(source.into()))?;
        Ok(claims)
    }

    /// Keys that will do. Nobody waits for the source while it is looked after.
    async fn keys(&self) -> Result<Known, KeysError> {
        let now = (self.kept.clock)();
        match self.kept.known() {
            Some(known) if since(known.at, now) < self.kept.source.good_for() => Ok(known),
            Some(known) if self.kept.is_looked_after(&known, now) => {
                if self.kept.may_ask(now) && !self.kept.is_asked() {
                    self.fetch_behind();
                }
                Ok(known)
            }
            _ => self.kept.fetched(None).await,
        }
    }

    fn fetch_behind(&self) {
        let (kept, tasks) = (self.kept.clone(), self.tasks.clone());
        self.tasks.spawn("keys of an issuer", async move {
            tokio::select! {
                () = tasks.cancelled() => {}
                // It has told what is wrong, and the next request tries again.
                outcome = kept.fetched(None) => drop(outcome),
            }
        });
    }
}

impl Drop for IssuerKeys {
    fn drop(&mut self) {
        self.tasks.trigger("nobody needs the keys of the issuer any more");
    }
}

impl Kept {
    /// Whether keys that are past their time will do, while they are fetched again: it is not long ago that they were good, or
    /// that the source was asked in vain. After a time without requests a key may have been withdrawn long ago.
    fn is_looked_after(&self, known: &Known, now: SystemTime) -> bool {
        let age = since(known.at, now);
        let tried = self.asked().is_some_and(|asked| since(asked, now) < self.source.good_for());
        age < OLDEST && (age < self.source.good_for() * 2 || tried || self.is_asked())
    }

    /// Keys that are fresh enough, and newer than `than` if the source may be asked now.
    async fn fetched(&self, than: Option<SystemTime>) -> Result<Known, KeysError> {
        let now = (self.clock)();
        let fresh =
            |known: &Known| than.is_none_or(|than| known.at != than) && since(known.at, now) < self.source.good_for();
        if let Some(known) = self.known().filter(fresh) {
            return Ok(known);
        }
        let _turn = self.turn.lock().await;
        // Somebody else may have asked while this one waited.
        if let Some(known) = self.known().filter(fresh) {
            return Ok(known);
        }
        if !self.may_ask(now) {
            return self.known().filter(|known| since(known.at, now) < OLDEST).ok_or(KeysError::Pause);
        }
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        match self.ask().await {
            Ok(keys) => {
                let known = Known { keys: Arc::new(keys), at: now };
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
                Ok(known)
            }
            Err(error) => {
                let reason = process::chain(&error).to_string();
                let old = self.known().filter(|known| since(known.at, now) < OLDEST).ok_or(error)?;
                tracing::warn!(source = %self.source, reason, "an issuer's keys cannot be fetched; the ones from before go on");
                Ok(old)
            }
        }
    }

    async fn ask(&self) -> Result<Jwks, KeysError> {
        let from = || self.source.to_string();
        let document = self.source.fetch().await.map_err(|source| KeysError::Fetch { from: from(), source })?;
        let keys = Jwks::parse(&document).map_err(|source| KeysError::Document { from: from(), source })?;
        for skipped in keys.skipped() {
            let reason = process::chain(&skipped.reason);
            tracing::info!(source = %self.source, key = skipped.key_id, place = skipped.place, reason, "a key of an issuer is not used");
        }
        if keys.keys().is_empty() {
            return Err(KeysError::Empty { from: from() });
        }
        tracing::info!(target: "alcazar::reload", source = %self.source, keys = keys.keys().len(), "an issuer's keys were read");
        Ok(keys)
    }

    /// Whether somebody asks the source at this moment.
    fn is_asked(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    fn may_ask(&self, now: SystemTime) -> bool {
        self.asked().is_none_or(|asked| since(asked, now) >= self.source.pause())
    }

    fn asked(&self) -> Option<SystemTime> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A file, which somebody keeps up to date.
pub(crate) struct KeysFile(pub(crate) PathBuf);

impl FetchKeys for KeysFile {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, FetchKeysError>> {
        Box::pin(async { Ok(tokio::fs::read(&self.0).await?) })
    }

    fn good_for(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn pause(&self) -> Duration {
        Duration::from_secs(1)
    }
}

impl fmt::Display for KeysFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// Whom the servers of an issuer are believed by.
pub(crate) enum KeysClient {
    /// The roots of the system.
    System(WebClient),
    /// Those in a file, as it is at the moment.
    By(Arc<RootsFile<WebClient>>),
}

impl KeysClient {
    async fn fetch(&self, url: &HttpsUrl) -> Result<Vec<u8>, Box<FetchError>> {
        let client = match self {
            Self::System(client) => client.clone(),
            Self::By(file) => (*file.roots()).clone(),
        };
        Ok(client.fetch(url).await?.bytes)
    }
}

/// A URL.
pub(crate) struct KeysUrl {
    pub(crate) client: KeysClient,
    pub(crate) url: HttpsUrl,
}

impl FetchKeys for KeysUrl {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, FetchKeysError>> {
        Box::pin(async { Ok(self.client.fetch(&self.url).await?) })
    }
}

impl fmt::Display for KeysUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)
    }
}

/// Wherever the issuer's own configuration says (OpenID Connect Discovery 1.0 §4).
pub(crate) struct Discovery {
    pub(crate) client: KeysClient,
    pub(crate) issuer: String,
    pub(crate) url: HttpsUrl,
}

impl FetchKeys for Discovery {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, FetchKeysError>> {
        Box::pin(async {
            let document = self.client.fetch(&self.url).await?;
            let url = keys_url(&document, &self.issuer)?;
            Ok(self.client.fetch(&url).await?)
        })
    }
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)
    }
}

/// Where the discovery document of `issuer` says that the keys are.
fn keys_url(document: &[u8], issuer: &str) -> Result<HttpsUrl, FetchKeysError> {
    let document = alcazar_jwt::object(document).map_err(|error| FetchKeysError::Discovery(error.to_string()))?;
    let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    // §4.3: or one issuer could speak for another.
    if text("issuer") != issuer {
        return Err(FetchKeysError::Discovery(format!("it is that of the issuer {:.200?}", text("issuer"))));
    }
    text("jwks_uri").parse().map_err(|error| FetchKeysError::Discovery(format!("its jwks_uri: {error}")))
}

/// The keys of the cluster's own API server.
pub(crate) struct ClusterKeys(pub(crate) kube::Client);

impl FetchKeys for ClusterKeys {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, FetchKeysError>> {
        Box::pin(async {
            let request = http::Request::get("/openid/v1/jwks").body(Vec::new()).map_err(FetchKeysError::Request)?;
            let answer = tokio::time::timeout(DEADLINE, self.0.request_text(request)).await;
            let text = answer.map_err(|_elapsed| FetchKeysError::Late)?;
            Ok(text.map_err(|source| FetchKeysError::Cluster(Box::new(source)))?.into_bytes())
        })
    }
}

impl fmt::Display for ClusterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/openid/v1/jwks of the API server")
    }
}

/// Why an issuer's keys cannot be had.
#[derive(Debug, Error)]
pub(crate) enum KeysError {
    #[error("cannot fetch the keys from {from}")]
    Fetch { from: String, source: FetchKeysError },
    #[error("{from} is not a set of keys")]
    Document { from: String, source: JwksError },
    #[error("{from} has no key that could be used")]
    Empty { from: String },
    #[error("the keys could not be fetched a moment ago; it is tried again soon")]
    Pause,
}

/// Why a document of keys did not come.
#[derive(Debug, Error)]
pub(crate) enum FetchKeysError {
    #[error("the file cannot be read")]
    File(#[from] io::Error),
    #[error("the document did not come")]
    Web(#[from] Box<FetchError>),
    #[error("the issuer's configuration cannot be used: {0}")]
    Discovery(String),
    #[error("the request cannot be made")]
    Request(#[source] http::Error),
    #[error("the API server did not answer in time")]
    Late,
    #[error(
        "the API server refused or did not answer; bind the CA's service account to system:service-account-issuer-discovery"
    )]
    Cluster(#[source] Box<dyn Error + Send + Sync>),
}

/// Time that has passed; a clock that was set back makes everything due.
fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or(Duration::MAX)
}

/// Keys that could not be fetched again for so long are not believed any more: the issuer may have withdrawn one.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
const DEADLINE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
