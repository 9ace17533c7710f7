//! The disk of a CA fills while nodes ask: they are refused in time and told why, `/readyz` says it, and when there is room everything
//! goes on by itself. Nothing that somebody was given is lost, also when the process is killed on the full disk. One that is started there
//! serves what needs no record, with a certificate that is on record, and goes on by itself, too.
#![allow(clippy::disallowed_methods, reason = "its tasks end with the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alcazar_api::ca::v1::{
    GetInclusionProofRequest, GetStatusRequest, GetTreeHeadRequest, ListBundlesRequest, ListEntriesRequest,
    ListRevocationsRequest, bundles_client::BundlesClient, get_inclusion_proof_request::Entry as Proved,
    ledger_client::LedgerClient, revocation_administration_client::RevocationAdministrationClient,
    status_client::StatusClient,
};
use alcazar_ca::ledger::verify_files;
use alcazar_identity::{Credentials, Fingerprint};
use alcazar_testkit::{CaProcess, DEADLINE, SmallDisk, turn};
use rcgen::KeyPair;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// No answer of a CA whose disk is full takes longer.
const IN_TIME: Duration = Duration::from_secs(10);

/// Nodes that ask all the time; the serial numbers of what they were given, and how they were refused.
struct Asking {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(BTreeSet<String>, Vec<Status>)>>,
}

impl Asking {
    fn start(ca: &Arc<CaProcess>, node: &Arc<Credentials>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = |_| {
            let (ca, node, stop) = (ca.clone(), node.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut given, mut refused) = (BTreeSet::new(), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match tokio::time::timeout(IN_TIME, ca.issue(&node, "web")).await.expect("an answer in time") {
                        Ok(serial) => drop(given.insert(serial)),
                        Err(status) => {
                            refused.push(status);
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                (given, refused)
            })
        };
        Self { tasks: (0..4).map(ask).collect(), stop }
    }

    async fn stop(self) -> (BTreeSet<String>, Vec<Status>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut given, mut refused) = (BTreeSet::new(), Vec::new());
        for task in self.tasks {
            let (more, refusals) = task.await.unwrap();
            given.extend(more);
            refused.extend(refusals);
        }
        (given, refused)
    }
}

/// Looks until it is so.
async fn until<T, E: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(error) => assert!(start.elapsed() < DEADLINE, "{what}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn the_other_way_round<T>(outcome: Result<T, Status>) -> Result<Status, &'static str> {
    outcome.err().ok_or("it was not refused")
}

