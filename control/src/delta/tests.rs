use std::collections::VecDeque;
use std::sync::Arc;

use alcazar_identity::SpiffeId;
use proptest::prelude::*;

use super::*;
use crate::resource::{Resource, Set};

fn peer() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/reviews".parse().unwrap()
}

fn resource(content: u8, is_foreign: bool) -> Arc<Resource> {
    let other = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
    let owner = is_foreign.then_some(other);
    Arc::new(Resource { version: Version::of(&[content]), body: vec![content], owner })
}

fn set(entries: &[(&str, u8)]) -> Set {
    entries.iter().map(|(name, content)| (Name::from(*name), resource(*content, false))).collect()
}

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| Name::from(*name)).collect()
}

fn asks(subscribe: &[&str]) -> Request {
    Request { subscribe: names(subscribe), ..Request::default() }
}

fn answers(nonce: &str, refusal: Option<&str>) -> Request {
    let answer = Some(Answer { nonce: nonce.to_owned(), refusal: refusal.map(str::to_owned) });
    Request { answer, ..Request::default() }
}

/// What is sent next, in short: `+a +b -c`; empty when there is nothing to send.
fn next(subscription: &mut Subscription, set: &Set) -> Option<String> {
    let batch = subscription.next(View::new(set, &peer()))?;
    let changed = batch.changed.iter().map(|name| format!("+{name}"));
    Some(changed.chain(batch.removed.iter().map(|name| format!("-{name}"))).collect::<Vec<_>>().join(" "))
}

/// What is sent next, and is acknowledged.
fn exchange(subscription: &mut Subscription, set: &Set) -> Option<String> {
    let sent = next(subscription, set);
    let nonce = subscription.sent.to_string();
    subscription.take(answers(&nonce, None));
    sent
}

#[test]
fn only_changes_are_sent_and_each_once() {
    let mut subscription = Subscription::default();
    let mut world = set(&[("a", 1), ("b", 1)]);
    assert_eq!(next(&mut subscription, &world), None);
    subscription.take(asks(&["*"]));
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+a +b"));
    assert_eq!(exchange(&mut subscription, &world), None);
    world.insert("b".into(), resource(2, false));
    world.remove("a");
    world.insert("c".into(), resource(1, false));
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+b +c -a"));
    assert_eq!(exchange(&mut subscription, &world), None);
}

#[test]
fn a_slow_client_gets_the_last_of_many_changes() {
    let mut subscription = Subscription::default();
    subscription.take(asks(&[]));
    assert_eq!(next(&mut subscription, &set(&[("a", 1)])).as_deref(), Some("+a"));
    for content in 2..9 {
        assert_eq!(next(&mut subscription, &set(&[("a", content)])), None);
    }
    subscription.take(answers("1", None));
    assert_eq!(exchange(&mut subscription, &set(&[("a", 9)])).as_deref(), Some("+a"));
    assert_eq!(exchange(&mut subscription, &set(&[("a", 9)])), None);
}

#[test]
fn a_name_that_is_not_there_is_told_to_be_gone_until_it_comes() {
    let mut subscription = Subscription::default();
    subscription.take(asks(&["a"]));
    assert_eq!(exchange(&mut subscription, &set(&[])).as_deref(), Some("-a"));
    assert_eq!(exchange(&mut subscription, &set(&[("b", 1)])), None);
    assert_eq!(exchange(&mut subscription, &set(&[("a", 1)])).as_deref(), Some("+a"));
}

#[test]
fn the_first_request_is_answered_even_when_there_is_nothing() {
    let mut subscription = Subscription::default();
    subscription.take(asks(&["*"]));
    assert_eq!(exchange(&mut subscription, &set(&[])).as_deref(), Some(""));
    assert_eq!(exchange(&mut subscription, &set(&[])), None);
}

#[test]
fn a_client_that_comes_back_gets_what_it_missed() {
    let mut subscription = Subscription::default();
    let held = |content: u8| Version::of(&[content]).to_string();
    let initial = [("a", held(1)), ("b", held(1)), ("c", held(1)), ("d", "from another server".to_owned())];
    subscription.take(Request {
        initial: initial.into_iter().map(|(name, version)| (name.into(), version)).collect(),
        ..asks(&["*"])
    });
    let world = set(&[("a", 1), ("b", 2), ("d", 1), ("e", 1)]);
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+b +d +e -c"));
    assert_eq!(exchange(&mut subscription, &world), None);
}

