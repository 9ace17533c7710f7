//! `alcazar.ca.v1.Revocation`, which nodes follow, and `RevocationAdministration`, which the operator asks.

use alcazar_api::ca::v1::{
    self, revocation_administration_server::RevocationAdministration, revocation_server::Revocation, revoke_request,
    unrevoke_request,
};
use alcazar_identity::{ListIssuer, RevocationList, RevocationReason, SpiffeId};
use alcazar_service::{Shutdown, process};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::{
    caller, epoch,
    traced::about,
    watched::{Messages, Sender, watched},
};
use crate::{
    authority::is_cluster_name,
    ca::Ca,
    revocation::{DropError, Entry, Named, RevokeError, Subject},
};

pub(crate) struct RevocationService {
    ca: Ca,
    shutdown: Shutdown,
}

impl RevocationService {
    pub(crate) fn new(ca: Ca, shutdown: Shutdown) -> Self {
        Self { ca, shutdown }
    }
}

#[tonic::async_trait]
impl Revocation for RevocationService {
    type WatchRevocationsStream = Messages<v1::SignedRevocations>;
    type WatchCrlsStream = Messages<v1::Crls>;

    async fn watch_revocations(
        &self,
        request: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let node = super::calling(&self.ca, &request, super::Call::Watch).await;
        node.map_err(|error| self.ca.refuse(&error, &caller(&request), "WatchRevocations"))?;
        let mut published = self.ca.follow_revocations();
        Ok(watched(&self.shutdown, "revocations of a node", async move |sender: Sender<_>| {
            loop {
                let Ok(room) = sender.reserve().await else { return };
                let signed = published.borrow_and_update().signed.clone();
                room.send(Ok(signed));
                if published.changed().await.is_err() {
                    return;
                }
            }
        }))
    }

    async fn watch_crls(
        &self,
        request: Request<v1::WatchCrlsRequest>,
    ) -> Result<Response<Self::WatchCrlsStream>, Status> {
        let node = super::calling(&self.ca, &request, super::Call::Watch).await;
        node.map_err(|error| self.ca.refuse(&error, &caller(&request), "WatchCrls"))?;
        let mut told = self.ca.follow_crls();
        Ok(watched(&self.shutdown, "CRLs of a node", async move |sender: Sender<_>| {
            loop {
                let Ok(room) = sender.reserve().await else { return };
                let Ok(crls) = told.wait_for(Option::is_some).await.map(|told| told.clone()) else { return };
                if let Some(crls) = crls {
                    room.send(Ok(crls.as_ref().clone()));
                }
                if told.changed().await.is_err() {
                    return;
                }
            }
        }))
    }
}

pub(crate) struct RevocationAdministrationService {
    ca: Ca,
}

impl RevocationAdministrationService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }
}

