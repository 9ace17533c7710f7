//! Many nodes at once.

use std::time::{Duration, Instant};

use alcazar_api::{
    ca::v1::{self, revocation_client::RevocationClient},
    revocations::Keeper,
};
use alcazar_identity::RevocationReason;
use futures::future::join_all;
use tokio::{task::JoinSet, time::timeout};

use super::hands::{PATIENCE, identity, revoke};
use crate::support::{Hands, Served, node, web};

/// How many nodes follow at once, each with an identity and a connection of its own, and how long they may take together.
const CROWD: usize = 1_000;
/// The debug build of a machine that does other things too: 4 s where eleven others want its two processors, less than 1 s on a
/// quiet one. The figure is printed.
const TOGETHER: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connected_nodes_hold_a_revocation_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let mut followers = Vec::with_capacity(CROWD);
    // Not all at once: what is measured is the push, not the handshakes.
    for some in (0..CROWD).collect::<Vec<_>>().chunks(50) {
        let starting = some.iter().map(async |number| {
            let svid = served.attested(&node(&format!("n{number}"))).await;
            let mut client = RevocationClient::new(served.channel(&svid));
            let mut stream = client.watch_revocations(v1::WatchRevocationsRequest {}).await.unwrap().into_inner();
            stream.message().await.unwrap().unwrap();
            stream
        });
        followers.extend(join_all(starting).await);
    }
    let (bundles, now) = (served.ca.trust_bundles(), served.hands.now());
    let started = Instant::now();
    let mut holding = JoinSet::new();
    for mut stream in followers {
        let bundles = bundles.clone();
        holding.spawn(async move {
            let mut keeper = Keeper::default();
            while keeper.current().is_empty() {
                let said = stream.message().await.unwrap().unwrap();
                keeper.take(&said, &bundles, now);
            }
            (started.elapsed(), stream)
        });
    }
    let begun = started.elapsed();
    revoke(&served, identity(&web()), RevocationReason::KeyCompromise).await.unwrap();
    let told = started.elapsed();
    let all = timeout(PATIENCE, holding.join_all()).await.expect("everybody holds it");
    let last = all.iter().map(|(elapsed, _)| *elapsed).max().unwrap();
    eprintln!(
        "{CROWD} nodes hold and have verified a revocation {:?} after it was asked for; the operator was answered after {:?}",
        last - begun,
        told - begun
    );
    assert!(last - begun < TOGETHER, "{last:?}");
    drop(all);
    served.stop().await;
}
