//! By what the node proves itself, and what it says of that.

use super::*;
use crate::config::{AttestConfig, MachineConfig};

#[tokio::test(start_paused = true)]
async fn a_node_that_was_off_until_everything_expired_comes_back_by_itself() {
    let world = World::new();
    world.authority.ca().register("shop.reviews", "reviews", &["uid:1"]);
    world.authority.ca().reattest_within = Duration::from_secs(30 * 86_400);
    let mut agent = world.start_new().await;
    agent.settled().await;
    agent.stop().await;

    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    let mut agent = world.start(None).await;
    let back = agent.settled().await;
    assert_eq!(world.authority.ca().node_log, ["token", "lineage"]);
    let how = back.node.proved_by.as_ref().unwrap();
    assert!(how.starts_with("attested by the key of its last certificate: the saved certificate expired at"), "{how}");
    // And goes on by its certificate.
    agent.until(|status| status.node.certificate != back.node.certificate).await;
    assert_eq!(world.authority.ca().node_log, ["token", "lineage", "svid"]);
    agent.stop().await;

    tokio::time::sleep(Duration::from_secs(31 * 86_400)).await;
    let mut agent = world.start(None).await;
    let status = agent.until(|status| status.node.last_error.is_some()).await;
    let error = status.node.last_error.as_ref().unwrap();
    assert!(error.contains("expired at") && error.contains("ended too long ago"), "{error}");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn evidence_is_tried_in_its_order_and_the_status_says_which_worked_and_why_no_other() {
    let world = World::new();
    let at = |name| world.directory.path().join(name);
    let machine = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&machine).unwrap();
    fs::write(at("machine.pem"), certificate.pem()).unwrap();
    fs::write(at("machine-key.pem"), machine.serialize_pem()).unwrap();
    fs::write(at("root.pem"), world.authority.ca().bundles().iter().next().unwrap().to_pem()).unwrap();
    let print = alcazar_identity::Fingerprint::of(certificate.der()).to_string();
    world.authority.ca().known = vec![("machine", print), ("bearer", "a.b.c".into())];
    let files = MachineConfig { certificate_file: at("machine.pem"), key_file: at("machine-key.pem") };
    let attest =
        AttestConfig { bearer_token_file: Some(at("bearer")), machine: Some(files), root_file: Some(at("root.pem")) };
    let token = world.authority.ca().token();
    let config = Config { attest, ..world.config(Some(token)) };
    let agent = Agent::with_authority(config, Arc::new(world.authority.clone()), world.clock.clone()).await.unwrap();
    let mut agent = World::run(agent);
    let first = agent.until(|status| status.node.certificate.is_some()).await;
    assert_eq!(world.authority.ca().node_log, ["machine"]);
    let how = first.node.proved_by.as_ref().unwrap();
    let expected = "attested by its machine certificate: no certificate of this node is saved; not by its bearer token: cannot read ";
    assert!(how.starts_with(expected), "{how}");

    // The token has come; and the node is unknown at the CA, as after a new beginning.
    fs::write(at("bearer"), "a.b.c\n").unwrap();
    world.authority.ca().attest_known("machine", "", &[], (world.clock)()).unwrap_err();
    world.authority.ca().forget_the_node();
    let second = agent.until(|status| status.node.certificate != first.node.certificate).await;
    assert_eq!(world.authority.ca().node_log, ["machine", "bearer"]);
    let how = second.node.proved_by.as_ref().unwrap();
    assert!(how.starts_with("attested by its bearer token; not by its certificate: the CA refused"), "{how}");
    agent.stop().await;
}
