use std::sync::atomic::{AtomicU64, Ordering};

use alcazar_service::Readiness;

use super::*;
use crate::testing::{ca, clock};

const DAY: u64 = 24 * 3600;

/// One run of the agent's part, by a clock that the test sets.
struct Run {
    said: watch::Sender<Option<Arc<v1::Crls>>>,
    bundles: watch::Sender<Option<Arc<TrustBundles>>>,
    served: watch::Receiver<Arc<Crls>>,
    readiness: Readiness,
    shutdown: Shutdown,
}

impl Run {
    fn start(directory: &Path, clock: Clock) -> Self {
        Self::start_with(directory, TrustBundles::default(), clock)
    }

    /// With the roots of an earlier run.
    fn start_with(directory: &Path, saved: TrustBundles, clock: Clock) -> Self {
        let (said, bundles) = (watch::Sender::new(None), watch::Sender::new(None));
        let (served, readiness) = (watch::Sender::new(Arc::default()), Readiness::new());
        let part = readiness.part("CRLs");
        let run = Self { said, bundles, served: served.subscribe(), readiness, shutdown: Shutdown::new() };
        let keeper = CrlKeeper {
            trust_domain: trust_domain(),
            file: CrlsFile::within(directory),
            clock,
            saved,
            said: run.said.subscribe(),
            bundles: run.bundles.subscribe(),
            served,
            part,
        };
        run.shutdown.spawn("CRLs", keeper.start(run.shutdown.clone()));
        run
    }

    fn say(&self, crls: Vec<v1::Crl>, complete: bool) {
        let reason = if complete { String::new() } else { "one is missing".into() };
        self.said.send_replace(Some(Arc::new(v1::Crls { crls, complete, reason, by_setup: false })));
    }

    /// Waits until so many are served.
    async fn serves(&mut self, count: usize) {
        let served = self.served.wait_for(|served| served.of(&trust_domain()).len() == count);
        drop(tokio::time::timeout(Duration::from_secs(60), served).await.unwrap().unwrap());
    }

    async fn stop(self) {
        self.shutdown.trigger("the run is over");
        self.shutdown.finished(Duration::from_secs(60)).await.unwrap();
    }
}

fn trust_domain() -> TrustDomain {
    ca::TRUST_DOMAIN.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn they_are_served_while_all_are_good_and_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (start, passed) = (clock()(), Arc::new(AtomicU64::new(0)));
    let hand = passed.clone();
    let clock: Clock = Arc::new(move || start + Duration::from_secs(hand.load(Ordering::SeqCst)));
    let ca = ca::Ca::new(start);
    let crl = ca.crl(start, start + Duration::from_secs(DAY));
    let mut run = Run::start(directory.path(), clock.clone());
    run.say(vec![crl.clone()], true);
    // Nothing can be checked before there are roots.
    assert!(run.served.borrow().of(&trust_domain()).is_empty());
    run.bundles.send_replace(Some(Arc::new(ca.bundles())));
    run.serves(1).await;
    assert!(run.served.borrow().of(&"elsewhere".parse().unwrap()).is_empty());
    run.stop().await;

    // With the CA away they are served as before, from the first moment on.
    let run = Run::start_with(directory.path(), ca.bundles(), clock.clone());
    assert_eq!(run.served.borrow().of(&trust_domain()).len(), 1);
    run.stop().await;

    // Or once there are roots, and taken back before the first of them is over.
    let mut run = Run::start(directory.path(), clock.clone());
    run.bundles.send_replace(Some(Arc::new(ca.bundles())));
    run.serves(1).await;
    passed.store(DAY - 60, Ordering::SeqCst);
    run.serves(0).await;
    let told = run.readiness.parts();
    assert!(format!("{told:?}").contains("Degraded"), "{told:?}");
    let next = ca.crl(start, start + Duration::from_secs(2 * DAY));
    run.say(vec![next], true);
    run.serves(1).await;
    assert!(!format!("{:?}", run.readiness.parts()).contains("Degraded"));
    // The CA lacks one.
    run.say(Vec::new(), false);
    run.serves(0).await;
    run.stop().await;

    // A clock that is behind holds them back until it is set.
    let mut run = Run::start(directory.path(), clock.clone());
    run.bundles.send_replace(Some(Arc::new(ca.bundles())));
    run.say(vec![ca.crl(start + Duration::from_secs(DAY), start + Duration::from_secs(3 * DAY))], true);
    passed.store(DAY - 60, Ordering::SeqCst);
    let withheld = run.readiness.clone();
    let is_withheld = move || format!("{:?}", withheld.parts()).contains("one of them is not good");
    while !is_withheld() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(run.served.borrow().of(&trust_domain()).is_empty());
    passed.store(DAY, Ordering::SeqCst);
    run.serves(1).await;
    passed.store(DAY - 60, Ordering::SeqCst);
    run.serves(0).await;
    run.stop().await;

    // That is what counts after a restart, too; and what cannot be read is as good as none.
    for spoilt in [false, true] {
        if spoilt {
            std::fs::write(directory.path().join("crls.pb"), b"\xff\xff").unwrap();
        }
        let mut run = Run::start(directory.path(), clock.clone());
        run.bundles.send_replace(Some(Arc::new(ca.bundles())));
        run.say(vec![ca.crl(start, start + Duration::from_secs(3 * DAY))], true);
        run.serves(1).await;
        run.say(Vec::new(), false);
        run.serves(0).await;
        run.stop().await;
    }
}
