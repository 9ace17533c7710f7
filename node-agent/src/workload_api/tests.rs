//! Messages, and tokens in paused time against a CA in memory.

use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::{CertificateDer, Credentials, SpiffeId, TrustBundle, verify_crl};
use futures::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, advance};
use tonic::Code;

use super::allowance::{Allowance, BURST, PERIOD};
use super::messages::{absence, jwt_bundles, x509_bundles, x509_svids};
use super::push::{Push, Taken};
use super::tokens::{TokenError, Tokens};
use crate::adoption::Clients;
use crate::authority::Session;
use crate::callers::Doors;
use crate::crls::Crls;
use crate::registration::Registration;
use crate::registry::{Held, Registry, Served};
use crate::sds::View;
use crate::testing::ca::Ca;
use crate::testing::{MemoryAuthority, Mood, clock};

fn id(account: &str) -> SpiffeId {
    format!("spiffe://td.example/ns/shop/sa/{account}").parse().unwrap()
}

fn held(ca: &mut Ca, account: &str) -> (SpiffeId, Arc<Held>) {
    let svid = ca.svid(id(account).as_str(), Duration::from_secs(600), clock()());
    (id(account), Arc::new(Held::Certificate(Arc::new(Credentials::new(svid, ca.bundles())))))
}

fn nothing(account: &str) -> (SpiffeId, Arc<Held>) {
    (id(account), Arc::new(Held::Nothing(format!("no certificate of {account} yet"))))
}

#[tokio::test(start_paused = true)]
async fn a_message_has_every_certificate_with_its_key_and_whom_to_believe() {
    let mut ca = Ca::new(clock()());
    let root = Ca::new(clock()()).root_der();
    ca.foreign.push(TrustBundle::new("partner.example".parse().unwrap(), 3, [root.clone(), ca.root_der()]).unwrap());
    let (reviews, ratings) = (held(&mut ca, "reviews"), held(&mut ca, "ratings"));
    let view = View::new([reviews.clone(), nothing("details"), ratings]);

    let message = x509_svids(&view).unwrap();
    let names: Vec<_> = message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(
        names,
        [id("reviews").as_str(), id("ratings").as_str()],
        "the default one first; without what is not held"
    );
    let svid = reviews.1.credentials().unwrap().svid();
    let first = &message.svids[0];
    assert_eq!(first.x509_svid, [svid.chain()[0].as_ref(), svid.chain()[1].as_ref()].concat());
    assert_eq!(first.x509_svid_key, svid.key().secret_pkcs8_der());
    assert_eq!(first.bundle, ca.root_der().as_ref());
    let partners: Vec<_> = message.federated_bundles.iter().collect();
    let roots =
        |message: &[u8]| message.len() == root.len() + ca.root_der().len() && message.ends_with(last(&ca, &root));
    assert!(partners.len() == 1 && partners[0].0 == "spiffe://partner.example" && roots(partners[0].1), "{partners:?}");

    assert!(message.crl.is_empty() && x509_bundles(&view).unwrap().crl.is_empty());
    let (said, own) = (ca.crl(clock()(), clock()() + Duration::from_secs(600)), ca.bundles());
    let own = own.get(id("reviews").trust_domain()).unwrap();
    let crl = verify_crl(&said.crl, &[said.chain[0].as_slice().into()], own, clock()()).unwrap();
    let crls = Crls::new(id("reviews").trust_domain().clone(), vec![crl]);
    let checked = view.clone().with_crls(Arc::new(crls));
    assert_eq!(x509_svids(&checked).unwrap().crl, std::slice::from_ref(&said.crl));
    assert_eq!(x509_bundles(&checked).unwrap().crl, [said.crl]);

    let bundles = x509_bundles(&view).unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://partner.example", "spiffe://td.example"]);
    let keys = jwt_bundles(&view).unwrap().bundles;
    let keys = |name: &str| serde_json::from_slice::<serde_json::Value>(&keys[name]).unwrap()["keys"].clone();
    assert_eq!(
        (keys("spiffe://td.example")[0]["kid"].as_str(), keys("spiffe://partner.example")),
        (Some("the-key"), serde_json::json!([]))
    );
}

/// The root that a bundle names last: it sorts them.
fn last<'a>(ca: &Ca, other: &'a CertificateDer<'static>) -> &'a [u8] {
    let bundle = TrustBundle::new("partner.example".parse().unwrap(), 3, [other.clone(), ca.root_der()]).unwrap();
    let is_last = bundle.roots().last() == Some(other);
    if is_last { other } else { &[] }
}

