//! What several tests need: a workload, a request by a few words.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "shared by tests, which stop at the first surprise"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use alcazar_identity::SpiffeId;
use alcazar_policy::{
    Compiled, EncodedSlash, Host, Http, NormalizedPath, Policy, Protocol, Request, Settings, Workload,
};
use alcazar_yaml::SourceFile;

/// The workload `account` of `namespace`, behind the service `account`.
pub struct Place {
    pub name: String,
    pub namespace: String,
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub services: Vec<String>,
    pub aliases: Vec<String>,
}

impl Place {
    pub fn new(namespace: &str, account: &str, version: &str) -> Self {
        Self {
            name: format!("{account}-{version}"),
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            labels: [("app", account), ("version", version)].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            services: vec![format!("{account}.{namespace}.svc.cluster.local")],
            aliases: Vec::new(),
        }
    }

    pub fn workload(&self) -> Workload<'_> {
        Workload {
            name: &self.name,
            namespace: &self.namespace,
            service_account: &self.account,
            labels: &self.labels,
            services: &self.services,
            trust_domain: "cluster.local",
            trust_domain_aliases: &self.aliases,
        }
    }

    pub fn compile(&self, policy: &Policy) -> Compiled {
        Compiled::new(policy.for_workload(&self.workload()))
    }
}

pub fn policy(text: &str) -> Policy {
    match Policy::from_files(&[SourceFile::new("policy.yaml", text)], &Settings::default()) {
        Ok(policy) => policy,
        Err(errors) => panic!("{}", alcazar_yaml::render_all(&errors, alcazar_yaml::Style::Plain)),
    }
}

/// A request that owns its parts.
#[derive(Debug, Clone)]
pub struct Call {
    pub source: Option<SpiffeId>,
    pub source_ip: IpAddr,
    pub destination: SocketAddr,
    pub sni: Option<String>,
    pub http: Option<HttpCall>,
}

#[derive(Debug, Clone)]
pub struct HttpCall {
    pub host: Option<String>,
    pub path: String,
    pub method: String,
    pub headers: Vec<(String, String)>,
}

impl Call {
    /// `source` as `namespace/account`, or `-` for none.
    pub fn http(source: &str, method: &str, path: &str) -> Self {
        let http = HttpCall { host: None, path: path.to_owned(), method: method.to_owned(), headers: Vec::new() };
        Self { http: Some(http), ..Self::tcp(source, 80) }
    }

    pub fn tcp(source: &str, port: u16) -> Self {
        let id = source.split_once('/').map(|(ns, sa)| format!("spiffe://cluster.local/ns/{ns}/sa/{sa}"));
        Self {
            source: id.map(|id| id.parse().unwrap()),
            source_ip: [10, 0, 1, 7].into(),
            destination: ([10, 0, 2, 9], port).into(),
            sni: None,
            http: None,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.http.as_mut().unwrap().headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        self.http.as_mut().unwrap().host = Some(host.to_owned());
        self
    }

    pub fn at_ip(mut self, ip: &str) -> Self {
        self.source_ip = ip.parse().unwrap();
        self
    }

    pub fn with<T>(&self, ask: impl FnOnce(&Request<'_>) -> T) -> T {
        let host = self.http.as_ref().and_then(|http| http.host.as_deref());
        let host = host.map(|host| Host::normalize(host).unwrap());
        let path = self.http.as_ref().map_or("/", |http| &http.path);
        let path = NormalizedPath::parse(path, EncodedSlash::Refuse).unwrap();
        let protocol = match &self.http {
            Some(http) => {
                Protocol::Http(Http { host: host.as_ref(), path: &path, method: &http.method, headers: &http.headers })
            }
            None => Protocol::Tcp,
        };
        ask(&Request {
            source: self.source.as_ref(),
            trust_domain: &"cluster.local".parse().unwrap(),
            source_ip: self.source_ip,
            destination: self.destination,
            sni: self.sni.as_deref(),
            protocol,
        })
    }
}
