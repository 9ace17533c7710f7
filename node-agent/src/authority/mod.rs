//! The CA as the agent sees it: a seam, so that weeks of outage can be lived through in a test's memory.

mod grpc;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_identity::{Credentials, SpiffeId};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tonic::Code;

pub(crate) use grpc::GrpcAuthority;

use crate::evidence::{Anchor, Evidence};
use crate::schedule::Later;

/// One call to the CA.
pub(crate) type Call<'a, T> = BoxFuture<'a, Result<T, CallError>>;
/// What the CA says now, and at every change.
pub(crate) type Updates<T> = BoxStream<'static, Result<T, CallError>>;

/// The CA, for a node that proves itself.
pub(crate) trait Authority: Send + Sync + 'static {
    /// A certificate for what is shown, of a CA that is known by the anchor. The node expects to be this one.
    fn attest<'a>(
        &'a self,
        anchor: Anchor,
        evidence: &'a Evidence,
        node: &'a SpiffeId,
        csr: Vec<u8>,
    ) -> Call<'a, v1::IssuedSvid>;

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

    /// The CRLs. A CA that does not know of any says nothing.
    fn crls(&self) -> Call<'_, Updates<v1::Crls>> {
        async { Ok(stream::pending().boxed()) }.boxed()
    }
}

/// Why a call to the CA gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, or one that says to try again later. What is held stays good.
    #[error("the CA cannot be reached or cannot answer")]
    Unanswered(#[source] Box<dyn Error + Send + Sync>),
    /// It answered that it cannot do it now, and when to ask again.
    #[error("the CA cannot do it now")]
    Later {
        /// When, and whether anything is wrong.
        later: Later,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
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
        !matches!(self, Self::Unanswered(_) | Self::Later { .. })
    }

    /// When to ask again, where the CA said so.
    pub fn later(&self) -> Option<Later> {
        match self {
            Self::Later { later, .. } => Some(*later),
            _ => None,
        }
    }
}

/// What a refusal says of when to ask again: of a call or of one item. `retry_after` is the CA's word, where it gave one.
pub(crate) fn later(code: Code, retry_after: Option<Duration>) -> Option<Later> {
    match code {
        Code::ResourceExhausted => Some(Later { after: retry_after.unwrap_or(BUSY), busy: true }),
        Code::Unavailable | Code::Internal | Code::Aborted | Code::Unknown => {
            retry_after.map(|after| Later { after, busy: false })
        }
        _ => None,
    }
    .map(|later| Later { after: later.after.min(LONGEST), ..later })
}

/// When to ask a CA again that is busy and does not say until when.
const BUSY: Duration = Duration::from_secs(1);
/// Whatever a CA says: nobody is lost for longer.
const LONGEST: Duration = Duration::from_secs(600);