#[tonic::async_trait]
impl RevocationAdministration for RevocationAdministrationService {
    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        let by = operator(&request);
        let message = request.into_inner();
        let subject = match message.subject {
            Some(revoke_request::Subject::Serial(serial)) => Subject::Serial(serial),
            Some(revoke_request::Subject::SpiffeId(id)) => Subject::Identity(id.parse().map_err(invalid)?),
            Some(revoke_request::Subject::Intermediate(print)) => {
                Subject::Intermediate { print: print.parse().map_err(invalid)?, force: message.force }
            }
            None => return Err(Status::invalid_argument("say what to revoke")),
        };
        let reason = u8::try_from(message.reason).ok().and_then(RevocationReason::from_code);
        let reason = reason.ok_or_else(|| Status::invalid_argument("not a reason of RFC 5280"))?;
        about(format!("{}, {reason}", words(&subject)));
        let revoked = self.ca.revoke(subject, reason, &by).await.map_err(status)?;
        Ok(Response::new(v1::RevokeResponse {
            entry: revoked.entry.map(|entry| message_of(&entry, &self.ca)),
            already: revoked.already,
            notes: revoked.notes,
        }))
    }

    async fn unrevoke(&self, request: Request<v1::UnrevokeRequest>) -> Result<Response<v1::UnrevokeResponse>, Status> {
        let by = operator(&request);
        let subject = match request.into_inner().subject {
            Some(unrevoke_request::Subject::Serial(serial)) => Subject::Serial(serial),
            Some(unrevoke_request::Subject::SpiffeId(id)) => Subject::Identity(id.parse().map_err(invalid)?),
            None => return Err(Status::invalid_argument("say what to give back")),
        };
        about(words(&subject));
        let entry = self.ca.unrevoke(subject, &by).await.map_err(status)?;
        Ok(Response::new(v1::UnrevokeResponse { entry: entry.map(|entry| message_of(&entry, &self.ca)) }))
    }

    async fn list_revocations(
        &self,
        _: Request<v1::ListRevocationsRequest>,
    ) -> Result<Response<v1::ListRevocationsResponse>, Status> {
        let published = self.ca.follow_revocations().borrow().clone();
        let mut entries: Vec<_> = published.entries.iter().map(|entry| message_of(entry, &self.ca)).collect();
        let own = ListIssuer::Cluster(self.ca.config().cluster.clone());
        let is_ours = |list: &&RevocationList| list.trust_domain() == self.ca.trust_domain();
        for list in published.revocations.lists().filter(|list| !is_ours(list) || *list.issuer() != own) {
            let issuer = match is_ours(&list) {
                true => list.issuer().to_string(),
                false => format!("{} of {}", list.issuer(), list.trust_domain()),
            };
            let entry = |kind: &str, subject: String, revocation: alcazar_identity::Revocation| v1::RevocationEntry {
                kind: kind.into(),
                subject,
                reason: revocation.reason.code().into(),
                since: epoch(revocation.since),
                until: epoch(revocation.until),
                issuer: issuer.clone(),
                ..v1::RevocationEntry::default()
            };
            entries.extend(list.serials().map(|serial| entry("serial", serial.serial, serial.revocation)));
            entries.extend(list.identities().map(|(id, revoked)| {
                let shown = entry("identity", id.to_string(), revoked.revocation);
                // Until it is reinstated, where it was revoked.
                if revoked.reinstated { shown } else { v1::RevocationEntry { until: 0, ..shown } }
            }));
            entries.extend(list.intermediates().map(|(print, mark)| entry("intermediate", print.to_string(), mark)));
        }
        Ok(Response::new(v1::ListRevocationsResponse { version: published.version, entries }))
    }

    async fn import_revocations(
        &self,
        request: Request<v1::RevocationLists>,
    ) -> Result<Response<v1::ImportRevocationsResponse>, Status> {
        let v1::RevocationLists { lists, crls, force } = request.into_inner();
        let mut taken = self.ca.import_revocations(v1::SignedRevocations { lists }, force).await.map_err(status)?;
        let of = self.ca.import_crls(&crls).await.map_err(status)?;
        taken.extend(of.into_iter().map(|root| format!("the CRL of {}", ListIssuer::Root(root))));
        Ok(Response::new(v1::ImportRevocationsResponse { taken }))
    }

    async fn drop_revocations(
        &self,
        request: Request<v1::DropRevocationsRequest>,
    ) -> Result<Response<v1::DropRevocationsResponse>, Status> {
        let by = operator(&request);
        let v1::DropRevocationsRequest { cluster, trust_domain, force } = request.into_inner();
        let trust_domain = match trust_domain.as_str() {
            "" => self.ca.trust_domain().clone(),
            other => other.parse().map_err(invalid)?,
        };
        if !is_cluster_name(&trust_domain, &cluster) {
            return Err(Status::invalid_argument(
                "not the name of a cluster; `alcazar revocations` shows whose lists are held",
            ));
        }
        about(format!("the list of cluster:{cluster} of {trust_domain}"));
        let dropped = self.ca.drop_list(&trust_domain, &cluster, force, &by).await.map_err(kept)?;
        let barred = dropped.barred.iter().map(SpiffeId::to_string).collect();
        Ok(Response::new(v1::DropRevocationsResponse { barred, notes: dropped.notes }))
    }

    async fn export_revocations(
        &self,
        _: Request<v1::ExportRevocationsRequest>,
    ) -> Result<Response<v1::RevocationLists>, Status> {
        let crls = self.ca.imported_crls().await.map_err(|error| status(error.into()))?;
        let lists = self.ca.follow_revocations().borrow().signed.lists.clone();
        Ok(Response::new(v1::RevocationLists { lists, crls, force: false }))
    }
}

