use std::collections::{BTreeMap, BTreeSet};

use alcazar_api::envoy::discovery::{DiscoveryRequest, DiscoveryResponse, ResourceError, ResourceName};
use alcazar_api::envoy::{SECRET_URL, Status, pack};

use super::MAX_NAMES;
use super::secrets::{EVERYTHING, View, digest};

/// One state-of-the-world stream: what its client has subscribed to, and what it was last told.
///
/// [`Sotw::hear`] takes a request, [`Sotw::say`] gives the response that is due, if one is. A name that is unknown,
/// or has nothing under it now, is answered: the response is without it and names it among its `resource_errors`,
/// and the secret is pushed when it comes to be.
///
/// **Source**: Envoy, "xDS REST and gRPC protocol".
#[derive(Debug, Default)]
pub struct Sotw {
    /// `None` before the first request.
    names: Option<BTreeSet<String>>,
    /// The first request named nothing: it wants everything that is the caller's.
    everything: bool,
    /// The versions in the last response, by name; `None`: there was nothing under it.
    told: BTreeMap<String, Option<String>>,
    /// A response is due even if nothing changed.
    owed: bool,
    /// How many responses there were; the last one's nonce.
    responses: u64,
}

/// What a request meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A subscription, new or changed.
    Subscribed,
    /// The last response was applied.
    Acknowledged,
    /// The last response could not be applied; why. It is not sent again until it changes.
    Rejected(String),
    /// An answer to a response that a later one has overtaken: its successor counts.
    Stale,
}

impl Sotw {
    /// Takes a request.
    ///
    /// # Errors
    /// When it asks for something that no stream of this service gives; the stream ends then.
    pub fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, RequestError> {
        RequestError::check(&request.type_url, request.resource_names.iter())?;
        let first = self.names.is_none();
        let overtaken = request.response_nonce != self.responses.to_string();
        if !first && !request.response_nonce.is_empty() && overtaken {
            return Ok(Heard::Stale);
        }
        let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        if first {
            self.everything = names.is_empty();
        } else if !names.is_empty() {
            self.everything = false;
        }
        let grew = self.names.as_ref().is_none_or(|held| !names.is_subset(held));
        self.names = Some(names);
        // Without a nonce a client starts anew, whatever it was told before.
        if first || grew || request.response_nonce.is_empty() {
            self.owed = true;
        }
        Ok(match &request.error_detail {
            Some(detail) => Heard::Rejected(detail.message.clone()),
            None if self.owed => Heard::Subscribed,
            None => Heard::Acknowledged,
        })
    }

    /// The response that is due: to a new subscription, or because what the client has is out of date.
    pub fn say(&mut self, view: &View) -> Option<DiscoveryResponse> {
        self.names.as_ref()?;
        let found: Vec<_> = self.subscribed().map(|name| (name, view.find(name))).collect();
        let versions: BTreeMap<_, _> =
            found.iter().map(|(name, found)| ((*name).to_owned(), found.version())).collect();
        // A name that is subscribed to no more is not a change.
        let changed = versions.iter().any(|(name, version)| self.told.get(name) != Some(version));
        if !self.owed && !changed {
            return None;
        }
        let secrets = found.iter().filter_map(|(name, found)| found.secret(name));
        let resources = secrets.map(|secret| pack(SECRET_URL, &secret)).collect();
        let resource_errors = found.iter().filter_map(|(name, found)| Some(absent(name, found.absence()?))).collect();
        let all = versions.iter().map(|(name, version)| format!("{name}={}", version.as_deref().unwrap_or_default()));
        let version_info = digest(all.collect::<Vec<_>>().iter().map(String::as_bytes));
        self.responses += 1;
        self.told = versions;
        self.owed = false;
        Some(DiscoveryResponse {
            version_info,
            resources,
            type_url: SECRET_URL.to_owned(),
            nonce: self.responses.to_string(),
            resource_errors,
            ..DiscoveryResponse::default()
        })
    }

    /// The names that the client is subscribed to.
    pub fn subscribed(&self) -> impl Iterator<Item = &str> {
        let everything = self.everything.then_some(EVERYTHING).into_iter().flatten();
        self.names.iter().flatten().map(String::as_str).chain(everything)
    }
}

/// Says that there is nothing under a name.
pub(super) fn absent(name: &str, why: String) -> ResourceError {
    let resource_name = Some(ResourceName { name: name.to_owned(), ..ResourceName::default() });
    ResourceError { resource_name, error_detail: Some(Status { code: NOT_FOUND, message: why, details: Vec::new() }) }
}

/// Why a request ends its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Another kind of resource.
    #[error("this service serves {SECRET_URL}, not {0:?}")]
    Type(String),
    /// More names than anybody needs.
    #[error("a stream may subscribe to at most {MAX_NAMES} names")]
    TooMany,
    /// A name longer than any name is.
    #[error("a name of {0} bytes is none")]
    LongName(usize),
}

impl RequestError {
    /// Holds a request against what every stream of this service demands.
    pub(super) fn check<'r>(
        type_url: &str,
        names: impl ExactSizeIterator<Item = &'r String>,
    ) -> Result<(), RequestError> {
        // Envoy's own clients leave the type out: the service has one.
        if !type_url.is_empty() && type_url != SECRET_URL {
            return Err(Self::Type(type_url.chars().take(MAX_NAME).collect()));
        }
        if names.len() > MAX_NAMES {
            return Err(Self::TooMany);
        }
        let mut lengths = names.map(String::len);
        lengths.find(|length| *length > MAX_NAME).map_or(Ok(()), |length| Err(Self::LongName(length)))
    }
}

/// The longest SPIFFE ID.
const MAX_NAME: usize = 2048;
/// google.rpc.Code.
const NOT_FOUND: i32 = 5;
