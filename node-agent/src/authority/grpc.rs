use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::MAX_MESSAGE;
use alcazar_api::attestation::{lineage_proof, machine_proof};
use alcazar_api::ca::v1;
use alcazar_api::ca::v1::adoption_client::AdoptionClient;
use alcazar_api::ca::v1::attest_node_request::Evidence as Shown;
use alcazar_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use alcazar_api::ca::v1::issue_workload_result::Outcome;
use alcazar_api::ca::v1::jwt_client::JwtClient;
use alcazar_api::ca::v1::node_attestation_client::NodeAttestationClient;
use alcazar_api::ca::v1::revocation_client::RevocationClient;
use alcazar_identity::{Credentials, SpiffeId, TrustDomain};
use alcazar_mtls::grpc::{ALPN, Target, channel};
use alcazar_mtls::{Clock, Connector, Expected, Refusal, VerifyPeerError};
use alcazar_service::process::chain;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Authority, Call, CallError, Session, Updates};
use crate::clocks::Dates;
use crate::evidence::{Anchor, Evidence, Holder};

/// The CA behind gRPC and mutual TLS.
pub(crate) struct GrpcAuthority {
    target: Target,
    trust_domain: TrustDomain,
    cluster: String,
    /// Whom the CA must prove itself to be.
    expected: Expected,
    clock: Clock,
}

impl GrpcAuthority {
    /// The CA of this identity at this address, for the nodes of this cluster.
    pub(crate) fn new(target: Target, ca: SpiffeId, cluster: String, clock: Clock) -> Self {
        Self { target, trust_domain: ca.trust_domain().clone(), cluster, expected: Expected::id(ca), clock }
    }

    fn channel(&self, connector: Connector) -> Channel {
        channel(self.target.clone(), connector, self.expected.clone())
    }

    /// The certificate, a nonce of the CA's, and the signature that proves its key.
    async fn proof(
        &self,
        channel: &Channel,
        holder: &Holder,
        message: fn(&str, &str, &[u8], &[u8]) -> Vec<u8>,
        csr: &[u8],
    ) -> Result<(Vec<Vec<u8>>, Vec<u8>, Vec<u8>), CallError> {
        let mut client = NodeAttestationClient::new(channel.clone());
        let nonce = answer(client.challenge(v1::ChallengeRequest {})).await?.into_inner().nonce;
        let message = message(self.trust_domain.as_str(), &self.cluster, &nonce, csr);
        let signature = holder.sign(&message).map_err(|error| CallError::Refused(Box::new(error)))?;
        let chain = holder.chain.iter().map(|certificate| certificate.to_vec()).collect();
        Ok((chain, nonce, signature))
    }

    fn as_node(&self, node: Arc<Credentials>) -> Channel {
        // A connection belongs to the certificate it was opened with: after a rotation there is a new client.
        let (_, fixed) = watch::channel(node);
        self.channel(Connector::new(fixed, ALPN, self.clock.clone()))
    }
}

impl Authority for GrpcAuthority {
    fn attest<'a>(
        &'a self,
        anchor: Anchor,
        evidence: &'a Evidence,
        node: &'a SpiffeId,
        csr: Vec<u8>,
    ) -> Call<'a, v1::IssuedSvid> {
        async move {
            let connector = match anchor {
                Anchor::Roots(roots) => Connector::trusting(roots, ALPN, self.clock.clone()),
                Anchor::Pin(pin) => Connector::pinned(self.trust_domain.clone(), pin, ALPN, self.clock.clone()),
            };
            // One connection for both calls: a nonce is good at the process that made it alone.
            let channel = self.channel(connector);
            let evidence = match evidence {
                Evidence::JoinToken(token) => Shown::JoinToken(token.text().to_owned()),
                Evidence::BearerToken(token) => Shown::BearerToken(token.to_string()),
                Evidence::Machine(holder) => {
                    let (chain, nonce, signature) = self.proof(&channel, holder, machine_proof, &csr).await?;
                    Shown::Machine(v1::MachineEvidence { chain, nonce, signature })
                }
                Evidence::Lineage(holder) => {
                    let (chain, nonce, signature) = self.proof(&channel, holder, lineage_proof, &csr).await?;
                    Shown::Lineage(v1::LineageEvidence { chain, nonce, signature })
                }
            };
            let request = v1::AttestNodeRequest { evidence: Some(evidence), csr, node_id: node.to_string() };
            Ok(answer(client(channel).attest_node(request)).await?.into_inner())
        }
        .boxed()
    }

    fn renew<'a>(&'a self, node: Arc<Credentials>, csr: Vec<u8>) -> Call<'a, v1::IssuedSvid> {
        async move {
            let mut client = client(self.as_node(node));
            Ok(answer(client.renew_node(v1::RenewNodeRequest { csr })).await?.into_inner())
        }
        .boxed()
    }

    fn session(&self, node: Arc<Credentials>) -> Arc<dyn Session> {
        let channel = self.as_node(node);
        let revocations = RevocationClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let (jwt, adoption) = (JwtClient::new(channel.clone()), AdoptionClient::new(channel.clone()));
        Arc::new(GrpcSession { client: client(channel), jwt, adoption, revocations })
    }
}

