//! What counts as adopted, stream by stream.

use std::time::SystemTime;

use alcazar_identity::Credentials;
use tokio::time::Instant;

use super::clients::{Clients, Holds, RECALL};
use super::report::report;
use super::*;
use crate::selector::Caller;
use crate::testing::ca::Ca;

const REVIEWS: &str = "spiffe://td.example/ns/shop/sa/reviews";

fn caller(pid: i32) -> Caller {
    Caller { socket: None, uid: 1, gid: 1, pid: Some(pid) }
}

fn holds(sequence: u64) -> Holds {
    Holds { id: None, sequence: Some(sequence), leaf: None }
}

fn least(clients: &Clients) -> u64 {
    report(9, 0, std::iter::empty(), &clients.now(Instant::now())).sequence
}

#[tokio::test(start_paused = true)]
async fn a_client_counts_for_what_it_has_acknowledged_and_not_for_what_it_was_sent() {
    let clients = Clients::new();
    assert_eq!(least(&clients), 9, "nobody is there");
    let mut stream = clients.enter(caller(1));
    stream.sent(holds(1));
    assert_eq!(least(&clients), 0, "nothing is known of what it does");
    stream.acknowledged();
    assert_eq!(least(&clients), 1);
    stream.sent(holds(9));
    assert_eq!(least(&clients), 1);
    stream.refused("no");
    assert_eq!(least(&clients), 1);
    let told = report(9, 0, std::iter::empty(), &clients.now(Instant::now()));
    assert_eq!(told.behind, ["a client, uid 1, gid 1, pid 1, on the shared socket: no"]);
    stream.sent(holds(9));
    stream.acknowledged();
    assert_eq!(least(&clients), 9);
    stream.current(holds(12));
    assert_eq!(least(&clients), 9, "the agent's own");
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_is_remembered_until_it_is_back_or_surely_ended() {
    let clients = Clients::new();
    let mut stream = clients.enter(caller(1));
    stream.sent(holds(1));
    stream.acknowledged();
    drop(stream);
    assert!(clients.recalls());
    assert_eq!(least(&clients), 1, "its process may be there, and reconnect");

    let mut back = clients.enter(caller(1));
    back.sent(holds(9));
    assert_eq!(least(&clients), 0);
    back.acknowledged();
    assert_eq!((least(&clients), clients.recalls()), (9, false));

    let mut other = clients.enter(caller(2));
    other.sent(holds(2));
    drop(other);
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
    stream.sent(Holds { id: Some(old.id().clone()), sequence: None, leaf: leaf(&old) });
    stream.acknowledged();
    let held = Credentials::new(new.clone(), ca.bundles());
    let told = |clients: &Clients| report(1, 7, [&held].into_iter(), &clients.now(Instant::now()));
    assert_eq!((told(&clients).leaves.len(), told(&clients).behind.len(), told(&clients).round), (2, 1, 7));
    stream.sent(Holds { id: Some(new.id().clone()), sequence: None, leaf: leaf(&new) });
    stream.acknowledged();
    assert_eq!((told(&clients).leaves.len(), told(&clients).behind.len()), (1, 0));
}
