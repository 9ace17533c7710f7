//! What two requests, or a request and a renewal of the intermediate, do to each other.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use rcgen::{CertificateParams, KeyPair};
use tracing::field::{Field, Visit};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::*;
use crate::{
    admission::{Limits, Overloaded},
    authority::AuthorityInfo,
    config::Config,
    csr::KeyHash,
    overheard::overhear,
    records::Pending,
    signer::SignError,
};

const NOON: u64 = 1_800_000_000;

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOON)
}

async fn open(config: Config) -> Ca {
    Ca::open(config, Arc::new(noon)).await.unwrap()
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

fn node(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/node/local/{name}").parse().unwrap()
}

fn leaf(serial: u32) -> Leaf {
    Leaf::sample(serial, KeyHash::of(&serial.to_be_bytes()))
}

#[tokio::test]
async fn a_delayed_attestation_never_turns_a_lineage_back() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(Config::new(folder.path())).await;
    let (one, at) = (node("one"), Revision::new);
    let lineage = async || ca.0.records.get::<Lineage>(family::NODES, node("one").principal()).await.unwrap().unwrap();
    let renew = async |serial| {
        let found = lineage().await;
        let next = found.record.next(leaf(serial), &found.record.latest.mark());
        ca.0.records.put(family::NODES, node("one").principal(), Expected::At(found.revision), &next).await.unwrap();
    };
    let moved_on = |outcome| matches!(outcome, Err(RequestError::Token(TokenRefusal::MovedOn)));

    // Of two requests with one token and one key, the one that finishes for the other may do so again.
    ca.begin_lineage(&one, leaf(1), at(1000)).await.unwrap();
    ca.begin_lineage(&one, leaf(1), at(1000)).await.unwrap();
    // But once the node has renewed, the delayed one comes too late.
    renew(2).await;
    assert!(moved_on(ca.begin_lineage(&one, leaf(1), at(1000)).await));
    assert_eq!(lineage().await.record.latest.serial, "2");

    // A later token begins anew, though the old lineage has been written since, and an earlier one changes nothing then.
    renew(3).await;
    ca.begin_lineage(&one, leaf(4), at(1001)).await.unwrap();
    assert_eq!(lineage().await.record, Lineage::begin(leaf(4), at(1001)));
    assert!(moved_on(ca.begin_lineage(&one, leaf(1), at(1000)).await));
    assert_eq!(lineage().await.record.latest.serial, "4");
    ca.close().await;
}

#[tokio::test]
async fn a_copy_of_what_the_store_was_told_on_the_way_speaks_for_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(Config::new(folder.path())).await;
    let (one, records) = (node("one"), &ca.0.records);
    let put = async |expected, lineage: &Lineage| {
        records.put(family::NODES, one.principal(), expected, lineage).await.unwrap()
    };
    let record = Lineage::begin(leaf(1), Revision::new(7));
    let base = Stored { revision: put(Expected::Absent, &record).await, record };
    let first = base.record.next(leaf(2), &leaf(1).mark());
    // Two renewals follow while the store hears of the first one.
    let told = Pending::begin(one.clone(), &base, first.clone(), true, noon());
    assert!(ca.0.renewals.keep(None, told.clone()).await.unwrap());
    put(Expected::At(base.revision), &first).await;
    let second = told.next(first.next(leaf(3), &leaf(2).mark()), true);
    let third = second.next(second.lineage.next(leaf(4), &leaf(3).mark()), true);
    assert!(ca.0.renewals.keep(Some(told.into()), third).await.unwrap());
    let speaks = async |serial| {
        let (mark, issuer) = (leaf(serial).mark(), leaf(serial).issuer);
        let issued = SystemTime::UNIX_EPOCH;
        ca.lineage_of(&one, &nodes::Presented { mark, issuer, issued, not_after: noon() }).await
    };
    for serial in [3, 4] {
        assert!(matches!(speaks(serial).await, Ok(nodes::Held::Pending(_))), "{serial}");
    }
    for serial in [1, 2] {
        let refused = speaks(serial).await.unwrap_err();
        assert!(matches!(&refused, RequestError::Lineage { .. }), "{serial}: {refused}");
    }
    ca.close().await;
}

