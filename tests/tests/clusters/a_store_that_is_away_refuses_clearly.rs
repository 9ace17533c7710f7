//! The etcd of a CA is slow, away or split while nodes join and workloads are registered: clear errors within the deadline, nothing half
//! done, and all goes on when it is back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alcazar_identity::{Credentials, Fingerprint};
use alcazar_testkit::{CaProcess, DEADLINE, Etcd, EtcdCluster, until_ok};
use rcgen::KeyPair;
use tonic::{Code, Status};

/// How long the CA lets an answer of etcd take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A join asks etcd a few times, and gives up at the first that is not answered.
const IN_TIME: Duration = Duration::from_secs(8);

fn start(home: &std::path::Path, endpoints: &[String]) -> CaProcess {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("'{endpoint}'")).collect();
    let more =
        format!("store: {{etcd: {{endpoints: [{}], deadline: {}s}}}}\n", endpoints.join(", "), PATIENCE.as_secs());
    let ca = CaProcess::start(home, &more).unwrap();
    ca.wait_ready().unwrap();
    ca
}

/// What there is before the store goes.
struct Known {
    root: Fingerprint,
    node: Arc<Credentials>,
}

impl Known {
    async fn of(ca: &CaProcess) -> Self {
        let root = ca.root().await.unwrap();
        let node = ca.attest(root, &ca.token("one").await.unwrap(), &key()).await.unwrap();
        ca.register("web", "one").await.unwrap();
        ca.issue(&node, "web").await.unwrap();
        Self { root, node }
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// An answer within the time that is promised.
async fn in_time<T>(what: &str, asked: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let start = Instant::now();
    let outcome = tokio::time::timeout(IN_TIME, asked).await;
    outcome.unwrap_or_else(|_| panic!("{what}: no answer after {:?}", start.elapsed()))
}

async fn until<T, E: std::fmt::Debug>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    until_ok(what, DEADLINE, look).await.unwrap()
}

/// While the store is away: what needs it is refused in time, in words, and what does not goes on.
async fn refuses_clearly(ca: &CaProcess, known: &Known, token: &str, key: &KeyPair, says: &[&str]) {
    let told = |what: &str, status: Status| {
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
        status.message().to_owned()
    };
    let operators = [
        told("a join token", in_time("a join token", ca.token("late")).await.unwrap_err()),
        told("a registration", in_time("a registration", ca.register("late", "one")).await.unwrap_err()),
    ];
    for message in operators {
        assert!(says.iter().any(|says| message.contains(says)), "the operator is told why: {message}");
    }
    let joined = in_time("a join", ca.attest(known.root, token, key)).await;
    told("a join", joined.expect_err("nobody joins"));
    in_time("a certificate", ca.issue(&known.node, "web")).await.unwrap();
    until("it is said", async || match ca.readiness().unwrap() {
        answer if answer.text.contains("joins and registrations are refused") => Ok(()),
        answer => Err(answer),
    })
    .await;
}

/// When the store is back: the join that was cut off is made by the same key and no other, and nothing is there by halves.
async fn goes_on(ca: &CaProcess, known: &Known, token: &str, key: &KeyPair, name: &str) {
    let joined = until("a join", async || ca.attest(known.root, token, key).await).await;
    let refused = ca.attest(known.root, token, &self::key()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let renewed = ca.renew(&joined, &self::key()).await.unwrap();
    ca.renew(&renewed, &self::key()).await.unwrap();
    // The same registration again, whether or not it was written; and it serves.
    until("a registration", async || ca.register("late", "one").await).await;
    until("its certificate", async || ca.issue(&known.node, "late").await).await;
    let fresh = until("a join token", async || ca.token(name).await).await;
    ca.attest(known.root, &fresh, &self::key()).await.unwrap();
    ca.wait_ready().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_stopped_or_gone_refuses_joins_and_registrations_in_time() {
    let Some(mut etcd) = Etcd::start().unwrap() else { return };
    alcazar_mtls::install_default_provider();
    let home = tempfile::tempdir().unwrap();
    let ca = start(home.path(), &[etcd.endpoint()]);
    let known = Known::of(&ca).await;

    let (token, own) = (ca.token("two").await.unwrap(), key());
    etcd.process().pause().unwrap();
    refuses_clearly(&ca, &known, &token, &own, &["did not answer within"]).await;
    etcd.process().resume().unwrap();
    goes_on(&ca, &known, &token, &own, "three").await;

    let (token, own) = (ca.token("four").await.unwrap(), key());
    etcd.kill().unwrap();
    refuses_clearly(&ca, &known, &token, &own, &["in the store at", "did not answer"]).await;
    etcd.start_again().unwrap();
    goes_on(&ca, &known, &token, &own, "five").await;
}

/// Joins that are under way when the store stops: each one that was told that it joined is in the ledger, and each one that was not joins
/// with its key afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_are_cut_off_are_made_afterwards() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    alcazar_mtls::install_default_provider();
    let home = tempfile::tempdir().unwrap();
    let ca = start(home.path(), &[etcd.endpoint()]);
    let known = Known::of(&ca).await;
    let mut given = BTreeSet::new();
    for round in 0..5 {
        let mut joins = Vec::new();
        for n in 0..6 {
            joins.push((ca.token(&format!("n{round}-{n}")).await.unwrap(), key()));
        }
        let asked = joins.iter().map(|(token, key)| in_time("a join", ca.attest(known.root, token, key)));
        let cut = async {
            // At another moment of the joins in each round.
            tokio::time::sleep(Duration::from_millis(3 * round)).await;
            etcd.process().pause().unwrap();
        };
        let (outcomes, ()) = tokio::join!(futures::future::join_all(asked), cut);
        etcd.process().resume().unwrap();
        for ((token, key), outcome) in joins.iter().zip(outcomes) {
            match outcome {
                Ok(joined) => given.insert(joined.svid().serial().to_owned()),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    let joined = until("a join", async || ca.attest(known.root, token, key).await).await;
                    given.insert(joined.svid().serial().to_owned())
                }
            };
            let refused = ca.attest(known.root, token, &self::key()).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        }
    }
    assert_eq!(given.len(), 30);
    assert!(given.is_subset(&ca.ledger().await.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_of_three_that_is_split_serves_with_its_majority_and_refuses_without() {
    let Some(etcd) = EtcdCluster::start().unwrap() else { return };
    alcazar_mtls::install_default_provider();
    let home = tempfile::tempdir().unwrap();
    let ca = start(home.path(), etcd.endpoints());
    let known = Known::of(&ca).await;

    // One is cut off, whichever it is: the others go on, after the time that it takes them to notice.
    for (n, member) in etcd.members().iter().enumerate() {
        member.pause().unwrap();
        let (name, own) = (format!("with-{n}-away"), key());
        let token = until("a join token", async || in_time("a join token", ca.token(&name)).await).await;
        until("a join", async || in_time("a join", ca.attest(known.root, &token, &own)).await).await;
        let workload = format!("w{n}");
        until("a registration", async || in_time("a registration", ca.register(&workload, "one")).await).await;
        member.resume().unwrap();
        etcd.wait_whole().unwrap();
    }

    // Two are away: the one that is left answers its clients, and may decide nothing.
    for left in 0..3 {
        let name = format!("with-{left}-left");
        let (token, own) = (until("a join token", async || ca.token(&name).await).await, key());
        let others = || etcd.members().iter().enumerate().filter(move |(n, _)| *n != left).map(|(_, member)| member);
        others().for_each(|member| member.pause().unwrap());
        refuses_clearly(&ca, &known, &token, &own, &["did not answer within", "in the store at"]).await;
        others().for_each(|member| member.resume().unwrap());
        etcd.wait_whole().unwrap();
        goes_on(&ca, &known, &token, &own, &format!("after-{left}-left")).await;
    }
}
