use futures::future::join_all;

use super::*;

fn admission(limits: &Limits) -> Admission {
    Admission::new(limits, &Metrics::new())
}

#[test]
fn who_has_little_time_left_is_urgent() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
    let check = |end: Option<SystemTime>, expected| assert_eq!(urgency(end, hour, now), expected, "{end:?}");
    check(None, Urgency::Normal);
    check(Some(now + 30 * minute), Urgency::Normal);
    check(Some(now + 15 * minute), Urgency::Urgent);
    check(Some(now), Urgency::Urgent);
    check(Some(now - hour), Urgency::Urgent);
    // A short life: a quarter of it is nothing that one could wait.
    assert_eq!(urgency(Some(now + minute), minute, now), Urgency::Urgent);
}

#[tokio::test(start_paused = true)]
async fn a_storm_within_the_limits_is_never_refused() {
    let admission = admission(&Limits::default());
    let storm = (0..10_000).map(|number| {
        let admission = admission.clone();
        async move {
            let pass = admission.enter(&format!("node-{}", number % 50), Urgency::Normal).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            pass.map(drop)
        }
    });
    assert!(join_all(storm).await.iter().all(Result::is_ok));
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_past_its_share_is_told_when_to_come_back_and_gets_it_then() {
    let limits = Limits { certificates: Limit { per_minute: 60, burst: 2 }, ..Limits::default() };
    let admission = admission(&limits);
    for _ in 0..2 {
        drop(admission.enter("n1", Urgency::Urgent).await.unwrap());
    }
    let refused = admission.enter("n1", Urgency::Urgent).await.err().unwrap();
    assert_eq!((refused.reason, refused.retry_after), (Reason::Caller, Duration::from_secs(1)));
    drop(admission.enter("n2", Urgency::Normal).await.unwrap());
    tokio::time::sleep(refused.retry_after).await;
    drop(admission.enter("n1", Urgency::Normal).await.unwrap());
    assert_eq!(
        admission.refusals().collect::<Vec<_>>(),
        [("caller", 1), ("calls", 0), ("stranger", 0), ("proofs", 0), ("queue", 0)]
    );
}

#[tokio::test(start_paused = true)]
async fn past_the_queue_it_says_when_to_come_back_and_the_urgent_still_come_in() {
    let limits = Limits { at_a_time: 1, queue: 4, ..Limits::default() };
    let admission = admission(&limits);
    let held = admission.enter("a", Urgency::Normal).await.unwrap();
    let wait = |urgency| {
        let admission = admission.clone();
        Box::pin(async move { admission.enter("a", urgency).await })
    };
    let mut waiting: Vec<_> = (0..3).map(|_| wait(Urgency::Normal)).collect();
    for wait in &mut waiting {
        assert!(futures::poll!(wait).is_pending());
    }
    let refused = admission.enter("b", Urgency::Normal).await.err().unwrap();
    assert_eq!(refused.reason, Reason::Queue);
    assert!(refused.retry_after >= SHORTEST_WAIT);
    let mut urgent = wait(Urgency::Urgent);
    assert!(futures::poll!(&mut urgent).is_pending());
    drop(held);
    let pass = urgent.await.unwrap();
    assert!(futures::poll!(&mut waiting[0]).is_pending());
    drop(pass);
    for wait in waiting {
        drop(wait.await.unwrap());
    }
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_holds_nobody_up() {
    let admission = admission(&Limits { at_a_time: 1, ..Limits::default() });
    let held = admission.enter("a", Urgency::Normal).await.unwrap();
    let enter = || Box::pin(admission.enter("a", Urgency::Normal));
    let (mut first, mut second, mut third) = (enter(), enter(), enter());
    for wait in [&mut first, &mut second, &mut third] {
        assert!(futures::poll!(wait).is_pending());
    }
    // One before its turn, one when it has come and nobody looked.
    drop(first);
    drop(held);
    drop(second);
    drop(third.await.unwrap());
    drop(admission.enter("a", Urgency::Normal).await.unwrap());
    assert_eq!(admission.waiting(), 0);
}

/// Comes and proves nothing.
fn unproved(admission: &Admission, from: &str) -> Result<(), Overloaded> {
    admission.stranger(Some(from.parse().unwrap())).map(drop)
}

#[tokio::test(start_paused = true)]
async fn strangers_of_one_address_have_a_share_of_their_own() {
    let limits = Limits { strangers: Limit { per_minute: 60, burst: 1 }, ..Limits::default() };
    let admission = admission(&limits);
    unproved(&admission, "10.0.0.1").unwrap();
    assert_eq!(unproved(&admission, "10.0.0.1").unwrap_err().reason, Reason::Stranger);
    unproved(&admission, "10.0.0.2").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    unproved(&admission, "10.0.0.1").unwrap();
    // The same address, whatever it is written as; and one host's network of IPv6.
    assert!(unproved(&admission, "::ffff:10.0.0.1").is_err());
    unproved(&admission, "2001:db8:0:1::1").unwrap();
    assert!(unproved(&admission, "2001:db8:0:1:ffff::7").is_err());
    unproved(&admission, "2001:db8:0:2::1").unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_proves_itself_gets_its_share_back() {
    let limits = Limits { strangers: Limit { per_minute: 1, burst: 2 }, ..Limits::default() };
    let admission = admission(&limits);
    let from = Some("10.0.0.1".parse().unwrap());
    // Ten thousand nodes behind one address.
    for _ in 0..10_000 {
        admission.stranger(from).unwrap().proved();
    }
    for _ in 0..2 {
        unproved(&admission, "10.0.0.1").unwrap();
    }
    assert!(unproved(&admission, "10.0.0.1").is_err());
}

#[tokio::test(start_paused = true)]
async fn who_is_looked_at_holds_up_nobody_who_is_known_and_addresses_take_turns() {
    let admission = admission(&Limits { at_a_time: 1, ..Limits::default() });
    let come = |from: &str| admission.stranger(Some(from.parse().unwrap())).unwrap();
    let (flood, honest) = (come("10.0.0.1"), come("10.0.0.2"));
    let mut looked_at = Vec::new();
    for _ in 0..LOOKED_AT {
        looked_at.push(flood.turn(Asked::Cluster).await.unwrap());
    }
    let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(flood.turn(Asked::Cluster))).collect();
    for wait in &mut waiting {
        assert!(futures::poll!(wait).is_pending());
    }
    // The API server is slow: certificates are issued, and the store is asked.
    drop(admission.enter("n1", Urgency::Normal).await.unwrap());
    drop(honest.turn(Asked::Store).await.unwrap());
    // An honest one of another address waits for two turns and not for a hundred.
    let mut turn = Box::pin(honest.turn(Asked::Cluster));
    assert!(futures::poll!(&mut turn).is_pending());
    looked_at.truncate(LOOKED_AT - 2);
    assert!(futures::poll!(&mut turn).is_ready());
}

#[tokio::test(start_paused = true)]
async fn who_is_told_that_the_queue_is_full_has_paid_nothing() {
    let certificates = Limit { per_minute: 1, burst: 1 };
    let admission = admission(&Limits { at_a_time: 1, queue: 0, certificates, ..Limits::default() });
    let held = admission.enter("a", Urgency::Normal).await.unwrap();
    for _ in 0..5 {
        assert_eq!(admission.enter("b", Urgency::Normal).await.err().unwrap().reason, Reason::Queue);
    }
    drop(held);
    drop(admission.enter("b", Urgency::Normal).await.unwrap());
    assert_eq!(admission.enter("b", Urgency::Normal).await.err().unwrap().reason, Reason::Caller);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_strangers_in_a_loop_are_a_few_lines() {
    let admission = admission(&Limits::default());
    let lines = |from: &str| {
        let who = origin(Some(from.parse().unwrap()));
        (0..1000).filter(|_| admission.line(&who).is_worth_it).count()
    };
    assert_eq!((lines("10.0.0.1"), lines("10.0.0.1"), lines("10.0.0.2")), (30, 0, 30));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lines("10.0.0.1"), 30);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_calls_in_a_loop_is_told_to_come_back() {
    let admission = admission(&Limits::default());
    for (call, at_once) in [(Call::Watch, CALLS_AT_ONCE), (Call::Report, REPORTS_AT_ONCE)] {
        for _ in 0..at_once {
            admission.call("n1", call).unwrap();
        }
        let refused = admission.call("n1", call).unwrap_err();
        assert_eq!(refused.reason, Reason::Calls);
        admission.call("n2", call).unwrap();
        tokio::time::sleep(refused.retry_after).await;
        admission.call("n1", call).unwrap();
    }
}