#[tokio::test]
async fn leaf_and_chain_fit_while_the_intermediate_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    // Past half of the intermediate's life, where the old one and the new one are both good.
    let late = || noon() + Duration::from_secs(190 * 24 * 3600);
    let ca = open(Config::new(folder.path())).await;
    let old = ca.hierarchy();
    ca.close().await;
    let ca = Ca::open(Config::new(folder.path()), Arc::new(late)).await.unwrap();
    let new = ca.hierarchy();
    assert_ne!(old.intermediate().info(), new.intermediate().info());
    let selectors = ["uid:1".parse().unwrap()];
    let web = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let registration = Registration::new("shop.web".parse().unwrap(), node("one"), web, selectors, None).unwrap();
    ca.put_registration(registration).await.unwrap();
    let revision = Revision::new(1);
    let lineage = Stored { record: Lineage::begin(leaf(1), revision), revision };
    let presented =
        nodes::Presented { mark: leaf(1).mark(), issuer: leaf(1).issuer, issued: noon(), not_after: noon() };
    let caller = Node { id: node("one"), presented, lineage: nodes::Held::Stored(lineage) };

    for turn in 0..4 {
        let token = ca.create_join_token(&node("one"), None).await.unwrap().0.reveal();
        // The intermediate changes each time that the request goes on.
        let mut polls = turn;
        let (csr, first) = (csr(), turn < 2);
        let request = async {
            if first {
                ca.attest(None, &token, &csr, None).await
            } else {
                ca.issue_registered(&caller, "shop.web", &csr).await
            }
        };
        let mut request = pin!(request);
        let outcome = std::future::poll_fn(|context| {
            polls += 1;
            ca.0.hierarchy.send_replace(if polls % 2 == 0 { old.clone() } else { new.clone() });
            request.as_mut().poll(context)
        });
        let reply = outcome.await.unwrap();
        let [leaf, intermediate] = &*reply.chain else { panic!("{:?}", reply.chain) };
        let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
        let info = AuthorityInfo::parse(intermediate.clone()).unwrap();
        let (_, issuer) = X509Certificate::from_der(&info.certificate).unwrap();
        assert!(leaf.verify_signature(Some(issuer.public_key())).is_ok(), "turn {turn}");
        assert_eq!(reply.hierarchy.intermediate().info(), &info);
    }
    ca.close().await;
}

#[tokio::test]
async fn a_token_of_another_cluster_admits_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(Config::new(folder.path())).await;
    // As a store has it that was another cluster's before.
    let node = "spiffe://cluster.local/node/west/one".parse().unwrap();
    let token = crate::token::JoinToken::random(ca.hierarchy().root().fingerprint).unwrap();
    let record = crate::records::TokenRecord { node, expires: (ca.0.clock)() + HOUR, consumed: None };
    let (tokens, absent) = (crate::records::family::TOKENS, alcazar_store::Expected::Absent);
    ca.0.records.put(tokens, token.hash().as_str(), absent, &record).await.unwrap();
    let refused = ca.attest(None, &token.reveal(), &csr(), None).await.unwrap_err();
    assert!(matches!(refused, RequestError::OtherCluster(_)), "{refused}");
    assert_eq!(refused.terse().0, tonic::Code::PermissionDenied);
    ca.close().await;
}

#[tokio::test]
async fn the_identity_of_the_ca_is_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(Config::new(folder.path())).await;
    let request = Csr::from_der(&csr()).unwrap();
    let outcome = ca.issue_for("secret alcazar-system/istio.alcazar-ca", Plug::Secrets, &ca.id(), &request, HOUR).await;
    assert!(matches!(outcome, Err(RequestError::OwnIdentity(id)) if id == ca.id()));
    let other = SpiffeId::workload(ca.trust_domain(), "alcazar-system", "alcazar-control").unwrap();
    assert!(ca.issue_for("secret", Plug::Secrets, &other, &request, HOUR).await.is_ok());
    ca.close().await;
}

#[tokio::test]
async fn a_key_that_does_not_sign_is_counted_for_certificates_and_tokens_alike() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(Config::new(folder.path())).await;
    let away = || SignError("the token is gone".into());
    let somebody = crate::refusal::Asker { name: "somebody".into(), address: None, is_stranger: false };
    ca.refuse(&IssueError::Sign(away()).into(), &somebody, "RenewNode");
    let token = alcazar_jwt::SignError::Signer("the token is gone".into());
    ca.refuse(&RequestError::Jwt(token.into()), &somebody, "IssueJwtSvids");
    assert_eq!(ca.0.metrics.sign_errors.value(), 2);
    ca.close().await;
}

