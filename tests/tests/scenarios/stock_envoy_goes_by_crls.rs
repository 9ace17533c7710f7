//! A stock Envoy that asks for client certificates has the CRLs beside the roots: whoever is revoked gets no new connection within
//! seconds, and nobody else loses one, also while the intermediate is exchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alcazar_api::ca::v1::{
    RevokeRequest, RotationKind, revocation_administration_client::RevocationAdministrationClient, revoke_request,
};
use alcazar_api::sds as agents;
use alcazar_service::{Shutdown, clock};
use alcazar_testkit::{Curl, DEADLINE, Envoy, HttpOrigin, agent_cluster, eventually, free_port, sds, turn};

use crate::two_envoys_rotate_under_load_without_a_failed_request::{ROTATION, answers, cluster, start, tls_listener};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_refused_and_nobody_else_through_a_rotation() {
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let (ca, agent) = start(home.path(), &["reviews", "caller", "thief"], Duration::ZERO).await;
    let (origin, port) = (HttpOrigin::start("reviews").unwrap(), free_port().unwrap());
    let roots = format!("validation_context_sds_secret_config: {}", sds("ROOTCA", "GRPC"));
    let server = format!(
        "static_resources:\n  clusters:\n{}{}\n  listeners:\n{}",
        agent_cluster(&agent.socket("shop.reviews").unwrap()),
        cluster("origin", origin.port(), ""),
        tls_listener(port, "GRPC", "default", &roots, "origin"),
    );
    let Some(server) = Envoy::start(home.path(), "server", &server).unwrap() else { return };
    let secrets = format!("http://{}/config_dump?resource=dynamic_active_secrets", server.admin());
    let has_crls =
        async || Curl::default().get(&secrets).is_ok_and(|answer| answer.text.contains("only_verify_leaf_cert_crl"));
    let has_them = eventually("CRLs at Envoy", DEADLINE, has_crls).await;
    has_them.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));

    let end = Shutdown::new();
    let hold = async |name: &str| {
        let connecting = agents::connect(agent.socket(&format!("shop.{name}")).unwrap(), clock::system());
        let (credentials, driver) = tokio::time::timeout(DEADLINE, connecting).await.unwrap();
        end.spawn("sds", driver);
        credentials
    };
    let (caller, thief) = (hold("caller").await, hold("thief").await.borrow().clone());
    let is_let_in = async |credentials: &_| answers(credentials, port).await == Some(true);
    let before = caller.borrow().clone();
    for (who, credentials) in [("the caller", &before), ("the thief, who is not known to be one", &thief)] {
        let answer = async || is_let_in(credentials).await;
        eventually(who, DEADLINE, answer).await.unwrap_or_else(|error| panic!("{error:#}\n{}", server.log()));
    }

    // Each request is a handshake of its own, and none is tried again.
    let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (calls, counts, goes_on) = (caller.clone(), [answered.clone(), failed.clone()], end.clone());
    end.spawn("a good caller", async move {
        while !goes_on.is_cancelled() {
            let credentials = calls.borrow().clone();
            let good = answers(&credentials, port).await == Some(true);
            counts[usize::from(!good)].fetch_add(1, Ordering::SeqCst);
        }
    });
    let none_failed = |when: &str| {
        let failed = failed.load(Ordering::SeqCst);
        assert_eq!(failed, 0, "{when}, of {}\n{}", answered.load(Ordering::SeqCst), server.log());
    };

    let subject = Some(revoke_request::Subject::SpiffeId("spiffe://cluster.local/ns/shop/sa/thief".into()));
    let mut operator = RevocationAdministrationClient::new(ca.operator().await.unwrap());
    operator.revoke(RevokeRequest { subject, reason: 1, force: false }).await.unwrap();
    let refused = async || answers(&thief, port).await == Some(false);
    eventually("the thief to be refused", DEADLINE, refused).await.unwrap();
    none_failed("while somebody else was revoked");

    ca.rotate(RotationKind::Intermediate, ROTATION).await.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    let after = caller.borrow().clone();
    assert_ne!(after.svid().chain()[1], before.svid().chain()[1], "the caller is under the new intermediate");
    let so_far = answered.load(Ordering::SeqCst);
    let more = async || answered.load(Ordering::SeqCst) > so_far + 20;
    eventually("answers after the rotation", DEADLINE, more).await.unwrap();
    none_failed("while the intermediate was exchanged");
    // The old one is gone with its key: by its last CRL what it signed is taken as before, and refused as before.
    assert!(is_let_in(&before).await, "{}", server.log());
    assert!(refused().await);

    // The same by a CRL of the new one.
    let subject = Some(revoke_request::Subject::Serial(after.svid().serial().to_string()));
    operator.revoke(RevokeRequest { subject, reason: 1, force: false }).await.unwrap();
    let refused = async || answers(&after, port).await == Some(false);
    eventually("a certificate of after the rotation to be refused", DEADLINE, refused).await.unwrap();
    end.trigger("the test is over");
}
