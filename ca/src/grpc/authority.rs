//! `alcazar.ca.v1.CertificateAuthority`: what nodes ask.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_server::CertificateAuthority,
    issue_workload_result::Outcome, node_attestation_server::NodeAttestation,
};
use alcazar_identity::{CertificateDer, SpiffeId};
use alcazar_service::Shutdown;
use futures::{StreamExt, stream};
use tonic::{Request, Response, Status};

use super::{
    address, caller, calling, epoch, measured, node, peer, refusal, registrations,
    room::Room,
    svid, svid_and_bundles,
    watched::{Messages, Sender, watched},
};
use crate::{
    admission::Call,
    ca::Ca,
    callers::{CallerError, LineageEvidence, MachineEvidence, Plug},
    csr::Csr,
    refusal::{Batch, RequestError},
    requests::{Node, Reply, no_bearer},
};

pub(crate) struct AuthorityService {
    ca: Ca,
    shutdown: Shutdown,
}

/// Certificates in one request.
const BATCH: usize = 1000;

/// Of them, as many are on their way at a time.
const TOGETHER: usize = 32;

impl AuthorityService {
    pub(crate) fn new(ca: Ca, shutdown: Shutdown) -> Self {
        Self { ca, shutdown }
    }

    /// By what the node shows, which is one thing.
    async fn attest(&self, message: &v1::AttestNodeRequest, from: Option<IpAddr>) -> Result<Reply, RequestError> {
        let csr = &message.csr;
        let expects = match message.node_id.as_str() {
            "" => None,
            text => Some(text.parse::<SpiffeId>().map_err(|error| RequestError::Field(error.into()))?),
        };
        let expects = expects.as_ref();
        match &message.evidence {
            Some(Evidence::JoinToken(token)) => self.ca.attest(from, token, csr, expects).await,
            Some(Evidence::BearerToken(token)) => self.ca.attest_bearer(from, token, csr, expects).await,
            Some(Evidence::Machine(v1::MachineEvidence { chain, nonce, signature })) => {
                let evidence = MachineEvidence { chain: certificates(chain), nonce, signature, csr };
                self.ca.attest_machine(from, &evidence, expects).await
            }
            Some(Evidence::Lineage(v1::LineageEvidence { chain, nonce, signature })) => {
                let evidence = LineageEvidence { chain: certificates(chain), nonce, signature, csr };
                self.ca.attest_returning(from, &evidence, expects).await
            }
            None => Err(RequestError::Caller { plug: Plug::Nobody, source: CallerError::NoEvidence }),
        }
    }

    async fn issue_all(
        &self,
        request: &Request<v1::IssueWorkloadsRequest>,
    ) -> Result<v1::IssueWorkloadsResponse, RequestError> {
        let node = node(&self.ca, request).await?;
        let items = &request.get_ref().items;
        if items.len() > BATCH {
            return Err(RequestError::TooMany { items: items.len(), limit: BATCH });
        }
        let (batch, room) = (Batch::new(&self.ca, caller(request), "IssueWorkloads"), Room::default());
        let issue = async |item: &v1::IssueWorkload| {
            // To check a request and to sign costs the processor: others have their turn in between.
            tokio::task::yield_now().await;
            let issued = match room.is_left() {
                true => measured(&self.ca, self.issue_one(&node, item)).await,
                // Nobody would get it.
                false => Err(RequestError::FullReply),
            };
            let outcome = match issued {
                Ok(reply) => Outcome::Svid(room.take(svid(&reply))),
                Err(error) => Outcome::Refusal(refusal(&batch, &error)),
            };
            v1::IssueWorkloadResult { registration_id: item.registration_id.clone(), outcome: Some(outcome) }
        };
        let results = some_at_a_time(items.iter().map(issue)).await;
        // Once for all of them, and without those of other trust domains: nodes follow these by themselves.
        let bundles = Some(self.ca.hierarchy().bundles().into());
        Ok(v1::IssueWorkloadsResponse { results, bundles })
    }

    async fn issue_one(&self, node: &Node, item: &v1::IssueWorkload) -> Result<Reply, RequestError> {
        // What a node says of its present certificate moves its request among the urgent, and does no more.
        let present = u64::try_from(item.present_not_after).ok().filter(|end| *end > 0);
        let present = present.and_then(|end| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end)));
        let _pass = self.ca.admit(node.id.as_str(), present).await?;
        self.ca.issue_registered(node, &item.registration_id, &item.csr).await
    }
}

