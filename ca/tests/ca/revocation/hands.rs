//! What the tests do: the operator's hand, and a node's ears.

use std::sync::Arc;
use std::time::Duration;

use alcazar_api::{
    ca::v1::{
        self, revocation_administration_client::RevocationAdministrationClient, revocation_client::RevocationClient,
        revoke_request, unrevoke_request,
    },
    revocations::Keeper,
};
use alcazar_identity::{Fingerprint, RevocationReason, Revocations, SpiffeId, X509Svid};
use alcazar_mtls::{PeerIdentity, Side, verify_peer};
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};

use crate::support::{Served, csr, key, svid};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn operator(served: &Served) -> RevocationAdministrationClient<Channel> {
    let socket = format!("unix:{}", served.ca.admin_socket().display());
    RevocationAdministrationClient::connect(socket).await.unwrap()
}

pub(crate) async fn revoke(
    served: &Served,
    subject: revoke_request::Subject,
    reason: RevocationReason,
) -> Result<Option<v1::RevocationEntry>, Status> {
    said(served, subject, reason).await.map(|reply| reply.entry)
}

/// All that the operator is told.
pub(crate) async fn said(
    served: &Served,
    subject: revoke_request::Subject,
    reason: RevocationReason,
) -> Result<v1::RevokeResponse, Status> {
    let request = v1::RevokeRequest { subject: Some(subject), reason: reason.code().into(), force: false };
    operator(served).await.revoke(request).await.map(tonic::Response::into_inner)
}

/// Also an intermediate that signs.
pub(crate) async fn by_force(served: &Served, intermediate: Fingerprint) -> Result<(), Status> {
    let subject = Some(revoke_request::Subject::Intermediate(intermediate.to_string()));
    let reason = RevocationReason::KeyCompromise.code().into();
    operator(served).await.revoke(v1::RevokeRequest { subject, reason, force: true }).await.map(drop)
}

pub(crate) async fn unrevoke(served: &Served, subject: unrevoke_request::Subject) -> Result<(), Status> {
    let request = v1::UnrevokeRequest { subject: Some(subject) };
    operator(served).await.unrevoke(request).await.map(drop)
}

pub(crate) fn identity(id: &SpiffeId) -> revoke_request::Subject {
    revoke_request::Subject::SpiffeId(id.to_string())
}

/// A node's stream, and what it holds by it.
pub(crate) struct Follower {
    pub(crate) stream: Streaming<v1::SignedRevocations>,
    keeper: Keeper,
}

impl Follower {
    pub(crate) async fn start(served: &Served, of: &X509Svid) -> Self {
        let mut client = RevocationClient::new(served.channel(of));
        let stream = client.watch_revocations(v1::WatchRevocationsRequest {}).await.unwrap().into_inner();
        Self { stream, keeper: Keeper::default() }
    }

    /// Hears until this holds.
    pub(crate) async fn until(&mut self, served: &Served, good: impl Fn(&Revocations) -> bool) -> Arc<Revocations> {
        loop {
            let said = timeout(PATIENCE, self.stream.message()).await.expect("a push").unwrap().expect("a message");
            let outcome = self.keeper.take(&said, &served.ca.trust_bundles(), served.hands.now());
            assert!(outcome.refused.is_empty(), "{outcome:?}");
            if good(self.keeper.current()) {
                return self.keeper.current().clone();
            }
        }
    }
}

pub(crate) fn peer(served: &Served, svid: &X509Svid) -> PeerIdentity {
    verify_peer(svid.chain(), &served.ca.trust_bundles(), Side::Client, served.hands.now()).unwrap()
}

pub(crate) async fn issue(served: &Served, of: &X509Svid, name: &str) -> Result<X509Svid, (i32, String)> {
    let key = key();
    let items =
        vec![v1::IssueWorkload { registration_id: name.into(), csr: csr(&key), ..v1::IssueWorkload::default() }];
    let reply = served.client(of).issue_workloads(v1::IssueWorkloadsRequest { items }).await;
    let reply = reply.map_err(|status| (status.code().into(), status.message().to_owned()))?;
    match reply.into_inner().results.remove(0).outcome.unwrap() {
        v1::issue_workload_result::Outcome::Svid(issued) => Ok(svid(&issued, &key)),
        v1::issue_workload_result::Outcome::Refusal(refusal) => Err((refusal.code, refusal.message)),
    }
}

pub(crate) fn serial(text: &str) -> revoke_request::Subject {
    revoke_request::Subject::Serial(text.to_owned())
}

pub(crate) async fn give_back(served: &Served, id: &SpiffeId) -> Result<(), Status> {
    unrevoke(served, unrevoke_request::Subject::SpiffeId(id.to_string())).await
}
