//! `alcazar.ca.v1.Bundles`: what the operator asks about trust bundles. The operator is told the whole reason.

use alcazar_api::{
    ca::v1::{self, bundles_server::Bundles},
    spiffe::write_bundle,
};
use alcazar_identity::{CertificateDer, Fingerprint, TrustBundle, TrustDomain};
use alcazar_service::process::chain;
use tonic::{Code, Request, Response, Status};

use super::{epoch, traced::about};
use crate::{
    ca::Ca,
    federation::{FederationError, ForeignBundle, ForeignError, RootChangeError, Source, read_any},
};

pub(crate) struct BundlesService {
    ca: Ca,
}

impl BundlesService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }
}

#[tonic::async_trait]
impl Bundles for BundlesService {
    async fn list_bundles(
        &self,
        _: Request<v1::ListBundlesRequest>,
    ) -> Result<Response<v1::ListBundlesResponse>, Status> {
        let own = self.ca.own_bundle().map(|bundle| v1::ListedBundle {
            bundle: Some((&bundle).into()),
            source: "own".into(),
            received_at: 0,
            document: document(&bundle),
        });
        let foreign = self.ca.foreign_bundles().await.map_err(|error| foreign(&error))?;
        let bundles = own.into_iter().chain(foreign.iter().map(listed)).collect();
        Ok(Response::new(v1::ListBundlesResponse { bundles }))
    }

    async fn add_roots(&self, request: Request<v1::AddRootsRequest>) -> Result<Response<v1::AddRootsResponse>, Status> {
        let roots: Vec<_> = request.into_inner().roots.into_iter().map(CertificateDer::from).collect();
        let prints: Vec<_> = roots.iter().map(|root| Fingerprint::of(root).to_string()).collect();
        about(prints.join(", "));
        let added = self.ca.add_roots(roots).await.map_err(|error| root_change(&error))?;
        let added = u32::try_from(added.len()).unwrap_or(u32::MAX);
        Ok(Response::new(v1::AddRootsResponse { added }))
    }

    async fn remove_root(
        &self,
        request: Request<v1::RemoveRootRequest>,
    ) -> Result<Response<v1::RemoveRootResponse>, Status> {
        let message = request.into_inner();
        let root = Fingerprint::of(&message.root);
        about(format!("{root}{}", if message.force { ", by force" } else { "" }));
        self.ca.remove_root(root, message.force).await.map_err(|error| root_change(&error))?;
        Ok(Response::new(v1::RemoveRootResponse {}))
    }

    async fn set_foreign_bundle(
        &self,
        request: Request<v1::SetForeignBundleRequest>,
    ) -> Result<Response<v1::SetForeignBundleResponse>, Status> {
        let message = request.into_inner();
        let trust_domain = trust_domain(&message.trust_domain)?;
        about(trust_domain.as_str());
        let read = read_any(&trust_domain, &message.bundle).map_err(|error| match error {
            FederationError::Foreign(error) => foreign(&error),
            error => Status::invalid_argument(chain(&error)),
        })?;
        let changed = self.ca.set_foreign_bundle(read, Source::Operator).await.map_err(|error| foreign(&error))?;
        Ok(Response::new(v1::SetForeignBundleResponse { changed }))
    }

    async fn delete_foreign_bundle(
        &self,
        request: Request<v1::DeleteForeignBundleRequest>,
    ) -> Result<Response<v1::DeleteForeignBundleResponse>, Status> {
        let trust_domain = trust_domain(&request.get_ref().trust_domain)?;
        about(trust_domain.as_str());
        let deleted = self.ca.delete_foreign_bundle(&trust_domain).await.map_err(|error| foreign(&error))?;
        Ok(Response::new(v1::DeleteForeignBundleResponse { deleted }))
    }
}

fn listed(held: &ForeignBundle) -> v1::ListedBundle {
    v1::ListedBundle {
        bundle: Some((&held.bundle).into()),
        source: match &held.source {
            Source::Endpoint(url) => url.clone(),
            Source::Operator => "operator".into(),
        },
        received_at: epoch(held.received),
        document: document(&held.bundle),
    }
}

/// Empty where it cannot be written; the command says so, and the log says why.
fn document(bundle: &TrustBundle) -> String {
    write_bundle(bundle).unwrap_or_else(|error| {
        tracing::error!(trust_domain = %bundle.trust_domain(), reason = %chain(&error), "a bundle cannot be written as a document");
        String::new()
    })
}

fn trust_domain(text: &str) -> Result<TrustDomain, Status> {
    text.parse().map_err(|error| Status::invalid_argument(chain(&error)))
}

fn foreign(error: &ForeignError) -> Status {
    let code = match error {
        ForeignError::Own(_) | ForeignError::Document(_) | ForeignError::TooLarge { .. } => Code::InvalidArgument,
        ForeignError::Older { .. } | ForeignError::Configured(_) => Code::FailedPrecondition,
        ForeignError::Bundle(_) | ForeignError::JwtAuthority(_) | ForeignError::Records(_) => Code::Unavailable,
    };
    Status::new(code, chain(error))
}

fn root_change(error: &RootChangeError) -> Status {
    let code = match error {
        RootChangeError::NotARoot { .. } | RootChangeError::Expired { .. } | RootChangeError::Unfit { .. } => {
            Code::InvalidArgument
        }
        RootChangeError::NotTrusted(_) => Code::NotFound,
        RootChangeError::Signing(_) | RootChangeError::InUse { .. } | RootChangeError::InFile { .. } => {
            Code::FailedPrecondition
        }
        RootChangeError::Hierarchy(_) => Code::Unavailable,
    };
    Status::new(code, chain(error))
}
