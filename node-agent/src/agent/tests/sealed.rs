//! What workloads hold over a restart.

use alcazar_service::Health;

use super::*;
use crate::config::SealConfig;

/// Starts an agent that keeps what it holds, by the same key each time.
async fn start_sealing(world: &World, token: Option<String>) -> Running {
    let key_file = world.directory.path().join("seal.key");
    fs::write(&key_file, [7; 32]).unwrap();
    fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = Config { seal: Some(SealConfig { key_file }), ..world.config(token) };
    let authority = Arc::new(world.authority.clone());
    World::run(Agent::with_authority(config, authority, world.clock.clone()).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_workloads_hold_serves_at_once_after_a_restart_without_the_ca() {
    let world = World::new();
    let start = async |token| start_sealing(&world, token).await;
    world.authority.ca().register("shop.reviews", "reviews", &["socket:reviews"]);
    world.authority.ca().register("shop.gone", "gone", &["uid:1"]);
    let token = world.authority.ca().token();
    let mut agent = start(Some(token)).await;
    let before = agent.settled().await;
    agent.stop().await;

    world.authority.mood(Mood::Down);
    let mut agent = start(None).await;
    let restored = agent.settled().await;
    assert_eq!(restored.registrations.len(), 2);
    let of = |status: &Status, id: &str| status.registrations.iter().find(|r| r.id == id).cloned();
    let serial = |status: &Status| of(status, "shop.reviews").unwrap().certificate.clone().unwrap().serial;
    assert_eq!(serial(&restored), serial(&before));
    assert!(agent.readiness.pending().is_empty(), "{:?}", agent.readiness.pending());
    let socket = world.directory.path().join("sockets/reviews.sock");
    let there = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there).await.expect("its socket is there");
    // It is due, and the CA is away: the old one serves on until its end, and comes back as often.
    tokio::time::sleep(Duration::from_secs(2000)).await;
    agent.stop().await;
    let mut agent = start(None).await;
    let again = agent.settled().await;
    assert_eq!(serial(&again), serial(&before));

    // The CA has another word.
    world.authority.change(|ca| ca.registrations.retain(|registration| registration.id == "shop.reviews"));
    world.authority.mood(Mood::Up);
    let after = agent.until(|status| of(status, "shop.gone").is_none() && serial(status) != serial(&before)).await;
    agent.stop().await;
    assert_eq!(fs::read_dir(world.directory.path().join("data/sealed")).unwrap().count(), 1);
    world.authority.mood(Mood::Down);
    let mut agent = start(None).await;
    let last = agent.settled().await;
    assert_eq!((last.registrations.len(), serial(&last)), (1, serial(&after)));
    agent.stop().await;

    // What has expired comes back as a registration alone.
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let mut agent = start(None).await;
    let late = agent.until(|status| !status.registrations.is_empty()).await;
    assert!(late.registrations[0].certificate.is_none());
    assert!(agent.readiness.pending().contains(&"certificate of shop.reviews".to_owned()));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sealed_folder_that_is_none_is_said_and_nobody_goes_without_an_agent() {
    let world = World::new();
    let start = async |token| start_sealing(&world, token).await;
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let token = world.authority.ca().token();
    let mut agent = start(Some(token)).await;
    agent.settled().await;
    agent.stop().await;
    // What a disk that was repaired may leave.
    let folder = world.directory.path().join("data/sealed");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "no folder").unwrap();
    let mut agent = start(None).await;
    agent.settled().await;
    let health = |agent: &Running| {
        let parts = agent.readiness.parts();
        parts.into_iter().find(|(name, _)| name == "sealed store").unwrap().1
    };
    assert!(matches!(health(&agent), Health::Degraded(_)), "{:?}", health(&agent));
    assert_eq!(fs::read(&folder).unwrap(), b"no folder", "it is a person's to remove");

    fs::remove_file(&folder).unwrap();
    let mended = async {
        while health(&agent) != Health::Ready {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), mended).await.expect("it is tried again");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_seal_without_its_key_starts_nothing() {
    let world = World::new();
    let key = world.directory.path().join("seal.key");
    let config = Config { seal: Some(SealConfig { key_file: key }), ..world.config(None) };
    let opened = Agent::with_authority(config, Arc::new(world.authority.clone()), world.clock.clone()).await;
    let refused = opened.err().unwrap().to_string();
    assert!(refused.contains("seal.keyFile") && refused.contains("head -c 32 /dev/urandom"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_the_agents_own_file_withholds_in_an_outage_is_not_lost() {
    let world = World::new();
    let (key, narrow) = (world.directory.path().join("seal.key"), world.directory.path().join("narrow.yaml"));
    fs::write(&key, [7; 32]).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let start = async |token| {
        let seal = Some(SealConfig { key_file: key.clone() });
        let config = Config { seal, narrow: Some(narrow.clone()), ..world.config(token) };
        let authority = Arc::new(world.authority.clone());
        World::run(Agent::with_authority(config, authority, world.clock.clone()).await.unwrap())
    };
    fs::write(&narrow, "- registration: shop.web\n  selectors: ['group:7']\n").unwrap();
    world.authority.ca().register("shop.web", "web", &["uid:1"]);
    let token = world.authority.ca().token();
    let mut agent = start(Some(token)).await;
    let before = serial(&*agent.settled().await);
    agent.stop().await;

    // Another rule by the time of the restart: the one of before counts no more. Then it is withheld, and then it is not.
    world.authority.mood(Mood::Down);
    fs::write(&narrow, "- registration: shop.web\n  selectors: ['group:8']\n").unwrap();
    let mut agent = start(None).await;
    assert_eq!(serial(&*agent.settled().await), before);
    fs::write(&narrow, "[]").unwrap();
    agent.until(|status| status.registrations.is_empty()).await;
    agent.stop().await;
    fs::write(&narrow, "- registration: shop.web\n").unwrap();
    let mut agent = start(None).await;
    assert_eq!(serial(&*agent.settled().await), before);
    agent.stop().await;
    let sealed = fs::read_dir(world.directory.path().join("data/sealed")).unwrap().count();
    assert_eq!(sealed, 1);
}
