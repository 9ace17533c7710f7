//! `alcazar ledger verify`.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1::{
    self, administration_client::AdministrationClient, get_inclusion_proof_request::Entry, ledger_client::LedgerClient,
};
use alcazar_ca::ledger::{Recorded, SignedHead, TreeHead, Witness};
use alcazar_identity::{CertificateDer, TrustBundle, TrustDomain, rfc3339};
use alcazar_ledger::merkle::{Hash, verify_consistency, verify_inclusion};
use alcazar_service::process::chain;
use tonic::transport::Channel;

use super::error::LedgerCommandError;
use super::state::State;
use super::{PinArgs, VerifyArgs, answer};
use crate::operator::OperatorError;
use crate::say;

/// A head that was verified.
pub(super) struct Verified {
    pub(super) signed: SignedHead,
    bundle: TrustBundle,
    /// Where the roots are from.
    pub(super) roots: String,
    /// What was seen the last time.
    last: Option<State>,
}

/// How far the CA's clock may be from this machine's before it is said.
const SKEW: Duration = Duration::from_secs(300);

pub(super) async fn verify(args: &VerifyArgs, now: SystemTime) -> Result<ExitCode, LedgerCommandError> {
    let channel = args.ca.connect().await?;
    let Verified { signed, bundle, roots, last } = head(channel.clone(), &args.pin, now).await?;
    let head = &signed.head;
    let mut text =
        format!("head        {head}\nsigned      by the intermediate of {}; roots from {roots}\n", head.cluster);
    let mut client = LedgerClient::new(channel);
    text.push_str(&match &last {
        Some(last) => {
            let seen = last.seen();
            format!("consistent  with the {} entries that were seen at {seen}\n", last.size)
        }
        None => match &args.pin.state {
            Some(path) => format!("consistent  not known yet: this head is the first in {}\n", path.display()),
            None => "consistent  not asked: name a file with --state to prove it from run to run\n".to_owned(),
        },
    });
    text.push_str(&witnessed(&mut client, head, &bundle).await?);
    let proven = newest(&mut client, head, args.entries).await?;
    text.push_str(&format!("included    the newest {proven} entries\n"));
    if args.files {
        let report = client.verify_files(v1::VerifyFilesRequest {}).await?.into_inner();
        if !report.damages.is_empty() {
            eprintln!("alcazar: the ledger's files are not what was acknowledged:");
            report.damages.iter().for_each(|damage| eprintln!("  {damage}"));
            return Ok(ExitCode::FAILURE);
        }
        let (segments, bytes) = (report.segments, report.bytes);
        text.push_str(&format!(
            "files       {segments} segments, {bytes} bytes: each entry, hash and index is as it was\n"
        ));
    }
    if let Some(path) = &args.pin.state {
        State::of(&signed, &bundle).write(path)?;
    }
    Ok(say(&text))
}

/// The CA's head, signed by whom it must be and going on from the last one.
pub(super) async fn head(channel: Channel, pin: &PinArgs, now: SystemTime) -> Result<Verified, LedgerCommandError> {
    let last = pin.state.as_deref().map(State::read).transpose()?.flatten();
    let mut client = LedgerClient::new(channel.clone());
    let signed = answer::head(client.get_tree_head(v1::GetTreeHeadRequest {}).await?.into_inner())?;
    let head = &signed.head;
    let (bundle, roots) = roots(channel, pin, last.as_ref(), &head.trust_domain).await?;
    signed.verify(&bundle).map_err(|source| LedgerCommandError::Head { roots: roots.clone(), source })?;
    let apart = now.duration_since(head.at).or_else(|_| head.at.duration_since(now)).unwrap_or_default();
    if apart > pin.max_age {
        return Err(LedgerCommandError::Stale { there: rfc3339(head.at), here: rfc3339(now) });
    }
    say_of_clocks(head, last.as_ref(), now);
    if let (Some(last), Some(path)) = (&last, &pin.state) {
        if last.ledger != head.ledger {
            let (found, known) = (head.ledger.clone(), last.ledger.clone());
            return Err(LedgerCommandError::OtherLedger { found, known, path: path.clone() });
        }
        let proof = if last.size < head.size {
            let request = v1::GetConsistencyProofRequest { old_size: last.size, new_size: head.size };
            answer::hashes(&client.get_consistency_proof(request).await?.into_inner().hashes)?
        } else {
            Vec::new()
        };
        verify_consistency(last.size, &last.root(), head.size, &head.root, &proof)
            .map_err(|source| LedgerCommandError::Inconsistent { known: last.size, seen: last.seen(), source })?;
    }
    Ok(Verified { signed, bundle, roots, last })
}

/// Whom to believe: the roots that were given, else those of the last time, else what the CA shows.
async fn roots(
    channel: Channel,
    pin: &PinArgs,
    last: Option<&State>,
    shown: &TrustDomain,
) -> Result<(TrustBundle, String), LedgerCommandError> {
    // Another trust domain than the last time is told by the head's own check.
    let trust_domain = last.and_then(|last| last.trust_domain.parse().ok()).unwrap_or_else(|| shown.clone());
    if let Some(path) = &pin.root {
        let pem = fs::read(path).map_err(|source| LedgerCommandError::Read { path: path.clone(), source })?;
        let bundle = TrustBundle::from_pem(trust_domain, 1, &pem);
        let bundle = bundle.map_err(|source| LedgerCommandError::Roots { path: path.clone(), source })?;
        return Ok((bundle, path.display().to_string()));
    }
    if let (Some(last), Some(path)) = (last, &pin.state) {
        let bundle = TrustBundle::from_pem(trust_domain, 1, last.roots.as_bytes());
        let bundle = bundle.map_err(|source| LedgerCommandError::Roots { path: path.clone(), source })?;
        return Ok((bundle, format!("{}; after a rotation of the root, give the new one with --root", path.display())));
    }
    let mut client = AdministrationClient::new(channel);
    let hierarchy = client.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
    let root = hierarchy.root.ok_or_else(|| OperatorError::Answer("it has no root".to_owned()))?;
    let bundle = TrustBundle::new(trust_domain, 1, [CertificateDer::from(root.certificate)]);
    Ok((bundle.map_err(LedgerCommandError::ShownRoots)?, "the CA itself; give your own with --root".to_owned()))
}

