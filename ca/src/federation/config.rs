//! Federation in `ca.yaml`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use alcazar_identity::{ParseSpiffeIdError, ParseTrustDomainError, SpiffeId, TrustDomain};
use alcazar_mtls::web::{HttpsUrl, ParseHttpsUrlError};
use serde::Deserialize;
use thiserror::Error;

use crate::duration;

/// Where others fetch our bundle.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BundleEndpointConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How it proves itself.
    pub profile: EndpointProfile,
    /// How often others should look for a newer version: they learn of a new root, and of one that is gone, within that time.
    /// Default: 5m; at least 30s, at most 1d.
    #[serde(default = "default_refresh_hint", deserialize_with = "duration::deserialize")]
    pub refresh_hint: Duration,
}

/// How our bundle endpoint proves itself.
///
/// **Source**: SPIFFE Federation §5.2.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum EndpointProfile {
    /// By a certificate that browsers would trust too. The files are read again when they change.
    #[serde(rename = "https_web", rename_all = "camelCase")]
    Web {
        /// The certificate, leaf first, and its issuers: PEM.
        cert_file: PathBuf,
        /// The private key: PEM.
        key_file: PathBuf,
    },
    /// By the CA's own SVID: `spiffe://<trust domain>/ns/alcazar-system/sa/alcazar-ca`.
    #[serde(rename = "https_spiffe")]
    Spiffe,
}

/// Another trust domain, whose bundle is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FederationConfig {
    /// Its name. What is fetched is believed for this trust domain alone.
    pub trust_domain: String,
    /// Its bundle endpoint.
    pub url: String,
    /// How the endpoint is known.
    pub profile: RelationProfile,
}

/// How a foreign endpoint is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum RelationProfile {
    /// By its DNS name.
    #[serde(rename = "https_web", rename_all = "camelCase")]
    Web {
        /// The roots to trust instead of the system's: PEM. Default: the system's.
        #[serde(default)]
        roots_file: Option<PathBuf>,
    },
    /// By its SPIFFE ID.
    #[serde(rename = "https_spiffe", rename_all = "camelCase")]
    Spiffe {
        /// Who serves.
        endpoint_spiffe_id: String,
        /// The bundle of the server's trust domain, for the first fetch: a bundle document, or roots in PEM. Not needed where that
        /// trust domain is known already, by another relation or from the operator. Once a bundle is held, it decides.
        #[serde(default)]
        bundle_file: Option<PathBuf>,
    },
}

/// A relation whose parts fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) url: HttpsUrl,
    pub(crate) known_by: KnownBy,
}

/// How its endpoint is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KnownBy {
    Web { roots_file: Option<PathBuf> },
    Spiffe { id: SpiffeId, bundle_file: Option<PathBuf> },
}

impl BundleEndpointConfig {
    pub(crate) fn check(&self) -> Result<(), FederationConfigError> {
        match (SHORTEST_HINT..=LONGEST_HINT).contains(&self.refresh_hint) {
            true => Ok(()),
            false => Err(FederationConfigError::RefreshHint),
        }
    }
}

impl FederationConfig {
    pub(crate) fn relation(&self, own: &TrustDomain) -> Result<Relation, FederationConfigError> {
        let name = || self.trust_domain.clone();
        let trust_domain: TrustDomain =
            self.trust_domain.parse().map_err(|source| FederationConfigError::TrustDomain { name: name(), source })?;
        if trust_domain == *own {
            return Err(FederationConfigError::Own(trust_domain));
        }
        let url = self.url.parse().map_err(|source| FederationConfigError::Url { name: name(), source })?;
        let known_by = match &self.profile {
            RelationProfile::Web { roots_file } => KnownBy::Web { roots_file: roots_file.clone() },
            RelationProfile::Spiffe { endpoint_spiffe_id, bundle_file } => KnownBy::Spiffe {
                id: endpoint_spiffe_id
                    .parse()
                    .map_err(|source| FederationConfigError::EndpointId { name: name(), source })?,
                bundle_file: bundle_file.clone(),
            },
        };
        Ok(Relation { trust_domain, url, known_by })
    }
}

/// Every relation; each trust domain once.
pub(crate) fn relations(
    configured: &[FederationConfig],
    own: &TrustDomain,
) -> Result<Vec<Relation>, FederationConfigError> {
    let relations = configured.iter().map(|one| one.relation(own)).collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<_> = relations.iter().map(|relation| &relation.trust_domain).collect();
    names.sort();
    match names.windows(2).find_map(|pair| (pair.first() == pair.last()).then(|| pair.first())) {
        Some(Some(twice)) => Err(FederationConfigError::Twice((*twice).clone())),
        _ => Ok(relations),
    }
}

/// What of it makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FederationConfigError {
    /// Not the name of a trust domain.
    #[error("federation: {name:?} is not the name of a trust domain")]
    TrustDomain {
        /// What was given.
        name: String,
        /// What is wrong.
        source: ParseTrustDomainError,
    },
    /// Ourselves.
    #[error("federation: {0} is our own trust domain; nobody else says what its bundle is")]
    Own(TrustDomain),
    /// Two relations with one trust domain.
    #[error("federation: {0} stands twice")]
    Twice(TrustDomain),
    /// Not the URL of an endpoint.
    #[error("federation: {name}: url")]
    Url {
        /// The trust domain.
        name: String,
        /// What is wrong.
        source: ParseHttpsUrlError,
    },
    /// Not a SPIFFE ID.
    #[error("federation: {name}: endpointSpiffeId")]
    EndpointId {
        /// The trust domain.
        name: String,
        /// What is wrong.
        source: ParseSpiffeIdError,
    },
    /// A refresh hint that nobody can mean.
    #[error("bundleEndpoint.refreshHint: at least 30s, at most 1d")]
    RefreshHint,
}

pub(crate) fn default_refresh_hint() -> Duration {
    Duration::from_secs(300)
}

const SHORTEST_HINT: Duration = Duration::from_secs(30);
const LONGEST_HINT: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn one(trust_domain: &str, url: &str, profile: RelationProfile) -> FederationConfig {
        FederationConfig { trust_domain: trust_domain.into(), url: url.into(), profile }
    }

    fn web() -> RelationProfile {
        RelationProfile::Web { roots_file: None }
    }

    #[test]
    fn a_relation_has_a_name_of_its_own_and_an_https_url() {
        let own: TrustDomain = "td.example".parse().unwrap();
        let url = "https://other.example/bundle.json";
        let refused = |configured: &[FederationConfig]| relations(configured, &own).unwrap_err().to_string();
        assert_eq!(relations(&[one("a.example", url, web()), one("b.example", url, web())], &own).unwrap().len(), 2);
        assert!(refused(&[one("td.example", url, web())]).contains("our own trust domain"));
        assert!(refused(&[one("a.example", url, web()), one("a.example", url, web())]).contains("twice"));
        assert!(refused(&[one("A b", url, web())]).contains("not the name"));
        assert!(refused(&[one("a.example", "http://other.example", web())]).contains("url"));
        let spiffe = RelationProfile::Spiffe { endpoint_spiffe_id: "other".into(), bundle_file: None };
        assert!(refused(&[one("a.example", url, spiffe)]).contains("endpointSpiffeId"));
    }
}
