//! `alcazar.ca.v1.Jwt`: JWT-SVIDs for the workloads of a node.

use std::time::{Duration, Instant};

use alcazar_api::ca::v1::{self, issue_jwt_svid_result::Outcome, jwt_server::Jwt};
use futures::{StreamExt, stream};
use tonic::{Request, Response, Status};

use super::{caller, epoch, node, refusal, room::Room};
use crate::{
    ca::Ca,
    jwt_authority::IssuedJwt,
    refusal::{Batch, RequestError},
};

pub(crate) struct JwtService {
    ca: Ca,
}

/// Tokens in one request.
const BATCH: usize = 1000;

/// Of them, as many are on their way at a time: some share a commit.
const TOGETHER: usize = 32;

impl JwtService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }

    async fn issue_all(
        &self,
        request: &Request<v1::IssueJwtSvidsRequest>,
    ) -> Result<v1::IssueJwtSvidsResponse, RequestError> {
        let node = node(&self.ca, request).await?;
        let items = &request.get_ref().items;
        if items.len() > BATCH {
            return Err(RequestError::TooMany { items: items.len(), limit: BATCH });
        }
        let (batch, room) = (Batch::new(&self.ca, caller(request), "IssueJwtSvids"), Room::default());
        let issue = async |item: &v1::IssueJwtSvid| {
            // To sign costs the processor: others have their turn in between.
            tokio::task::yield_now().await;
            let ttl = u64::try_from(item.ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs);
            let issue = async {
                // Nobody would get it.
                if !room.is_left() {
                    return Err(RequestError::FullReply);
                }
                let _pass = self.ca.admit(node.id.as_str(), None).await?;
                self.ca.issue_jwt_svid(&node, &item.registration_id, &item.audience, ttl).await
            };
            let (metrics, started) = (&self.ca.0.metrics, Instant::now());
            metrics.tokens_asked.inc();
            let outcome = match issue.await {
                Ok(issued) => {
                    metrics.token_issuance.observe(started.elapsed());
                    Outcome::Svid(room.take(message(issued)))
                }
                Err(error) => Outcome::Refusal(refusal(&batch, &error)),
            };
            v1::IssueJwtSvidResult { registration_id: item.registration_id.clone(), outcome: Some(outcome) }
        };
        let results = stream::iter(items.iter().map(issue)).buffered(TOGETHER).collect().await;
        Ok(v1::IssueJwtSvidsResponse { results })
    }
}

#[tonic::async_trait]
impl Jwt for JwtService {
    async fn issue_jwt_svids(
        &self,
        request: Request<v1::IssueJwtSvidsRequest>,
    ) -> Result<Response<v1::IssueJwtSvidsResponse>, Status> {
        let outcome = self.issue_all(&request).await;
        outcome.map(Response::new).map_err(|error| self.ca.refuse(&error, &caller(&request), "IssueJwtSvids"))
    }
}

fn message(issued: IssuedJwt) -> v1::IssuedJwtSvid {
    let IssuedJwt { token, facts } = issued;
    v1::IssuedJwtSvid {
        spiffe_id: facts.subject.to_string(),
        token,
        issued_at: epoch(facts.issued_at),
        expires_at: epoch(facts.expires),
        key_id: facts.key_id,
    }
}
