//! What every back end must do, as a suite that any back end's tests can run.
//!
//! ```no_run
//! # async fn test(open_an_empty_store: fn() -> std::sync::Arc<dyn alcazar_store::Store>) {
//! let outcome = alcazar_store::conformance::run(|| async { open_an_empty_store() }).await;
//! assert!(outcome.is_ok(), "{outcome:?}");
//! # }
//! ```

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    Entry, Event, Expected, Key, LeaseError, Prefix, Revision, Store, Watch, WatchError, WriteError, store::MAX_VALUE,
};

/// A rule of the [`Store`] trait that a back end broke.
#[derive(Debug, Error)]
#[error("{rule}: {detail}")]
pub struct Nonconformance {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What happened instead.
    pub detail: String,
}

type Outcome = Result<(), Nonconformance>;

/// How long an event may take to arrive before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the whole suite; `empty` makes a new, empty store for each part.
///
/// # Errors
/// The first rule that does not hold.
pub async fn run<F, Fut>(empty: F) -> Outcome
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Store>>,
{
    values_are_put_read_and_deleted(&*empty().await).await?;
    swaps_happen_once(empty().await).await?;
    listings_are_ordered_whole_and_paged(&*empty().await).await?;
    watches_miss_nothing(&*empty().await).await?;
    slow_watchers_are_told(&*empty().await).await?;
    leases_have_one_holder(&*empty().await).await
}

async fn values_are_put_read_and_deleted(store: &dyn Store) -> Outcome {
    let key = key("family/member")?;
    equal("an absent key reads as nothing", &store.get(&key).await.or_broken()?, &None)?;
    conflict(store.put_if(&key, Expected::At(Revision::new(1)), b"x".to_vec()).await, None)?;
    conflict(store.delete_if(&key, Revision::new(1)).await, None)?;

    let first = store.put_if(&key, Expected::Absent, b"one".to_vec()).await.or_broken()?;
    equal(
        "a value reads back with its revision",
        &store.get(&key).await.or_broken()?,
        &Some(Entry::new(key.clone(), *b"one", first)),
    )?;
    conflict(store.put_if(&key, Expected::Absent, b"two".to_vec()).await, Some(first))?;

    let second = store.put_if(&key, Expected::At(first), b"two".to_vec()).await.or_broken()?;
    ensure("revisions rise", second > first, || format!("{first} then {second}"))?;
    conflict(store.put_if(&key, Expected::At(first), b"three".to_vec()).await, Some(second))?;
    conflict(store.delete_if(&key, first).await, Some(second))?;

    let third = store.delete_if(&key, second).await.or_broken()?;
    ensure("a deletion has a revision of its own", third > second, || format!("{second} then {third}"))?;
    equal("a deleted key reads as nothing", &store.get(&key).await.or_broken()?, &None)?;
    let fourth = store.put_if(&key, Expected::Absent, Vec::new()).await.or_broken()?;
    ensure("a revision is never used again", fourth > third, || format!("{third} then {fourth}"))?;
    equal(
        "an empty value is a value",
        &store.get(&key).await.or_broken()?,
        &Some(Entry::new(key.clone(), [], fourth)),
    )?;

    let large = vec![7; MAX_VALUE];
    let fifth = store.put_if(&key, Expected::At(fourth), large.clone()).await.or_broken()?;
    equal(
        "the largest value reads back",
        &store.get(&key).await.or_broken()?,
        &Some(Entry::new(key.clone(), large, fifth)),
    )?;
    match store.put_if(&key, Expected::At(fifth), vec![7; MAX_VALUE + 1]).await {
        Err(WriteError::TooLarge { .. }) => Ok(()),
        other => broken("a value above the limit is refused", &other),
    }
}

