//! `alcazar.ca.v1.Ledger`: what the operator asks of the record, on a socket that only the CA's own user can open.

use std::time::SystemTime;

use alcazar_api::ca::v1::{self, get_inclusion_proof_request::Entry, ledger_server};
use alcazar_ledger::ReadError;
use tonic::{Request, Response, Status};

use super::epoch;
use crate::{
    ca::Ca,
    ledger::{Filter, LedgerError, Recorded, RecordedKind, SignedHead, moment},
};

pub(crate) struct LedgerService {
    ca: Ca,
}

impl LedgerService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }
}

/// As many entries as a page has where nobody says how many, and at most.
const LISTED: u32 = 100;
const LONGEST_PAGE: u32 = 1000;

#[tonic::async_trait]
impl ledger_server::Ledger for LedgerService {
    async fn get_tree_head(&self, _: Request<v1::GetTreeHeadRequest>) -> Result<Response<v1::SignedTreeHead>, Status> {
        let signed = self.ca.tree_head().await.map_err(status)?;
        Ok(Response::new(head_message(&signed)))
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let message = request.into_inner();
        let limit = if message.limit == 0 { LISTED } else { message.limit.min(LONGEST_PAGE) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let found = self.ca.recorded(filter(message)?, limit).await.map_err(status)?;
        let next = found.last().filter(|last| found.len() == limit && last.index > 0).map(|last| last.index);
        Ok(Response::new(v1::ListEntriesResponse { entries: found.into_iter().map(Into::into).collect(), next }))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<v1::GetInclusionProofRequest>,
    ) -> Result<Response<v1::InclusionProof>, Status> {
        let message = request.into_inner();
        let ledger = &self.ca.0.ledger;
        let index = match message.entry {
            Some(Entry::Index(index)) => index,
            Some(Entry::Serial(serial)) => {
                let found = ledger.find_serial(&serial).await.map_err(status)?;
                let missing =
                    || Status::not_found(format!("nothing with the serial number {serial} is in this ledger"));
                found.ok_or_else(missing)?.index
            }
            None => return Err(Status::invalid_argument("say which entry: by its serial number or by its index")),
        };
        let size = if message.size == 0 { ledger.head().size } else { message.size };
        let included = ledger.prove(index, size).await.map_err(status)?;
        let hashes = included.proof.iter().map(|hash| hash.as_bytes().to_vec()).collect();
        Ok(Response::new(v1::InclusionProof { index, size, entry: included.entry, hashes }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::ConsistencyProof>, Status> {
        let message = request.into_inner();
        let proof = self.ca.0.ledger.consistency(message.old_size, message.new_size).await.map_err(status)?;
        let hashes = proof.iter().map(|hash| hash.as_bytes().to_vec()).collect();
        Ok(Response::new(v1::ConsistencyProof { hashes }))
    }

    async fn get_witnesses(&self, _: Request<v1::GetWitnessesRequest>) -> Result<Response<v1::Witnesses>, Status> {
        let witnesses = self.ca.witnesses(&self.ca.0.ledger.name()).await;
        let witnesses = witnesses.map_err(|error| status(error.into()))?.into_iter();
        let witnesses =
            witnesses.map(|found| v1::Witness { head: Some(head_message(&found.signed)), replica: found.replica });
        Ok(Response::new(v1::Witnesses { witnesses: witnesses.collect() }))
    }

    async fn verify_files(
        &self,
        _: Request<v1::VerifyFilesRequest>,
    ) -> Result<Response<v1::VerifyFilesResponse>, Status> {
        let report = self.ca.0.ledger.verify().await.map_err(status)?;
        let damages: Vec<_> = report.damages.iter().map(ToString::to_string).collect();
        for damage in &damages {
            tracing::error!(damage, "the ledger's files were verified, and are not what was acknowledged");
        }
        Ok(Response::new(v1::VerifyFilesResponse {
            size: report.head.size,
            root: report.head.root.as_bytes().to_vec(),
            segments: report.segments,
            bytes: report.bytes,
            damages,
        }))
    }
}

fn filter(message: v1::ListEntriesRequest) -> Result<Filter, Status> {
    let given = |text: String| (!text.is_empty()).then_some(text);
    let identity = given(message.spiffe_id).map(|id| id.parse()).transpose();
    let identity =
        identity.map_err(|error: alcazar_identity::ParseSpiffeIdError| Status::invalid_argument(error.to_string()))?;
    Ok(Filter {
        serial: given(message.serial),
        identity,
        caller: given(message.caller),
        since: when(message.since)?,
        until: when(message.until)?,
        before: message.before,
    })
}

fn when(seconds: i64) -> Result<Option<SystemTime>, Status> {
    if seconds == 0 {
        return Ok(None);
    }
    let at = u64::try_from(seconds).ok().and_then(moment);
    at.map(Some).ok_or_else(|| Status::invalid_argument(format!("{seconds} is no moment in seconds since 1970")))
}

fn head_message(signed: &SignedHead) -> v1::SignedTreeHead {
    let SignedHead { head, chain, signature } = signed;
    v1::SignedTreeHead {
        trust_domain: head.trust_domain.to_string(),
        cluster: head.cluster.clone(),
        ledger: head.ledger.clone(),
        size: head.size,
        root: head.root.as_bytes().to_vec(),
        time: epoch(head.at),
        chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
        signature: signature.clone(),
    }
}

impl From<Recorded> for v1::LedgerEntry {
    fn from(recorded: Recorded) -> Self {
        use v1::LedgerEntryKind as Kind;
        let kind = match &recorded.kind {
            RecordedKind::Certificate(_) => Kind::Certificate,
            RecordedKind::JwtSvid { .. } => Kind::JwtSvid,
            RecordedKind::Intermediate(_) => Kind::Intermediate,
            RecordedKind::Root(_) => Kind::Root,
        };
        let certificate = recorded.kind.certificate().map(|der| der.to_vec()).unwrap_or_default();
        let (audience, key_id) = match recorded.kind {
            RecordedKind::JwtSvid { audience, key_id } => (audience, key_id),
            _ => (Vec::new(), String::new()),
        };
        Self {
            index: recorded.index,
            serial: recorded.serial,
            spiffe_id: recorded.spiffe_id.to_string(),
            issued_at: epoch(recorded.issued_at),
            not_before: epoch(recorded.not_before),
            not_after: epoch(recorded.not_after),
            caller: recorded.caller,
            certificate,
            audience,
            key_id,
            kind: kind.into(),
        }
    }
}

/// The operator is told the whole reason.
fn status(error: LedgerError) -> Status {
    let reason = alcazar_service::process::chain(&error);
    match error {
        LedgerError::Read(ReadError::Beyond { .. }) => Status::out_of_range(reason),
        LedgerError::Read(ReadError::Damaged(_)) | LedgerError::Entry { .. } => {
            tracing::error!(reason, "the ledger is damaged");
            Status::data_loss(reason)
        }
        _ => {
            tracing::error!(reason, "could not serve the operator");
            Status::unavailable(reason)
        }
    }
}