#[test]
fn asking_again_is_answered_again() {
    let mut subscription = Subscription::default();
    let world = set(&[("a", 1), ("b", 1)]);
    subscription.take(asks(&["a", "b"]));
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+a +b"));
    subscription.take(asks(&["a"]));
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+a"));
    subscription.take(Request { unsubscribe: names(&["a"]), ..Request::default() });
    assert_eq!(exchange(&mut subscription, &set(&[("a", 2), ("b", 1)])), None);
}

#[test]
fn a_bad_resource_keeps_no_other_back() {
    let mut subscription = Subscription::default();
    let world = set(&[("a", 1), ("b", 1), ("c", 1)]);
    subscription.take(asks(&["*"]));
    assert_eq!(next(&mut subscription, &world).as_deref(), Some("+a +b +c"));
    let outcome = subscription.take(answers("1", Some("b is bad")));
    assert_eq!(outcome, Outcome::Refused { names: names(&["a", "b", "c"]), reason: "b is bad".to_owned() });
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+a"));
    assert_eq!(next(&mut subscription, &world).as_deref(), Some("+b"));
    subscription.take(answers("3", Some("b is bad")));
    assert_eq!(exchange(&mut subscription, &world).as_deref(), Some("+c"));
    // It is not sent again until it changes, and shows as refused until then.
    assert_eq!(exchange(&mut subscription, &world), None);
    assert_eq!(subscription.refused().keys().cloned().collect::<Vec<_>>(), names(&["b"]));
    assert!(subscription.is_settled(View::new(&world, &peer())));
    let mended = set(&[("a", 1), ("b", 2), ("c", 1)]);
    assert_eq!(exchange(&mut subscription, &mended).as_deref(), Some("+b"));
    assert!(subscription.refused().is_empty());
}

#[test]
fn an_answer_to_something_else_counts_for_nothing() {
    let mut subscription = Subscription::default();
    let world = set(&[("a", 1)]);
    subscription.take(asks(&["*"]));
    assert_eq!(next(&mut subscription, &world).as_deref(), Some("+a"));
    for nonce in ["0", "2", "", "x"] {
        assert_eq!(subscription.take(answers(nonce, Some("no"))), Outcome::Subscribed);
    }
    assert_eq!(next(&mut subscription, &world), None);
    assert_eq!(subscription.take(answers("1", None)), Outcome::Acknowledged);
}

#[test]
fn a_large_world_goes_in_several_responses() {
    let mut subscription = Subscription::default();
    let large = |content: u8| {
        let body = vec![content; 400 * 1024];
        Arc::new(Resource { version: Version::of(&body), body, owner: None })
    };
    let world: Set = (0..5).map(|n| (Name::from(format!("w{n}")), large(n))).collect();
    subscription.take(asks(&["*"]));
    let sent: Vec<String> = std::iter::from_fn(|| exchange(&mut subscription, &world)).collect();
    assert_eq!(sent, ["+w0 +w1", "+w2 +w3", "+w4"]);
}

/// The simplest client there is, on a connection whose two directions are queues.
#[derive(Default)]
struct Client {
    wildcard: bool,
    names: BTreeSet<Name>,
    held: BTreeMap<Name, Version>,
    to_server: VecDeque<Request>,
    to_client: VecDeque<(Batch, Vec<Arc<Resource>>)>,
    server: Subscription,
}

/// What this client does not accept.
fn is_bad(resource: &Resource) -> bool {
    resource.body.iter().any(|content| *content >= 6)
}

impl Client {
    fn connect(&mut self) {
        self.to_server.clear();
        self.to_client.clear();
        self.server = Subscription::default();
        let mut subscribe: Vec<Name> = self.names.iter().cloned().collect();
        if self.wildcard {
            subscribe.push(WILDCARD.into());
        }
        // An empty list would mean everything.
        if subscribe.is_empty() {
            subscribe.push("nobody".into());
            self.names.insert("nobody".into());
        }
        let initial = self.held.iter().map(|(name, version)| (name.clone(), version.to_string())).collect();
        self.to_server.push_back(Request { subscribe, initial, ..Request::default() });
    }

    fn covers(&self, name: &Name) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn subscribe(&mut self, name: Name) {
        if &*name == WILDCARD {
            self.wildcard = true;
        } else {
            self.names.insert(name.clone());
        }
        self.to_server.push_back(Request { subscribe: vec![name], ..Request::default() });
    }

    fn unsubscribe(&mut self, name: Name) {
        if &*name == WILDCARD {
            self.wildcard = false;
            self.held.retain(|held, _| self.names.contains(held));
        } else {
            self.names.remove(&name);
            if !self.wildcard {
                self.held.remove(&name);
            }
        }
        self.to_server.push_back(Request { unsubscribe: vec![name], ..Request::default() });
    }

