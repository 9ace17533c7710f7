//! `alcazar.ca.v1.Administration`: what the operator asks, on a socket that only the CA's own user can open.

use std::time::Duration;

use alcazar_api::ca::v1::{self, administration_server::Administration};
use alcazar_identity::SpiffeId;
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
        if !message.kubernetes_node {
            self.ca.has_no_pods(&node).map_err(status)?;
        }
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
        request: Request<v1::ListRegistrationsRequest>,
    ) -> Result<Response<v1::ListRegistrationsResponse>, Status> {
        let v1::ListRegistrationsRequest { pods, node_id } = request.into_inner();
        let node: Option<SpiffeId> = (!node_id.is_empty()).then(|| node_id.parse()).transpose().map_err(invalid)?;
        let recorded = self.ca.registrations().await.map_err(status)?;
        let of_it = recorded.iter().filter(|one| node.as_ref().is_none_or(|node| one.node() == node));
        let mut registrations: Vec<_> = of_it.map(registration_message).collect();
        let of_pods = self.ca.registrations_of_all_pods(node.as_ref());
        if pods {
            let all = of_pods.as_deref().unwrap_or_default();
            if registrations.len() + all.len() > MOST_LISTED {
                let number = registrations.len() + all.len();
                return Err(Status::resource_exhausted(format!(
                    "{number} registrations are more than {MOST_LISTED}; ask for those of one node"
                )));
            }
            registrations.extend(all.iter().map(|registration| registration_message(registration)));
        }
        let of_pods = of_pods.map(|of_pods| of_pods.len() as u64);
        Ok(Response::new(v1::ListRegistrationsResponse { registrations, of_pods }))
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

/// What is listed with the pods of a large cluster has to have room in one message.
const MOST_LISTED: usize = 50_000;

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
        AdminError::KubernetesNode(_) => Status::failed_precondition(reason),
        AdminError::NoPods(_) => Status::unavailable(reason),
        AdminError::Records(_) | AdminError::Randomness(_) => {
            tracing::error!(reason, "could not serve the operator");
            Status::unavailable(reason)
        }
    }
}