async fn swaps_happen_once(store: Arc<dyn Store>) -> Outcome {
    let key = key("counter")?;
    let mut revision = store.put_if(&key, Expected::Absent, vec![0]).await.or_broken()?;
    for round in 0..10 {
        let mut racers = JoinSet::new();
        for racer in 0..16u8 {
            let (store, key) = (store.clone(), key.clone());
            racers.spawn(async move { store.put_if(&key, Expected::At(revision), vec![round, racer]).await });
        }
        let mut winners = Vec::new();
        while let Some(outcome) = racers.join_next().await {
            match outcome
                .map_err(|error| Nonconformance { rule: "a write does not panic", detail: error.to_string() })?
            {
                Ok(revision) => winners.push(revision),
                Err(WriteError::Conflict { .. }) => {}
                Err(error) => return broken("a lost race is a conflict", &error),
            }
        }
        let now = store.get(&key).await.or_broken()?.map(|entry| entry.revision());
        equal("of many swaps at once exactly one succeeds", &winners, &now.into_iter().collect())?;
        revision = now.unwrap_or_default();
    }
    Ok(())
}

async fn listings_are_ordered_whole_and_paged(store: &dyn Store) -> Outcome {
    let names = ["a/1", "a/2", "a/b/c", "a-b/1", "ab", "b/1"];
    for name in names.iter().rev() {
        store.put_if(&key(name)?, Expected::Absent, name.as_bytes().to_vec()).await.or_broken()?;
    }
    let under_a = prefix("a")?;
    let listing = store.list(&under_a).await.or_broken()?;
    let listed: Vec<_> = listing.entries.iter().map(|entry| entry.key().as_str()).collect();
    equal("a listing holds what is under the prefix, in key order", &listed, &vec!["a/1", "a/2", "a/b/c"])?;
    ensure("a whole listing has no more", !listing.more, || "more".into())?;
    ensure(
        "a listing's revision is not below its entries'",
        listing.entries.iter().all(|entry| entry.revision() <= listing.revision),
        || format!("{listing:?}"),
    )?;
    equal(
        "every key is under the empty prefix",
        &store.list(&Prefix::all()).await.or_broken()?.entries.len(),
        &names.len(),
    )?;

    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = store.page(&under_a, after.as_ref(), 2).await.or_broken()?;
        ensure("a page is no longer than asked", page.entries.len() <= 2, || format!("{page:?}"))?;
        after = page.entries.last().map(|entry| entry.key().clone());
        paged.extend(page.entries);
        if !page.more {
            break;
        }
    }
    equal("pages together are the listing", &paged, &listing.entries)
}

async fn watches_miss_nothing(store: &dyn Store) -> Outcome {
    let (watched, other) = (prefix("watched")?, key("other/key")?);
    let (one, two) = (watched.key("one").or_broken()?, watched.key("two").or_broken()?);
    let first = store.put_if(&one, Expected::Absent, vec![1]).await.or_broken()?;
    let from = store.list(&watched).await.or_broken()?.revision;

    // Before the watch begins, and after it.
    let second = store.put_if(&two, Expected::Absent, vec![2]).await.or_broken()?;
    let mut watch = store.watch(&watched, from).await.or_broken()?;
    store.put_if(&other, Expected::Absent, vec![0]).await.or_broken()?;
    let third = store.put_if(&one, Expected::At(first), vec![3]).await.or_broken()?;
    let fourth = store.delete_if(&two, second).await.or_broken()?;

    let expected = [
        Event::Put(Entry::new(two.clone(), [2], second)),
        Event::Put(Entry::new(one, [3], third)),
        Event::Deleted { key: two, revision: fourth },
    ];
    for event in expected {
        equal("a watch gives every change under its prefix, in order", &next(&mut watch).await?, &Ok(event))?;
    }
    Ok(())
}

