use std::sync::Arc;

use alcazar_api::spiffe::validate_jwt_svid;
use alcazar_api::spiffe::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use alcazar_api::spiffe::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use alcazar_identity::SpiffeId;
use alcazar_service::Shutdown;
use alcazar_service::process::chain;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::claims::claims;
use super::messages::{bundles, jwt_bundles, x509_bundles, x509_svids};
use super::push::{Push, Taken, first};
use crate::callers::Callers;
use crate::registry::{Held, Served};
use crate::sds::View;
use crate::services::Offer;

/// The Workload API on one Unix socket.
pub(crate) struct WorkloadApi {
    callers: Callers,
    offer: Offer,
    shutdown: Shutdown,
}

type Messages<T> = ReceiverStream<Result<T, Status>>;

impl WorkloadApi {
    pub(crate) fn new(callers: Callers, offer: Offer, shutdown: Shutdown) -> Self {
        Self { callers, offer, shutdown }
    }

    async fn push<R, M: Message + 'static>(
        &self,
        request: &Request<R>,
        with_certificates: bool,
        message: fn(&View) -> Option<M>,
    ) -> Result<Response<Messages<M>>, Status> {
        let (caller, follow) = self.callers.follow(request).await?;
        let (sender, receiver) = mpsc::channel(1);
        let taken = Taken::new(self.offer.clients.clone(), caller.clone(), with_certificates);
        let push = Push { caller, follow, message, taken, sender };
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn("a stream of the Workload API", async move {
            tokio::select! {
                () = push.keep() => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.push(&request, true, x509_svids).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.push(&request, false, x509_bundles).await
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.push(&request, false, jwt_bundles).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let (caller, mut follow) = self.callers.follow(&request).await?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        check_audience(&audience)?;
        let wanted: Option<SpiffeId> = match spiffe_id.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| {
                Status::invalid_argument(format!("spiffe_id is not a SPIFFE ID: {}", chain(&error)))
            })?),
        };
        let is_wanted = |id: &SpiffeId| wanted.as_ref().is_none_or(|wanted| wanted == id);
        if !follow.registrations().any(|(served, _)| is_wanted(served.registration().spiffe_id())) {
            tracing::warn!(target: "alcazar::refused", %caller, spiffe_id, "a caller asks for a token of another identity");
            return Err(Status::permission_denied("the caller has no such identity"));
        }
        // Like a certificate: whoever does not choose takes the first.
        first(&mut follow, |view| {
            let (_, held) = view.iter().find(|(id, _)| is_wanted(id))?;
            held.credentials().map(drop)
        })
        .await?;
        let mut whose: Vec<(Arc<Served>, Arc<Held>)> = follow
            .registrations()
            .filter(|(served, held)| is_wanted(served.registration().spiffe_id()) && held.credentials().is_some())
            .map(|(served, held)| (served.clone(), held))
            .collect();
        if wanted.is_some() {
            whose.truncate(1);
        }
        let (tokens, audience) = (&self.offer.tokens, &audience);
        let one = async |(served, held): (Arc<Served>, Arc<Held>)| {
            let credentials = held.credentials().ok_or_else(|| Status::unavailable("no certificate is held"))?;
            let svid = tokens.get(&served, credentials, audience).await.map_err(|error| error.status())?;
            Ok::<_, Status>(Jwtsvid {
                spiffe_id: served.registration().spiffe_id().to_string(),
                svid,
                hint: String::new(),
            })
        };
        let svids = stream::iter(whose).map(one).buffered(TOGETHER).try_collect().await?;
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let (caller, mut follow) = self.callers.follow(&request).await?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        check_audience(std::slice::from_ref(&audience))?;
        let now = (self.offer.clock)();
        let check = |view: &View| Some(validate_jwt_svid(&svid, &audience, bundles(view)?, now));
        let svid = first(&mut follow, check).await?.map_err(|error| {
            let reason = chain(&error);
            tracing::debug!(%caller, reason, "a JWT-SVID that a workload was shown is not good");
            Status::invalid_argument(reason.to_string())
        })?;
        let (spiffe_id, claims) = (svid.id().to_string(), Some(claims(&svid)));
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id, claims }))
    }
}

fn check_audience(audience: &[String]) -> Result<(), Status> {
    let wrong = |what| Err(Status::invalid_argument(what));
    match audience {
        [] => wrong("a token is for an audience: name one"),
        all if all.iter().any(String::is_empty) => wrong("an audience is empty: name one"),
        all if all.len() > MAX_AUDIENCES => wrong("the audiences are too many: at most 16 are taken"),
        all if all.iter().any(|one| one.len() > MAX_AUDIENCE) => wrong("an audience is longer than 1024 bytes"),
        _ => Ok(()),
    }
}

const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE: usize = 1024;
/// Tokens of one caller that are asked for at a time.
const TOGETHER: usize = 8;
