//! The ledger as an operator sees it: entries, searches, signed heads, proofs, and what happens when its files change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::{fs, path::Path, time::Duration};

use alcazar_api::ca::v1::{self, get_inclusion_proof_request::Entry, ledger_client::LedgerClient};
use alcazar_ca::{
    Ca, Config,
    ledger::{Filter, HeadError, RecordedKind, verify_files},
};
use alcazar_identity::{StatementError, TrustBundle};
use alcazar_ledger::merkle::{Hash, verify_consistency, verify_inclusion};
use alcazar_service::process;
use support::{Hands, Served, id, node, registration, web};
use tonic::{Code, transport::Channel};

async fn operator(folder: &Path) -> LedgerClient<Channel> {
    let socket = folder.join(alcazar_ca::ADMIN_SOCKET);
    LedgerClient::connect(format!("unix:{}", socket.display())).await.unwrap()
}

fn hashes(bytes: &[Vec<u8>]) -> Vec<Hash> {
    bytes.iter().map(|hash| Hash::try_from(hash.as_slice()).unwrap()).collect()
}

fn bundle(ca: &Ca) -> TrustBundle {
    ca.trust_bundles().get(ca.trust_domain()).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_lists_what_was_issued_and_proves_it() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let served = Served::start(folder.path(), &hands).await;
    let first = served.ca.tree_head().await.unwrap();
    hands.advance(Duration::from_secs(100));
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let key = support::key();
    let item = v1::IssueWorkload {
        registration_id: "shop.web".into(),
        csr: support::csr(&key),
        ..v1::IssueWorkload::default()
    };
    served.client(&one).issue_workloads(v1::IssueWorkloadsRequest { items: vec![item] }).await.unwrap();

    let mut operator = operator(folder.path()).await;
    let list = async |request| operator.clone().list_entries(request).await.unwrap().into_inner();
    let all = list(v1::ListEntriesRequest::default()).await;
    let names: Vec<_> = all.entries.iter().map(|entry| (entry.index, entry.spiffe_id.clone())).collect();
    let expected = [(2, web()), (1, node("one")), (0, served.ca.id())];
    assert_eq!(names, expected.map(|(index, id)| (index, id.to_string())));
    assert_eq!(all.next, None);
    let certificate = &all.entries[1];
    assert_eq!((certificate.serial.as_str(), certificate.certificate.as_slice()), (one.serial(), &*one.chain()[0]));
    assert!(certificate.caller.starts_with("join token "), "{}", certificate.caller);

    // Each filter by itself, and pages.
    let request = v1::ListEntriesRequest::default;
    let start = support::START as i64;
    for (request, found) in [
        (v1::ListEntriesRequest { spiffe_id: web().to_string(), ..request() }, vec![2]),
        (v1::ListEntriesRequest { serial: one.serial().into(), ..request() }, vec![1]),
        (v1::ListEntriesRequest { serial: "00".into(), ..request() }, vec![]),
        (v1::ListEntriesRequest { caller: node("one").to_string(), ..request() }, vec![2]),
        (v1::ListEntriesRequest { caller: "ca".into(), ..request() }, vec![0]),
        (v1::ListEntriesRequest { since: start + 100, ..request() }, vec![2, 1]),
        (v1::ListEntriesRequest { until: start + 100, ..request() }, vec![0]),
        (v1::ListEntriesRequest { since: start + 101, ..request() }, vec![]),
        (v1::ListEntriesRequest { caller: "ca".into(), spiffe_id: web().to_string(), ..request() }, vec![]),
        (v1::ListEntriesRequest { before: Some(2), limit: 1, ..request() }, vec![1]),
    ] {
        let listed: Vec<_> = list(request.clone()).await.entries.iter().map(|entry| entry.index).collect();
        assert_eq!(listed, found, "{request:?}");
    }
    let bad = v1::ListEntriesRequest { spiffe_id: "web".into(), ..request() };
    assert_eq!(operator.list_entries(bad).await.unwrap_err().code(), Code::InvalidArgument);

    // The head is the intermediate's word, and what is listed is in it.
    let head = served.ca.tree_head().await.unwrap();
    head.verify(&bundle(&served.ca)).unwrap();
    let asked = operator.get_tree_head(v1::GetTreeHeadRequest {}).await.unwrap().into_inner();
    assert_eq!((asked.size, asked.root.as_slice()), (3, &head.head.root.as_bytes()[..]));
    for entry in [Entry::Serial(one.serial().into()), Entry::Index(1)] {
        let request = v1::GetInclusionProofRequest { entry: Some(entry), size: 0 };
        let proof = operator.get_inclusion_proof(request).await.unwrap().into_inner();
        assert!(proof.entry.ends_with(&one.chain()[0]));
        verify_inclusion(Hash::leaf(&proof.entry), proof.index, 3, &head.head.root, &hashes(&proof.hashes)).unwrap();
    }
    let request = v1::GetConsistencyProofRequest { old_size: 1, new_size: 3 };
    let proof = operator.get_consistency_proof(request).await.unwrap().into_inner();
    verify_consistency(1, &first.head.root, 3, &head.head.root, &hashes(&proof.hashes)).unwrap();
    for (entry, size, code) in [
        (Some(Entry::Serial("00".into())), 0, Code::NotFound),
        (Some(Entry::Index(3)), 0, Code::OutOfRange),
        (Some(Entry::Index(0)), 4, Code::OutOfRange),
        (None, 0, Code::InvalidArgument),
    ] {
        let request = v1::GetInclusionProofRequest { entry, size };
        assert_eq!(operator.get_inclusion_proof(request).await.unwrap_err().code(), code);
    }
    let report = operator.verify_files(v1::VerifyFilesRequest {}).await.unwrap().into_inner();
    assert_eq!((report.size, report.damages), (3, vec![]));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_proves_nothing_when_a_word_of_it_is_changed_or_a_stranger_signed() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    let ours = bundle(&ca);
    let signed = ca.tree_head().await.unwrap();
    signed.verify(&ours).unwrap();
    let changed = |change: fn(&mut alcazar_ca::ledger::SignedHead)| {
        let mut head = signed.clone();
        change(&mut head);
        head.verify(&ours).unwrap_err()
    };
    for error in [
        changed(|signed| signed.head.size += 1),
        changed(|signed| signed.head.root = Hash::empty()),
        changed(|signed| signed.head.at += Duration::from_secs(1)),
        changed(|signed| signed.head.cluster = "west".into()),
        changed(|signed| signed.head.ledger = "00".into()),
        changed(|signed| signed.signature[20] ^= 1),
        changed(|signed| drop(signed.chain.pop())),
    ] {
        assert!(matches!(error, HeadError::Signature(_)), "{error:?}");
    }
    assert!(matches!(
        changed(|signed| signed.head.trust_domain = "other".parse().unwrap()),
        HeadError::TrustDomain { .. }
    ));
    assert!(matches!(changed(|signed| signed.head.cluster = "local\nledger x".into()), HeadError::Text));

    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Ca::open(Config::new(elsewhere.path()), hands.clock()).await.unwrap();
    let error = stranger.tree_head().await.unwrap().verify(&ours).unwrap_err();
    assert!(matches!(error, HeadError::Signature(StatementError::NoPath { .. })), "{error:?}");
    stranger.close().await;
    ca.close().await;
}

