use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tracing::field::{Field, Visit};

use super::*;
use crate::{config::Config, overheard::overhear};

/// Counts the lines of refusals, what they say that they are of, and what they say was left out.
#[derive(Clone, Default)]
struct Lines(Arc<[AtomicU64; 3]>);

impl Lines {
    fn taken(&self) -> [u64; 3] {
        [0, 1, 2].map(|place| self.0[place].swap(0, Ordering::SeqCst))
    }
}

impl Visit for Lines {
    fn record_u64(&mut self, field: &Field, value: u64) {
        let place = match field.name() {
            "items" => 1,
            "lines" => 2,
            _ => return,
        };
        self.0[place].fetch_add(value, Ordering::SeqCst);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[tokio::test]
async fn whoever_is_refused_in_a_loop_fills_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let noon = || std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let ca = Ca::open(Config::new(folder.path()), Arc::new(noon)).await.unwrap();
    let asker = |name: &str| Asker { name: name.into(), address: None, is_stranger: false };
    let node: SpiffeId = "spiffe://cluster.local/node/local/n1".parse().unwrap();
    let refused = |what: &str| RequestError::NotRegistered { node: node.clone(), what: what.into() };
    let before = ca.0.metrics.refusals().map(|(_, number)| number).sum::<u64>();
    let lines = Lines::default();
    let heard = lines.clone();
    let _guard = overhear(move |event| {
        if event.metadata().target() == "alcazar::refused" {
            heard.0[0].fetch_add(1, Ordering::SeqCst);
            event.record(&mut heard.clone());
        }
    });

    // A batch: two reasons, two lines, a thousand refusals.
    let batch = Batch::new(&ca, asker("spiffe://cluster.local/node/local/n1 at 10.0.0.1:1"), "IssueWorkloads");
    for item in 0..1000 {
        batch.refuse(&refused(if item % 4 == 0 { "a" } else { "b" }));
    }
    assert_eq!(lines.taken(), [0, 0, 0]);
    drop(batch);
    assert_eq!(lines.taken(), [2, 1000, 0]);
    // One with a certificate that asks in a loop, each time from another port.
    for port in 0..1000 {
        let asker = asker(&format!("spiffe://cluster.local/ns/a/sa/b at 10.0.0.1:{port}"));
        ca.refuse(&RequestError::NotANode(node.clone()), &asker, "RenewNode");
    }
    let [said, items, _] = lines.taken();
    assert!((30..40).contains(&said) && items == said, "{said} {items}");
    // Another one is heard all the same, and all are counted.
    ca.refuse(&refused("c"), &asker("spiffe://cluster.local/node/local/n2 at 10.0.0.2:1"), "IssueWorkloads");
    assert_eq!(lines.taken()[1], 1);
    assert_eq!(ca.0.metrics.refusals().map(|(_, number)| number).sum::<u64>() - before, 2001);
    ca.close().await;
}
