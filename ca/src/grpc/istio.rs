//! `istio.v1.auth.IstioCertificateService`: the CSR API that Istio's agents and ztunnel speak.
//!
//! Callers are the holders of bearer tokens, and nodes by their SVID: each for itself, or by `ImpersonatedIdentity` for a
//! workload on its node. A bearer token never falls through to the certificate.

use alcazar_api::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};
use alcazar_identity::SpiffeId;
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use super::{address, caller, measured, peer};
use crate::{ca::Ca, csr::Csr, hierarchy::pem, refusal::RequestError, requests::Caller};

pub(crate) struct IstioService {
    ca: Ca,
}

impl IstioService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }

    async fn create(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, RequestError> {
        let headers = request.metadata().as_ref();
        let peer = peer(request);
        let caller = match self.ca.caller(headers, peer.as_ref(), address(request)).await {
            Err(refusal) if matches!(impersonated(request.get_ref()), Ok(None)) => {
                return Err(self.ca.refused_at_renewal(peer.as_ref(), refusal).await);
            }
            caller => caller?,
        };
        self.ca.right_cluster(&caller, headers)?;
        let message = request.get_ref();
        let ttl = self.ca.0.profile.ttl(message.validity_duration)?;
        let impersonated = impersonated(message)?;
        // For a workload nobody says when its present certificate ends.
        let present = caller.present().filter(|_| impersonated.is_none());
        let _pass = self.ca.admit(&caller.limited_as(), present).await?;
        let csr = Csr::from_pem(&message.csr)?;
        // Whoever comes by this way says nothing of what it enforces: a rotation waits for it by time.
        self.ca.note_unreported(ttl).await?;
        let reply = match (caller, impersonated) {
            (Caller::Bearer(bearer), other) => self.ca.issue_to_bearer(&bearer, other.as_ref(), &csr, ttl).await?,
            (Caller::Node(node), Some(id)) => self.ca.issue_impersonated(&node, &id, &csr, ttl).await?,
            (Caller::Node(node), None) => self.ca.renew(*node, &csr, ttl).await?,
        };
        // Of one moment: the chain's other certificates are those of this hierarchy.
        let mut cert_chain: Vec<_> = reply.chain.first().map(pem).into_iter().collect();
        cert_chain.extend_from_slice(reply.hierarchy.above_in_pem());
        Ok(IstioCertificateResponse { cert_chain })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for IstioService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let outcome = measured(&self.ca, self.create(&request)).await;
        outcome.map(Response::new).map_err(|error| self.ca.refuse(&error, &caller(&request), "CreateCertificate"))
    }
}

/// For whom a node asks, where it does not ask for itself.
fn impersonated(message: &IstioCertificateRequest) -> Result<Option<SpiffeId>, RequestError> {
    let Some(value) = message.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity")) else {
        return Ok(None);
    };
    match &value.kind {
        Some(Kind::StringValue(text)) if text.is_empty() => Ok(None),
        Some(Kind::StringValue(text)) => text.parse().map(Some).map_err(|error| RequestError::Field(Box::new(error))),
        _ => Err(RequestError::Field("ImpersonatedIdentity is not a text".into())),
    }
}
