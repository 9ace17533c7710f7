//! Other replicas, as parties of a rotation.

use std::time::{Duration, SystemTime};

use alcazar_identity::Fingerprint;
use alcazar_store::Expected;

use super::{
    super::{Anchor, Class, Kind, Observed, Phase, Role, Rotation, Why, driver::Looked},
    whole::Whole,
};
use crate::{
    records::family,
    replicas::{HeldIntermediate, Phase as Doing, Presence},
};

const OTHER: &str = "00000000000000aa";

/// Writes down that another replica is as the one that is here, but for a change.
async fn other_says(whole: &Whole, change: impl Fn(&mut Presence)) {
    let records = &whole.ca.0.records;
    let mut said = whole.ca.replicas().await.unwrap().remove(0).presence;
    said.host = "two".into();
    change(&mut said);
    let found = records.get::<Presence>(family::REPLICAS, OTHER).await.unwrap();
    let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
    records.put(family::REPLICAS, OTHER, expected, &said).await.unwrap();
}

async fn other(whole: &Whole) -> Option<Observed> {
    let seen = whole.ca.observe(&whole.rotation().await, Duration::ZERO).await.unwrap();
    let found = seen.parties.into_iter().find(|party| party.name == format!("the replica {OTHER} on two"))?;
    match found.class {
        Class::Observed(observed) => Some(observed),
        Class::Timed(timed) => panic!("{timed:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn another_replica_is_waited_for_until_it_publishes_can_sign_signs_and_reissues() {
    let mut whole = Whole::open(|_| ()).await;
    other_says(&whole, |_| ()).await;
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    let stands_at = async |whole: &mut Whole, phase: Phase, why: &dyn Fn(&Why) -> bool| {
        for _ in 0..12 {
            whole.look().await;
        }
        let shown = whole.ca.rotation().await.unwrap().unwrap();
        assert_eq!(shown.rotation.phase, phase, "{:?}", shown.waits);
        let [wait] = &*shown.waits else { panic!("{:?}", shown.waits) };
        assert!(why(&wait.why), "{wait:?}");
    };
    stands_at(&mut whole, Phase::Distribute, &|why| matches!(why, Why::Bundle { .. })).await;
    let old = whole.ca.hierarchy().root().fingerprint;
    // It has read the trust state, and has no intermediate under the new root.
    let before = HeldIntermediate { intermediate: Fingerprint::of(b"its own"), root: old };
    other_says(&whole, |said| (said.signing, said.serving, said.held) = (before, before.intermediate, vec![before]))
        .await;
    stands_at(&mut whole, Phase::Distribute, &|why| *why == Why::Intermediate).await;
    let root = whole.rotation().await.new.unwrap().fingerprint().unwrap();
    let after = HeldIntermediate { intermediate: Fingerprint::of(b"its next"), root };
    let able = |said: &mut Presence| {
        (said.signing, said.serving, said.held) = (before, before.intermediate, vec![before, after])
    };
    other_says(&whole, able).await;
    stands_at(&mut whole, Phase::Switch, &|why| *why == Why::Signer).await;
    let signs = |said: &mut Presence| {
        (said.signing, said.serving, said.held) = (after, before.intermediate, vec![before, after])
    };
    other_says(&whole, |said| (signs(said), said.round = 0).1).await;
    stands_at(&mut whole, Phase::Reissue, &|why| *why == Why::Round).await;
    other_says(&whole, |said| signs(said)).await;
    stands_at(&mut whole, Phase::Reissue, &|why| matches!(why, Why::Leaves { count: 1, .. })).await;
    other_says(&whole, |said| (said.signing, said.serving, said.held) = (after, after.intermediate, vec![after])).await;
    stands_at(&mut whole, Phase::Retire, &|why| matches!(why, Why::Bundle { .. })).await;
    other_says(&whole, |said| (said.signing, said.serving, said.held) = (after, after.intermediate, vec![after])).await;
    whole.run_to_the_end().await;
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_stopped_signs_nothing_and_nobody_waits_for_it() {
    let whole = Whole::open(|_| ()).await;
    other_says(&whole, |said| said.phase = Doing::Stopped).await;
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    assert_eq!(other(&whole).await, None);
    other_says(&whole, |said| said.phase = Doing::Draining).await;
    assert!(matches!(other(&whole).await, Some(Observed { role: Role::Replica, report: Some(_), .. })));
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_intermediate_is_exchanged_by_the_replica_whose_it_is_and_no_other_waits() {
    let mut whole = Whole::open(|_| ()).await;
    let root = whole.ca.hierarchy().root().fingerprint;
    let its = HeldIntermediate { intermediate: Fingerprint::of(b"its own"), root };
    other_says(&whole, |said| (said.signing, said.serving, said.held) = (its, its.intermediate, vec![its])).await;
    whole.ca.start_rotation(Kind::Intermediate).await.unwrap();
    assert_eq!(other(&whole).await, None);
    whole.run_to_the_end().await;
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_shares_the_intermediate_is_waited_for_until_it_signs_with_another() {
    let mut whole = Whole::open(|_| ()).await;
    let old = whole.ca.hierarchy().intermediate().info().fingerprint;
    let root = whole.ca.hierarchy().root().fingerprint;
    let shares = HeldIntermediate { intermediate: old, root };
    other_says(&whole, |_| ()).await;
    whole.ca.start_rotation(Kind::Intermediate).await.unwrap();
    let stands_at = async |whole: &mut Whole, phase: Phase, why: Why| {
        for _ in 0..12 {
            whole.look().await;
        }
        let shown = whole.ca.rotation().await.unwrap().unwrap();
        assert_eq!(shown.rotation.phase, phase, "{:?}", shown.waits);
        let [wait] = &*shown.waits else { panic!("{:?}", shown.waits) };
        assert_eq!((wait.party.as_str(), &wait.why), (&*format!("the replica {OTHER} on two"), &why));
    };
    stands_at(&mut whole, Phase::Switch, Why::Signer).await;
    // What it serves with is of the old one for a moment yet.
    let after = HeldIntermediate { intermediate: Fingerprint::of(b"another"), root };
    other_says(&whole, |said| (said.signing, said.serving, said.round) = (after, shares.intermediate, u64::MAX)).await;
    stands_at(&mut whole, Phase::Reissue, Why::Leaves { count: 1, behind: Vec::new() }).await;
    other_says(&whole, |said| (said.signing, said.serving) = (after, after.intermediate)).await;
    whole.run_to_the_end().await;
    // The way back is waited for alike.
    let new = whole.ca.hierarchy().intermediate().info().fingerprint;
    other_says(&whole, |_| ()).await;
    whole.ca.start_rotation(Kind::Intermediate).await.unwrap();
    stands_at(&mut whole, Phase::Switch, Why::Signer).await;
    let its = whole.rotation().await.new.unwrap().fingerprint().unwrap();
    let went = HeldIntermediate { intermediate: its, root };
    other_says(&whole, |said| (said.signing, said.serving) = (went, its)).await;
    whole.ca.abort_rotation().await.unwrap();
    stands_at(&mut whole, Phase::Switch, Why::Signer).await;
    other_says(&whole, |said| (said.signing.intermediate, said.serving) = (new, new)).await;
    whole.run_to_the_end().await;
    assert_eq!(whole.ca.hierarchy().intermediate().info().fingerprint, new);
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_replica_is_waited_for_until_it_has_a_jwt_key_of_its_own() {
    let mut whole = Whole::open(|_| ()).await;
    other_says(&whole, |_| ()).await;
    whole.ca.start_rotation(Kind::Jwt).await.unwrap();
    for _ in 0..6 {
        whole.look().await;
        other_says(&whole, |_| ()).await;
    }
    let shown = whole.ca.rotation().await.unwrap().unwrap();
    assert_eq!((shown.rotation.phase, &shown.waits[0].why), (Phase::Distribute, &Why::Intermediate));
    // It makes one, as each does when it hears of the rotation.
    let begun = shown.rotation.begun;
    let make = |keys: &[crate::jwt_authority::keys::JwtKey]| {
        let ours = keys.iter().find(|key| key.generation == Some(begun))?;
        let key_id = format!("{}x", ours.key_id);
        let its = crate::jwt_authority::keys::JwtKey { key_id, ..ours.clone().of(OTHER) };
        Some([keys, &[its]].concat())
    };
    whole.ca.change_jwt_keys(make).await.unwrap();
    while !whole.rotation().await.is_over() {
        other_says(&whole, |_| ()).await;
        whole.look().await;
    }
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_rotation_whose_replica_is_gone_is_ended_by_an_abort_that_says_what_stays() {
    let mut whole = Whole::open(|_| ()).await;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let its = Anchor::from(Fingerprint::of(b"its own"));
    let begin = async |whole: &Whole, phase| {
        let records = &whole.ca.0.records;
        let found = records.rotation().await.unwrap();
        let after = found.as_ref().map_or(0, |found| found.record.rotation.step);
        let rotation = Rotation::new(Kind::Intermediate, its.clone(), Some(Anchor::new("its next")), after, now);
        let expected = found.map_or(Expected::Absent, |found| Expected::At(found.revision));
        let rotation = rotation.of_replica(OTHER).entering(phase, now);
        records.put_rotation(expected, &rotation).await.unwrap();
    };
    other_says(&whole, |_| ()).await;
    // It is there: it goes back by itself, and others wait.
    begin(&whole, Phase::Reissue).await;
    assert_eq!(whole.look().await, Looked::Nothing);
    assert!(whole.ca.start_rotation(Kind::Root).await.unwrap_err().to_string().contains("under way"));
    let aborted = whole.ca.abort_rotation().await.unwrap();
    assert_eq!((aborted.rotation.phase, aborted.problem), (Phase::Switch, None));
    assert!(whole.ca.abort_rotation().await.is_err(), "it goes back already");
    // Its disk is lost while it does; it is silent, and later nobody even knows it.
    for forgotten in [false, true] {
        begin(&whole, Phase::Forget).await;
        whole.set_clock(120);
        if forgotten {
            let records = &whole.ca.0.records;
            let found = records.get::<Presence>(family::REPLICAS, OTHER).await.unwrap().unwrap();
            records.delete(family::REPLICAS, OTHER, found.revision).await.unwrap();
        }
        let ended = whole.ca.abort_rotation().await.unwrap();
        assert!(ended.rotation.is_over() && ended.rotation.back);
        let told = ended.problem.unwrap();
        assert!([OTHER, its.as_str(), "its next"].iter().all(|name| told.contains(name)), "{told}");
        assert_eq!(whole.ca.rotation().await.unwrap().unwrap().problem, Some(told), "also when it is asked for later");
        whole.set_clock(0);
    }
    // Another one can begin, and ends.
    whole.ca.start_rotation(Kind::Intermediate).await.unwrap();
    whole.run_to_the_end().await;
    assert_eq!(whole.ca.rotation().await.unwrap().unwrap().problem, None);
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn each_replica_removes_its_own_keys_of_a_root_that_was_left() {
    let mut whole = Whole::open(|_| ()).await;
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    whole.run_to(Phase::Retire).await;
    let here = async |whole: &Whole| {
        let here = whole.ca.authorities().await.unwrap();
        (here.roots.len(), here.intermediates.len(), whole.ca.keys().labels().unwrap().len())
    };
    whole.look().await;
    let both = here(&whole).await;
    assert_eq!((both.0, both.1), (2, 2));
    // Another one drives it from here on.
    whole.set_clock(60);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_060);
    whole.ca.0.store.acquire_lease("rotation", OTHER, Duration::from_secs(600), now).await.unwrap();
    let records = &whole.ca.0.records;
    let found = records.rotation().await.unwrap().unwrap();
    let next = found.record.rotation.entering(Phase::Done, now);
    records.put_rotation(Expected::At(found.revision), &next).await.unwrap();
    assert_eq!(whole.look().await, Looked::Nothing);
    let one = here(&whole).await;
    assert_eq!(one, (1, 1, both.2 - 2));
    whole.set_clock(0);
    whole.open_again().await;
    assert_eq!(whole.look().await, Looked::Nothing);
    assert_eq!(here(&whole).await, one);
    whole.ca.close().await;
}
