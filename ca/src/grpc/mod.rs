//! The wire: three services on two listeners, each a thin shell around the CA.

mod administration;
mod authority;
mod bounds;
mod bundles;
mod istio;
mod jwt;
mod ledger;
mod registrations;
mod revocation;
mod room;
mod rotation;
mod status;
mod trace;
mod traced;
mod watched;

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use alcazar_api::ca::v1;
use alcazar_mtls::{PeerIdentity, grpc::PeerInfo};
use tonic::Request;

pub(crate) use self::{
    administration::AdministrationService,
    authority::AuthorityService,
    bounds::Bounds,
    bundles::BundlesService,
    istio::IstioService,
    jwt::JwtService,
    ledger::LedgerService,
    revocation::{RevocationAdministrationService, RevocationService},
    rotation::{AdoptionService, RotationService},
    status::StatusService,
    traced::Traced,
};
use crate::{
    admission::Call,
    ca::Ca,
    records::{ParseRegistrationError, Registration, seconds},
    refusal::{Asker, Batch, RequestError},
    requests::{Node, Reply},
};

/// Who calls, as TLS has it.
fn peer<T>(request: &Request<T>) -> Option<PeerIdentity> {
    request.extensions().get::<PeerInfo>().and_then(|info| info.peer.clone())
}

/// The node behind a request that a certificate alone can make.
async fn node<T>(ca: &Ca, request: &Request<T>) -> Result<Node, RequestError> {
    ca.calling_node(request.metadata().as_ref(), peer(request).as_ref()).await
}

/// The same, for what a node may call so often.
async fn calling<T>(ca: &Ca, request: &Request<T>, call: Call) -> Result<Node, RequestError> {
    let node = node(ca, request).await?;
    ca.0.admission.call(node.id.as_str(), call)?;
    Ok(node)
}

/// Why one item of many came to nothing, as its node is told.
fn refusal(batch: &Batch<'_>, error: &RequestError) -> v1::Refusal {
    let (status, retry_after) = (batch.refuse(error), error.retry_after().unwrap_or_default());
    v1::Refusal {
        code: status.code().into(),
        message: status.message().into(),
        retry_after_ms: u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Measures a certificate's way from the request to the reply.
async fn measured<T, E>(ca: &Ca, issuance: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let (metrics, started) = (&ca.0.metrics, Instant::now());
    metrics.asked.inc();
    let outcome = issuance.await;
    if outcome.is_ok() {
        metrics.issuance.observe(started.elapsed());
    }
    outcome
}

/// Where a call comes from.
fn address<T>(request: &Request<T>) -> Option<IpAddr> {
    request.extensions().get::<PeerInfo>().map(|info| info.remote_addr.ip())
}

/// Who calls, for the log.
fn caller<T>(request: &Request<T>) -> Asker {
    let info = request.extensions().get::<PeerInfo>();
    let name = match info {
        Some(PeerInfo { peer: Some(peer), remote_addr }) => format!("{} at {remote_addr}", peer.id()),
        Some(PeerInfo { remote_addr, .. }) => format!("somebody at {remote_addr}"),
        None => "somebody".into(),
    };
    let is_stranger = info.is_none_or(|info| info.peer.is_none());
    Asker { name, address: address(request), is_stranger }
}

fn epoch(at: SystemTime) -> i64 {
    i64::try_from(seconds::of(at)).unwrap_or(i64::MAX)
}

/// With every bundle to believe, for whoever may know none yet.
fn svid_and_bundles(ca: &Ca, reply: &Reply) -> v1::IssuedSvid {
    let bundles = Some((&ca.bundles_with(&reply.hierarchy)).into());
    v1::IssuedSvid { bundles, answered_at: epoch((ca.0.clock)()), ..svid(reply) }
}

fn svid(reply: &Reply) -> v1::IssuedSvid {
    v1::IssuedSvid {
        spiffe_id: reply.id.to_string(),
        chain: reply.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        issued_at: epoch(reply.issued_at),
        not_after: epoch(reply.not_after),
        bundles: None,
        answered_at: 0,
    }
}

fn registration_message(registration: &Registration) -> v1::Registration {
    v1::Registration {
        id: registration.id().to_string(),
        node_id: registration.node().to_string(),
        spiffe_id: registration.spiffe_id().to_string(),
        selectors: registration.selectors().map(ToString::to_string).collect(),
        ttl: registration.ttl().map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
        profile: registration.profile().unwrap_or_default().into(),
        dns_names: registration.dns_names().map(ToString::to_string).collect(),
    }
}

fn registration_of(message: v1::Registration) -> Result<Registration, ParseRegistrationError> {
    let id = |text: String| text.parse().map_err(|source| ParseRegistrationError::SpiffeId { text, source });
    let selectors = message.selectors.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
    let ttl = u64::try_from(message.ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs);
    let names = message.dns_names.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>()?;
    Registration::new(message.id.parse()?, id(message.node_id)?, id(message.spiffe_id)?, selectors, ttl)?
        .with_profile(Some(message.profile))?
        .with_dns_names(names)
}
