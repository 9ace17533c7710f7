//! A CA that is killed at any point of an issuance: every certificate that somebody got is in its ledger.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use alcazar_api::ca::v1::{self, issue_workload_result::Outcome};
use alcazar_ca::{Ca, Config, ledger::verify_files};
use alcazar_ledger::{Hooks, Step};
use tokio::task::JoinSet;

use crate::support::{Hands, Served, csr, key, node, registration, web};

const FOLDER: &str = "ALCAZAR_TEST_CA_FOLDER";
const STEP: &str = "ALCAZAR_TEST_CA_STEP";

/// Not a test of its own: what is killed. A CA and its clients in one process, which ends itself by SIGKILL at a step of the
/// ledger; the serial number of each certificate that a client got is a line on its standard output.
#[test]
fn child_issues_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let when = std::env::var_os(STEP).unwrap().into_string().unwrap();
    let (step, times) = when.rsplit_once(' ').unwrap();
    let (step, left) = (step.to_owned(), AtomicUsize::new(times.parse().unwrap()));
    let observe = move |now: Step| {
        if name(now) == step && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            loop {
                std::thread::park();
            }
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        alcazar_mtls::install_default_provider();
        let hands = Hands::new();
        let hooks = Hooks { observe: Some(Arc::new(observe)), ..Hooks::default() };
        let ca = Ca::open_hooked(Config::new(&folder), hands.clock(), hooks).await.unwrap();
        let served = Arc::new(Served::serve(ca, &hands).await);
        served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
        let one = served.attested(&node("one")).await;
        tell(one.serial());
        let mut clients = JoinSet::new();
        for _ in 0..3 {
            let (served, one) = (served.clone(), one.clone());
            clients.spawn(async move {
                loop {
                    let keys = [key(), key()];
                    let item = |key| v1::IssueWorkload {
                        registration_id: "shop.web".into(),
                        csr: csr(key),
                        ..v1::IssueWorkload::default()
                    };
                    let request = v1::IssueWorkloadsRequest { items: keys.iter().map(item).collect() };
                    let Ok(reply) = served.client(&one).issue_workloads(request).await else { return };
                    for (result, key) in reply.into_inner().results.iter().zip(&keys) {
                        let Some(Outcome::Svid(issued)) = &result.outcome else { panic!("{result:?}") };
                        tell(crate::support::svid(issued, key).serial());
                    }
                }
            });
        }
        clients.join_all().await;
    });
}

/// One write call a line, so that a killed process leaves no half of one behind another.
fn tell(serial: &str) {
    std::io::stdout().lock().write_all(format!("\ngot {serial}\n").as_bytes()).unwrap();
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Taken { .. } => "before the write",
        Step::Written { .. } => "after the write",
        Step::Synced { .. } => "after the sync",
        Step::Acknowledged => "before the reply",
        Step::Sealed => "sealed",
    }
}

fn killed_at(folder: &Path, step: &str, times: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_in_an_issuance::child_issues_until_killed", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(STEP, format!("{step} {times}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let got = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("got ").map(str::to_owned)).collect();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the CA was to be killed {step}, time {times}");
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_certificate_that_somebody_got_is_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let mut known = Vec::new();
    for (round, step) in
        ["before the write", "after the write", "after the sync", "before the reply"].into_iter().enumerate()
    {
        // In the very first issuance, the node's, the first workload's, and among many.
        for times in [1, 2, 3, 8 + round] {
            known.extend(killed_at(folder.path(), step, times));
            let report = verify_files(folder.path().join("ledger")).unwrap();
            assert_eq!(report.damages, [], "{step} {times}");
        }
        let ca = Ca::open(Config::new(folder.path()), Hands::new().clock()).await.unwrap();
        for serial in &known {
            let found = ca.find_serial(serial).await.unwrap();
            assert!(found.is_some(), "{step}: somebody got {serial}, and it is not in the ledger");
        }
        ca.close().await;
    }
    assert!(known.len() > 20, "only {} certificates were issued", known.len());
}