fn message_of(entry: &Entry, ca: &Ca) -> v1::RevocationEntry {
    let name = |id: &SpiffeId| id.to_string();
    let (kind, subject, spiffe_id, reinstated) = match &entry.named {
        Named::Serial { serial, id } => ("serial", serial.clone(), id.as_ref().map(name), None),
        Named::Identity { id, reinstated, .. } => ("identity", name(id), None, *reinstated),
    };
    let barred = kind == "identity" && reinstated.is_none();
    v1::RevocationEntry {
        kind: kind.into(),
        subject,
        reason: entry.reason.code().into(),
        since: epoch(entry.since),
        until: if barred { 0 } else { epoch(entry.until) },
        by: entry.by.clone(),
        reinstated_at: reinstated.map_or(0, epoch),
        issuer: format!("cluster:{}", ca.config().cluster),
        spiffe_id: spiffe_id.unwrap_or_default(),
    }
}

/// Who is at the operator's socket, as the kernel says.
fn operator<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    peer.map_or_else(|| "operator".to_owned(), |peer| format!("operator with uid {}", peer.uid()))
}

fn words(subject: &Subject) -> String {
    match subject {
        Subject::Serial(serial) => format!("the certificate {}", serial.chars().take(80).collect::<String>()),
        Subject::Identity(id) => format!("the identity {id}"),
        Subject::Intermediate { print, .. } => format!("the intermediate {print}"),
    }
}

/// The operator is told the whole reason.
fn invalid(error: impl std::error::Error + 'static) -> Status {
    Status::invalid_argument(process::chain(&error))
}

/// Why a list is held on.
fn kept(error: DropError) -> Status {
    let reason = process::chain(&error);
    match error {
        DropError::NotHeld(_) => Status::not_found(reason),
        DropError::Own | DropError::Proved(_) | DropError::Known(_) => Status::failed_precondition(reason),
        DropError::Bar(error) => status(error),
        DropError::Records(_) | DropError::Refresh(_) => {
            tracing::error!(reason, "could not serve the operator");
            Status::unavailable(reason)
        }
    }
}

fn status(error: RevokeError) -> Status {
    let reason = process::chain(&error);
    match error {
        RevokeError::Serial(_) | RevokeError::Foreign(_) | RevokeError::Import(_) | RevokeError::Crl => {
            Status::invalid_argument(reason)
        }
        RevokeError::Full { .. } | RevokeError::LongImport { .. } | RevokeError::LongCrl(_) => {
            Status::resource_exhausted(reason)
        }
        RevokeError::NotRevoked(_) => Status::not_found(reason),
        RevokeError::Over { .. }
        | RevokeError::Token { .. }
        | RevokeError::Authority { .. }
        | RevokeError::Root(_)
        | RevokeError::Reinstated { .. }
        | RevokeError::OurOwn(_)
        | RevokeError::NotOnHold { .. }
        | RevokeError::Final
        | RevokeError::Signs(_)
        | RevokeError::SignsElsewhere { .. }
        | RevokeError::RootKey { .. } => Status::failed_precondition(reason),
        RevokeError::Sign(_)
        | RevokeError::Refresh(_)
        | RevokeError::Records(_)
        | RevokeError::Ledger(_)
        | RevokeError::Unknown(_)
        | RevokeError::Interrupted => {
            tracing::error!(reason, "could not serve the operator");
            Status::unavailable(reason)
        }
    }
}
