//! Tokens of issuers that `ca.yaml` names, and the rules that make identities of their claims.

use std::{fs, path::PathBuf};

use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_jwt::{Claims, Expectations, Issuer, Token};
use alcazar_mtls::web::WebClient;
use alcazar_service::clock::Clock;
use serde_json::Value;

use super::{
    CallersError,
    config::OidcCallers,
    error::CallerError,
    keys::{Discovery, FetchKeys, IssuerKeys, KeysFile, KeysUrl},
    rules::Rules,
};

/// The plug for one issuer.
pub(crate) struct OidcPlug {
    pub(super) issuer: String,
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
        let source = source(config, clock)?;
        let keys = IssuerKeys::new(source, clock.clone());
        let (issuer, audiences) = (config.issuer.clone(), config.audiences.clone());
        Ok(Self { issuer, audiences, keys, rules, clock: clock.clone() })
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

fn source(config: &OidcCallers, clock: &Clock) -> Result<Box<dyn FetchKeys>, CallersError> {
    let wrong = |what| CallersError::Oidc { issuer: config.issuer.clone(), what };
    let url = match &config.jwks {
        Some(file) if !file.contains("://") => return Ok(Box::new(KeysFile(PathBuf::from(file)))),
        Some(url) => url.clone(),
        None => format!("{}/.well-known/openid-configuration", config.issuer.trim_end_matches('/')),
    };
    let url = url.parse().map_err(|error| wrong(format!("{error}")))?;
    let client = match &config.roots {
        None => WebClient::system(clock.clone()),
        Some(path) => {
            let pem = fs::read(path).map_err(|source| CallersError::File { path: path.clone(), source })?;
            WebClient::with_roots(&pem, clock.clone())
        }
    };
    let client = client.map_err(|source| CallersError::WebRoots { issuer: config.issuer.clone(), source })?;
    match &config.jwks {
        Some(_) => Ok(Box::new(KeysUrl { client, url })),
        None => Ok(Box::new(Discovery { client, issuer: config.issuer.clone(), url })),
    }
}
