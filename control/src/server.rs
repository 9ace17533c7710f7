//! Delta ADS over mutual TLS: moves bytes between clients and their sessions.

use std::sync::Arc;

use alcazar_api::envoy::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use alcazar_api::envoy::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use alcazar_identity::SpiffeId;
use alcazar_mtls::grpc::PeerInfo;
use alcazar_service::Shutdown;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::delta::Outcome;
use crate::resource::Kind;
use crate::session::{RefusedRequest, Session};
use crate::snapshot::Snapshot;
use crate::status::{Board, Place};

/// The service.
pub(crate) struct Ads {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) board: Board,
    pub(crate) shutdown: Shutdown,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = tokio_stream::Empty<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only DeltaAggregatedResources is served here"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (peer, remote) = match request.extensions().get::<PeerInfo>() {
            Some(PeerInfo { peer: Some(peer), remote_addr, .. }) => (peer.id().clone(), *remote_addr),
            _ => return Err(Status::unauthenticated("a certificate is needed")),
        };
        let snapshots = self.snapshots.clone();
        check_trust_domain(&peer, &snapshots.borrow())?;
        // One response of each kind can be in flight, and an error: sending never waits.
        let (responses, outgoing) = mpsc::channel(Kind::ALL.len() + 1);
        let stream = Stream {
            place: self.board.place(peer.clone(), remote),
            session: Session::new(peer.clone()),
            peer,
            snapshots,
            responses,
            shutdown: self.shutdown.clone(),
        };
        self.shutdown.spawn("an ADS stream", stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// What a federated peer may call is for the workloads to say; our configuration is not for it.
fn check_trust_domain(peer: &SpiffeId, snapshot: &Snapshot) -> Result<(), Status> {
    if *peer.trust_domain() == snapshot.world.trust_domain {
        return Ok(());
    }
    tracing::warn!(target: "alcazar::refused", spiffe_id = %peer, "refused a client of another trust domain its configuration");
    Err(Status::permission_denied("another trust domain"))
}

/// One client's stream.
struct Stream {
    peer: SpiffeId,
    session: Session,
    place: Place,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    shutdown: Shutdown,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        if let Err(status) = self.serve(&mut requests).await {
            // The client may be gone already.
            drop(self.responses.send(Err(status)).await);
        }
        tracing::debug!(node = self.session.node(), spiffe_id = %self.peer, "a client's stream ended");
    }

    async fn serve(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let shutdown = self.shutdown.clone();
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            while let Some(response) = self.session.next(&snapshot) {
                if self.responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            self.place.update(|status| self.session.report(&snapshot, status));
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.take(request, &snapshot)?,
                    Ok(None) => return Ok(()),
                    Err(status) => {
                        tracing::debug!(node = self.session.node(), %status, "a client's stream broke");
                        return Ok(());
                    }
                },
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the control plane is going away"));
                    }
                }
                () = self.responses.closed() => return Ok(()),
                () = shutdown.cancelled() => return Err(Status::unavailable("the control plane is going away")),
            }
        }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest, snapshot: &Snapshot) -> Result<(), Status> {
        match self.session.take(request, snapshot) {
            Ok((kind, Outcome::Refused { names, reason })) => {
                let names: Vec<&str> = names.iter().map(|name| &**name).collect();
                tracing::error!(
                    target: "alcazar::refused",
                    node = self.session.node(),
                    spiffe_id = %self.peer,
                    resources = names.join(", "),
                    reason,
                    "a proxy refuses a {kind} and keeps what it had"
                );
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(refused) => {
                tracing::warn!(
                    target: "alcazar::refused",
                    node = self.session.node(),
                    spiffe_id = %self.peer,
                    reason = %refused,
                    "refused a client its configuration"
                );
                Err(on_the_wire(&refused))
            }
        }
    }
}

/// Terse: the whole reason is in our log.
fn on_the_wire(refused: &RefusedRequest) -> Status {
    match refused {
        RefusedRequest::Type(_) => Status::invalid_argument("unknown resource type"),
        RefusedRequest::Node { .. } | RefusedRequest::Foreign { .. } => {
            Status::permission_denied("the resource of another identity")
        }
        RefusedRequest::TooMany { .. } => Status::resource_exhausted("too many names"),
    }
}
