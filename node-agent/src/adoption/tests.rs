//! What counts as adopted, stream by stream.

use std::sync::Arc;
use std::time::SystemTime;

use alcazar_identity::{Credentials, TrustBundle};
use tokio::time::Instant;

use super::clients::{Clients, Holds, Named, RECALL};
use super::report::report;
use super::timed::GRACE;
use super::*;
use crate::caller::{Caller, Seen};
use crate::registry::Held;
use crate::sds::View;
use crate::testing::ca::Ca;

const REVIEWS: &str = "spiffe://td.example/ns/shop/sa/reviews";

fn caller(pid: i32) -> Caller {
    Caller { socket: None, uid: 1, gid: 1, pid: Some(pid), seen: Seen::default() }
}

fn named(name: &str, holds: Holds) -> Named {
    Named([(name.to_owned(), holds)].into())
}

fn holds(sequence: u64) -> Named {
    named("ROOTCA", Holds { sequence: Some(sequence), ..Holds::default() })
}

fn least(clients: &Clients) -> u64 {
    report(9, 0, std::iter::empty(), &clients.now(Instant::now())).sequence
}

#[tokio::test(start_paused = true)]
async fn a_client_counts_for_what_it_has_acknowledged_and_not_for_what_it_was_sent() {
    let clients = Clients::new();
    assert_eq!(least(&clients), 9, "nobody is there");
    let mut stream = clients.enter(caller(1));
    stream.sent(1, holds(1));
    assert_eq!(least(&clients), 0, "nothing is known of what it does");
    stream.acknowledged(1);
    assert_eq!(least(&clients), 1);
    stream.sent(2, holds(9));
    assert_eq!(least(&clients), 1);
    stream.refused(2, "no");
    stream.acknowledged(2);
    assert_eq!(least(&clients), 1);
    let told = report(9, 0, std::iter::empty(), &clients.now(Instant::now()));
    assert_eq!(told.behind, ["a client, uid 1, gid 1, pid 1, on the shared socket: no"]);
    stream.sent(3, holds(9));
    stream.acknowledged(3);
    assert_eq!(least(&clients), 9);
    stream.current(holds(12));
    assert_eq!(least(&clients), 9, "the agent's own");
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_is_remembered_until_it_is_back_or_surely_ended() {
    let clients = Clients::new();
    let mut stream = clients.enter(caller(1));
    stream.sent(1, holds(1));
    stream.acknowledged(1);
    drop(stream);
    assert!(clients.recalls());
    assert_eq!(least(&clients), 1, "its process may be there, and reconnect");

    let mut back = clients.enter(caller(1));
    back.sent(1, holds(9));
    assert_eq!(least(&clients), 0);
    back.acknowledged(1);
    assert_eq!((least(&clients), clients.recalls()), (9, false));

    let mut other = clients.enter(caller(2));
    other.sent(1, holds(2));
    drop(other);
    assert_eq!(least(&clients), 0);
    // Envoy's pause between two tries.
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(least(&clients), 0);
    tokio::time::advance(RECALL).await;
    assert_eq!(least(&clients), 9);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_was_replaced_is_in_use_until_the_client_takes_the_next() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut ca = Ca::new(now);
    let (old, new) = (ca.svid(REVIEWS, Duration::from_secs(600), now), ca.svid(REVIEWS, Duration::from_secs(600), now));
    let leaf = |svid: &X509Svid| Some((svid.serial().to_owned(), issuer(svid)));
    let clients = Clients::new();
    let mut stream = clients.enter(caller(1));
    stream.sent(1, named("default", Holds { id: Some(old.id().clone()), leaf: leaf(&old), ..Holds::default() }));
    stream.acknowledged(1);
    let held = Credentials::new(new.clone(), ca.bundles());
    let told = |clients: &Clients| report(1, 7, [&held].into_iter(), &clients.now(Instant::now()));
    assert_eq!((told(&clients).leaves.len(), told(&clients).behind.len(), told(&clients).round), (2, 1, 7));
    stream.sent(2, named("default", Holds { id: Some(new.id().clone()), leaf: leaf(&new), ..Holds::default() }));
    stream.acknowledged(2);
    assert_eq!((told(&clients).leaves.len(), told(&clients).behind.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_under_one_name_is_not_held_because_another_was_taken() {
    let clients = Clients::new();
    let mut stream = clients.enter(caller(1));
    stream.sent(1, holds(1));
    stream.acknowledged(1);
    stream.sent(2, holds(9));
    stream.refused(2, "no");
    stream.sent(3, named("default", Holds::default()));
    stream.acknowledged(3);
    assert_eq!(least(&clients), 1, "the bundle was refused, and only a certificate taken");
    // Two are under way: the answer to the first means what was in it alone.
    stream.sent(4, holds(8));
    stream.sent(5, named("default", Holds::default()));
    stream.acknowledged(4);
    assert_eq!(least(&clients), 8);
    stream.sent(6, holds(9));
    stream.acknowledged(5);
    assert_eq!(least(&clients), 8);
}

#[tokio::test(start_paused = true)]
async fn who_rejects_that_there_is_nothing_is_behind_with_nothing() {
    let clients = Clients::new();
    let nothing = || named("defualt", Holds { nothing: true, ..Holds::default() });
    let behind = || report(9, 0, std::iter::empty(), &clients.now(Instant::now())).behind.len();
    let mut stream = clients.enter(caller(1));
    stream.sent(1, nothing());
    stream.refused(1, "Missing SDS resources");
    assert_eq!((behind(), least(&clients)), (0, 9));
    // What was there and went is another matter: it has the old one still.
    stream.sent(2, named("defualt", Holds { sequence: Some(9), ..Holds::default() }));
    stream.acknowledged(2);
    stream.sent(3, nothing());
    stream.refused(3, "Missing SDS resources");
    assert_eq!(behind(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_with_what_there_is_counts_although_nothing_is_sent() {
    let clients = Clients::new();
    let mut stream = clients.enter(caller(1));
    assert!(clients.now(Instant::now()).is_empty());
    stream.current(holds(7));
    assert_eq!(least(&clients), 7);
    stream.sent(1, holds(9));
    stream.current(holds(9));
    assert_eq!(least(&clients), 7, "that one is on its way");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_acknowledge_counts_for_what_it_took_a_while_ago() {
    let clients = Clients::new();
    let took = |stream: &mut TimedStream, sequence| stream.took(holds(sequence).all(), Instant::now());
    let mut stream = TimedStream::enter(&clients, caller(1));
    assert_eq!(least(&clients), 9, "it has nothing yet");
    took(&mut stream, 1);
    assert_eq!((least(&clients), clients.recalls()), (1, false), "it has nothing older");
    took(&mut stream, 2);
    tokio::time::advance(GRACE / 2).await;
    took(&mut stream, 3);
    assert_eq!((least(&clients), clients.recalls()), (1, true), "it may not have applied either");
    tokio::time::advance(GRACE / 2).await;
    assert_eq!(least(&clients), 2, "pushes that come faster than the grace do not put it off");
    tokio::time::advance(GRACE / 2).await;
    assert_eq!((least(&clients), clients.recalls()), (3, false));
    // Far more than are kept apart: the last counts when its time has come.
    (4..=8).cycle().take(200).chain([8]).for_each(|sequence| took(&mut stream, sequence));
    tokio::time::advance(GRACE).await;
    assert_eq!(least(&clients), 8);

    took(&mut stream, 9);
    drop(stream);
    assert_eq!(least(&clients), 8, "its process may be there");
    tokio::time::advance(GRACE).await;
    assert_eq!(least(&clients), 9, "whether it is connected or not");
}

#[tokio::test(start_paused = true)]
async fn clients_that_ask_once_hold_a_rotation_back_no_longer_than_they_could() {
    let clients = Clients::new();
    let once = |pid, sequence| TimedStream::enter(&clients, caller(pid)).took(holds(sequence).all(), Instant::now());
    once(1, 5);
    assert_eq!(least(&clients), 5);
    once(2, 9);
    tokio::time::advance(GRACE).await;
    assert_eq!(least(&clients), 5, "another process is not it");
    // It asks again: what it had goes as soon as it surely uses the next.
    once(1, 9);
    assert_eq!(least(&clients), 5);
    tokio::time::advance(GRACE).await;
    assert_eq!(least(&clients), 9);
    once(3, 4);
    tokio::time::advance(RECALL).await;
    assert_eq!((least(&clients), clients.recalls()), (9, false));
}

#[test]
fn a_bundle_of_another_trust_domain_is_waited_for_by_no_rotation_of_ours() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut ca = Ca::new(now);
    let svid = ca.svid(REVIEWS, Duration::from_secs(600), now);
    let mut bundles = ca.bundles();
    let own = bundles.get(svid.id().trust_domain()).unwrap().sequence();
    let root = bundles.get(svid.id().trust_domain()).unwrap().roots().next().unwrap().clone();
    bundles.insert(TrustBundle::new("partner.example".parse().unwrap(), own + 41, [root]).unwrap());
    let id = svid.id().clone();
    let held = Arc::new(Held::Certificate(Arc::new(Credentials::new(svid, bundles))));
    let view = View::new([(id, held)]);
    let clients = Clients::new();
    let mut stream = clients.enter(caller(1));
    let names = ["spiffe://partner.example", "spiffe://td.example", "default"];
    stream.sent(1, Named::of(names, &view));
    stream.acknowledged(1);
    let held = clients.now(Instant::now()).swap_remove(0).holds;
    assert_eq!((held.sequence, held.leaf.is_some()), (Some(own), true));
    let mut other = clients.enter(caller(2));
    other.sent(1, Named::of(["spiffe://partner.example"], &view));
    assert_eq!(clients.now(Instant::now()).pop().unwrap().holds.sequence, None, "nothing of ours is asked for");
    let mut all = clients.enter(caller(3));
    all.sent(1, Named::of(["ALL"], &view));
    all.acknowledged(1);
    assert_eq!(clients.now(Instant::now()).pop().unwrap().holds.sequence, Some(own), "ours among all");
}