#[tokio::test]
async fn two_tries_of_a_token_at_once_with_one_key_get_one_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let ca = open(Config::new(folder.path())).await;
    let token = ca.create_join_token(&node("one"), None).await.unwrap().0;
    let (text, request) = (token.reveal(), csr());
    let tries = (0..8).map(|_| ca.attest(None, &text, &request, None));
    let chains: Vec<_> = futures::future::join_all(tries).await.into_iter().map(|reply| reply.unwrap().chain).collect();
    assert!(chains.iter().all(|chain| *chain == chains[0]), "{}", chains.len());

    // The one that lost: it finds what the other had, and a stranger to the key finds the token used.
    let key = Csr::from_der(&request).unwrap().key_hash();
    let leaf = ca.attested_meanwhile(&token.hash(), key).await.unwrap();
    let lineage = ca.0.records.get::<Lineage>(family::NODES, node("one").principal()).await.unwrap().unwrap();
    assert_eq!(lineage.record.latest.serial, leaf.serial);
    let other = ca.attested_meanwhile(&token.hash(), KeyHash::of(b"another")).await;
    assert!(matches!(other, Err(RequestError::Token(TokenRefusal::Used))), "{other:?}");
    ca.close().await;
}

#[tokio::test]
async fn a_node_whose_certificate_has_ended_attests_before_others() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        Config { limits: Limits { at_a_time: 1, queue: 4, ..Limits::default() }, ..Config::new(folder.path()) };
    let clock = Arc::new(AtomicU64::new(NOON));
    let ca = open_at(config, &clock).await;
    for (name, second) in [("ended", 0), ("good", 3599)] {
        clock.store(NOON + second, Ordering::SeqCst);
        let token = ca.create_join_token(&node(name), None).await.unwrap().0.reveal();
        ca.attest(None, &token, &csr(), None).await.unwrap();
    }
    clock.store(NOON + 3600, Ordering::SeqCst);
    let mut tokens = Vec::new();
    for name in ["ended", "good", "new"] {
        tokens.push(ca.create_join_token(&node(name), None).await.unwrap().0.reveal());
    }
    // As many wait as may, but for those who are urgent.
    let held = ca.admit("a", None).await.unwrap();
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(ca.admit("b", None))).collect();
    for wait in &mut waiting {
        assert!(futures::poll!(wait).is_pending());
    }
    for token in &tokens[1..] {
        let refused = ca.attest(None, token, &csr(), None).await.unwrap_err();
        assert!(matches!(refused, RequestError::Overloaded(Overloaded { .. })), "{refused}");
    }
    let request = csr();
    let mut urgent = pin!(ca.attest(None, &tokens[0], &request, None));
    while ca.0.admission.waiting() < 4 {
        assert!(futures::poll!(&mut urgent).is_pending());
        tokio::task::yield_now().await;
    }
    drop(held);
    urgent.await.unwrap();
    drop(waiting);
    ca.close().await;
}

#[tokio::test]
async fn a_life_that_was_cut_short_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(AtomicU64::new(NOON));
    let ca = open_at(Config::new(folder.path()), &clock).await;
    let said = Said::default();
    let heard = said.clone();
    let _guard = overhear(move |event| event.record(&mut heard.clone()));
    let end = ca.hierarchy().intermediate().info().validity.not_after();
    let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let request = Csr::from_der(&csr()).unwrap();
    let issue = async || ca.issue_for("a test", Plug::Secrets, &id, &request, HOUR).await.unwrap();
    issue().await;
    assert_eq!(said.taken(), 0);
    clock.store(end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 60, Ordering::SeqCst);
    let reply = issue().await;
    assert_eq!((reply.not_after, said.taken()), (end, 1));
    ca.close().await;
}

async fn open_at(config: Config, clock: &Arc<AtomicU64>) -> Ca {
    let clock = clock.clone();
    let now = move || SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::SeqCst));
    Ca::open(config, Arc::new(now)).await.unwrap()
}

/// Counts the lines that tell of a life that is shorter than was asked.
#[derive(Clone, Default)]
struct Said(Arc<AtomicU64>);

impl Said {
    fn taken(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" && format!("{value:?}").contains("lives shorter than was asked") {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
