//! The loop that drives a rotation.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;
use alcazar_service::{Shutdown, process};
use alcazar_store::{Expected, LeaseError, Revision};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Anchor, Kind, Limits, Observations, Phase, Rotation, Wait,
    asks::RotationError,
    clusters::{Place, Progress, Statement},
    records::{Note, Unreported},
    world::WorldError,
};
use crate::{ca::Ca, outage::OwedError, patience::Patience, records::RecordError};

/// What the parts of a CA share of its rotation.
#[derive(Debug)]
pub(crate) struct Rotations {
    /// Rung when something may have changed.
    pub(crate) wake: Notify,
    /// Which leaves are to be issued anew.
    pub(crate) reissue: watch::Sender<Arc<Reissue>>,
    /// What kept the last look from going on.
    pub(super) problem: watch::Sender<Option<String>>,
    /// What is noted of those who never report, and of tokens.
    noted: [watch::Sender<Option<Unreported>>; 2],
    /// How far this cluster is, for others, signed; none before the first look.
    pub(crate) state: watch::Sender<Option<Arc<str>>>,
    /// What of it was signed last, and when.
    stated: watch::Sender<Option<Stated>>,
    /// The last step of the rotation of which nothing is left here.
    pub(super) forgotten: watch::Sender<Option<u64>>,
    /// What of that is over by the clock, for how long by one that nobody can set.
    over: [Patience<()>; 2],
    began: Instant,
    /// Whom the last look found to be waited for, and in which step.
    pub(super) waits: watch::Sender<Option<(u64, Instant, Vec<Wait>)>>,
}

/// What was stated last.
#[derive(Debug)]
struct Stated {
    step: u64,
    progress: Option<Progress>,
    heard: BTreeMap<String, Place>,
    at: Instant,
    /// As it says.
    made: SystemTime,
}

/// Leaves of other issuers than these are to be replaced now. Round zero: nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reissue {
    pub(crate) round: u64,
    pub(crate) issuers: Vec<Fingerprint>,
    pub(crate) spread: Duration,
}

/// Why what is about to be issued is noted nowhere.
#[derive(Debug, Error)]
pub(crate) enum NoteError {
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error(transparent)]
    Owed(#[from] OwedError),
}

/// What the driver knows between two looks.
pub(super) struct Memory {
    revision: Revision,
    rotation: Rotation,
    looked: Instant,
    written: Instant,
}

/// What a look led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Nothing,
    Moved,
    Acted,
    Waits,
}

impl Default for Rotations {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            reissue: watch::Sender::new(Arc::default()),
            noted: Default::default(),
            waits: watch::Sender::new(None),
            state: watch::Sender::new(None),
            forgotten: watch::Sender::new(None),
            stated: watch::Sender::new(None),
            over: Default::default(),
            began: Instant::now(),
            problem: watch::Sender::new(None),
        }
    }
}

impl Ca {
    /// Notes, durably, that a certificate of such a life is about to be issued to somebody who never reports. Most of the time it is
    /// noted already.
    pub(crate) async fn note_unreported(&self, life: Duration) -> Result<(), NoteError> {
        let [noted, _] = &self.0.rotations.noted;
        self.note(Note::Certificates, noted, life).await
    }

    /// The same of a JWT-SVID: nobody says which he holds.
    pub(crate) async fn note_token(&self, life: Duration) -> Result<(), NoteError> {
        let [_, noted] = &self.0.rotations.noted;
        self.note(Note::Tokens, noted, life + alcazar_api::spiffe::LEEWAY).await
    }

    /// What is noted of those who never report, until it is surely over: not by a clock that was ahead for a moment, and not in the
    /// middle of a phase, where measured time is waited for. `phase` is when that was entered.
    pub(super) async fn in_use(
        &self,
        what: Note,
        phase: Option<SystemTime>,
    ) -> Result<Option<Unreported>, RecordError> {
        let rotations = &self.0.rotations;
        let (now, noted) = ((self.0.clock)(), self.0.records.unreported(what).await?);
        let over = noted.filter(|noted| noted.until <= phase.unwrap_or(now).min(now));
        let [certificates, tokens] = &rotations.over;
        let patience = match what {
            Note::Certificates => certificates,
            Note::Tokens => tokens,
        };
        let measured = SystemTime::UNIX_EPOCH + rotations.began.elapsed();
        let long = !patience.over(over.map(|_| ()), measured).is_empty();
        Ok(noted.filter(|_| !long))
    }