/// Writes without reading until the watch must give up, then expects every event up to a point and then the truth.
async fn slow_watchers_are_told(store: &dyn Store) -> Outcome {
    let (family, key) = (prefix("busy")?, key("busy/key")?);
    let mut watch = store.watch(&family, store.list(&family).await.or_broken()?.revision).await.or_broken()?;
    let mut written = vec![store.put_if(&key, Expected::Absent, vec![]).await.or_broken()?];
    for _ in 0..3_000 {
        let last = written.last().copied().unwrap_or_default();
        written.push(store.put_if(&key, Expected::At(last), vec![]).await.or_broken()?);
    }
    let mut seen = Vec::new();
    let end = loop {
        match next(&mut watch).await? {
            Ok(event) => seen.push(event.revision()),
            Err(end) => break Some(end),
        }
        if seen.len() == written.len() {
            break None;
        }
    };
    ensure("a slow watcher sees the changes in order, without a gap", written.starts_with(&seen), || {
        format!("{seen:?}")
    })?;
    ensure("a watcher that misses events is told to list again", matches!(end, None | Some(WatchError::Lagged)), || {
        format!("{end:?}")
    })
}

async fn leases_have_one_holder(store: &dyn Store) -> Outcome {
    let ttl = Duration::from_secs(30);
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
    let ann = store.acquire_lease("leader", "ann", ttl, at(0)).await.or_broken()?;
    equal("a lease lasts its time", &(ann.holds(at(29)), ann.holds(at(30))), &(true, false))?;
    match store.acquire_lease("leader", "bob", ttl, at(29)).await {
        Err(LeaseError::Held { holder, until, .. }) if holder == "ann" && until == at(30) => {}
        other => return broken("a held lease is not given to another", &other),
    }
    let ann = store.renew_lease(&ann, ttl, at(20)).await.or_broken()?;
    let again = store.acquire_lease("leader", "ann", ttl, at(21)).await.or_broken()?;
    match store.renew_lease(&ann, ttl, at(22)).await {
        Err(LeaseError::Lost { .. }) => {}
        other => return broken("a lease taken again replaces the earlier one", &other),
    }
    let bob = store.acquire_lease("leader", "bob", ttl, at(60)).await.or_broken()?;
    ensure("a later holder has a higher revision", bob.revision() > again.revision(), || format!("{bob:?}"))?;
    match store.renew_lease(&again, ttl, at(61)).await {
        Err(LeaseError::Lost { .. }) => {}
        other => return broken("a lease that another took cannot be renewed", &other),
    }
    store.release_lease(&again).await.or_broken()?;
    match store.acquire_lease("leader", "cyd", ttl, at(62)).await {
        Err(LeaseError::Held { .. }) => {}
        other => return broken("giving back a lost lease does not free it", &other),
    }
    store.release_lease(&bob).await.or_broken()?;
    store.acquire_lease("leader", "cyd", ttl, at(63)).await.map(drop).or_broken()
}

async fn next(watch: &mut Watch) -> Result<Result<Event, WatchError>, Nonconformance> {
    let late =
        |_elapsed| Nonconformance { rule: "a watch gives every change soon", detail: format!("none in {PATIENCE:?}") };
    timeout(PATIENCE, watch.next()).await.map_err(late)
}

fn conflict<T: Debug>(outcome: Result<T, WriteError>, at: Option<Revision>) -> Outcome {
    match outcome {
        Err(WriteError::Conflict { found, .. }) if found == at => Ok(()),
        other => broken("a write that expects another state is a conflict and says what is there", &other),
    }
}

fn key(text: &str) -> Result<Key, Nonconformance> {
    text.parse().or_broken()
}

fn prefix(text: &str) -> Result<Prefix, Nonconformance> {
    text.parse().or_broken()
}

fn equal<T: PartialEq + Debug>(rule: &'static str, found: &T, expected: &T) -> Outcome {
    ensure(rule, found == expected, || format!("found {found:?}, expected {expected:?}"))
}

fn ensure(rule: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Nonconformance { rule, detail: detail() }) }
}

fn broken(rule: &'static str, found: &dyn Debug) -> Outcome {
    Err(Nonconformance { rule, detail: format!("found {found:?}") })
}

/// An error where the trait promises success.
trait OrBroken<T> {
    fn or_broken(self) -> Result<T, Nonconformance>;
}

impl<T, E: std::error::Error> OrBroken<T> for Result<T, E> {
    fn or_broken(self) -> Result<T, Nonconformance> {
        self.map_err(|error| Nonconformance { rule: "the store answers", detail: crate::error::chain(&error) })
    }
}