    fn server_reads(&mut self) -> bool {
        let request = self.to_server.pop_front();
        request.map(|request| self.server.take(request)).is_some()
    }

    fn server_sends(&mut self, world: &Set) -> bool {
        let peer = peer();
        let view = View::new(world, &peer);
        let Some(batch) = self.server.next(view) else { return false };
        let resources = batch.changed.iter().map(|name| view.get(name).expect("only what may be seen").clone());
        let resources = resources.collect();
        self.to_client.push_back((batch, resources));
        assert!(self.to_client.len() <= 1, "one response in flight");
        true
    }

    fn reads(&mut self) -> bool {
        let Some((batch, resources)) = self.to_client.pop_front() else { return false };
        let refusal = resources.iter().any(|resource| is_bad(resource)).then(|| "bad".to_owned());
        if refusal.is_none() {
            for (name, resource) in batch.changed.into_iter().zip(resources) {
                if self.covers(&name) {
                    self.held.insert(name, resource.version);
                }
            }
            for name in batch.removed {
                self.held.remove(&name);
            }
        }
        let answer = Some(Answer { nonce: batch.nonce, refusal });
        self.to_server.push_back(Request { answer, ..Request::default() });
        true
    }

    /// Lets everything arrive. Returns how many responses it took.
    fn settle(&mut self, world: &Set) -> usize {
        let mut responses = 0;
        for _ in 0..1000 {
            let read = self.server_reads();
            let sent = self.server_sends(world);
            responses += usize::from(sent);
            let taken = self.reads();
            if !(read || sent || taken) {
                return responses;
            }
        }
        panic!("the exchange never comes to an end");
    }

    fn check(&self, world: &Set) -> Result<(), TestCaseError> {
        let peer = peer();
        let view = View::new(world, &peer);
        for (name, held) in &self.held {
            prop_assert!(self.covers(name), "holds {name}, which it did not ask for");
            match view.get(name) {
                None => prop_assert!(false, "holds {name}, which is gone or another's"),
                Some(resource) if is_bad(resource) => prop_assert_ne!(*held, resource.version),
                Some(resource) => prop_assert_eq!(*held, resource.version, "an old {}", name),
            }
        }
        for (name, resource) in view.iter().filter(|(name, _)| self.covers(name)) {
            prop_assert!(self.held.contains_key(name) || is_bad(resource), "does not hold {name}");
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, bool),
    Remove(u8),
    Subscribe(u8),
    Unsubscribe(u8),
    Reconnect,
    ServerReads,
    ServerSends,
    ClientReads,
}

fn name(number: u8) -> Name {
    match number {
        0 => WILDCARD.into(),
        n => format!("w{n}").into(),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let some_name = 1_u8..6;
    let name_or_all = 0_u8..6;
    prop_oneof![
        4 => (some_name.clone(), 0_u8..8, prop::bool::weighted(0.1)).prop_map(|(n, c, f)| Step::Put(n, c, f)),
        2 => some_name.prop_map(Step::Remove),
        2 => name_or_all.clone().prop_map(Step::Subscribe),
        2 => name_or_all.prop_map(Step::Unsubscribe),
        1 => Just(Step::Reconnect),
        4 => Just(Step::ServerReads),
        4 => Just(Step::ServerSends),
        4 => Just(Step::ClientReads),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_naive_client_ends_with_what_the_server_has(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = Set::new();
        let mut client = Client { wildcard: true, ..Client::default() };
        client.connect();
        for step in steps {
            match step {
                Step::Put(n, content, foreign) => drop(world.insert(name(n), resource(content, foreign))),
                Step::Remove(n) => drop(world.remove(&name(n))),
                Step::Subscribe(n) => client.subscribe(name(n)),
                Step::Unsubscribe(n) => client.unsubscribe(name(n)),
                Step::Reconnect => client.connect(),
                Step::ServerReads => drop(client.server_reads()),
                Step::ServerSends => drop(client.server_sends(&world)),
                Step::ClientReads => drop(client.reads()),
            }
        }
        client.settle(&world);
        client.check(&world)?;
        // And nothing more is said when nothing changes, nor after a reconnection but the one answer.
        prop_assert_eq!(client.settle(&world), 0);
        if world.values().all(|resource| !is_bad(resource)) {
            let before = client.held.clone();
            client.connect();
            client.server_reads();
            client.server_sends(&world);
            let sent = client.to_client.front().map_or(0, |(batch, _)| batch.changed.len());
            prop_assert_eq!(sent, 0, "sends what the client has");
            client.settle(&world);
            prop_assert_eq!(&client.held, &before);
        }
    }
}
