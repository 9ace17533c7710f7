//! A CA that is killed at any point of an issuance, of whatever kind: everything that somebody got is in its ledger, and whoever
//! asks again with the same key gets what it asked for.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use alcazar_api::ca::v1::{
    self, issue_jwt_svid_result::Outcome as JwtOutcome, issue_workload_result::Outcome, jwt_client::JwtClient,
};
use alcazar_ca::{Ca, Config, ledger::verify_files};
use alcazar_identity::X509Svid;
use alcazar_ledger::{Hooks, Step};
use alcazar_store::StoreError;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::KeyPair;
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    Hands, Served, csr, key, node, registration,
    store::{Call, Watched},
    svid, web,
};

const FOLDER: &str = "ALCAZAR_TEST_CA_FOLDER";
const STEP: &str = "ALCAZAR_TEST_CA_STEP";
const KIND: &str = "ALCAZAR_TEST_CA_KIND";

/// What a step of the store is told by.
const FAMILIES: [&str; 3] = ["ca/tokens/", NODES, "ca/rotation/tokens"];
const NODES: &str = "ca/nodes/";

/// Not a test of its own: what is killed. A CA and its clients in one process, which ends itself by SIGKILL at a step of the
/// ledger or of the store; the serial number of each certificate and the id of each token that a client got is a line on its standard output.
#[test]
fn child_issues_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let text = |name| std::env::var_os(name).unwrap().into_string().unwrap();
    let (when, kind) = (text(STEP), text(KIND));
    let (step, times) = when.rsplit_once(' ').unwrap();
    let (step, left) = (step.to_owned(), AtomicUsize::new(times.parse().unwrap()));
    let reached = Arc::new(move |now: &str| {
        if now == step && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            loop {
                std::thread::park();
            }
        }
    });
    let (ledger, store) = (reached.clone(), reached);
    let observe = move |now: Step| ledger(name(now));
    // From a word of the clients on, the store is away for lineages.
    let away = Arc::new(AtomicBool::new(false));
    let gone = away.clone();
    let watcher = move |call: Call<'_>| {
        let gone = gone.load(Ordering::SeqCst);
        let (when, key) = match call {
            Call::Put(key) => ("before", key),
            Call::Made(key) => ("after", key),
            Call::Get(key) if gone => ("told of", key),
            Call::Get(_) | Call::List(_) => return Ok(()),
        };
        if let Some(family) = FAMILIES.iter().find(|family| key.as_str().starts_with(**family)) {
            store(&format!("{when} {family}"));
        }
        match gone && key.as_str().starts_with(NODES) {
            true => Err(StoreError::Away { source: Arc::new(StoreError::Closed) }),
            false => Ok(()),
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        alcazar_mtls::install_default_provider();
        let hands = Hands::new();
        let hooks = Hooks { observe: Some(Arc::new(observe)), ..Hooks::default() };
        let ca = Ca::open_over(Config::new(&folder), hands.clock(), hooks, |store| Watched::over(store, watcher)).await;
        let ca = ca.unwrap();
        let served = Arc::new(Served::serve(ca, &hands).await);
        served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
        let one = served.attested(&node("one")).await;
        tell(one.serial());
        match &*kind {
            "workloads" => workloads(&served, &one).await,
            "tokens" => tokens(&served, &one).await,
            "renewals" => renewals(&served, &folder, one).await,
            "renewals without the store" => {
                away.store(true, Ordering::SeqCst);
                renewals(&served, &folder, one).await;
            }
            "joins" => joins(&served, &folder).await,
            other => panic!("{other}"),
        }
    });
}

/// Several clients at once, so that what is recorded is a group.
async fn workloads(served: &Arc<Served>, one: &X509Svid) {
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
                    tell(svid(issued, key).serial());
                }
            }
        });
    }
    clients.join_all().await;
}

async fn tokens(served: &Served, one: &X509Svid) {
    let item = || v1::IssueJwtSvid { registration_id: "shop.web".into(), audience: vec!["reports".into()], ttl: 0 };
    loop {
        let mut client = JwtClient::new(served.channel(one));
        let Ok(reply) = client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items: vec![item(), item()] }).await else {
            return;
        };
        for result in reply.into_inner().results {
            let Some(JwtOutcome::Svid(issued)) = result.outcome else { panic!("{result:?}") };
            let claims = URL_SAFE_NO_PAD.decode(issued.token.split('.').nth(1).unwrap()).unwrap();
            let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
            tell(claims["jti"].as_str().unwrap());
        }
    }
}

async fn renewals(served: &Served, folder: &Path, mut one: X509Svid) {
    loop {
        let next = key();
        let asked = [one.chain_pem(), one.key().to_pem().to_string(), next.serialize_pem()];
        ask(folder, &asked);
        let Ok(issued) = served.renew(&one, &next).await else { return };
        one = svid(&issued, &next);
        tell(one.serial());
    }
}

async fn joins(served: &Served, folder: &Path) {
    for n in 0.. {
        let (token, key) = (served.token(&node(&format!("n{n}"))).await, key());
        ask(folder, &[token.clone(), key.serialize_pem()]);
        let Ok(issued) = served.attest(&token, &key).await else { return };
        tell(svid(&issued, &key).serial());
    }
}

/// Notes what a client is about to ask for, as a whole or not at all: the end may come at any moment.
fn ask(folder: &Path, asked: &[String]) {
    let fresh = folder.with_extension("asking");
    fs::write(&fresh, serde_json::to_vec(asked).unwrap()).unwrap();
    fs::rename(fresh, beside(folder)).unwrap();
}

