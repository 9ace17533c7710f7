//! Tokens of issuers that `ca.yaml` names, and the rules that make identities of their claims.

use std::{path::PathBuf, sync::Arc};

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_jwt::{Claims, Expectations, Issuer, Token};
use alcazar_mtls::web::WebClient;
use alcazar_service::clock::Clock;
use serde_json::Value;

use super::{
    CallersError,
    config::OidcCallers,
    error::CallerError,
    keys::{Discovery, FetchKeys, IssuerKeys, KeysClient, KeysFile, KeysUrl},
    roots::RootsFile,
    rules::Rules,
};

/// The plug for one issuer.
pub(crate) struct OidcPlug {
    pub(super) issuer: String,
    /// The roots for its URLs, where they are not the system's.
    pub(super) roots: Option<Arc<RootsFile<WebClient>>>,
    audiences: Vec<String>,
    keys: IssuerKeys,
    rules: Rules,
    clock: Clock,
}

impl OidcPlug {
    /// Reads the configuration. Nothing is fetched yet.
    pub(super) fn new(config: &OidcCallers, cluster: &str, clock: &Clock) -> Result<Self, CallersError> {
        let wrong = |what| CallersError::Oidc { issuer: config.issuer.clone(), what };
        if config.issuer.is_empty() {
            return Err(wrong("issuer is empty".into()));
        }
        if config.audiences.is_empty() {
            return Err(wrong("audiences is empty, so that no token would be for this CA".into()));
        }
        let rules = Rules::new(&config.rules, cluster)
            .map_err(|source| CallersError::Rules { of: config.issuer.clone(), source })?;
        let roots = roots(config, clock)?.map(Arc::new);
        let source = source(config, roots.clone(), clock)?;
        let keys = IssuerKeys::new(source, clock.clone());
        let (issuer, audiences) = (config.issuer.clone(), config.audiences.clone());
        Ok(Self { issuer, roots, audiences, keys, rules, clock: clock.clone() })
    }

    /// Who the holder of a token is.
    pub(super) async fn identity(&self, token: Token<'_>, trust_domain: &TrustDomain) -> Result<SpiffeId, CallerError> {
        let audiences: Vec<&str> = self.audiences.iter().map(String::as_str).collect();
        let expected = Expectations {
            audiences: &audiences,
            issuer: Issuer::Is(&self.issuer),
            now: (self.clock)(),
            leeway: super::LEEWAY,
        };
        let claims = self.keys.verify(token, &expected).await?;
        self.rules.identify(trust_domain, &|name| values(&claims, name)).map_err(CallerError::Rule)
    }
}

/// The values of a claim: one, or those of a list; nothing that has parts of its own.
fn values(claims: &Claims, name: &str) -> Vec<String> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    match claims.get(name) {
        Some(Value::Array(several)) => several.iter().filter_map(scalar).collect(),
        Some(one) => scalar(one).into_iter().collect(),
        None if name == "aud" => claims.audiences().to_vec(),
        None => Vec::new(),
    }
}

/// The roots that the configuration names, for what it says is fetched.
fn roots(config: &OidcCallers, clock: &Clock) -> Result<Option<RootsFile<WebClient>>, CallersError> {
    let Some(path) = config.roots.as_ref().filter(|_| !is_file(config)) else { return Ok(None) };
    let (issuer, clock) = (config.issuer.clone(), clock.clone());
    let parse = move |pem: &[u8]| {
        let client = WebClient::with_roots(pem, clock.clone());
        client.map_err(|source| CallersError::WebRoots { issuer: issuer.clone(), source })
    };
    RootsFile::open(path, parse).map(Some)
}

fn is_file(config: &OidcCallers) -> bool {
    config.jwks.as_ref().is_some_and(|jwks| !jwks.contains("://"))
}

fn source(
    config: &OidcCallers,
    roots: Option<Arc<RootsFile<WebClient>>>,
    clock: &Clock,
) -> Result<Box<dyn FetchKeys>, CallersError> {
    let wrong = |what| CallersError::Oidc { issuer: config.issuer.clone(), what };
    let url = match &config.jwks {
        Some(file) if is_file(config) => return Ok(Box::new(KeysFile(PathBuf::from(file)))),
        Some(url) => url.clone(),
        None => format!("{}/.well-known/openid-configuration", config.issuer.trim_end_matches('/')),
    };
    let url = url.parse().map_err(|error| wrong(format!("{error}")))?;
    let client = match roots {
        Some(file) => KeysClient::By(file),
        None => {
            let client = WebClient::system(clock.clone());
            let unusable = |source| CallersError::WebRoots { issuer: config.issuer.clone(), source };
            KeysClient::System(client.map_err(unusable)?)
        }
    };
    match &config.jwks {
        Some(_) => Ok(Box::new(KeysUrl { client, url })),
        None => Ok(Box::new(Discovery { client, issuer: config.issuer.clone(), url })),
    }
}
