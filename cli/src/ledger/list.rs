//! `alcazar ledger list`.

use std::process::ExitCode;
use std::time::SystemTime;

use alcazar_api::ca::v1::{self, ledger_client::LedgerClient};
use serde_json::json;

use super::{ListArgs, answer, error::LedgerCommandError};
use crate::say;
use crate::table::Table;

/// As many entries as are asked for at a time.
const PAGE: u32 = 1000;

pub(super) async fn list(args: &ListArgs, now: SystemTime) -> Result<ExitCode, LedgerCommandError> {
    let mut client = LedgerClient::new(args.ca.connect().await?);
    let serial = args.serial.as_deref().unwrap_or_default();
    let mut request = v1::ListEntriesRequest {
        serial: super::spelled(serial),
        spiffe_id: args.identity.clone().unwrap_or_default(),
        caller: args.caller.clone().unwrap_or_default(),
        since: args.since.map_or(0, |since| since.seconds(now)),
        until: args.until.map_or(0, |until| until.seconds(now)),
        before: None,
        limit: 0,
    };
    let mut entries = Vec::new();
    while entries.len() < args.limit {
        request.limit = u32::try_from(args.limit - entries.len()).unwrap_or(PAGE).min(PAGE);
        let mut page = client.list_entries(request.clone()).await?.into_inner();
        // A token's id is whatever its issuer made it.
        if page.entries.is_empty() && request.before.is_none() && request.serial != serial {
            request.serial = serial.to_owned();
            page = client.list_entries(request.clone()).await?.into_inner();
        }
        entries.extend(page.entries);
        match page.next {
            Some(next) => request.before = Some(next),
            None => break,
        }
    }
    if args.json {
        let lines = entries.iter().map(|entry| format!("{}\n", json(entry)));
        return Ok(say(&lines.collect::<String>()));
    }
    if entries.is_empty() {
        eprintln!("nothing on record is like that");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["ENTRY", "KIND", "ISSUED", "UNTIL", "IDENTITY", "SERIAL", "CALLER"]);
    for entry in entries {
        let (issued, until) = (answer::time(entry.issued_at), answer::time(entry.not_after));
        let (index, kind) = (entry.index.to_string(), kind(&entry).to_owned());
        table.row([index, kind, issued, until, entry.spiffe_id, entry.serial, entry.caller]);
    }
    Ok(say(&table.to_string()))
}

fn kind(entry: &v1::LedgerEntry) -> &'static str {
    use v1::LedgerEntryKind as Kind;
    match entry.kind() {
        Kind::Certificate => "certificate",
        Kind::JwtSvid => "jwt-svid",
        Kind::Intermediate => "intermediate",
        Kind::Root => "root",
        Kind::Unspecified => "other",
    }
}

fn json(entry: &v1::LedgerEntry) -> serde_json::Value {
    let mut value = json!({
        "entry": entry.index,
        "kind": kind(entry),
        "serial": entry.serial,
        "spiffeId": entry.spiffe_id,
        "issuedAt": answer::time(entry.issued_at),
        "notBefore": answer::time(entry.not_before),
        "notAfter": answer::time(entry.not_after),
        "caller": entry.caller,
    });
    if let (true, Some(fields)) = (entry.certificate.is_empty(), value.as_object_mut()) {
        fields.insert("audience".into(), json!(entry.audience));
        fields.insert("keyId".into(), json!(entry.key_id));
    }
    value
}
