//! The CA as the agent sees it: a seam, so that weeks of outage can be lived through in a test's memory.

mod grpc;

use std::error::Error;
use std::sync::Arc;

use alcazar_api::ca::v1;
use alcazar_identity::Credentials;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};

pub(crate) use grpc::GrpcAuthority;

use crate::token::JoinToken;

/// One call to the CA.
pub(crate) type Call<'a, T> = BoxFuture<'a, Result<T, CallError>>;
/// What the CA says now, and at every change.
pub(crate) type Updates<T> = BoxStream<'static, Result<T, CallError>>;

/// The CA, for a node that proves itself.
pub(crate) trait Authority: Send + Sync + 'static {
    /// The node's first certificate. The CA is known by the pin of the token alone.
    fn attest<'a>(&'a self, token: &'a JoinToken, csr: Vec<u8>) -> Call<'a, v1::IssuedSvid>;

    /// The node's next certificate. The call is made on a connection of its own, because the CA looks at the serial
    /// of the certificate that the connection was opened with.
    fn renew<'a>(&'a self, node: Arc<Credentials>, csr: Vec<u8>) -> Call<'a, v1::IssuedSvid>;

    /// A connection for all else, opened with the node's certificate.
    fn session(&self, node: Arc<Credentials>) -> Arc<dyn Session>;
}

/// The CA, for a node that is known.
pub(crate) trait Session: Send + Sync + 'static {
    /// Certificates for workloads, in the order of the items.
    fn issue(&self, items: Vec<v1::IssueWorkload>) -> Call<'_, Vec<v1::IssueWorkloadResult>>;

    /// JWT-SVIDs for workloads, in the order of the items.
    fn jwt_svids(&self, items: Vec<v1::IssueJwtSvid>) -> Call<'_, Vec<v1::IssueJwtSvidResult>>;

    /// The registrations of this node.
    fn registrations(&self) -> Call<'_, Updates<v1::Registrations>>;

    /// Says what this node and its clients enforce.
    fn report(&self, report: v1::ReportAdoptionRequest) -> Call<'_, ()>;

    /// What is to be issued anew before its time.
    fn reissues(&self) -> Call<'_, Updates<v1::Reissue>>;

    /// The trust bundles.
    fn bundles(&self) -> Call<'_, Updates<v1::TrustBundles>>;

    /// The signed lists of revocations. A CA that does not know of any says nothing.
    fn revocations(&self) -> Call<'_, Updates<v1::SignedRevocations>> {
        async { Ok(stream::pending().boxed()) }.boxed()
    }
}

/// Why a call to the CA gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, or one that says to try again later. What is held stays good.
    #[error("the CA cannot be reached or cannot answer")]
    Unanswered(#[source] Box<dyn Error + Send + Sync>),
    /// The CA does not do it for this caller, now or later.
    #[error("the CA refused")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
    /// The two do not trust each other's certificates.
    #[error("the CA and this node do not trust each other")]
    Untrusted(#[source] Box<dyn Error + Send + Sync>),
}

impl CallError {
    /// Whether trying the same again is pointless until something else changes.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unanswered(_))
    }
}
