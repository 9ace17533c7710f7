//! `alcazar ledger show`.

use std::process::ExitCode;
use std::time::SystemTime;

use alcazar_api::ca::v1::{self, get_inclusion_proof_request::Entry, ledger_client::LedgerClient};
use alcazar_ca::ledger::{Recorded, RecordedKind};
use alcazar_identity::{Fingerprint, pem_block, rfc3339};

use super::ShowArgs;
use super::error::LedgerCommandError;
use super::verify::{Verified, head, included};
use crate::say;

pub(super) async fn show(args: &ShowArgs, now: SystemTime) -> Result<ExitCode, LedgerCommandError> {
    let channel = args.ca.connect().await?;
    let Verified { signed, roots, .. } = head(channel.clone(), &args.pin, now).await?;
    let mut client = LedgerClient::new(channel);
    let serial = super::spelled(&args.serial);
    let entry = Some(Entry::Serial(serial.clone()));
    let request = v1::GetInclusionProofRequest { entry, size: signed.head.size };
    let proof = match client.get_inclusion_proof(request.clone()).await {
        // A token's id is whatever its issuer made it.
        Err(status) if status.code() == tonic::Code::NotFound => {
            let entry = Some(Entry::Serial(args.serial.clone()));
            client.get_inclusion_proof(v1::GetInclusionProofRequest { entry, ..request }).await?
        }
        outcome => outcome?,
    };
    let proof = proof.into_inner();
    let recorded = included(&proof, &signed.head)?;
    if recorded.serial != serial && recorded.serial != args.serial {
        return Err(LedgerCommandError::Other { asked: args.serial.clone(), found: recorded.serial });
    }
    let mut text = describe(&recorded);
    text.push_str(&format!("proof        entry {} is in the ledger of {}\n", recorded.index, signed.head));
    text.push_str(&format!("             signed by the CA's intermediate; roots from {roots}\n"));
    for hash in super::answer::hashes(&proof.hashes)? {
        text.push_str(&format!("             {hash}\n"));
    }
    if let Some(der) = recorded.kind.certificate() {
        text.push_str(&pem_block("CERTIFICATE", der));
    }
    Ok(say(&text))
}

fn describe(recorded: &Recorded) -> String {
    let Recorded { serial, spiffe_id, issued_at, not_before, not_after, caller, kind, .. } = recorded;
    let what = match kind {
        RecordedKind::Certificate(_) => "certificate",
        RecordedKind::JwtSvid { .. } => "JWT-SVID",
        RecordedKind::Intermediate(_) => "intermediate",
        RecordedKind::Root(_) => "root",
    };
    let more = match kind {
        RecordedKind::JwtSvid { audience, key_id } => {
            format!("audience     {}\nkey          {key_id}\n", audience.join(", "))
        }
        _ => kind.certificate().map(|der| format!("fingerprint  {}\n", Fingerprint::of(der))).unwrap_or_default(),
    };
    let [issued_at, not_before, not_after] = [*issued_at, *not_before, *not_after].map(rfc3339);
    format!(
        "{what:<12} {serial}\nidentity     {spiffe_id}\nissued       {issued_at}\ngood         from {not_before} until {not_after}\ncaller       {caller}\n{more}"
    )
}
