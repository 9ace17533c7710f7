//! Intermediates, which their root takes back.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use alcazar_api::ca::v1::{self, revoke_request};
use alcazar_ca::{CacertsConfig, Config};
use alcazar_identity::{Fingerprint, RevocationReason, RevokedBy};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tonic::Code;

use super::crls;
use super::hands::{Follower, by_force, operator, peer, revoke, said};
use crate::support::{Hands, Served, key, node};

fn intermediate(print: Fingerprint) -> revoke_request::Subject {
    revoke_request::Subject::Intermediate(print.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intermediate_is_revoked_by_its_root_once_another_signs() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let old = served.attested(&node("one")).await;
    let first = served.ca.fingerprints().intermediate.fingerprint;
    let subject = || intermediate(first);
    let refused = revoke(&served, subject(), RevocationReason::CaCompromise).await.unwrap_err();
    assert!(refused.message().contains("is the one that signs here"), "{refused:?}");

    let root = served.ca.fingerprints().root.fingerprint;
    let second = served.ca.make_intermediate(root).await.unwrap().fingerprint;
    served.ca.activate(second).await.unwrap();
    let two = served.attested(&node("two")).await;
    revoke(&served, subject(), RevocationReason::CaCompromise).await.unwrap();
    let mut follower = Follower::start(&served, &two).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    assert_eq!(peer(&served, &old).revoked_by(&held).unwrap().rule, RevokedBy::Intermediate(first));
    assert_eq!(peer(&served, &two).revoked_by(&held), None);
    assert!(served.renew(&old, &key()).await.is_err());

    // Another cluster's CA takes the root's list as it is.
    let lists = operator(&served).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap().into_inner();
    let again = operator(&served).await.import_revocations(lists.clone()).await.unwrap().into_inner();
    assert!(again.taken.is_empty(), "it is held already");
    let mut forged = lists;
    forged.lists[0].signature[9] ^= 1;
    let refused = operator(&served).await.import_revocations(forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    crls::check(&served, folder.path(), &old, &two, first).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_taken_back_by_nobody_and_an_authority_not_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let prints = served.ca.fingerprints();
    let root = intermediate(prints.root.fingerprint);
    let refused = revoke(&served, root, RevocationReason::CaCompromise).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is a root"), "{refused:?}");
    let issued = served.ca.issued(None, 10).await.unwrap();
    let authorities = issued.iter().filter(|record| record.kind.is_authority());
    let mut said = Vec::new();
    for authority in authorities {
        let subject = revoke_request::Subject::Serial(authority.serial.clone());
        said.push(revoke(&served, subject, RevocationReason::KeyCompromise).await.unwrap_err().message().to_owned());
    }
    let advice = format!("--intermediate {}", prints.intermediate.fingerprint);
    assert!(said.iter().any(|said| said.contains(&advice)), "{said:?}");
    served.stop().await;
}

/// Waits until it signs with another one.
async fn signs_otherwise(served: &Served, than: Fingerprint) {
    let mut changes = served.ca.hierarchy_changes();
    while served.ca.fingerprints().intermediate.fingerprint == than {
        changes.next().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_signs_is_revoked_by_force_and_another_signs_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    let first = served.ca.fingerprints().intermediate.fingerprint;
    by_force(&served, first).await.unwrap();
    signs_otherwise(&served, first).await;
    assert!(served.renew(&one, &key()).await.is_err(), "it attests anew");
    let two = served.attested(&node("two")).await;
    served.renew(&two, &key()).await.unwrap();
    let mut follower = Follower::start(&served, &two).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    assert_eq!(peer(&served, &one).revoked_by(&held).unwrap().rule, RevokedBy::Intermediate(first));
    assert_eq!(peer(&served, &two).revoked_by(&held), None);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_revocations_at_once_are_two_and_an_unknown_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let one = served.attested(&node("one")).await;
    let root = served.ca.fingerprints().root.fingerprint;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(served.ca.make_intermediate(root).await.unwrap().fingerprint);
    }
    let why = RevocationReason::Superseded;
    let (a, b, c) = tokio::join!(
        said(&served, intermediate(made[0]), why),
        said(&served, intermediate(made[1]), why),
        said(&served, intermediate(made[2]), why),
    );
    for reply in [a, b, c] {
        assert!(reply.unwrap().notes.is_empty());
    }
    let stranger = Fingerprint::of(b"mistyped");
    let notes = said(&served, intermediate(stranger), why).await.unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("is not known here"), "{notes:?}");
    served.stop().await;

    let served = Served::start(folder.path(), &hands).await;
    let mut follower = Follower::start(&served, &one).await;
    let held = follower.until(&served, |held| !held.is_empty()).await;
    for print in made.into_iter().chain([stranger]) {
        assert!(held.of_intermediate(served.ca.trust_domain(), print).is_some(), "{print}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugged_in_root_revokes_as_well() {
    let (folder, plugged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hands = Hands::new();
    plug_in_root(plugged.path(), hands.now());
    let cacerts = Some(CacertsConfig { dir: Some(plugged.path().to_owned()), cut_over_to: None });
    let served = Served::start_with(Config { cacerts, ..Config::new(folder.path()) }, &hands).await;
    let old = served.attested(&node("one")).await;
    let first = served.ca.fingerprints().intermediate.fingerprint;
    let second = served.ca.make_intermediate(served.ca.fingerprints().root.fingerprint).await.unwrap().fingerprint;
    served.ca.activate(second).await.unwrap();
    let two = served.attested(&node("two")).await;
    revoke(&served, intermediate(first), RevocationReason::CaCompromise).await.unwrap();
    crls::check(&served, folder.path(), &old, &two, first).await;
    served.stop().await;
}

/// A root with its key, as `cacerts` has it.
fn plug_in_root(folder: &Path, now: SystemTime) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the company's root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - std::time::Duration::from_secs(3600)).into();
    params.not_after = (now + std::time::Duration::from_secs(5 * 365 * 24 * 3600)).into();
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    for name in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        std::fs::write(folder.join(name), &root).unwrap();
    }
    std::fs::write(folder.join("ca-key.pem"), key.serialize_pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_revokes_the_intermediate_that_signs_is_not_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let hands = Hands::new();
    Served::start(&here, &hands).await.stop().await;
    let copied = Command::new("cp").arg("-r").args([&here, &there]).status().unwrap();
    assert!(copied.success());

    let served = Served::start(&there, &hands).await;
    let first = served.ca.fingerprints().intermediate.fingerprint;
    let second = served.ca.make_intermediate(served.ca.fingerprints().root.fingerprint).await.unwrap().fingerprint;
    served.ca.activate(second).await.unwrap();
    revoke(&served, intermediate(first), RevocationReason::CaCompromise).await.unwrap();
    let lists = operator(&served).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap().into_inner();
    served.stop().await;

    let served = Served::start(&here, &hands).await;
    let refused = operator(&served).await.import_revocations(lists.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is the one that signs here; replace it first"), "{refused:?}");
    let one = served.attested(&node("one")).await;
    assert!(served.renew(&one, &key()).await.is_ok());
    // Unless its key is in other hands.
    let lists = v1::RevocationLists { force: true, ..lists };
    assert_eq!(operator(&served).await.import_revocations(lists).await.unwrap().into_inner().taken.len(), 1);
    signs_otherwise(&served, first).await;
    assert!(served.renew(&one, &key()).await.is_err());
    assert!(served.renew(&served.attested(&node("two")).await, &key()).await.is_ok());
    served.stop().await;
}