/// Clocks prove nothing here, and yet somebody should look at one that is wrong.
fn say_of_clocks(head: &TreeHead, last: Option<&State>, now: SystemTime) {
    let apart = now.duration_since(head.at).or_else(|_| head.at.duration_since(now)).unwrap_or_default();
    if apart > SKEW {
        let (here, there) = (rfc3339(now), rfc3339(head.at));
        eprintln!("alcazar: the CA's clock says {there}, and this machine's {here}");
    }
    if let Some(last) = last.filter(|last| alcazar_ca::ledger::moment(last.time).is_some_and(|seen| seen > head.at)) {
        let (seen, there) = (last.seen(), rfc3339(head.at));
        eprintln!("alcazar: the CA's clock went back: its last head was of {seen}, and this one is of {there}");
    }
}

/// Which other replicas vouch for how much of the ledger: each one's signature, and the proof that the head goes on from there.
async fn witnessed(
    client: &mut LedgerClient<Channel>,
    head: &TreeHead,
    bundle: &TrustBundle,
) -> Result<String, LedgerCommandError> {
    let found = match client.get_witnesses(v1::GetWitnessesRequest {}).await {
        Ok(found) => found.into_inner().witnesses,
        // A CA of an earlier version.
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(String::new()),
        Err(status) => return Err(status.into()),
    };
    if found.is_empty() {
        return Ok("witnessed   by no other replica\n".to_owned());
    }
    let mut text = String::new();
    for witness in found {
        let (replica, shown) = (witness.replica, witness.head.unwrap_or_default());
        let witness = Witness { replica: replica.clone(), signed: answer::head(shown)? };
        if let Err(source) = witness.verify(bundle) {
            text.push_str(&format!("witnessed   NOT by {replica}: {}\n", chain(&source)));
            continue;
        }
        let seen = &witness.signed.head;
        // What was seen after the head was signed goes beyond it.
        if seen.size <= head.size {
            let request = v1::GetConsistencyProofRequest { old_size: seen.size, new_size: head.size };
            let proof = answer::hashes(&client.get_consistency_proof(request).await?.into_inner().hashes)?;
            verify_consistency(seen.size, &seen.root, head.size, &head.root, &proof)
                .map_err(|source| LedgerCommandError::Witness { replica: replica.clone(), seen: seen.size, source })?;
        }
        text.push_str(&format!("witnessed   by {replica}: {} entries, at {}\n", seen.size, rfc3339(seen.at)));
    }
    Ok(text)
}

/// Proves the newest entries that the head covers, one by one, and that the CA lists what was proven; how many.
async fn newest(client: &mut LedgerClient<Channel>, head: &TreeHead, count: u32) -> Result<u64, LedgerCommandError> {
    let oldest = head.size.saturating_sub(count.into());
    let mut before = head.size;
    while before > oldest {
        let page = u32::try_from(before - oldest).unwrap_or(PAGE).min(PAGE);
        // What came after the head was signed is not in it.
        let request = v1::ListEntriesRequest { before: Some(before), limit: page, ..v1::ListEntriesRequest::default() };
        let mut listed = client.list_entries(request).await?.into_inner().entries.into_iter();
        for index in (before - u64::from(page)..before).rev() {
            let request = v1::GetInclusionProofRequest { entry: Some(Entry::Index(index)), size: head.size };
            let proof = client.get_inclusion_proof(request).await?.into_inner();
            if proof.index != index {
                let (asked, found) = (format!("entry {index}"), format!("entry {}", proof.index));
                return Err(LedgerCommandError::Other { asked, found });
            }
            let found = v1::LedgerEntry::from(included(&proof, head)?);
            let listed = listed.next().filter(|listed| listed.index == index);
            let listed = listed.ok_or(LedgerCommandError::NotListed { index })?;
            if listed != found {
                let (found, listed) = (format!("{found:?}"), format!("{listed:?}"));
                return Err(LedgerCommandError::Listed { index, found, listed });
            }
        }
        before -= u64::from(page);
    }
    Ok(head.size - oldest)
}

/// As many entries as are asked for at a time.
const PAGE: u32 = 500;

/// The entry that a proof proves to be in the head.
pub(super) fn included(proof: &v1::InclusionProof, head: &TreeHead) -> Result<Recorded, LedgerCommandError> {
    let index = proof.index;
    let recorded = Recorded::decode(index, &proof.entry);
    let recorded = recorded.map_err(|source| LedgerCommandError::Entry { index, source })?;
    let hashes = answer::hashes(&proof.hashes)?;
    verify_inclusion(Hash::leaf(&proof.entry), index, head.size, &head.root, &hashes)
        .map_err(|source| LedgerCommandError::NotIncluded { index, serial: recorded.serial.clone(), source })?;
    Ok(recorded)
}
