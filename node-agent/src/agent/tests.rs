//! The whole agent in paused time, against a CA in memory.

mod evidence;
mod faults;
mod narrowing;
mod sealed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1;
use tempfile::TempDir;

use super::*;
use crate::config::AttestConfig;
use crate::testing::ca::TRUST_DOMAIN;
use crate::testing::{MemoryAuthority, Mood, clock};

struct World {
    authority: MemoryAuthority,
    clock: Clock,
    directory: TempDir,
}

struct Running {
    status: watch::Receiver<Arc<Status>>,
    readiness: Readiness,
    shutdown: Shutdown,
}

impl World {
    fn new() -> Self {
        let clock = clock();
        Self { authority: MemoryAuthority::new(clock.clone()), clock, directory: tempfile::tempdir().unwrap() }
    }

    fn config(&self, token: Option<String>) -> Config {
        Config {
            trust_domain: TRUST_DOMAIN.parse().unwrap(),
            cluster: "east".into(),
            node: "vm-1".into(),
            ca_address: "127.0.0.1:1".into(),
            join_token: token,
            join_token_file: None,
            attest: AttestConfig::default(),
            seal: None,
            data_dir: self.directory.path().join("data"),
            sockets_dir: self.directory.path().join("sockets"),
            admin: None,
            files: Vec::new(),
            kubernetes: None,
            narrow: None,
            crls: CrlsConfig::Auto,
        }
    }

    async fn open(&self, token: Option<String>) -> Agent {
        let authority = Arc::new(self.authority.clone());
        Agent::with_authority(self.config(token), authority, self.clock.clone()).await.unwrap()
    }

    async fn start(&self, token: Option<String>) -> Running {
        Self::run(self.open(token).await)
    }

    fn run(agent: Agent) -> Running {
        let (status, readiness, shutdown) = (agent.status(), Readiness::new(), Shutdown::new());
        let (ready, end) = (readiness.clone(), shutdown.clone());
        shutdown.spawn("agent", async move { agent.run(end, ready).await.unwrap() });
        Running { status, readiness, shutdown }
    }

    /// Starts with a token file, which the test can replace.
    async fn start_with_file(&self) -> (Running, PathBuf) {
        let file = self.directory.path().join("token");
        std::fs::write(&file, self.authority.ca().token()).unwrap();
        let config = Config { join_token_file: Some(file.clone()), ..self.config(None) };
        let authority = Arc::new(self.authority.clone());
        let agent = Agent::with_authority(config, authority, self.clock.clone()).await.unwrap();
        (Self::run(agent), file)
    }

    async fn start_new(&self) -> Running {
        let token = self.authority.ca().token();
        self.start(Some(token)).await
    }
}

impl Running {
    /// Waits until the status is so; paused time passes by itself meanwhile.
    async fn until(&mut self, so: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let waiting = tokio::time::timeout(Duration::from_secs(30 * 86_400), self.status.wait_for(so));
        waiting.await.expect("it never came to be").unwrap().clone()
    }

    /// Waits until the node and every workload have a certificate.
    async fn settled(&mut self) -> Arc<Status> {
        self.until(|status| {
            status.node.certificate.is_some()
                && !status.registrations.is_empty()
                && status.registrations.iter().all(|registration| registration.certificate.is_some())
        })
        .await
    }

    async fn stop(self) {
        self.shutdown.trigger("test");
        self.shutdown.finished(Duration::from_secs(20)).await.unwrap();
    }
}

