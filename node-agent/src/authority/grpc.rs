use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::MAX_MESSAGE;
use alcazar_api::ca::v1;
use alcazar_api::ca::v1::adoption_client::AdoptionClient;
use alcazar_api::ca::v1::attest_node_request::Evidence;
use alcazar_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use alcazar_api::ca::v1::issue_workload_result::Outcome;
use alcazar_api::ca::v1::jwt_client::JwtClient;
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
use crate::token::JoinToken;

/// The CA behind gRPC and mutual TLS.
pub(crate) struct GrpcAuthority {
    target: Target,
    trust_domain: TrustDomain,
    /// Whom the CA must prove itself to be.
    expected: Expected,
    clock: Clock,
}

impl GrpcAuthority {
    /// The CA of this identity at this address.
    pub(crate) fn new(target: Target, ca: SpiffeId, clock: Clock) -> Self {
        Self { target, trust_domain: ca.trust_domain().clone(), expected: Expected::id(ca), clock }
    }

    fn channel(&self, connector: Connector) -> Channel {
        channel(self.target.clone(), connector, self.expected.clone())
    }

    fn as_node(&self, node: Arc<Credentials>) -> Channel {
        // A connection belongs to the certificate it was opened with: after a rotation there is a new client.
        let (_, fixed) = watch::channel(node);
        self.channel(Connector::new(fixed, ALPN, self.clock.clone()))
    }
}

impl Authority for GrpcAuthority {
    fn attest<'a>(&'a self, token: &'a JoinToken, csr: Vec<u8>) -> Call<'a, v1::IssuedSvid> {
        async move {
            let pinned = Connector::pinned(self.trust_domain.clone(), token.pin(), ALPN, self.clock.clone());
            let mut client = client(self.channel(pinned));
            let request = v1::AttestNodeRequest { evidence: Some(Evidence::JoinToken(token.text().to_owned())), csr };
            Ok(answer(client.attest_node(request)).await?.into_inner())
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
            return Self(reason.to_string());
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
        let refused = CallError::from(Status::unauthenticated("join token refused"));
        assert_eq!(chain(&refused), "the CA refused: join token refused (Unauthenticated)");
    }

    #[tokio::test]
    async fn a_ca_that_is_away_is_said_in_one_short_line() {
        alcazar_mtls::install_default_provider();
        // Bound and dropped: nobody listens there.
        let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let ca = "spiffe://td.example/ns/alcazar-system/sa/alcazar-ca".parse().unwrap();
        let authority = GrpcAuthority::new(away.into(), ca, alcazar_service::clock::system());
        let pin = "0".repeat(64);
        let token = JoinToken::parse(&format!("alcazar-join-v1.x.{pin}")).unwrap();
        let error = authority.attest(&token, Vec::new()).await.unwrap_err();
        let said = chain(&error);
        let expected = format!("the CA cannot be reached or cannot answer: cannot reach {away}: Connection refused");
        assert!(said.starts_with(&expected), "{said}");
    }
}