#[tonic::async_trait]
impl CertificateAuthority for AuthorityService {
    async fn attest_node(&self, request: Request<v1::AttestNodeRequest>) -> Result<Response<v1::IssuedSvid>, Status> {
        let outcome = async {
            no_bearer(request.metadata().as_ref())?;
            self.attest(request.get_ref(), address(&request)).await
        };
        let outcome = measured(&self.ca, outcome).await;
        let reply = outcome.map_err(|error| self.ca.refuse(&error, &caller(&request), "AttestNode"))?;
        Ok(Response::new(svid_and_bundles(&self.ca, &reply)))
    }

    async fn renew_node(&self, request: Request<v1::RenewNodeRequest>) -> Result<Response<v1::IssuedSvid>, Status> {
        let outcome = async {
            let node = match node(&self.ca, &request).await {
                Err(refusal) => return Err(self.ca.refused_at_renewal(peer(&request).as_ref(), refusal).await),
                Ok(node) => node,
            };
            let _pass = self.ca.admit(node.id.as_str(), Some(node.not_after())).await?;
            let csr = Csr::from_der(&request.get_ref().csr)?;
            self.ca.renew(node, &csr, self.ca.0.profiles.node().default_ttl()).await
        };
        let reply = measured(&self.ca, outcome)
            .await
            .map_err(|error| self.ca.refuse(&error, &caller(&request), "RenewNode"))?;
        Ok(Response::new(svid_and_bundles(&self.ca, &reply)))
    }

    type WatchRegistrationsStream = Messages<v1::Registrations>;

    async fn watch_registrations(
        &self,
        request: Request<v1::WatchRegistrationsRequest>,
    ) -> Result<Response<Self::WatchRegistrationsStream>, Status> {
        let node = calling(&self.ca, &request, Call::Watch).await;
        let node = node.map_err(|error| self.ca.refuse(&error, &caller(&request), "WatchRegistrations"))?;
        let ca = self.ca.clone();
        Ok(watched(&self.shutdown, "registrations of a node", async move |sender| {
            registrations::push(&ca, &node.id, &sender).await;
        }))
    }

    async fn issue_workloads(
        &self,
        request: Request<v1::IssueWorkloadsRequest>,
    ) -> Result<Response<v1::IssueWorkloadsResponse>, Status> {
        let outcome = self.issue_all(&request).await;
        outcome.map(Response::new).map_err(|error| self.ca.refuse(&error, &caller(&request), "IssueWorkloads"))
    }

    type WatchTrustBundlesStream = Messages<v1::TrustBundles>;

    async fn watch_trust_bundles(
        &self,
        request: Request<v1::WatchTrustBundlesRequest>,
    ) -> Result<Response<Self::WatchTrustBundlesStream>, Status> {
        let node = calling(&self.ca, &request, Call::Watch).await;
        node.map_err(|error| self.ca.refuse(&error, &caller(&request), "WatchTrustBundles"))?;
        let ca = self.ca.clone();
        let (mut hierarchy, mut foreign) = (ca.0.hierarchy.subscribe(), ca.0.federation.foreign.subscribe());
        Ok(watched(&self.shutdown, "trust bundles of a node", async move |sender: Sender<_>| {
            let mut sent = None;
            loop {
                hierarchy.mark_unchanged();
                foreign.mark_unchanged();
                let bundles = ca.trust_bundles();
                if sent.as_ref() != Some(&bundles) {
                    if sender.send(Ok((&bundles).into())).await.is_err() {
                        return;
                    }
                    sent = Some(bundles);
                }
                let changed = tokio::select! {
                    changed = hierarchy.changed() => changed,
                    changed = foreign.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        }))
    }
}

#[tonic::async_trait]
impl NodeAttestation for AuthorityService {
    async fn challenge(
        &self,
        request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeResponse>, Status> {
        let made = self.ca.0.callers.challenge((self.ca.0.clock)()).map_err(RequestError::from);
        let (nonce, end) = made.map_err(|error| self.ca.refuse(&error, &caller(&request), "Challenge"))?;
        Ok(Response::new(v1::ChallengeResponse { nonce, expires_at: epoch(end) }))
    }
}

fn certificates(chain: &[Vec<u8>]) -> Vec<CertificateDer<'_>> {
    chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect()
}

/// Some together, so that their records share a commit; not all, so that one caller does not fill the queue of the store.
/// The outcomes are in the order of the futures.
async fn some_at_a_time<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    stream::iter(futures).buffered(TOGETHER).collect().await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_batch_is_worked_on_some_at_a_time_and_answered_in_order() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let (running, most) = (&running, &most);
        let work = (0..BATCH).map(|number| async move {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            for _ in 0..number % 7 {
                tokio::task::yield_now().await;
            }
            running.set(running.get() - 1);
            number
        });
        assert_eq!(some_at_a_time(work).await, (0..BATCH).collect::<Vec<_>>());
        assert!((2..=TOGETHER).contains(&most.get()), "{} at a time", most.get());
    }
}
