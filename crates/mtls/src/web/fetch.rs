//! One document from one URL, bounded in time and in bytes.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{FetchError, HttpsUrl, WebClient};

/// What a fetch may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest document, in bytes.
    pub bytes: usize,
    /// The longest that all of it may take: connecting, TLS, the answer.
    pub deadline: Duration,
}

impl Default for Limits {
    /// 1 MiB, 10 seconds.
    fn default() -> Self {
        Self { bytes: 1 << 20, deadline: Duration::from_secs(10) }
    }
}

/// A document, as its server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the server calls this version of it (`ETag`), for the next [`WebClient::fetch_newer`].
    pub etag: Option<String>,
    /// How long the server lets it be kept (`Cache-Control: max-age`).
    pub max_age: Option<Duration>,
}

/// What came of asking for a newer version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// There is one.
    New(Document),
    /// The one that we have is the newest.
    Unchanged,
}

impl WebClient {
    /// Fetches a document.
    ///
    /// # Errors
    /// When the server cannot be reached, is not who it should be, answers with anything but the document (a
    /// redirect is not followed), or sends too much or too slowly.
    pub async fn fetch(&self, url: &HttpsUrl) -> Result<Document, FetchError> {
        match self.fetch_newer(url, None).await? {
            Fetched::New(document) => Ok(document),
            // We named no version: the server speaks nonsense.
            Fetched::Unchanged => Err(FetchError::Status { url: url.clone(), status: 304 }),
        }
    }

    /// Fetches a document, unless the server says that it still is the version `etag`.
    ///
    /// # Errors
    /// As [`WebClient::fetch`].
    pub async fn fetch_newer(&self, url: &HttpsUrl, etag: Option<&str>) -> Result<Fetched, FetchError> {
        let deadline = self.limits.deadline;
        let outcome = timeout(deadline, self.within_the_deadline(url, etag)).await;
        outcome.unwrap_or_else(|_late| Err(FetchError::Deadline { url: url.clone(), deadline }))
    }

    async fn within_the_deadline(&self, url: &HttpsUrl, etag: Option<&str>) -> Result<Fetched, FetchError> {
        let tcp = TcpStream::connect((url.host(), url.port())).await;
        let tcp = tcp.map_err(|source| FetchError::Unreachable { url: url.clone(), source })?;
        let tls = self.connect(url.host(), tcp).await;
        let tls = tls.map_err(|source| FetchError::Handshake { url: url.clone(), source: Box::new(source) })?;
        let broken = |source| FetchError::Http { url: url.clone(), source };
        let mut builder = http1::Builder::new();
        let (mut requests, connection) =
            builder.max_buf_size(HEAD).handshake(TokioIo::new(tls)).await.map_err(broken)?;
        let exchange = async {
            let answer = requests.send_request(self.request(url, etag)).await.map_err(broken)?;
            self.read(url, answer).await
        };
        // The connection moves only while it is polled, and is dropped with the answer.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                // The server closed after its answer, which is in the exchange's hands.
                Ok(()) => exchange.await,
                Err(source) => Err(broken(source)),
            },
        }
    }

    fn request(&self, url: &HttpsUrl, etag: Option<&str>) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = url.target().parse().unwrap_or_default();
        let headers = request.headers_mut();
        for (name, value) in [
            (header::HOST, Some(url.authority())),
            (header::ACCEPT, Some("application/json")),
            (header::USER_AGENT, Some("alcazar")),
            (header::CONNECTION, Some("close")),
            (header::IF_NONE_MATCH, etag),
        ] {
            // What cannot stand in a header was never sent as one.
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        request
    }

    async fn read(&self, url: &HttpsUrl, answer: http::Response<hyper::body::Incoming>) -> Result<Fetched, FetchError> {
        let (head, body) = answer.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Ok(Fetched::Unchanged),
            status if status.is_redirection() => {
                let to = text(&head.headers, &header::LOCATION).unwrap_or("nowhere").to_owned();
                return Err(FetchError::Redirect { url: url.clone(), to });
            }
            status => return Err(FetchError::Status { url: url.clone(), status: status.as_u16() }),
        }
        let limit = self.limits.bytes;
        let collected = Limited::new(body, limit).collect().await;
        let bytes = collected.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => FetchError::TooLong { url: url.clone(), limit },
            Err(error) => FetchError::Body { url: url.clone(), source: error },
        })?;
        Ok(Fetched::New(Document {
            bytes: bytes.to_bytes().into(),
            etag: text(&head.headers, &header::ETAG).map(str::to_owned),
            max_age: text(&head.headers, &header::CACHE_CONTROL).and_then(max_age),
        }))
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The `max-age` of a `Cache-Control` header; zero where it forbids keeping.
fn max_age(value: &str) -> Option<Duration> {
    let mut age = None;
    for directive in value.split(',').map(str::trim) {
        match directive.split_once('=') {
            None if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") => {
                return Some(Duration::ZERO);
            }
            Some((name, seconds)) if name.eq_ignore_ascii_case("max-age") => {
                age = seconds.trim_matches('"').parse().ok().map(Duration::from_secs);
            }
            _ => {}
        }
    }
    age
}

/// The longest head of an answer.
const HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_document_may_be_kept_is_read_from_its_header() {
        let seconds = |value| max_age(value).map(|age| age.as_secs());
        assert_eq!(seconds("public, max-age=300"), Some(300));
        assert_eq!(seconds("Max-Age=\"7\""), Some(7));
        assert_eq!(seconds("max-age=300, no-store"), Some(0));
        assert_eq!(seconds("public"), None);
        assert_eq!(seconds("max-age=soon"), None);
    }
}