struct GrpcSession {
    client: CertificateAuthorityClient<Channel>,
    jwt: JwtClient<Channel>,
    revocations: RevocationClient<Channel>,
    adoption: AdoptionClient<Channel>,
}

impl Session for GrpcSession {
    fn issue(&self, items: Vec<v1::IssueWorkload>) -> Call<'_, Vec<v1::IssueWorkloadResult>> {
        let mut client = self.client.clone();
        async move {
            let v1::IssueWorkloadsResponse { mut results, bundles } =
                answer(client.issue_workloads(v1::IssueWorkloadsRequest { items })).await?.into_inner();
            // One for all of them.
            for result in &mut results {
                if let Some(Outcome::Svid(svid)) = &mut result.outcome {
                    svid.bundles = svid.bundles.take().or_else(|| bundles.clone());
                }
            }
            Ok(results)
        }
        .boxed()
    }

    fn jwt_svids(&self, items: Vec<v1::IssueJwtSvid>) -> Call<'_, Vec<v1::IssueJwtSvidResult>> {
        let mut client = self.jwt.clone();
        async move { Ok(answer(client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items })).await?.into_inner().results) }
            .boxed()
    }

    fn registrations(&self) -> Call<'_, Updates<v1::Registrations>> {
        let mut client = self.client.clone();
        async move {
            let updates = answer(client.watch_registrations(v1::WatchRegistrationsRequest {})).await?.into_inner();
            Ok(updates.map(|update| update.map_err(CallError::from)).boxed())
        }
        .boxed()
    }

    fn report(&self, report: v1::ReportAdoptionRequest) -> Call<'_, ()> {
        let mut client = self.adoption.clone();
        async move {
            answer(client.report_adoption(report)).await?;
            Ok(())
        }
        .boxed()
    }

    fn reissues(&self) -> Call<'_, Updates<v1::Reissue>> {
        let mut client = self.adoption.clone();
        async move {
            let updates = answer(client.watch_reissue(v1::WatchReissueRequest {})).await?.into_inner();
            Ok(updates.map(|update| update.map_err(CallError::from)).boxed())
        }
        .boxed()
    }

    fn bundles(&self) -> Call<'_, Updates<v1::TrustBundles>> {
        let mut client = self.client.clone();
        async move {
            let updates = answer(client.watch_trust_bundles(v1::WatchTrustBundlesRequest {})).await?.into_inner();
            Ok(updates.map(|update| update.map_err(CallError::from)).boxed())
        }
        .boxed()
    }

    fn revocations(&self) -> Call<'_, Updates<v1::SignedRevocations>> {
        let mut client = self.revocations.clone();
        async move {
            let outcome =
                tokio::time::timeout(DEADLINE, client.watch_revocations(v1::WatchRevocationsRequest {})).await;
            match outcome.map_err(|late| CallError::Unanswered(Box::new(late)))? {
                // A CA of before there were any.
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::warn!(target: "alcazar::revoked", "this CA tells no revocations");
                    Ok(stream::pending().boxed())
                }
                updates => Ok(updates?.into_inner().map(|update| update.map_err(CallError::from)).boxed()),
            }
        }
        .boxed()
    }

    fn crls(&self) -> Call<'_, Updates<v1::Crls>> {
        let mut client = self.revocations.clone();
        async move {
            let updates = answer(client.watch_crls(v1::WatchCrlsRequest {})).await?.into_inner();
            Ok(updates.map(|update| update.map_err(CallError::from)).boxed())
        }
        .boxed()
    }
}