    async fn note(
        &self,
        what: Note,
        held: &watch::Sender<Option<Unreported>>,
        life: Duration,
    ) -> Result<(), NoteError> {
        // What is issued begins in whole seconds, and perhaps in the next one.
        let issued = (self.0.clock)();
        let until = issued + life + Duration::from_secs(1);
        if held.borrow().is_some_and(|noted| noted.covers(issued, until)) {
            return Ok(());
        }
        let noted = match self.0.records.note_unreported(what, issued, until).await {
            // Here until it can be noted there: nobody waits for the store who is known.
            Err(error) if error.is_away() => self.0.owed.owe(what, issued, until).await?,
            outcome => outcome?,
        };
        held.send_replace(Some(noted));
        Ok(())
    }

    /// Notes in the store what was kept here while it was away.
    pub(crate) async fn pay_notes(&self) -> Result<(), RecordError> {
        for what in [Note::Certificates, Note::Tokens] {
            let Some(owed) = self.0.owed.of(what) else { continue };
            self.0.records.add_unreported(what, owed).await?;
            if let Err(error) = self.0.owed.paid(what, owed).await {
                // It is noted once more, which changes nothing.
                tracing::warn!(reason = %process::chain(&error), "what is noted in the store is kept here still");
            }
        }
        Ok(())
    }

    /// How long a leaf may live at most: what was issued before, by another configuration or another replica, is in use as well.
    pub(crate) async fn longest_life(&self) -> Result<Duration, RecordError> {
        Ok(self.0.records.longest_life().await?.max(self.config().certificates.max_ttl))
    }

    pub(super) async fn limits(&self) -> Result<Limits, RecordError> {
        Ok(Limits { silence: SILENCE, settle: SETTLE, longest_life: self.longest_life().await? + SKEW })
    }