/// Where a client notes what it is about to ask for.
fn beside(folder: &Path) -> PathBuf {
    folder.with_extension("asked")
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

fn killed_at(folder: &Path, kind: &str, step: &str, times: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_in_an_issuance::child_issues_until_killed", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(STEP, format!("{step} {times}"))
        .env(KIND, kind)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let got = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("got ").map(str::to_owned)).collect();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the CA was to be killed {step}, time {times}");
    got
}

const STEPS: [&str; 4] = ["before the write", "after the write", "after the sync", "before the reply"];

/// Kills it `times` into its work, at each step of the ledger.
async fn killed_at_each_step(kind: &str, times: &[usize], then: impl AsyncFn(&Served, &Path)) {
    let known = killed_at_steps(kind, &STEPS.map(|step| (step, times)), then).await;
    assert!(known > 12, "only {known} were issued");
}

/// Kills it at each of these steps, when it comes there for the so-manieth time; all that somebody got is there afterwards, and
/// `then` looks at the rest. How many were got.
async fn killed_at_steps(kind: &str, steps: &[(&str, &[usize])], then: impl AsyncFn(&Served, &Path)) -> usize {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("ca");
    let mut known = Vec::new();
    for (step, times) in steps {
        for times in *times {
            known.extend(killed_at(&folder, kind, step, *times));
            let report = verify_files(folder.join("ledger")).unwrap();
            assert_eq!(report.damages, [], "{step} {times}");
        }
        let served = Served::start(&folder, &Hands::new()).await;
        for serial in &known {
            let found = served.ca.find_serial(serial).await.unwrap();
            assert!(found.is_some(), "{step}: somebody got {serial}, and it is not in the ledger");
        }
        then(&served, &folder).await;
        served.stop().await;
    }
    known.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_certificate_that_somebody_got_is_in_the_ledger() {
    // In the very first issuance, the node's, the first workload's, and among many.
    killed_at_each_step("workloads", &[1, 2, 3, 9], async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_that_somebody_got_is_in_the_ledger() {
    killed_at_each_step("tokens", &[3, 6], async |_, _| {}).await;
    // The note of who holds one comes before the token itself.
    let steps: [(&str, &[usize]); 2] = [("before ca/rotation/tokens", &[1]), ("after ca/rotation/tokens", &[1])];
    killed_at_steps("tokens", &steps, async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_renewal_was_cut_off_renews_with_the_same_key() {
    killed_at_each_step("renewals", &[3, 6], renews_with_the_same_key).await;
    // The lineage is written in the attestation, and then in each renewal.
    let steps: [(&str, &[usize]); 2] = [("before ca/nodes/", &[2, 4]), ("after ca/nodes/", &[2, 4])];
    assert!(killed_at_steps("renewals", &steps, renews_with_the_same_key).await >= 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_renewal_without_the_store_was_cut_off_renews_with_the_same_key() {
    // The ledger has it and the file has not; it is in the file, and the store is about to be told.
    let steps: [(&str, &[usize]); 2] = [("before ca/nodes/", &[2]), ("told of ca/nodes/", &[1, 3])];
    killed_at_steps("renewals without the store", &steps, renews_with_the_same_key).await;
}

async fn renews_with_the_same_key(served: &Served, folder: &Path) {
    let asked: [String; 3] = serde_json::from_slice(&fs::read(beside(folder)).unwrap()).unwrap();
    let [chain, own, next] = asked;
    let one = X509Svid::from_pem(chain.as_bytes(), own.as_bytes()).unwrap();
    let next = KeyPair::from_pem(&next).unwrap();
    let renewed = svid(&served.renew(&one, &next).await.unwrap(), &next);
    // And the lineage goes on from there, for nobody else.
    let after = key();
    svid(&served.renew(&renewed, &after).await.unwrap(), &after);
    let refused = served.renew(&one, &key()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_whose_use_was_cut_off_admits_the_same_key_and_no_other() {
    killed_at_each_step("joins", &[3, 6], is_admitted_with_the_same_key).await;
    // A token is written when it is made, and when it is used: that of the node from before, and then each. Between the two
    // records of an attestation the token is used up and there is no lineage yet.
    let steps: [(&str, &[usize]); 4] = [
        ("before ca/tokens/", &[4, 6]),
        ("after ca/tokens/", &[4, 6]),
        ("before ca/nodes/", &[2, 3]),
        ("after ca/nodes/", &[2, 3]),
    ];
    assert!(killed_at_steps("joins", &steps, is_admitted_with_the_same_key).await >= 12);
}

async fn is_admitted_with_the_same_key(served: &Served, folder: &Path) {
    let asked: [String; 2] = serde_json::from_slice(&fs::read(beside(folder)).unwrap()).unwrap();
    let [token, own] = asked;
    let own = KeyPair::from_pem(&own).unwrap();
    let admitted = svid(&served.attest(&token, &own).await.unwrap(), &own);
    assert_eq!(served.attest(&token, &key()).await.unwrap_err().code(), Code::Unauthenticated);
    let again = svid(&served.attest(&token, &own).await.unwrap(), &own);
    assert_eq!(again.serial(), admitted.serial());
    let next = key();
    svid(&served.renew(&admitted, &next).await.unwrap(), &next);
}
