//! `alcazar.ca.v1.Administration`: what the operator asks, on a socket that only the CA's own user can open.

use std::time::Duration;

use alcazar_api::ca::v1::{self, administration_server::Administration};
use tonic::{Request, Response, Status};

use super::{epoch, registration_message, registration_of, traced::about};
use crate::{
    authority::AuthorityInfo,
    ca::{AdminError, Ca},
};

pub(crate) struct AdministrationService {
    ca: Ca,
}

impl AdministrationService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }
}

#[tonic::async_trait]
impl Administration for AdministrationService {
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::JoinToken>, Status> {
        let message = request.into_inner();
        let node = message.node_id.parse().map_err(invalid)?;
        about(&message.node_id);
        let ttl = u64::try_from(message.ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs);
        let (token, expires) = self.ca.create_join_token(&node, ttl).await.map_err(status)?;
        Ok(Response::new(v1::JoinToken { token: token.reveal().to_string(), expires_at: epoch(expires) }))
    }

    async fn put_registration(
        &self,
        request: Request<v1::Registration>,
    ) -> Result<Response<v1::PutRegistrationResponse>, Status> {
        let registration = registration_of(request.into_inner()).map_err(invalid)?;
        about(format!("{}: {} on {}", registration.id(), registration.spiffe_id(), registration.node()));
        self.ca.put_registration(registration).await.map_err(status)?;
        Ok(Response::new(v1::PutRegistrationResponse {}))
    }

    async fn delete_registration(
        &self,
        request: Request<v1::DeleteRegistrationRequest>,
    ) -> Result<Response<v1::DeleteRegistrationResponse>, Status> {
        let id = request.into_inner().id.parse().map_err(invalid)?;
        about(format!("{id}"));
        if self.ca.delete_registration(&id).await.map_err(status)? {
            Ok(Response::new(v1::DeleteRegistrationResponse {}))
        } else {
            Err(Status::not_found(format!("there is no registration {id}")))
        }
    }

    async fn list_registrations(
        &self,
        _: Request<v1::ListRegistrationsRequest>,
    ) -> Result<Response<v1::Registrations>, Status> {
        let registrations = self.ca.registrations().await.map_err(status)?;
        let registrations = registrations.iter().map(registration_message).collect();
        Ok(Response::new(v1::Registrations { registrations }))
    }

    async fn get_hierarchy(&self, _: Request<v1::GetHierarchyRequest>) -> Result<Response<v1::Hierarchy>, Status> {
        let prints = self.ca.fingerprints();
        let config = self.ca.config();
        Ok(Response::new(v1::Hierarchy {
            trust_domain: config.trust_domain.to_string(),
            cluster: config.cluster.clone(),
            root: Some(authority(&prints.root)),
            intermediate: Some(authority(&prints.intermediate)),
        }))
    }
}

fn authority(info: &AuthorityInfo) -> v1::Authority {
    v1::Authority {
        certificate: info.certificate.to_vec(),
        not_before: epoch(info.validity.not_before()),
        not_after: epoch(info.validity.not_after()),
    }
}

/// The operator is told the whole reason.
fn invalid(error: impl std::error::Error + 'static) -> Status {
    Status::invalid_argument(alcazar_service::process::chain(&error))
}

fn status(error: AdminError) -> Status {
    let reason = alcazar_service::process::chain(&error);
    match error {
        AdminError::NotANode(_)
        | AdminError::OtherCluster { .. }
        | AdminError::Foreign(_)
        | AdminError::Revoked(_)
        | AdminError::TokenTtl(_)
        | AdminError::Profile(_) => Status::invalid_argument(reason),
        AdminError::Records(_) | AdminError::Randomness(_) => {
            tracing::error!(reason, "could not serve the operator");
            Status::unavailable(reason)
        }
    }
}