/// Whether the CA ended the connection with a TLS alert.
///
/// Not always to be seen: of an alert that arrives after our side of the handshake HTTP/2 keeps the text alone. Such
/// a call counts as unanswered; several in a row have the same consequence.
fn is_refused_by_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<Refusal>() || within.is_some_and(|within| within.is::<Refusal>()) {
            return true;
        }
        next = error.source();
    }
    false
}

/// An answer within the deadline.
async fn answer<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, CallError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(late) => Err(CallError::Unanswered(Box::new(late))),
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let cause = Box::new(Cause::of(&status));
        if VerifyPeerError::find(&status).is_some() || is_refused_by_tls(&status) {
            return Self::Untrusted(cause);
        }
        let said = status.metadata().get("retry-after-ms").and_then(|said| said.to_str().ok()?.parse().ok());
        if let Some(later) = super::later(status.code(), said.map(Duration::from_millis)) {
            return Self::Later { later, source: cause };
        }
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => Self::Refused(cause),
            _ => Self::Unanswered(cause),
        }
    }
}

/// What a status says, for people: tonic's own text prints its cause as code would.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

impl Cause {
    fn of(status: &Status) -> Self {
        if let Some(reason) = VerifyPeerError::find(status) {
            return Self(match Dates::of(reason) {
                Some(dates) => format!("{reason}; {dates}"),
                None => reason.to_string(),
            });
        }
        match status.source() {
            Some(source) => Self(chain(source).trim_start_matches("transport error: ").to_owned()),
            None => Self(format!("{} ({:?})", status.message(), status.code())),
        }
    }
}

/// Replies may hold the bundles of many trust domains: an authority that we trust has room for them.
fn client(channel: Channel) -> CertificateAuthorityClient<Channel> {
    CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// How long the CA has for one answer; it signs and makes durable well within a second.
const DEADLINE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_not_change_by_itself_is_a_refusal() {
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument] {
            assert!(CallError::from(Status::new(code, "no")).is_final(), "{code:?}");
        }
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Unknown, Code::Cancelled] {
            assert!(!CallError::from(Status::new(code, "later")).is_final(), "{code:?}");
        }
        let told = |code, hint: Option<&str>| {
            let mut status = Status::new(code, "later");
            if let Some(hint) = hint {
                status.metadata_mut().insert("retry-after-ms", hint.parse().unwrap());
            }
            CallError::from(status).later().map(|later| (later.after.as_millis(), later.busy))
        };
        assert_eq!(told(Code::ResourceExhausted, Some("1500")), Some((1500, true)));
        assert_eq!(told(Code::ResourceExhausted, None), Some((1000, true)));
        assert_eq!(told(Code::ResourceExhausted, Some("soon")), Some((1000, true)));
        assert_eq!(told(Code::Unavailable, Some("2000")), Some((2000, false)));
        assert_eq!(
            told(Code::Unavailable, Some("99999999999")),
            Some((600_000, false)),
            "nobody is sent away for ever"
        );
        assert_eq!(told(Code::Unavailable, None), None);
        assert_eq!(told(Code::PermissionDenied, Some("5")), None);
        let refused = CallError::from(Status::unauthenticated("join token refused"));
        assert_eq!(chain(&refused), "the CA refused: join token refused (Unauthenticated)");
    }

    #[tokio::test]
    async fn a_ca_that_is_away_is_said_in_one_short_line() {
        alcazar_mtls::install_default_provider();
        // Bound and dropped: nobody listens there.
        let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let ca = "spiffe://td.example/ns/alcazar-system/sa/alcazar-ca".parse().unwrap();
        let authority = GrpcAuthority::new(away.into(), ca, "east".into(), alcazar_service::clock::system());
        let pin = "0".repeat(64);
        let token = crate::token::JoinToken::parse(&format!("alcazar-join-v1.x.{pin}")).unwrap();
        let (anchor, node) = (Anchor::Pin(token.pin()), "spiffe://td.example/node/east/vm-1".parse().unwrap());
        let error = authority.attest(anchor, &Evidence::JoinToken(token), &node, Vec::new()).await.unwrap_err();
        let said = chain(&error);
        let expected = format!("the CA cannot be reached or cannot answer: cannot reach {away}: Connection refused");
        assert!(said.starts_with(&expected), "{said}");
    }
}
