//! The CA is slow, busy or wrong, the disk is full, and the clock goes on.

use alcazar_service::Health;
use tonic::Code;

use super::*;

#[tokio::test(start_paused = true)]
async fn the_node_is_not_ready_from_the_moment_its_certificate_ends_until_it_has_another() {
    let world = World::new();
    let (mut agent, file) = world.start_with_file().await;
    let first = agent.until(|status| status.node.certificate.is_some()).await;
    let end = first.node.certificate.as_ref().unwrap().not_after;
    let next = first.node.next_rotation.expect("when it will be renewed is known");
    assert!(next > (world.clock)() && next < end);
    assert!(agent.readiness.pending().iter().all(|part| part != "identity of this node"));

    world.authority.mood(Mood::Down);
    agent.until(|status| status.node.certificate.is_none()).await;
    let late = (world.clock)().duration_since(end).unwrap();
    assert!(late < Duration::from_secs(1), "by the clock and not at the next attempt: {late:?}");
    tokio::task::yield_now().await;
    assert!(agent.readiness.pending().contains(&"identity of this node".to_owned()));
    std::fs::write(&file, world.authority.ca().token()).unwrap();
    world.authority.mood(Mood::Up);
    agent.until(|status| status.node.certificate.is_some()).await;
    tokio::task::yield_now().await;
    assert!(!agent.readiness.pending().contains(&"identity of this node".to_owned()));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_ca_is_asked_again_when_it_wants_to_and_that_is_no_error() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let mut agent = world.start_new().await;
    let before = agent.settled().await;
    world.authority.mood(Mood::Fails(Code::ResourceExhausted, Some(Duration::from_secs(120))));
    world.authority.asked("");
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(2800) {
        let status = agent.status.borrow_and_update().clone();
        assert_eq!((&status.node.last_error, &status.registrations[0].last_error), (&None, &None));
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let asked = world.authority.asked("issue");
    assert!(asked.len() >= 2, "it was due after half of its life");
    assert!(asked.windows(2).all(|two| two[1] - two[0] >= Duration::from_secs(120)), "{asked:?}");
    world.authority.mood(Mood::Up);
    agent.until(|status| serial(status) != serial(&before)).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn errors_of_every_kind_keep_what_is_good_and_say_what_they_are() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let mut agent = world.start_new().await;
    for code in [Code::Internal, Code::Unavailable, Code::PermissionDenied, Code::Unimplemented, Code::Unknown] {
        let before = agent.settled().await;
        world.authority.mood(Mood::Fails(code, None));
        let failed = agent.until(|status| status.registrations[0].last_error.is_some()).await;
        assert_eq!(serial(&failed), serial(&before), "{code:?}");
        assert!(failed.registrations[0].last_error.as_ref().unwrap().contains(&format!("{code:?}")), "{failed:?}");
        assert!(!agent.readiness.pending().contains(&"certificate of shop.reviews".to_owned()));
        world.authority.mood(Mood::Up);
        agent.until(|status| serial(status) != serial(&before) && status.node.last_error.is_none()).await;
    }
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_ca_is_waited_for_and_everybody_is_served() {
    let world = World::new();
    for number in 0..300 {
        world.authority.ca().register(&format!("shop.w{number}"), &format!("w{number}"), &["uid:1"]);
    }
    world.authority.mood(Mood::Slow(Duration::from_secs(5)));
    let begun = tokio::time::Instant::now();
    let mut agent = world.start_new().await;
    agent.settled().await;
    // Five batches, four of them at a time, after the node itself.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_certificate_for_a_workload_is_refused_and_the_old_one_serves_on() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let mut agent = world.start_new().await;
    let before = agent.settled().await;
    world.authority.ca().issues_for = Some("spiffe://td.example/ns/shop/sa/ratings".into());
    let refused = agent.until(|status| status.registrations[0].last_error.is_some()).await;
    assert_eq!(serial(&refused), serial(&before));
    let reason = refused.registrations[0].last_error.as_ref().unwrap();
    assert!(reason.contains("ratings, asked for was spiffe://td.example/ns/shop/sa/reviews"), "{reason}");
    world.authority.ca().issues_for = None;
    agent.until(|status| serial(status) != serial(&before) && status.registrations[0].last_error.is_none()).await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_does_not_end_the_nodes_identity() {
    let world = World::new();
    let mut agent = world.start_new().await;
    let before = agent.until(|status| status.node.certificate.is_some()).await;
    let certificate = |status: &Status| status.node.certificate.clone().unwrap();
    // Nothing can be written beside the file, as on a full disk.
    let full = world.directory.path().join("data/node.json.new");
    fs::create_dir(&full).unwrap();
    let failed = agent.until(|status| status.node.last_error.is_some()).await;
    assert!(failed.node.last_error.as_ref().unwrap().contains("cannot save the node's identity"), "{failed:?}");
    assert_eq!(world.authority.ca().node_log, ["token"], "while there is time it asks for nothing that it cannot keep");

    let renewed = agent.until(|status| certificate(status) != certificate(&before)).await;
    let left = certificate(&before).not_after.duration_since((world.clock)()).unwrap();
    assert!(left < Duration::from_secs(900) && left > Duration::from_secs(300), "{left:?}");
    assert!(renewed.node.disk_error.is_some());
    let degraded =
        |(name, health): (String, Health)| name == "identity of this node" && matches!(health, Health::Degraded(_));
    tokio::task::yield_now().await;
    assert!(agent.readiness.parts().into_iter().any(degraded));

    fs::remove_dir(&full).unwrap();
    let saved = agent.until(|status| status.node.disk_error.is_none()).await;
    agent.stop().await;
    world.authority.mood(Mood::Down);
    let mut agent = world.start(None).await;
    let after = agent.until(|status| status.node.certificate.is_some()).await;
    assert_eq!(certificate(&after), certificate(&saved), "it is on the disk");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_workloads_ask_one_after_another() {
    let world = World::new();
    for number in 0..40 {
        world.authority.ca().register(&format!("shop.w{number}"), &format!("w{number}"), &["uid:1"]);
    }
    let mut agent = world.start_new().await;
    agent.settled().await;
    world.authority.mood(Mood::Down);
    agent.until(|status| status.registrations.iter().all(|workload| workload.last_error.is_some())).await;
    world.authority.mood(Mood::Up);
    world.authority.asked("");
    agent.until(|status| status.registrations.iter().all(|workload| workload.last_error.is_none())).await;
    let asked = world.authority.asked("issue");
    let (first, last) = (asked.first().unwrap(), asked.last().unwrap());
    let took = *last - *first;
    assert!(asked.len() > 10 && took > Duration::from_secs(2) && took < Duration::from_secs(16), "{asked:?}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_item_for_which_the_reply_has_no_room_is_asked_for_again_soon_and_is_no_error() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    world.authority.ca().refuse_workloads = Some("the reply has no room for more".into());
    world.authority.ca().refuse_with = (Code::ResourceExhausted.into(), 100);
    let mut agent = world.start_new().await;
    agent.until(|status| !status.registrations.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = world.authority.asked("issue");
    assert!(asked.len() >= 3, "it is asked for when the CA wants it: {asked:?}");
    assert!(asked.windows(2).all(|two| two[1] - two[0] >= Duration::from_millis(100)), "{asked:?}");
    assert_eq!(agent.status.borrow().registrations[0].last_error, None);
    world.authority.ca().refuse_workloads = None;
    agent.settled().await;
    agent.stop().await;
}
