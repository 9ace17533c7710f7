//! The file by which a node serves less than the CA has registered for it.

use std::fs;

use super::*;

#[tokio::test(start_paused = true)]
async fn the_agents_own_file_narrows_what_is_served_and_a_bad_edit_changes_nothing() {
    let world = World::new();
    world.authority.ca().register("a", "a", &["uid:1"]);
    world.authority.ca().register("b", "b", &["uid:2"]);
    let file = world.directory.path().join("narrow.yaml");
    fs::write(&file, "- registration: a\n  selectors: ['group:7']\n- registration: gone\n").unwrap();
    let config = Config { narrow: Some(file.clone()), ..world.config(Some(world.authority.ca().token())) };
    let agent = Agent::with_authority(config, Arc::new(world.authority.clone()), world.clock.clone()).await.unwrap();
    let mut agent = World::run(agent);
    let ids = |status: &Status| status.registrations.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
    let narrowing = |status: &Status| status.narrowing.clone().unwrap();
    let first = agent.settled().await;
    assert_eq!(ids(&first), ["a"]);
    assert_eq!(narrowing(&first).withheld, ["b"]);
    assert_eq!(narrowing(&first).unknown, ["the registration gone"]);
    assert_eq!(world.authority.ca().issued, 1, "what is withheld is not asked for either");
    assert!(agent.readiness.pending().is_empty());

    for bad in ["- registration: a\n  selectors: ['moon:7']\n", "- registration: b\n  socket: x\n", ""] {
        fs::write(&file, bad).unwrap();
        let status = agent.until(|status| narrowing(status).error.is_some()).await;
        assert_eq!((ids(&status), narrowing(&status).withheld), (vec!["a".to_owned()], vec!["b".to_owned()]));
        let parts = agent.readiness.parts();
        let (_, health) = parts.iter().find(|(part, _)| part == "narrowing file").unwrap();
        assert!(
            matches!(health, alcazar_service::Health::Degraded(why) if why.contains("stays in force")),
            "{health:?}"
        );
        fs::write(&file, "- registration: a\n").unwrap();
        agent.until(|status| narrowing(status).error.is_none()).await;
    }
    fs::remove_file(&file).unwrap();
    agent.until(|status| narrowing(status).error.is_some()).await;
    assert_eq!(ids(&agent.status.borrow().clone()), ["a"], "without its file it does not serve all");

    fs::write(&file, "- identity: spiffe://td.example/ns/shop/sa/b\n").unwrap();
    let other = agent.until(|status| ids(status) == ["b"] && status.registrations[0].certificate.is_some()).await;
    assert_eq!((narrowing(&other).error, narrowing(&other).withheld), (None, vec!["a".to_owned()]));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_file_withheld_of_pods_is_not_forgotten_while_the_ca_knows_none() {
    let world = World::new();
    world.authority.ca().register("a", "a", &["uid:1"]);
    world.authority.ca().register("k8s.shop.web", "web", &["k8s:ns:shop", "k8s:sa:web"]);
    let file = world.directory.path().join("narrow.yaml");
    fs::write(&file, "- registration: a\n").unwrap();
    let config = Config { narrow: Some(file.clone()), ..world.config(Some(world.authority.ca().token())) };
    let agent = Agent::with_authority(config, Arc::new(world.authority.clone()), world.clock.clone()).await.unwrap();
    let mut agent = World::run(agent);
    let ids = |status: &Status| status.registrations.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
    let withheld = |status: &Status| status.narrowing.clone().unwrap().withheld;
    agent.until(|status| ids(status) == ["a"] && withheld(status) == ["k8s.shop.web"]).await;
    world.authority.change(|ca| {
        ca.pods_unknown = true;
        ca.registrations.retain(|registration| registration.id == "a");
        ca.register("b", "b", &["uid:2"]);
    });
    agent.until(|status| withheld(status).contains(&"b".to_owned())).await;
    assert!(withheld(&agent.status.borrow().clone()).contains(&"k8s.shop.web".to_owned()));
    fs::write(&file, "- registration: a\n- registration: k8s.shop.web\n").unwrap();
    agent.until(|status| ids(status) == ["a", "k8s.shop.web"]).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_narrowing_file_that_cannot_be_used_stops_an_agent_before_it_starts() {
    let world = World::new();
    let file = world.directory.path().join("narrow.yaml");
    let config = || Config { narrow: Some(file.clone()), ..world.config(None) };
    let open = || Agent::with_authority(config(), Arc::new(world.authority.clone()), world.clock.clone());
    assert!(matches!(open().await, Err(OpenError::Narrowing(_))));
    fs::write(&file, "- registration: a\n  selectors: [uid]\n").unwrap();
    let error = alcazar_service::process::chain(&open().await.err().unwrap());
    assert!(error.contains("narrow.yaml:2:15"), "{error}");
    fs::write(&file, "[]").unwrap();
    assert!(open().await.is_ok());
}