    /// Drives whatever rotation there is, until the end. Of several replicas the one that has the lease does.
    pub(crate) async fn drive_rotations(self, shutdown: Shutdown) {
        let mut memory = None;
        loop {
            let begun = Instant::now();
            // Another replica may be asked for something, and takes its time.
            let looked = tokio::select! {
                () = shutdown.cancelled() => return,
                looked = self.look_at_rotation(&mut memory) => looked,
            };
            // Of a large fleet a look is dear, and reports come all the time: most of the time goes to issuing.
            let apart = apart(begun.elapsed());
            let pause = match looked {
                Ok(Looked::Moved) => {
                    self.0.rotations.problem.send_replace(None);
                    Duration::ZERO
                }
                Ok(Looked::Acted) => TOGETHER,
                Ok(Looked::Waits) => {
                    self.0.rotations.problem.send_replace(None);
                    TICK.max(apart)
                }
                Ok(Looked::Nothing) => IDLE,
                Err(error) => {
                    let reason = process::chain(&error);
                    if self.0.rotations.problem.send_replace(Some(reason.clone())).as_ref() != Some(&reason) {
                        tracing::error!(target: "alcazar::rotation", reason, "the rotation cannot go on; it is tried again");
                    }
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.0.rotations.wake.notified(), if !pause.is_zero() => {
                    // What comes together is looked at together.
                    tokio::time::sleep(TOGETHER.max(apart.saturating_sub(begun.elapsed()))).await;
                }
            }
        }
    }

    pub(super) async fn look_at_rotation(&self, memory: &mut Option<Memory>) -> Result<Looked, RotationError> {
        let found = self.0.records.rotation().await?;
        let (found, last) = match found {
            Some(found) if found.record.rotation.is_over() => (None, Some(found.record.rotation)),
            found => (found, None),
        };
        // Looked at all the time, so that nobody need wait for what was over long before a rotation began.
        for what in [Note::Certificates, Note::Tokens] {
            self.in_use(what, found.as_ref().map(|found| found.record.rotation.entered)).await?;
        }
        let Some(found) = found else {
            self.order_reissue(None, 0);
            if let Some(last) = &last {
                self.forget_what_was_left(last).await?;
            }
            self.state_progress(None).await?;
            return Ok(Looked::Nothing);
        };
        let ours = found.record.rotation.is_driven_by(self.replica().as_str());
        match if ours { Some(self.lease().await) } else { None } {
            Some(Ok(())) => {}
            // Another replica drives; this one tells its nodes all the same.
            None | Some(Err(LeaseError::Held { .. })) => {
                self.order_reissue(Some(&found.record.rotation), 0);
                self.follow_rotation(&found.record.rotation).await?;
                return Ok(Looked::Nothing);
            }
            Some(Err(error)) => return Err(error.into()),
        }
        let known = memory.take().filter(|memory| memory.revision == found.revision);
        let looked = Instant::now();
        let (rotation, elapsed, written) = match known {
            Some(known) => (known.rotation, looked.duration_since(known.looked), known.written),
            None => (found.record.rotation, Duration::ZERO, looked),
        };
        self.make_own_jwt_key(&rotation).await?;
        let seen = self.observe(&rotation, elapsed).await?;
        let limits = self.limits().await?;
        let step = rotation.step(&seen, &limits, (self.0.clock)());
        let moved = step.next.step != rotation.step || step.next.new != rotation.new;
        let (mut revision, mut written) = (found.revision, written);
        if moved || (step.next.waited != rotation.waited && looked.duration_since(written) > WRITE) {
            revision = match self.0.records.put_rotation(Expected::At(revision), &step.next).await {
                // A person was quicker.
                Err(error) if error.is_conflict() => return Ok(Looked::Moved),
                outcome => outcome?,
            };
            written = looked;
        }
        if step.next.phase != rotation.phase {
            let next = &step.next;
            tracing::info!(target: "alcazar::rotation", kind = %next.kind, phase = %next.phase, back = next.back, old = %next.old, new = next.new.as_ref().map(Anchor::as_str), "the rotation goes on");
        }
        self.order_reissue(Some(&step.next), seen.parties.len());
        for action in &step.actions {
            self.act(&step.next, action).await?;
        }
        let acted = !step.actions.is_empty();
        self.state_progress((step.next.kind == Kind::Root).then_some((&step.next, &seen))).await?;
        self.0.rotations.waits.send_replace(Some((step.next.step, Instant::now(), step.waiting)));
        *memory = Some(Memory { revision, rotation: step.next, looked, written });
        Ok(match (moved, acted) {
            (true, _) => Looked::Moved,
            (false, true) => Looked::Acted,
            (false, false) => Looked::Waits,
        })
    }

    /// States for other clusters how far this one is; while no rotation of the root is under way, how the last one ended. Signed again
    /// when it says something else, or a while has passed.
    async fn state_progress(&self, under_way: Option<(&Rotation, &Observations)>) -> Result<(), RotationError> {
        let last = match under_way {
            Some(_) => None,
            None => {
                let last = self.0.records.rotation().await?.map(|found| found.record.rotation);
                match last.filter(|last| last.kind == Kind::Root) {
                    None => self.0.records.last_of_root().await?,
                    last => last,
                }
            }
        };
        let (rotation, limits) = (under_way.map(|(rotation, _)| rotation).or(last.as_ref()), self.limits().await?);
        let step = rotation.map_or(0, |rotation| rotation.step);
        let progress = match under_way {
            Some((rotation, seen)) => Some(Progress::seen(rotation, seen, &limits)),
            None => rotation.map(Progress::over),
        };
        let heard = self.heard_of_others().await?;
        let (fresh, made) = {
            let last = self.0.rotations.stated.borrow();
            let last = last.as_ref();
            let says_so = |last: &Stated| last.step == step && last.progress == progress && last.heard == heard;
            let same = |last: &Stated| says_so(last) && last.at.elapsed() < STATED;
            (last.is_some_and(same), last.map(|last| last.made))
        };
        if !fresh {
            let made = Statement::next_made(made, (self.0.clock)());
            let state = self.state(progress.clone(), step, made, heard.clone()).await?;
            self.0.rotations.state.send_replace(Some(state.into()));
            self.0.rotations.stated.send_replace(Some(Stated { step, progress, heard, at: Instant::now(), made }));
        }
        Ok(())
    }

    /// How far this cluster is, signed, as others are told.
    ///
    /// # Errors
    /// Before the driver has looked for the first time.
    pub(crate) fn exported_state(&self) -> Result<Arc<str>, RotationError> {
        self.0.rotations.state.borrow().clone().ok_or(RotationError::NotStated)
    }

    /// Does what each replica does for itself while another drives.
    async fn follow_rotation(&self, rotation: &Rotation) -> Result<(), WorldError> {
        self.make_own_jwt_key(rotation).await?;
        let turned = matches!(rotation.phase, Phase::Switch | Phase::Reissue | Phase::Retire | Phase::Forget);
        if rotation.kind == Kind::Root && turned {
            self.sign_under(rotation.signing()).await?;
        }
        Ok(())
    }

    async fn make_own_jwt_key(&self, rotation: &Rotation) -> Result<(), WorldError> {
        if rotation.kind == Kind::Jwt && rotation.phase == Phase::Distribute && !rotation.back {
            self.make_jwt_generation(rotation.begun).await?;
        }
        Ok(())
    }

    /// Whose certificates are not to be replaced: those of every replica that does not sign by what is being left.
    fn issuers_that_stay(&self, rotation: &Rotation) -> Vec<Fingerprint> {
        let hierarchy = self.hierarchy();
        let own = (hierarchy.intermediate().info().fingerprint, hierarchy.root().fingerprint);
        let known = self.0.presences.known();
        let others = known.iter().filter(|state| !state.here).map(|state| state.presence.signing);
        let all = [own].into_iter().chain(others.map(|signing| (signing.intermediate, signing.root)));
        let left = |(intermediate, root): &(Fingerprint, Fingerprint)| {
            let anchor = Anchor::from(if rotation.kind == Kind::Root { *root } else { *intermediate });
            rotation.from() == Some(&anchor)
        };
        let mut stay: Vec<_> = all.filter(|held| !left(held)).map(|(intermediate, _)| intermediate).collect();
        stay.sort_unstable();
        stay.dedup();
        stay
    }

    /// Tells the nodes what is to be issued anew.
    fn order_reissue(&self, rotation: Option<&Rotation>, parties: usize) {
        let reissue = match rotation {
            Some(rotation) if rotation.phase == Phase::Reissue && rotation.kind != Kind::Jwt => Reissue {
                round: rotation.step,
                issuers: self.issuers_that_stay(rotation),
                spread: (PER_PARTY * u32::try_from(parties).unwrap_or(u32::MAX)).min(LONGEST_SPREAD),
            },
            _ => Reissue::default(),
        };
        self.0.rotations.reissue.send_if_modified(|held| {
            // How long it takes is decided once.
            let same = held.round == reissue.round && held.issuers == reissue.issuers;
            if !same {
                *held = Arc::new(reissue);
            }
            !same
        });
    }

    async fn lease(&self) -> Result<(), LeaseError> {
        // The same after a restart: nobody waits for a lease that its own dead self holds.
        let holder = self.replica().as_str();
        self.0.store.acquire_lease(LEASE, holder, LEASE_TTL, (self.0.clock)()).await.map(drop)
    }
}

/// How long after a look the next one is, at the least, when one takes so long.
pub(super) fn apart(cost: Duration) -> Duration {
    (cost * SELDOM).clamp(TOGETHER, LONGEST_APART)
}

const LEASE: &str = "rotation";
const LEASE_TTL: Duration = Duration::from_secs(30);
/// Reports come every minute: who misses three is silent.
const SILENCE: Duration = Duration::from_secs(200);
const SETTLE: Duration = Duration::from_millis(500);
/// Clocks may differ by so much before nothing works anyway.
const SKEW: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(2);
const TOGETHER: Duration = Duration::from_millis(50);
/// Between two looks so many times as long as one takes.
const SELDOM: u32 = 20;
const LONGEST_APART: Duration = Duration::from_secs(10);
/// So often it is signed, though it says the same.
const STATED: Duration = Duration::from_secs(60);
/// How often time that was waited is written down: so much is lost at most when the process dies.
const WRITE: Duration = Duration::from_secs(20);
/// A node asks for its leaves in a few requests; so many nodes in a second are no storm.
const PER_PARTY: Duration = Duration::from_millis(5);
const LONGEST_SPREAD: Duration = Duration::from_secs(600);