fn serial(status: &Status) -> String {
    status.registrations[0].certificate.as_ref().unwrap().serial.clone()
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_half_a_life_is_lived_through() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let mut agent = world.start_new().await;
    let before = agent.settled().await;
    assert!(agent.readiness.pending().is_empty());

    world.authority.mood(Mood::Down);
    tokio::time::sleep(Duration::from_secs(3300)).await;
    let during = agent.status.borrow().clone();
    assert_eq!(serial(&during), serial(&before), "the valid certificate stays");
    assert!(during.registrations[0].last_error.as_ref().unwrap().contains("the CA is down"));
    assert!(during.node.last_error.as_ref().unwrap().contains("the CA is down"));
    assert!(during.node.ca_error.as_ref().unwrap().contains("the CA is down"));

    world.authority.mood(Mood::Up);
    let back = tokio::time::Instant::now();
    let after = agent.until(|status| serial(status) != serial(&before)).await;
    assert!(back.elapsed() < Duration::from_secs(60), "it came back after {:?}", back.elapsed());
    assert_eq!(after.registrations[0].last_error, None);
    agent.until(|status| status.node.last_error.is_none() && status.node.ca_error.is_none()).await;
    assert_eq!(world.authority.ca().node_log, ["token", "svid"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_expired_is_served_and_the_node_attests_itself_anew() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let (mut agent, file) = world.start_with_file().await;
    agent.settled().await;

    world.authority.mood(Mood::Down);
    let status = agent.until(|status| status.registrations[0].certificate.is_none()).await;
    assert!(status.registrations[0].last_error.is_some());
    agent.until(|status| status.node.certificate.is_none()).await;
    assert_eq!(agent.readiness.pending(), ["certificate of shop.reviews", "identity of this node"]);

    // A week later there is a new token in the file, and the CA again.
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    std::fs::write(&file, world.authority.ca().token()).unwrap();
    world.authority.mood(Mood::Up);
    agent.settled().await;
    assert!(agent.readiness.pending().is_empty());
    assert_eq!(world.authority.ca().node_log, ["token", "token"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rotations_go_on_for_days() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let mut agent = world.start_new().await;
    agent.settled().await;
    let start = tokio::time::Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    while start.elapsed() < Duration::from_secs(2 * 86_400) {
        let now = agent.status.borrow_and_update().clone();
        let certificate = now.registrations[0].certificate.clone().expect("never without a certificate");
        assert!(certificate.not_after > (world.clock)());
        seen.insert(certificate.serial);
        agent.status.changed().await.unwrap();
    }
    // Every 24 to 30 minutes.
    assert!((96..=121).contains(&seen.len()), "{} rotations in two days", seen.len());
    let log = world.authority.ca().node_log.clone();
    assert!(log[1..].iter().all(|way| *way == "svid") && log.len() >= 96, "{log:?}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_asked_for_again_with_the_same_key() {
    let world = World::new();
    world.authority.mood(Mood::LosesReplies);
    let token = world.authority.ca().token();
    let mut agent = world.start(Some(token.clone())).await;
    agent.until(|status| status.node.last_error.is_some()).await;
    agent.stop().await;
    assert!(!world.authority.ca().node_log.is_empty(), "the CA has done it, and nobody knows");

    // The agent was killed and starts again, later: the token is spent, but not for this key.
    tokio::time::sleep(Duration::from_secs(300)).await;
    world.authority.mood(Mood::Up);
    let mut agent = world.start(Some(token)).await;
    let attested = agent.until(|status| status.node.certificate.is_some()).await;
    assert_eq!(attested.node.clock_error, None, "that it was issued minutes ago is no wrong clock");

    // The same with a renewal: half a life later the reply is lost, and the agent killed.
    world.authority.ca().node_log.clear();
    world.authority.mood(Mood::LosesReplies);
    agent.until(|status| status.node.last_error.is_some()).await;
    agent.stop().await;
    world.authority.mood(Mood::Up);
    let mut agent = world.start(None).await;
    agent.until(|status| status.node.last_error.is_some() || status.node.certificate.is_some()).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let log = world.authority.ca().node_log.clone();
    assert!(log.contains(&"retry"), "{log:?}");
    assert!(!log.contains(&"token"), "{log:?}");
    assert_eq!(agent.status.borrow().node.last_error, None);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_the_saved_identity() {
    let world = World::new();
    let mut agent = world.start_new().await;
    let first = agent.until(|status| status.node.certificate.is_some()).await;
    agent.stop().await;

    // With the CA away, and no token: the saved certificate is good.
    world.authority.mood(Mood::Down);
    let mut agent = world.start(None).await;
    let second = agent.until(|status| status.node.certificate.is_some()).await;
    assert_eq!(first.node.certificate, second.node.certificate);
    world.authority.mood(Mood::Up);
    agent.until(|status| status.node.certificate != second.node.certificate).await;
    assert_eq!(world.authority.ca().node_log, ["token", "svid"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_any_proof_says_so_and_waits() {
    let world = World::new();
    let mut agent = world.start(None).await;
    let status = agent.until(|status| status.node.last_error.is_some()).await;
    let error = status.node.last_error.clone().unwrap();
    let expected = "no certificate of this node is saved; nothing else that proves it is configured";
    assert!(error.starts_with(expected), "{error}");
    assert!(agent.readiness.pending().contains(&"identity of this node".to_owned()));
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_the_ca_refuses_gives_way_to_the_token() {
    let world = World::new();
    let mut agent = world.start_new().await;
    agent.until(|status| status.node.certificate.is_some()).await;
    agent.stop().await;
    // Another machine with a copy of the disk has renewed: this one's certificate is not the latest any more.
    let theirs = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&theirs).unwrap();
    let token = world.authority.ca().token();
    let other = world.authority.ca().token();
    world.authority.ca().attest(&other, csr.der(), (world.clock)()).unwrap();
    world.authority.ca().node_log.clear();

    let mut agent = world.start(Some(token)).await;
    let before = agent.until(|status| status.node.certificate.is_some()).await;
    agent.until(|status| status.node.certificate != before.node.certificate).await;
    assert_eq!(world.authority.ca().node_log, ["token"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn registrations_come_and_go_and_change() {
    let world = World::new();
    world.authority.ca().register("shop.a", "a", &["uid:1"]);
    let mut agent = world.start_new().await;
    let first = agent.settled().await;
    world.authority.change(|ca| ca.register("shop.b", "b", &["socket:shop.b"]));
    let both = agent.until(|status| status.registrations.iter().filter(|r| r.certificate.is_some()).count() == 2).await;
    assert_eq!(serial(&both), serial(&first), "nobody else's certificate is touched");
    assert_eq!(both.registrations[1].socket, Some(world.directory.path().join("sockets/shop.b.sock")));

    // Another identity under the same id: nothing of the old one is left.
    world.authority.change(|ca| ca.register("shop.a", "c", &["uid:1"]));
    let changed = agent.until(|s| s.registrations[0].spiffe_id.as_str().ends_with("/c")).await;
    assert!(changed.registrations[0].certificate.as_ref().is_none_or(|c| c.serial != serial(&first)));
    agent.settled().await;

    world.authority.change(|ca| ca.registrations.clear());
    agent.until(|status| status.registrations.is_empty()).await;
    assert!(agent.readiness.pending().is_empty());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_knows_no_pods_takes_none_away() {
    let world = World::new();
    world.authority.ca().register("shop.a", "a", &["uid:1"]);
    world.authority.ca().register("k8s.shop.web", "web", &["k8s:ns:shop", "k8s:sa:web"]);
    let mut agent = world.start_new().await;
    let ids = |status: &Status| -> Vec<String> { status.registrations.iter().map(|r| r.id.to_string()).collect() };
    let first =
        agent.until(|s| s.registrations.len() == 2 && s.registrations.iter().all(|r| r.certificate.is_some())).await;
    world.authority.change(|ca| {
        ca.pods_unknown = true;
        ca.registrations.retain(|registration| registration.id == "shop.a");
        ca.register("shop.b", "b", &["uid:2"]);
    });
    let half =
        agent.until(|s| s.registrations.len() == 3 && s.registrations.iter().all(|r| r.certificate.is_some())).await;
    assert_eq!(ids(&half), ["k8s.shop.web", "shop.a", "shop.b"]);
    assert_eq!(serial(&half), serial(&first), "it is the one from before");
    // Of what a person puts in the CA's word counts meanwhile.
    world.authority.change(|ca| ca.registrations.retain(|registration| registration.id == "shop.b"));
    let fewer = agent.until(|s| s.registrations.len() == 2).await;
    assert_eq!(ids(&fewer), ["k8s.shop.web", "shop.b"]);
    world.authority.change(|ca| ca.pods_unknown = false);
    let whole = agent.until(|s| s.registrations.len() == 1).await;
    assert_eq!(ids(&whole), ["shop.b"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_workload_hurts_nobody_else_and_is_tried_again() {
    let world = World::new();
    world.authority.ca().register("shop.a", "a", &["uid:1"]);
    world.authority.ca().refuse_workloads = Some("not today".into());
    let mut agent = world.start_new().await;
    let refused = agent.until(|s| s.registrations.first().is_some_and(|r| r.last_error.is_some())).await;
    assert_eq!(refused.registrations[0].last_error.as_deref(), Some("the CA refused: not today"));
    assert!(refused.node.certificate.is_some());
    world.authority.ca().refuse_workloads = None;
    agent.settled().await;
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn new_roots_reach_everybody_and_survive_a_restart() {
    let world = World::new();
    world.authority.ca().register("shop.a", "a", &["uid:1"]);
    let mut agent = world.start_new().await;
    agent.settled().await;
    let other_root = crate::testing::ca::Ca::new((world.clock)()).root_der();
    world.authority.change(|ca| ca.add_root(other_root.clone()));
    // The file is written before anybody is told, so its content is what to wait for.
    let file = NodeFile::within(&world.config(None).data_dir);
    let node = crate::testing::ca::node();
    let both_saved = async {
        loop {
            let bundles = file.load(&node).unwrap().current.unwrap().bundles().clone();
            if bundles.get(node.trust_domain()).unwrap().roots().len() == 2 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), both_saved).await.unwrap();
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_set_up_anew_is_joined_by_a_new_token_and_everybody_gets_new_certificates() {
    let world = World::new();
    world.authority.ca().register("shop.a", "a", &["uid:1"]);
    let (mut agent, file) = world.start_with_file().await;
    let before = agent.settled().await;

    let mut anew = crate::testing::ca::Ca::new((world.clock)());
    anew.register("shop.a", "a", &["uid:1"]);
    std::fs::write(&file, anew.token()).unwrap();
    *world.authority.ca() = anew;
    let asked = tokio::time::Instant::now();
    agent.until(|s| serial(s) != serial(&before) && s.node.certificate != before.node.certificate).await;
    assert!(asked.elapsed() < Duration::from_secs(1900), "the workload does not wait for its own half life");
    assert_eq!(world.authority.ca().node_log, ["token"]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_agents_never_share_a_directory() {
    let world = World::new();
    let one = world.open(None).await;
    let again = |config: Config| {
        let (authority, clock) = (Arc::new(world.authority.clone()), world.clock.clone());
        async move { Agent::with_authority(config, authority, clock).await.err().map(|error| error.to_string()) }
    };
    let taken = again(world.config(None)).await.unwrap();
    assert!(taken.starts_with("another agent uses the data directory"), "{taken}");
    let other = Config { data_dir: world.directory.path().join("other"), ..world.config(None) };
    let taken = again(other).await.unwrap();
    assert!(taken.starts_with("another agent serves the sockets directory"), "{taken}");
    drop(one);
    assert_eq!(again(world.config(None)).await, None);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_refused_with_its_reason() {
    let world = World::new();
    let refusal = |config: Config| {
        let (authority, clock) = (Arc::new(world.authority.clone()), world.clock.clone());
        async move {
            let error = Agent::with_authority(config, authority, clock).await.err().unwrap();
            alcazar_service::process::chain(&error)
        }
    };
    let both = Config { join_token_file: Some("/x".into()), ..world.config(Some("y".into())) };
    assert!(refusal(both).await.contains("joinToken and joinTokenFile"));
    let node = Config { node: "a/b".into(), ..world.config(None) };
    assert!(refusal(node).await.contains("do not make a SPIFFE ID"));
    let open = world.directory.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let loose = Config { sockets_dir: open, ..world.config(None) };
    assert!(refusal(loose).await.contains("mode 0777"));
    let long = Config { sockets_dir: world.directory.path().join("d".repeat(100)), ..world.config(None) };
    assert!(refusal(long).await.contains("choose a shorter sockets directory"));
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let data = world.directory.path().join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("thesis.tex"), "").unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let open = || Agent::with_authority(world.config(None), Arc::new(world.authority.clone()), world.clock.clone());
    let refused = open().await.err().unwrap().to_string();
    assert!(refused.contains("has something else in it") && refused.contains("dataDir"), "{refused}");
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing was put there");

    // A fresh file system is nobody's; our own directory may have a note in it.
    fs::remove_file(data.join("thesis.tex")).unwrap();
    fs::create_dir(data.join("lost+found")).unwrap();
    drop(open().await.unwrap());
    fs::write(data.join("README"), "the agent of vm-1").unwrap();
    drop(open().await.unwrap());
}

#[tokio::test]
async fn an_agent_does_not_start_by_a_key_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    drop(world.open(None).await);
    let file = world.directory.path().join("data/node.json");
    fs::write(&file, "{}").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let opened = Agent::with_authority(world.config(None), Arc::new(world.authority.clone()), world.clock.clone());
    let refused = opened.await.err().unwrap().to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_the_ca_wants_anew_is_asked_for_at_once_and_once_and_told_when_it_is_done() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    let mut agent = world.start_new().await;
    let before = agent.settled().await;
    let first = (before.node.certificate.as_ref().unwrap().serial.clone(), serial(&before));
    let begun = tokio::time::Instant::now();
    // An issuer that issues nothing here: the certificates that come are not of it either.
    let issuers = vec![vec![7; 32]];
    world.authority.change(|ca| ca.reissue = v1::Reissue { round: 5, issuers, spread_milliseconds: 1000 });
    let after = agent
        .until(|status| {
            let node = status.node.certificate.as_ref().map(|certificate| certificate.serial.clone());
            node.is_some_and(|node| node != first.0) && serial(status) != first.1
        })
        .await;
    let second = (after.node.certificate.as_ref().unwrap().serial.clone(), serial(&after));
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert!(begun.elapsed() < Duration::from_secs(100), "long before half of their life");
    {
        let ca = world.authority.ca();
        let last = ca.reports.last().expect("it reports");
        assert_eq!((last.round, last.sequence, last.leaves.len()), (5, 1, 2), "{last:?}");
        assert!(last.leaves.iter().all(|leaf| [&second.0, &second.1].contains(&&leaf.serial)), "{last:?}");
    }
    let now = agent.status.borrow().clone();
    assert_eq!(serial(&now), second.1, "once, and not again and again");
    agent.stop().await;
}
