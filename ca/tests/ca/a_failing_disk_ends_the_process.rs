//! A disk that fails under the ledger: nothing is issued, everybody can see it, and the process ends so that a start can cure it.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use alcazar_api::ca::v1::{self, certificate_authority_client::CertificateAuthorityClient};
use alcazar_ca::{Ca, Config, RunError};
use alcazar_ledger::Hooks;
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::{Readiness, Shutdown, metrics::Format};
use tokio::net::TcpListener;
use tonic::Code;

use crate::support::{Hands, csr, key, node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_nobody_gets_anything_and_a_start_goes_on() {
    alcazar_mtls::install_default_provider();
    let folder = tempfile::tempdir().unwrap();
    let (hands, broken) = (Hands::new(), Arc::new(AtomicBool::new(false)));
    let fails = broken.clone();
    let sync = move |file: &File| match fails.load(Ordering::SeqCst) {
        true => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
        false => file.sync_data(),
    };
    let hooks = Hooks { sync: Some(Arc::new(sync)), ..Hooks::default() };
    let ca = Ca::open_hooked(Config::new(folder.path()), hands.clock(), hooks).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
    let running = ca.run(listener, shutdown.clone(), readiness.clone());
    let (over, outcome) = tokio::sync::oneshot::channel();
    shutdown.spawn("the CA of a test", async move { drop(over.send(running.await)) });
    readiness.wait().await;

    let attest = async |name: &str| {
        let (token, _) = ca.create_join_token(&node(name), None).await.unwrap();
        let connector = Connector::pinned(ca.trust_domain().clone(), token.pin(), grpc::ALPN, hands.clock());
        let channel = grpc::channel(address, connector, Expected::id(ca.id()));
        let evidence = Some(v1::attest_node_request::Evidence::JoinToken(token.reveal().to_string()));
        CertificateAuthorityClient::new(channel)
            .attest_node(v1::AttestNodeRequest { evidence, csr: csr(&key()), ..Default::default() })
            .await
    };
    attest("one").await.unwrap();
    let stopped = || {
        let text = ca.metrics().encode(Format::Prometheus);
        text.lines().find_map(|line| line.strip_prefix("alcazar_ca_ledger_stopped ")).unwrap().to_owned()
    };
    assert_eq!(stopped(), "0");
    let before = ca.tree_head().await.unwrap().head.size;
    broken.store(true, Ordering::SeqCst);
    let refused = attest("two").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!((ca.tree_head().await.unwrap().head.size, stopped().as_str()), (before, "1"));

    // The process ends by itself, and not as one that was asked to.
    let outcome = tokio::time::timeout(Duration::from_secs(30), outcome).await.unwrap().unwrap();
    let error = outcome.unwrap_err();
    assert!(matches!(error, RunError::Ledger { .. }) && error.to_string().contains("os error 5"), "{error}");
    shutdown.finished(Duration::from_secs(20)).await.unwrap();
    drop(ca);

    let ca = Ca::open(Config::new(folder.path()), hands.clock()).await.unwrap();
    let head = ca.tree_head().await.unwrap().head;
    assert!(head.size > before, "what was acknowledged is there, and it goes on: {head}");
    ca.close().await;
}