/// Refused for want of room, and not as if the caller had done something wrong.
fn is_our_fault(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

async fn readiness(ca: &CaProcess, code: u16, says: &str) {
    until(says, async || match ca.readiness().unwrap() {
        answer if answer.code == code && answer.text.contains(says) => Ok(()),
        answer => Err(answer),
    })
    .await;
}

async fn everything_goes_on(ca: &CaProcess, root: Fingerprint, node: &Arc<Credentials>, token: &str, key: &KeyPair) {
    until("a workload's certificate", async || ca.issue(node, "web").await).await;
    // The token that was shown to a full disk is as good as it was, for its own key.
    until("a join by a token from before", async || ca.attest(root, token, key).await).await;
    let other = ca.attest(root, token, &KeyPair::generate().unwrap()).await.unwrap_err();
    assert_eq!(other.code(), Code::Unauthenticated, "{other}");
    let fresh = until("a new token", async || ca.token("fresh").await).await;
    ca.attest(root, &fresh, &KeyPair::generate().unwrap()).await.unwrap();
    until("a registration", async || ca.register("more", "one").await).await;
    readiness(ca, 200, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_goes_on() {
    let _turn = turn();
    alcazar_mtls::install_default_provider();
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk"), 128, &home.path().join("disk.log")).unwrap() else {
        return;
    };
    let ca = CaProcess::start_on(&disk, home.path(), "").unwrap();
    ca.wait_ready().unwrap();
    let root = ca.root().await.unwrap();
    let node = ca.attest(root, &ca.token("one").await.unwrap(), &KeyPair::generate().unwrap()).await.unwrap();
    ca.register("web", "one").await.unwrap();
    let mut given = BTreeSet::from([ca.issue(&node, "web").await.unwrap()]);
    let before = [ca.token("two").await.unwrap(), ca.token("three").await.unwrap()];
    let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];

    // Not a byte is left, while nodes ask.
    let mut ca = Arc::new(ca);
    let asking = Asking::start(&ca, &node);
    disk.fill(0).unwrap();
    until("a refusal", async || the_other_way_round(ca.issue(&node, "web").await)).await;
    let refused = ca.attest(root, &before[0], &keys[0]).await.unwrap_err();
    assert!(is_our_fault(&refused), "{refused}");
    let refused = ca.token("late").await.unwrap_err();
    assert!(
        is_our_fault(&refused) && refused.message().contains("no room for the store"),
        "the operator is told why: {refused}"
    );
    let refused = ca.register("late", "one").await.unwrap_err();
    assert!(refused.message().contains("no room for the store"), "{refused}");
    readiness(&ca, 503, "no room").await;
    disk.clear().unwrap();
    everything_goes_on(&ca, root, &node, &before[0], &keys[0]).await;
    let (more, refusals) = asking.stop().await;
    assert!(!more.is_empty() && !refusals.is_empty());
    assert!(refusals.iter().all(is_our_fault), "{refusals:?}");
    given.extend(more);

    // Too little for what is kept in the store, and enough for the ledger: who is known goes on.
    disk.fill(8 << 20).unwrap();
    until("a refusal", async || the_other_way_round(ca.token("late").await)).await;
    readiness(&ca, 503, "MiB are left").await;
    let refused = ca.attest(root, &before[1], &keys[1]).await.unwrap_err();
    assert!(is_our_fault(&refused), "{refused}");
    given.insert(ca.issue(&node, "web").await.unwrap());

    // Full, and killed.
    disk.fill(0).unwrap();
    until("a refusal", async || the_other_way_round(ca.issue(&node, "web").await)).await;
    Arc::get_mut(&mut ca).unwrap().process().kill().unwrap();
    assert_eq!(verify_files(copy(&disk, home.path())).unwrap().damages, []);

    // Started on the full disk, and once more.
    for _ in 0..2 {
        let ca = Arc::get_mut(&mut ca).unwrap();
        ca.start_again_on(&disk).unwrap();
        readiness(ca, 503, "free some space").await;
        what_needs_no_record_is_served(ca, root).await;
        let refused = until("a refusal", async || the_other_way_round(ca.issue(&node, "web").await)).await;
        assert!(is_our_fault(&refused), "{refused}");
        readiness(ca, 503, "no room for the ledger").await;
        let refused = ca.attest(root, &before[1], &keys[1]).await.unwrap_err();
        assert!(is_our_fault(&refused), "{refused}");
        assert!(disk.free().unwrap() < 1 << 20, "what was kept aside is kept again");
        ca.process().kill().unwrap();
    }
    Arc::get_mut(&mut ca).unwrap().start_again_on(&disk).unwrap();
    readiness(&ca, 503, "free some space").await;
    disk.clear().unwrap();
    everything_goes_on(&ca, root, &node, &before[1], &keys[1]).await;
    let ledger = ca.ledger().await.unwrap();
    assert!(given.is_subset(&ledger), "{:?} were given out and are not in the ledger", given.difference(&ledger));
    let status = Arc::get_mut(&mut ca).unwrap().process().terminate().unwrap();
    assert!(status.success(), "{status}");
}

/// How many certificates it has issued to itself.
async fn its_own(ca: &CaProcess) -> usize {
    let mut ledger = LedgerClient::new(ca.operator().await.unwrap());
    let asked = ListEntriesRequest { caller: "ca".into(), limit: 1000, ..ListEntriesRequest::default() };
    ledger.list_entries(asked).await.unwrap().into_inner().entries.len()
}

/// For nodes, for auditors and for the operator.
async fn what_needs_no_record_is_served(ca: &CaProcess, root: Fingerprint) {
    assert_eq!(until("the operator's socket", async || ca.root().await).await, root);
    let operator = ca.operator().await.unwrap();
    let bundles = BundlesClient::new(operator.clone()).list_bundles(ListBundlesRequest {}).await.unwrap().into_inner();
    assert!(!bundles.bundles.is_empty());
    let mut revocations = RevocationAdministrationClient::new(operator.clone());
    revocations.list_revocations(ListRevocationsRequest::default()).await.unwrap();
    let status = StatusClient::new(operator.clone()).get_status(GetStatusRequest::default()).await.unwrap();
    assert!(format!("{status:?}").contains("free some space"), "{status:?}");
    let mut ledger = LedgerClient::new(operator);
    let head = ledger.get_tree_head(GetTreeHeadRequest {}).await.unwrap().into_inner();
    let newest = ledger.list_entries(ListEntriesRequest { limit: 1, ..ListEntriesRequest::default() }).await.unwrap();
    let index = newest.into_inner().entries.first().unwrap().index;
    let proof = GetInclusionProofRequest { entry: Some(Proved::Index(index)), size: head.size };
    assert!(!ledger.get_inclusion_proof(proof).await.unwrap().into_inner().entry.is_empty());
    assert_eq!(ca.page("/healthz").unwrap().code, 200);
    assert_eq!(ca.page("/crl/root.crl").unwrap().code, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_serves_with_is_renewed_on_a_full_disk() {
    let _turn = turn();
    alcazar_mtls::install_default_provider();
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk"), 128, &home.path().join("disk.log")).unwrap() else {
        return;
    };
    let mut ca = CaProcess::start_on(&disk, home.path(), "certificates: {ttl: 10s}\n").unwrap();
    ca.wait_ready().unwrap();
    let root = ca.root().await.unwrap();
    let node = ca.attest(root, &ca.token("one").await.unwrap(), &KeyPair::generate().unwrap()).await.unwrap();
    ca.register("web", "one").await.unwrap();
    disk.fill(0).unwrap();
    // The end of a block that the ledger had is filled by this: one more certificate may fit at most, and not two.
    until("a refusal", async || the_other_way_round(ca.issue(&node, "web").await)).await;
    let before = its_own(&ca).await;
    until("two renewals", async || match its_own(&ca).await {
        now if now < before + 2 => Err(now),
        _ => Ok(()),
    })
    .await;
    assert!(disk.free().unwrap() < 1 << 20, "what was kept aside is kept again");
    readiness(&ca, 503, "free some space").await;
    let status = ca.process().terminate().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_on_a_full_disk_waits_for_room() {
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk"), 64, &home.path().join("disk.log")).unwrap() else {
        return;
    };
    disk.fill(0).unwrap();
    let mut ca = CaProcess::start_on(&disk, home.path(), "").unwrap();
    readiness(&ca, 503, "no room on the disk of").await;
    readiness(&ca, 503, "free some space").await;
    assert_eq!(ca.page("/healthz").unwrap().code, 200);
    assert_eq!(ca.page("/crl/root.crl").unwrap().code, 503);
    disk.clear().unwrap();
    ca.wait_ready().unwrap();

    // Whoever waits can be told to end.
    let status = ca.process().terminate().unwrap();
    assert!(status.success(), "{status}");
    let other = home.path().join("other");
    fs::create_dir(&other).unwrap();
    disk.fill(0).unwrap();
    fs::remove_dir_all(disk.seen().join("data")).unwrap();
    disk.fill(0).unwrap();
    let mut ca = CaProcess::start_on(&disk, &other, "").unwrap();
    readiness(&ca, 503, "no room on the disk of").await;
    let status = ca.process().terminate().unwrap();
    assert!(status.success(), "{status}");
}

/// The ledger as it is, where there is room for a look at it.
fn copy(disk: &SmallDisk, home: &Path) -> std::path::PathBuf {
    let (from, to) = (disk.seen().join("data/ledger"), home.join("ledger"));
    fs::create_dir(&to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    to
}
