//! The CA in memory, and a clock that follows tokio's: weeks pass in milliseconds.

#[path = "../tests/agent/support/ca.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the scenario tests")]
pub(crate) mod ca;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{Credentials, Fingerprint, SpiffeId, SvidLeaf};
use alcazar_mtls::Clock;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;
use tonic::{Code, Status};

use crate::authority::{Authority, Call, CallError, Session, Updates};
use crate::evidence::{Anchor, Evidence};
use ca::Ca;

/// A clock that a paused tokio moves.
pub(crate) fn clock() -> Clock {
    let (start, noon) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    Arc::new(move || noon + start.elapsed())
}

/// A CA that can be reached without a network.
#[derive(Clone)]
pub(crate) struct MemoryAuthority {
    ca: Arc<Mutex<Ca>>,
    clock: Clock,
    mood: watch::Sender<Mood>,
    /// Counts changes that streams must tell.
    changes: watch::Sender<u64>,
    /// What it was asked for, and when.
    asked: Arc<Mutex<Vec<(&'static str, Instant)>>>,
}

/// How the CA behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Up,
    Down,
    /// It does what it is asked to, and its answers are lost.
    LosesReplies,
    /// It answers every call with this, and with when to ask again.
    Fails(Code, Option<Duration>),
    /// It takes so long for each call.
    Slow(Duration),
}

impl MemoryAuthority {
    pub(crate) fn new(clock: Clock) -> Self {
        let ca = Arc::new(Mutex::new(Ca::new(clock())));
        Self { ca, clock, mood: watch::Sender::new(Mood::Up), changes: watch::Sender::new(0), asked: Arc::default() }
    }

    pub(crate) fn ca(&self) -> MutexGuard<'_, Ca> {
        self.ca.lock().unwrap()
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// When it was asked for this since it was last asked about.
    pub(crate) fn asked(&self, what: &str) -> Vec<Instant> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.into_iter().filter(|(name, _)| *name == what).map(|(_, at)| at).collect()
    }

    /// Changes something that the streams tell.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Ca)) {
        change(&mut self.ca());
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn call<'a, T: Send + 'a>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Ca, SystemTime) -> Result<T, CallError> + Send + 'a,
    ) -> Call<'a, T> {
        let this = self.clone();
        async move {
            this.asked.lock().unwrap().push((what, Instant::now()));
            let mood = *this.mood.borrow();
            match mood {
                Mood::Down => return Err(CallError::Unanswered("the CA is down".into())),
                Mood::Slow(time) => tokio::time::sleep(time).await,
                Mood::Fails(code, later) => return Err(refusal(code, later).into()),
                Mood::Up | Mood::LosesReplies => {}
            }
            let done = work(&mut this.ca(), (this.clock)());
            if mood == Mood::LosesReplies { Err(CallError::Unanswered("the reply was lost".into())) } else { done }
        }
        .boxed()
    }

    /// Tells something now and at every change, until the CA goes down.
    fn tell<T: Send + 'static>(&self, what: impl Fn(&Ca) -> T + Send + 'static) -> Call<'static, Updates<T>> {
        let this = self.clone();
        async move {
            if *this.mood.borrow() == Mood::Down {
                return Err(CallError::Unanswered("the CA is down".into()));
            }
            let mut mood = this.mood.subscribe();
            let down = async move {
                drop(mood.wait_for(|mood| *mood == Mood::Down).await);
            };
            let told = WatchStream::new(this.changes.subscribe()).map(move |_| Ok(what(&this.ca())));
            Ok(told.take_until(Box::pin(down)).boxed())
        }
        .boxed()
    }
}

impl Authority for MemoryAuthority {
    fn attest<'a>(
        &'a self,
        _: Anchor,
        evidence: &'a Evidence,
        _: &'a SpiffeId,
        csr: Vec<u8>,
    ) -> Call<'a, v1::IssuedSvid> {
        self.call("attest", move |ca, now| {
            Ok(match evidence {
                Evidence::JoinToken(token) => ca.attest(token.text(), &csr, now)?,
                Evidence::BearerToken(token) => ca.attest_known("bearer", token.as_str(), &csr, now)?,
                Evidence::Machine(machine) => {
                    let print = Fingerprint::of(&machine.chain[0]).to_string();
                    ca.attest_known("machine", &print, &csr, now)?
                }
                Evidence::Lineage(node) => {
                    let leaf = SvidLeaf::parse(&node.chain[0]).unwrap();
                    ca.come_back(leaf.serial(), leaf.validity().not_after(), &csr, now)?
                }
            })
        })
    }

    fn renew<'a>(&'a self, node: Arc<Credentials>, csr: Vec<u8>) -> Call<'a, v1::IssuedSvid> {
        self.call("renew", move |ca, now| Ok(ca.renew(node.svid().serial(), &csr, now)?))
    }

    fn session(&self, _: Arc<Credentials>) -> Arc<dyn Session> {
        Arc::new(self.clone())
    }
}

impl Session for MemoryAuthority {
    fn issue(&self, items: Vec<v1::IssueWorkload>) -> Call<'_, Vec<v1::IssueWorkloadResult>> {
        self.call("issue", move |ca, now| Ok(ca.issue(&items, now)))
    }

    fn jwt_svids(&self, items: Vec<v1::IssueJwtSvid>) -> Call<'_, Vec<v1::IssueJwtSvidResult>> {
        self.call("tokens", move |ca, now| Ok(ca.issue_tokens(&items, now)))
    }

    fn registrations(&self) -> Call<'_, Updates<v1::Registrations>> {
        self.tell(|ca| v1::Registrations { registrations: ca.registrations.clone(), pods_unknown: ca.pods_unknown })
    }

    fn report(&self, report: v1::ReportAdoptionRequest) -> Call<'_, ()> {
        self.call("report", move |ca, _now| {
            ca.reports.push(report);
            Ok(())
        })
    }

    fn reissues(&self) -> Call<'_, Updates<v1::Reissue>> {
        self.tell(|ca| ca.reissue.clone())
    }

    fn bundles(&self) -> Call<'_, Updates<v1::TrustBundles>> {
        self.tell(|ca| (&ca.bundles()).into())
    }
}

/// A refusal as the CA sends it.
fn refusal(code: Code, later: Option<Duration>) -> Status {
    let mut status = Status::new(code, "not now");
    if let Some(later) = later {
        let later = later.as_millis().to_string();
        status.metadata_mut().insert("retry-after-ms", later.parse().unwrap());
    }
    status
}