#[tokio::test(start_paused = true)]
async fn nobody_becomes_somebody_else_while_the_default_identity_is_away() {
    let mut ca = Ca::new(clock()());
    let view = View::new([nothing("reviews"), held(&mut ca, "ratings")]);
    assert_eq!((x509_svids(&view), absence(&view)), (None, "no certificate of reviews yet"));
    // Whom to believe is the same for all of them.
    assert!(x509_bundles(&view).is_some() && jwt_bundles(&view).is_some());
    assert!(x509_bundles(&View::new([nothing("reviews")])).is_none() && x509_svids(&View::default()).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_allowance_is_spent_and_comes_back() {
    let start = Instant::now();
    let mut allowance = Allowance::new(start);
    let mut take = |at| allowance.take(start + at);
    assert_eq!((0..BURST + 5).filter(|_| take(Duration::ZERO)).count(), BURST as usize);
    assert!(!take(PERIOD / 2));
    assert!(take(PERIOD) && !take(PERIOD));
    assert_eq!((0..BURST * 2).filter(|_| take(PERIOD * 1000)).count(), BURST as usize, "no more than all of it");
}

struct World {
    authority: MemoryAuthority,
    tokens: Tokens,
    /// Goes with the world.
    _session: watch::Sender<Option<Arc<dyn Session>>>,
}

impl World {
    fn new() -> Self {
        let authority = MemoryAuthority::new(clock());
        authority.ca().register("reviews", "reviews", &["uid:1"]);
        authority.ca().register("ratings", "ratings", &["uid:1"]);
        let (session, follow) = watch::channel(Some(Arc::new(authority.clone()) as Arc<dyn Session>));
        Self { authority, tokens: Tokens::new(follow), _session: session }
    }

    async fn get(&self, account: &str, audience: &[&str]) -> Result<String, TokenError> {
        let (registration, held) = {
            let mut ca = self.authority.ca();
            let wire = ca.registrations.iter().find(|wire| wire.id == account).unwrap().clone();
            (Registration::read(&wire, &crate::testing::ca::node()).unwrap(), held(&mut ca, account).1)
        };
        let served = Served::new(registration, watch::channel(held.clone()).1);
        let audience: Vec<_> = audience.iter().map(|one| (*one).to_owned()).collect();
        self.tokens.get(&served, held.credentials().unwrap(), &audience).await
    }

    fn asked(&self) -> usize {
        self.authority.ca().tokens_issued
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_for_who_asks_again_and_renewed_at_half_of_its_life() {
    let world = World::new();
    let first = join_all((0..50).map(|_| world.get("reviews", &["db", "queue"]))).await;
    let first: Vec<String> = first.into_iter().map(Result::unwrap).collect();
    assert_eq!(world.asked(), 1, "however many ask at a time");
    assert!(first.iter().all(|token| *token == first[0]));
    assert_eq!(world.get("reviews", &["queue", "db", "db"]).await.unwrap(), first[0], "the same audiences");
    let other = world.get("reviews", &["db"]).await.unwrap();
    assert!(other != first[0] && world.get("ratings", &["db"]).await.unwrap() != other);
    assert_eq!(world.asked(), 3);
    advance(Duration::from_secs(149)).await;
    assert_eq!(world.get("reviews", &["db"]).await.unwrap(), other);
    advance(Duration::from_secs(2)).await;
    assert_ne!(world.get("reviews", &["db"]).await.unwrap(), other);
    assert_eq!(world.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_given_through_an_outage_and_never_when_it_is_over() {
    let world = World::new();
    let token = world.get("reviews", &["db"]).await.unwrap();
    world.authority.mood(Mood::Down);
    advance(Duration::from_secs(299)).await;
    assert_eq!(world.get("reviews", &["db"]).await.unwrap(), token);
    advance(Duration::from_secs(2)).await;
    let refused = world.get("reviews", &["db"]).await.unwrap_err();
    assert_eq!(refused.status().code(), Code::Unavailable);
    world.authority.mood(Mood::Up);
    assert!(world.get("reviews", &["db"]).await.is_err(), "the CA is left alone for a moment");
    advance(Duration::from_secs(1)).await;
    assert_ne!(world.get("reviews", &["db"]).await.unwrap(), token);
}

#[tokio::test(start_paused = true)]
async fn a_token_by_a_key_that_is_believed_no_more_is_not_given() {
    let world = World::new();
    let token = world.get("reviews", &["db"]).await.unwrap();
    world.authority.ca().replace_jwt_key();
    assert_ne!(world.get("reviews", &["db"]).await.unwrap(), token);
}

#[tokio::test(start_paused = true)]
async fn one_workload_cannot_spend_what_the_ca_has_for_its_node() {
    let world = World::new();
    let mut refused = 0;
    for number in 0..BURST + 10 {
        match world.get("reviews", &[&format!("audience-{number}")]).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.status().code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert_eq!((refused, world.asked()), (10, BURST as usize));
    world.get("ratings", &["db"]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_what_was_asked_for_is_not_used() {
    let world = World::new();
    // The CA signs for somebody else, as one that is broken might.
    world.authority.change(|ca| ca.registrations[0].spiffe_id = id("admin").to_string());
    let wire = v1_registration(&world);
    let held = held(&mut world.authority.ca(), "reviews").1;
    let served = Served::new(wire, watch::channel(held.clone()).1);
    let refused = world.tokens.get(&served, held.credentials().unwrap(), &["db".into()]).await.unwrap_err();
    assert!(refused.to_string().contains("and not to spiffe://td.example/ns/shop/sa/reviews"), "{refused}");
    world.authority.ca().refuse_workloads = Some("no".into());
    let refused = world.get("ratings", &["db"]).await.unwrap_err();
    assert_eq!(refused.status().code(), Code::PermissionDenied);
}

/// The registration as the agent knows it.
fn v1_registration(world: &World) -> Registration {
    let mut wire = world.authority.ca().registrations[0].clone();
    wire.spiffe_id = id("reviews").to_string();
    Registration::read(&wire, &crate::testing::ca::node()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_loses_its_stream_and_holds_nothing_back() {
    let world = World::new();
    let us = format!("uid:{}", rustix::process::geteuid().as_raw());
    world.authority.change(|ca| ca.registrations[0].selectors = vec![us]);
    let served = |held: &watch::Sender<Arc<Held>>| Arc::new(Served::new(v1_registration(&world), held.subscribe()));
    let held_now = || held(&mut world.authority.ca(), "reviews").1;
    let held = watch::Sender::new(held_now());
    let registry = watch::Sender::new(Arc::new(Registry::new([served(&held)])));
    let clients = Clients::new();
    let doors = Doors::new(registry.subscribe(), watch::channel(Arc::default()).1, clock(), None);
    let follow = doors.callers(None).follow_this_process().await;
    let caller = follow.caller().clone();
    let (sender, mut receiver) = mpsc::channel(1);
    let push = Push {
        caller: caller.clone(),
        follow,
        message: x509_svids,
        taken: Taken::new(clients.clone(), caller, true),
        sender,
    };
    let mut push = Box::pin(push.keep());
    let mut wait = async |time: u64| tokio::time::timeout(Duration::from_secs(time), &mut push).await.is_ok();
    assert!(!wait(1).await && clients.now(Instant::now()).is_empty(), "nothing was taken yet");
    let first = receiver.recv().await.unwrap().unwrap();
    assert!(!wait(1).await);
    let holds =
        || clients.now(Instant::now()).into_iter().map(|client| client.holds.leaf.unwrap().0).collect::<Vec<_>>();
    let serial =
        |held: &watch::Sender<Arc<Held>>| vec![held.borrow().credentials().unwrap().svid().serial().to_owned()];
    let before = serial(&held);
    assert_eq!((holds(), first.svids.len()), (before.clone(), 1));
    // The same again is no message; another certificate is, and counts when it was taken and some time has passed.
    held.send_modify(|_| {});
    held.send_replace(held_now());
    assert!(!wait(1).await);
    receiver.recv().await.unwrap().unwrap();
    assert!(!wait(1).await && receiver.try_recv().is_err());
    assert_eq!(holds(), before);
    assert!(!wait(11).await);
    assert_eq!(holds(), serial(&held));
    // From here on it reads nothing.
    held.send_replace(held_now());
    assert!(!wait(29).await);
    assert!(wait(32).await, "a stream that is not read goes on for ever");
    drop(push);
    assert!(clients.recalls());
    advance(Duration::from_secs(45)).await;
    assert!(clients.now(Instant::now()).is_empty());
}
