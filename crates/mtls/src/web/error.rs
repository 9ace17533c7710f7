use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::HttpsUrl;
use crate::ConnectError;

/// Why roots of web PKI cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The system has none.
    #[error(
        "this system has no trusted roots for HTTPS; install its CA certificates (ca-certificates), or name a file of roots"
    )]
    System {
        /// What went wrong while they were looked for.
        source: Option<rustls_native_certs::Error>,
    },
    /// The PEM text cannot be read.
    #[error("the PEM cannot be read: {0}")]
    Pem(String),
    /// The PEM text holds no certificate.
    #[error("the PEM holds no certificate")]
    Empty,
    /// A root cannot be used.
    #[error("a root cannot be used")]
    Root(#[source] rustls::Error),
    /// All of them together cannot be used.
    #[error("the roots cannot be used: {0}")]
    Verifier(String),
}

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody answers there.
    #[error("cannot reach {url}")]
    Unreachable {
        /// What was to be fetched.
        url: HttpsUrl,
        /// How connecting failed.
        source: io::Error,
    },
    /// TLS did not come about.
    #[error("cannot connect to {url}")]
    Handshake {
        /// What was to be fetched.
        url: HttpsUrl,
        /// Why.
        source: Box<ConnectError>,
    },
    /// It is somewhere else. The client follows nothing by itself: where a document of trust may come from is its caller's to say.
    #[error("{url} redirects to {to}, which is not followed; configure the final URL")]
    Redirect {
        /// What was to be fetched.
        url: HttpsUrl,
        /// Where it was sent.
        to: String,
    },
    /// The server answered, but not with the document.
    #[error("{url} answers with the HTTP status {status}")]
    Status {
        /// What was to be fetched.
        url: HttpsUrl,
        /// What came instead.
        status: u16,
    },
    /// More than the limit.
    #[error("{url} is longer than {limit} bytes")]
    TooLong {
        /// What was to be fetched.
        url: HttpsUrl,
        /// The longest that would be read.
        limit: usize,
    },
    /// What came is not HTTP, or it broke off.
    #[error("the answer of {url} cannot be read")]
    Http {
        /// What was to be fetched.
        url: HttpsUrl,
        /// How.
        source: hyper::Error,
    },
    /// The document broke off.
    #[error("the answer of {url} broke off")]
    Body {
        /// What was to be fetched.
        url: HttpsUrl,
        /// How.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It took too long.
    #[error("{url} did not answer in full within {deadline:?}")]
    Deadline {
        /// What was to be fetched.
        url: HttpsUrl,
        /// How long it had.
        deadline: Duration,
    },
}

/// Why a certificate and key in files cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum ServerFilesError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {what} in PEM: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The two do not belong together, or cannot be used.
    #[error("the certificate in {} and the key in {} cannot be used", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}