/// The CA with this clock on this folder, its error where it does not open.
async fn open(folder: &Path, hands: &Hands) -> Result<Ca, String> {
    Ca::open(Config::new(folder), hands.clock()).await.map_err(|error| process::chain(&error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_was_rolled_back_or_lost_is_noticed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let (ledger, backup) = (folder.path().join("ledger"), folder.path().join("backup"));
    let ca = open(folder.path(), &hands).await.unwrap();
    ca.close().await;
    copy(&ledger, &backup);
    let ca = open(folder.path(), &hands).await.unwrap();
    let kept = ca.issued(None, 10).await.unwrap();
    assert_eq!(kept.len(), 2, "each start issues a certificate to serve with");
    ca.close().await;
    assert_eq!(verify_files(&ledger).unwrap().head.size, 2);

    // An old backup is whole in itself, and yet not what it was.
    fs::rename(&ledger, folder.path().join("newest")).unwrap();
    fs::rename(&backup, &ledger).unwrap();
    assert_eq!(verify_files(&ledger).unwrap().damages, []);
    let error = open(folder.path(), &hands).await.err().unwrap();
    assert!(
        error.contains("has 1 entries, but a head of 2 entries was signed") && error.contains("restore"),
        "{error}"
    );

    // One flipped bit in the certificate that was issued first.
    fs::remove_dir_all(&ledger).unwrap();
    fs::rename(folder.path().join("newest"), &ledger).unwrap();
    let file = ledger.join("000000000000.entries");
    let good = fs::read(&file).unwrap();
    let mut bytes = good.clone();
    bytes[300] ^= 0x10;
    fs::write(&file, &bytes).unwrap();
    let error = open(folder.path(), &hands).await.err().unwrap();
    assert!(error.contains("000000000000.entries at byte") && error.contains("restore the whole folder"), "{error}");
    fs::write(&file, good).unwrap();
    let ca = open(folder.path(), &hands).await.unwrap();
    assert_eq!(ca.issued(None, 10).await.unwrap()[1..], kept);
    ca.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_goes_back_changes_no_order_and_no_proof() {
    let folder = tempfile::tempdir().unwrap();
    let late = Hands::new();
    let ca = open(folder.path(), &late).await.unwrap();
    let before = ca.tree_head().await.unwrap();
    ca.close().await;
    let early = Hands::at(late.now() - Duration::from_secs(90));
    let ca = open(folder.path(), &early).await.unwrap();
    let after = ca.tree_head().await.unwrap();
    assert!(after.head.at < before.head.at && after.head.size > before.head.size);
    let found = ca.issued(None, 10).await.unwrap();
    assert_eq!(found.iter().map(|recorded| recorded.index).collect::<Vec<_>>(), [1, 0]);
    assert!(found[0].issued_at < found[1].issued_at);
    let since = |at| Filter { since: Some(at), ..Filter::default() };
    let indexes =
        async |filter| ca.recorded(filter, 10).await.unwrap().iter().map(|found| found.index).collect::<Vec<_>>();
    assert_eq!(indexes(since(late.now())).await, [0]);
    assert_eq!(indexes(Filter { until: Some(late.now()), ..Filter::default() }).await, [1]);
    assert!(matches!(&found[0].kind, RecordedKind::Certificate(der) if !der.is_empty()));
    let nobody = Filter { identity: Some(id("spiffe://cluster.local/ns/a/sa/b")), ..Filter::default() };
    assert!(indexes(nobody).await.is_empty());
    // What is live is a question of the moment that is asked about.
    let live = async |at| ca.live_of_identity(&ca.id(), at).await.unwrap().len();
    let second = Duration::from_secs(1);
    assert_eq!((live(late.now()).await, live(found[1].not_after + second).await), (2, 0));
    assert_eq!((live(found[0].not_after).await, live(found[0].not_after + second).await), (2, 1));
    ca.close().await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
