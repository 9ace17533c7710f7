//! The ledger as an operator sees it: entries, searches, signed heads, proofs, and what happens when its files change.

use std::{fs, path::Path, time::Duration};

use alcazar_api::ca::v1::{self, get_inclusion_proof_request::Entry, ledger_client::LedgerClient};
use alcazar_ca::{
    Ca, Config,
    ledger::{Filter, HeadError, RecordedKind, verify_files},
};
use alcazar_identity::{Fingerprint, StatementError, TrustBundle};
use alcazar_ledger::merkle::{Hash, verify_consistency, verify_inclusion};
use alcazar_service::process;
use tonic::{Code, transport::Channel};

use crate::support::{Hands, Served, id, node, registration, web};

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
    let key = crate::support::key();
    let item = v1::IssueWorkload {
        registration_id: "shop.web".into(),
        csr: crate::support::csr(&key),
        ..v1::IssueWorkload::default()
    };
    served.client(&one).issue_workloads(v1::IssueWorkloadsRequest { items: vec![item] }).await.unwrap();

    let mut operator = operator(folder.path()).await;
    let list = async |request| operator.clone().list_entries(request).await.unwrap().into_inner();
    let all = list(v1::ListEntriesRequest::default()).await;
    let names: Vec<_> = all.entries.iter().map(|entry| (entry.index, entry.spiffe_id.clone())).collect();
    // The root and the intermediate were there before anything was signed.
    let domain = id("spiffe://cluster.local");
    let expected = [(4, web()), (3, node("one")), (2, served.ca.id()), (1, domain.clone()), (0, domain)];
    assert_eq!(names, expected.map(|(index, id)| (index, id.to_string())));
    assert_eq!(all.next, None);
    use v1::LedgerEntryKind::{Certificate, Intermediate, Root};
    let kinds: Vec<_> = all.entries.iter().map(v1::LedgerEntry::kind).collect();
    assert_eq!(kinds, [Certificate, Certificate, Certificate, Intermediate, Root]);
    let prints = served.ca.fingerprints();
    assert_eq!(all.entries[3].certificate, *prints.intermediate.certificate);
    assert_eq!(all.entries[4].certificate, *prints.root.certificate);
    let certificate = &all.entries[1];
    assert_eq!((certificate.serial.as_str(), certificate.certificate.as_slice()), (one.serial(), &*one.chain()[0]));
    assert!(certificate.caller.starts_with("join token "), "{}", certificate.caller);

    // Each filter by itself, and pages.
    let request = v1::ListEntriesRequest::default;
    let start = crate::support::START as i64;
    for (request, found) in [
        (v1::ListEntriesRequest { spiffe_id: web().to_string(), ..request() }, vec![4]),
        (v1::ListEntriesRequest { spiffe_id: "spiffe://cluster.local".into(), ..request() }, vec![1, 0]),
        (v1::ListEntriesRequest { serial: one.serial().into(), ..request() }, vec![3]),
        (v1::ListEntriesRequest { serial: "00".into(), ..request() }, vec![]),
        (v1::ListEntriesRequest { caller: node("one").to_string(), ..request() }, vec![4]),
        (v1::ListEntriesRequest { caller: "ca".into(), ..request() }, vec![2, 1, 0]),
        (v1::ListEntriesRequest { since: start + 100, ..request() }, vec![4, 3]),
        (v1::ListEntriesRequest { until: start + 100, ..request() }, vec![2, 1, 0]),
        (v1::ListEntriesRequest { since: start + 101, ..request() }, vec![]),
        (v1::ListEntriesRequest { caller: "ca".into(), spiffe_id: web().to_string(), ..request() }, vec![]),
        (v1::ListEntriesRequest { before: Some(4), limit: 1, ..request() }, vec![3]),
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
    assert_eq!((asked.size, asked.root.as_slice()), (5, &head.head.root.as_bytes()[..]));
    for entry in [Entry::Serial(one.serial().into()), Entry::Index(3)] {
        let request = v1::GetInclusionProofRequest { entry: Some(entry), size: 0 };
        let proof = operator.get_inclusion_proof(request).await.unwrap().into_inner();
        assert!(proof.entry.ends_with(&one.chain()[0]));
        verify_inclusion(Hash::leaf(&proof.entry), proof.index, 5, &head.head.root, &hashes(&proof.hashes)).unwrap();
    }
    let request = v1::GetConsistencyProofRequest { old_size: 3, new_size: 5 };
    let proof = operator.get_consistency_proof(request).await.unwrap().into_inner();
    verify_consistency(3, &first.head.root, 5, &head.head.root, &hashes(&proof.hashes)).unwrap();
    for (entry, size, code) in [
        (Some(Entry::Serial("00".into())), 0, Code::NotFound),
        (Some(Entry::Index(5)), 0, Code::OutOfRange),
        (Some(Entry::Index(0)), 6, Code::OutOfRange),
        (None, 0, Code::InvalidArgument),
    ] {
        let request = v1::GetInclusionProofRequest { entry, size };
        assert_eq!(operator.get_inclusion_proof(request).await.unwrap_err().code(), code);
    }
    let report = operator.verify_files(v1::VerifyFilesRequest {}).await.unwrap().into_inner();
    assert_eq!((report.size, report.damages), (5, vec![]));
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
async fn a_ledger_that_was_rolled_back_or_damaged_is_noticed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let (ledger, backup) = (folder.path().join("ledger"), folder.path().join("backup"));
    let ca = open(folder.path(), &hands).await.unwrap();
    ca.close().await;
    copy(&ledger, &backup);
    let ca = open(folder.path(), &hands).await.unwrap();
    let kept = ca.issued(None, 10).await.unwrap();
    assert_eq!(kept.len(), 4, "each start issues a certificate to serve with");
    ca.close().await;
    assert_eq!(verify_files(&ledger).unwrap().head.size, 4);

    // An old backup is whole in itself, and yet not what it was.
    fs::rename(&ledger, folder.path().join("newest")).unwrap();
    fs::rename(&backup, &ledger).unwrap();
    assert_eq!(verify_files(&ledger).unwrap().damages, []);
    let error = open(folder.path(), &hands).await.err().unwrap();
    assert!(
        error.contains("has 3 entries, but a head of 4 entries was signed") && error.contains("restore"),
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
async fn a_ledger_that_was_lost_or_exchanged_is_refused_until_a_person_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    for folder in [folder.path(), elsewhere.path()] {
        open(folder, &hands).await.unwrap().close().await;
    }
    let (ledger, kept) = (folder.path().join("ledger"), folder.path().join("kept"));
    let name = verify_files(&ledger).unwrap().log.to_string();
    fs::rename(&ledger, &kept).unwrap();
    // Lost; lost with its name; exchanged for another's, which is good in itself.
    let refused = async || {
        let error = open(folder.path(), &hands).await.err().unwrap();
        let says = [&format!("had the ledger {name}, with at least 3 entries"), &format!("replaces: {name}")];
        assert!(says.iter().all(|says| error.contains(*says)), "{error}");
    };
    refused().await;
    refused().await;
    fs::remove_file(folder.path().join("ledger-name")).unwrap();
    refused().await;
    let new = fs::read(ledger.join("000000000000.entries")).unwrap();
    fs::remove_dir_all(&ledger).unwrap();
    copy(&elsewhere.path().join("ledger"), &ledger);
    refused().await;

    // A person says which one is lost. What has entries already does not go on after it.
    let says = |name: &str| {
        let mut config = Config::new(folder.path());
        config.ledger.replaces = Some(name.into());
        config
    };
    let open_saying =
        async |name: &str| Ca::open(says(name), hands.clock()).await.map_err(|error| process::chain(&error));
    assert!(open_saying(&name).await.err().unwrap().contains("was lost, moved away or exchanged"));
    fs::remove_dir_all(&ledger).unwrap();
    assert!(open_saying(&"0".repeat(32)).await.is_err(), "another one was lost");
    let ca = open_saying(&name).await.unwrap();
    let begun = ca.issued(None, 10).await.unwrap();
    assert_eq!(begun.len(), 3, "those who sign are on record again: {begun:?}");
    ca.close().await;
    assert_ne!(fs::read(ledger.join("000000000000.entries")).unwrap(), new);
    // It may stay in the configuration, and need not.
    open_saying(&name).await.unwrap().close().await;
    open(folder.path(), &hands).await.unwrap().close().await;
    // The one that was given up does not come back, whatever the data folder remembers.
    fs::rename(&ledger, folder.path().join("second")).unwrap();
    fs::rename(&kept, &ledger).unwrap();
    for _ in 0..2 {
        let error = open(folder.path(), &hands).await.err().unwrap();
        assert!(error.contains("was given up"), "{error}");
        drop(fs::remove_file(folder.path().join("ledger-name")));
    }
    fs::remove_dir_all(&ledger).unwrap();
    fs::rename(folder.path().join("second"), &ledger).unwrap();
    open(folder.path(), &hands).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_is_of_one_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let ca = open(folder.path(), &hands).await.unwrap();
    ca.close().await;
    let mut config = Config::new(folder.path());
    config.cluster = "west".into();
    let error = process::chain(&Ca::open(config, hands.clock()).await.err().unwrap());
    assert!(error.contains("is one of the cluster \"local\"") && error.contains("cluster: west"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intermediate_is_on_record_before_it_signs_and_so_is_a_root() {
    let folder = tempfile::tempdir().unwrap();
    let hands = Hands::new();
    let ca = open(folder.path(), &hands).await.unwrap();
    let first = ca.fingerprints();
    let on_record = async |ca: &Ca| {
        let found = ca.issued(None, 100).await.unwrap();
        let authorities = found.into_iter().filter(|found| found.kind.is_authority());
        authorities.map(|found| Fingerprint::of(found.kind.certificate().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(on_record(&ca).await, [first.intermediate.fingerprint, first.root.fingerprint]);
    // Made by hand, as a rotation does.
    let next = ca.make_intermediate(first.root.fingerprint).await.unwrap();
    let root = ca.make_root().await.unwrap();
    assert_eq!(on_record(&ca).await[..2], [root.fingerprint, next.fingerprint]);
    ca.activate(next.fingerprint).await.unwrap();
    assert_eq!(on_record(&ca).await.len(), 4, "none of them twice");
    let entry = &ca.issued(Some(&id("spiffe://cluster.local")), 1).await.unwrap()[0];
    assert!(matches!(entry.kind, RecordedKind::Root(_)));
    assert_eq!(ca.find_serial(&entry.serial).await.unwrap().as_ref(), Some(entry));

    // Renewed by itself, past half of its life.
    hands.advance(Duration::from_secs(200 * 24 * 3600));
    ca.look_after_hierarchy().await.unwrap();
    let renewed = ca.fingerprints().intermediate.fingerprint;
    assert_eq!(on_record(&ca).await[0], renewed);
    ca.close().await;
    let ca = open(folder.path(), &hands).await.unwrap();
    assert_eq!(on_record(&ca).await.len(), 5, "a start records those alone that are not on record");
    ca.close().await;

    // A ledger that an earlier version wrote has none of them: they are put there at a start.
    let elsewhere = tempfile::tempdir().unwrap();
    let old = open(elsewhere.path(), &hands).await.unwrap();
    let prints = old.fingerprints();
    old.close().await;
    let name = verify_files(elsewhere.path().join("ledger")).unwrap().log.to_string();
    fs::remove_dir_all(elsewhere.path().join("ledger")).unwrap();
    let mut config = Config::new(elsewhere.path());
    config.ledger.replaces = Some(name);
    let old = Ca::open(config, hands.clock()).await.unwrap();
    assert_eq!(on_record(&old).await, [prints.intermediate.fingerprint, prints.root.fingerprint]);
    old.close().await;
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
    assert_eq!(found.iter().map(|recorded| recorded.index).collect::<Vec<_>>(), [3, 2, 1, 0]);
    assert!(found[0].issued_at < found[1].issued_at);
    let since = |at| Filter { since: Some(at), ..Filter::default() };
    let indexes =
        async |filter| ca.recorded(filter, 10).await.unwrap().iter().map(|found| found.index).collect::<Vec<_>>();
    assert_eq!(indexes(since(late.now())).await, [2, 1, 0]);
    assert_eq!(indexes(Filter { until: Some(late.now()), ..Filter::default() }).await, [3]);
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
