use std::collections::{BTreeMap, BTreeSet};

use alcazar_api::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use alcazar_api::envoy::{SECRET_URL, pack};

use super::secrets::{EVERYTHING, Found, View};
use super::sotw::absent;
use super::{Heard, MAX_NAMES, RequestError};

/// One incremental stream: for each name what its client was last told.
///
/// A name that is unknown, or has nothing under it now, is told as removed, with the reason among the
/// `resource_errors`; the secret is pushed when it comes to be.
///
/// **Source**: Envoy, "xDS REST and gRPC protocol", incremental xDS.
#[derive(Debug, Default)]
pub struct Delta {
    known: BTreeMap<String, Known>,
    /// The names that must be answered even if nothing changed.
    owed: BTreeSet<String>,
    /// The nonce of the last response.
    nonce: String,
    heard_any: bool,
    responses: u64,
}

/// What a client was last told of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Nothing yet.
    Untold,
    /// That there is none.
    Absent,
    /// The content of this version.
    Version(String),
}

impl Delta {
    /// Takes a request.
    ///
    /// # Errors
    /// When it asks for something that no stream of this service gives; the stream ends then.
    pub fn hear(&mut self, request: &DeltaDiscoveryRequest) -> Result<Heard, RequestError> {
        RequestError::check(&request.type_url, request.resource_names_subscribe.iter())?;
        let first = !std::mem::replace(&mut self.heard_any, true);
        let named = request.resource_names_subscribe.iter().map(String::as_str).filter(|name| *name != WILDCARD);
        let wildcard = request.resource_names_subscribe.iter().any(|name| name == WILDCARD)
            || (first && request.resource_names_subscribe.is_empty());
        for name in named.chain(wildcard.then_some(EVERYTHING).into_iter().flatten()) {
            self.subscribe(name)?;
        }
        for name in &request.resource_names_unsubscribe {
            let gone: &[&str] = if name == WILDCARD { &EVERYTHING } else { &[name] };
            for name in gone {
                self.known.remove(*name);
                self.owed.remove(*name);
            }
        }
        if first {
            self.recall(request);
        }
        Ok(match &request.error_detail {
            Some(detail) => Heard::Rejected(detail.message.clone()),
            None if first || !request.resource_names_subscribe.is_empty() => Heard::Subscribed,
            None if request.response_nonce.is_empty() || request.response_nonce == self.nonce => Heard::Acknowledged,
            None => Heard::Stale,
        })
    }

    /// The response that is due: to a new subscription, or because what the client has is out of date.
    pub fn say(&mut self, view: &View) -> Option<DeltaDiscoveryResponse> {
        let mut response = DeltaDiscoveryResponse { type_url: SECRET_URL.to_owned(), ..Default::default() };
        for (name, known) in &mut self.known {
            let found = view.find(name);
            let now = found.version().map_or(Known::Absent, Known::Version);
            if *known == now && !self.owed.contains(name) {
                continue;
            }
            match resource(name, &found) {
                Some(resource) => response.resources.push(resource),
                None => {
                    response.removed_resources.push(name.clone());
                    response.resource_errors.extend(found.absence().map(|why| absent(name, why)));
                }
            }
            *known = now;
        }
        self.owed.clear();
        if response.resources.is_empty() && response.removed_resources.is_empty() {
            return None;
        }
        self.responses += 1;
        self.nonce = self.responses.to_string();
        response.nonce.clone_from(&self.nonce);
        response.system_version_info.clone_from(&self.nonce);
        Some(response)
    }

    /// The names that the client is subscribed to.
    pub fn subscribed(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str)
    }

    fn subscribe(&mut self, name: &str) -> Result<(), RequestError> {
        if self.known.len() >= MAX_NAMES && !self.known.contains_key(name) {
            return Err(RequestError::TooMany);
        }
        self.known.entry(name.to_owned()).or_insert(Known::Untold);
        // A client that subscribes to what it has wants to hear it again.
        self.owed.insert(name.to_owned());
        Ok(())
    }

    /// A client that comes back says what it still has; that much need not be sent again.
    fn recall(&mut self, request: &DeltaDiscoveryRequest) {
        for (name, version) in &request.initial_resource_versions {
            if let Some(known) = self.known.get_mut(name) {
                *known = Known::Version(version.clone());
                self.owed.remove(name);
            }
        }
    }
}

fn resource(name: &str, found: &Found<'_>) -> Option<Resource> {
    let secret = found.secret(name)?;
    Some(Resource {
        name: name.to_owned(),
        version: found.version()?,
        resource: Some(pack(SECRET_URL, &secret)),
        ..Resource::default()
    })
}

const WILDCARD: &str = "*";
