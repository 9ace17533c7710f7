//! How an etcd cluster is reached.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

use crate::Prefix;

/// An etcd cluster, and a place of one's own in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// The members, as `https://<host>:<port>`; `http://` to this machine alone.
    pub endpoints: Vec<String>,
    /// What every key begins with. Stores of different prefixes know nothing of each other.
    pub prefix: Prefix,
    /// Whom to believe and how to prove oneself. Needed for `https://`.
    pub tls: Option<EtcdTls>,
    /// A user of etcd, where it asks for one and a certificate is not enough.
    pub user: Option<EtcdUser>,
    /// How long an answer may take, over all members that are asked for it.
    pub deadline: Duration,
}

/// PEM files, read again at every new connection after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authorities that etcd's certificates are signed by.
    pub ca: PathBuf,
    /// This client's certificate chain and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name in etcd's certificates, where it is not the host of the endpoint.
    pub server_name: Option<String>,
}

/// A user and the file that holds the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdUser {
    /// The name.
    pub name: String,
    /// The file; a newline at its end is not part of the password.
    pub password: PathBuf,
}

impl EtcdConfig {
    /// A configuration with the defaults for these members.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>, prefix: Prefix) -> Self {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        Self { endpoints, prefix, tls: None, user: None, deadline: DEADLINE }
    }

    /// Whether it makes sense, without a look at any file.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self) -> Result<(), EtcdConfigError> {
        if self.endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        if self.prefix == Prefix::all() {
            return Err(EtcdConfigError::NoPrefix);
        }
        if self.deadline < Duration::from_millis(100) || self.deadline > Duration::from_secs(60) {
            return Err(EtcdConfigError::Deadline(self.deadline));
        }
        self.endpoints.iter().try_for_each(|endpoint| self.endpoint(endpoint).map(drop))
    }

    fn endpoint(&self, text: &str) -> Result<Endpoint, EtcdConfigError> {
        let wrong = || EtcdConfigError::Endpoint(text.into());
        let endpoint = Endpoint::from_shared(text.to_owned()).map_err(|_not_a_uri| wrong())?;
        let (scheme, host) = (endpoint.uri().scheme_str(), endpoint.uri().host().ok_or_else(wrong)?);
        match scheme {
            Some("https") if self.tls.is_some() => {}
            Some("https") => return Err(EtcdConfigError::NoTls(text.into())),
            Some("http") if is_this_machine(host) => {}
            Some("http") => return Err(EtcdConfigError::Plaintext(text.into())),
            _ => return Err(wrong()),
        }
        Ok(endpoint
            .connect_timeout(CONNECT.min(self.deadline))
            .tcp_nodelay(true)
            // A member that is gone without a word is noticed, also by a watch that only listens.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true))
    }

    /// A channel to a member; the connection is made when something is asked.
    pub(super) fn channel(&self, text: &str) -> Result<Channel, EtcdConfigError> {
        let mut endpoint = self.endpoint(text)?;
        if let (Some("https"), Some(tls)) = (endpoint.uri().scheme_str(), &self.tls) {
            let mut settings = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?.as_slice()));
            if let Some((certificate, key)) = &tls.client {
                settings = settings.identity(Identity::from_pem(read(certificate)?.as_slice(), read(key)?.as_slice()));
            }
            if let Some(name) = &tls.server_name {
                settings = settings.domain_name(name);
            }
            endpoint = endpoint.tls_config(settings).map_err(|source| EtcdConfigError::Tls { source })?;
        }
        Ok(endpoint.connect_lazy())
    }
}

impl EtcdUser {
    pub(super) fn password(&self) -> Result<Zeroizing<String>, EtcdConfigError> {
        let text = Zeroizing::new(String::from_utf8_lossy(&read(&self.password)?).into_owned());
        Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, EtcdConfigError> {
    fs::read(path).map(Zeroizing::new).map_err(|source| EtcdConfigError::File { path: path.into(), source })
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What in a configuration makes no sense.
#[derive(Debug, Error)]
pub enum EtcdConfigError {
    /// Nobody to ask.
    #[error("no endpoint of etcd is named")]
    NoEndpoint,
    /// The whole of etcd.
    #[error("a store in etcd has a prefix of its own; name one")]
    NoPrefix,
    /// Not an endpoint.
    #[error("{0:?} is not an endpoint of etcd: write https://<host>:<port>")]
    Endpoint(String),
    /// Anybody on the way could change what the store says.
    #[error("the endpoint {0} is neither encrypted nor on this machine; use https://")]
    Plaintext(String),
    /// Nobody to believe.
    #[error("the endpoint {0} needs the certificate authority that its certificate is signed by")]
    NoTls(String),
    /// An answer within no time, or within an age.
    #[error("a deadline of {0:?} is outside of 100ms to 60s")]
    Deadline(Duration),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates or keys that are none.
    #[error("the certificates for etcd cannot be used")]
    Tls {
        /// What is wrong.
        source: tonic::transport::Error,
    },
}

const DEADLINE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> EtcdConfig {
        EtcdConfig::new([endpoint], "alcazar".parse().unwrap())
    }

    #[test]
    fn what_is_neither_encrypted_nor_local_is_refused() {
        for good in ["http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:2379"] {
            config(good).check().unwrap();
        }
        for (bad, why) in [
            ("http://etcd.example:2379", "encrypted"),
            ("https://etcd.example:2379", "certificate authority"),
            ("etcd.example:2379", "https://"),
            ("ftp://127.0.0.1", "https://"),
            ("", "https://"),
        ] {
            let error = config(bad).check().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        let all = EtcdConfig { prefix: Prefix::all(), ..config("http://127.0.0.1:1") };
        assert!(matches!(all.check(), Err(EtcdConfigError::NoPrefix)));
        let none = EtcdConfig { endpoints: Vec::new(), ..config("http://127.0.0.1:1") };
        assert!(matches!(none.check(), Err(EtcdConfigError::NoEndpoint)));
    }
}
