//! How each replica is, as it says itself, and who is there.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;
use alcazar_service::{Part, Shutdown, process};
use alcazar_store::{Expected, LeaseError, Revision};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::ReplicaId;
use crate::{
    ca::Ca,
    hierarchy::{Renewal, blocking},
    records::{RecordError, family, prefix, read, seconds, text},
    serial::random_bytes,
};

/// What a replica says of itself. Record `ca/replicas/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// The name of its machine, for people.
    pub host: String,
    /// The version of its program.
    pub version: String,
    /// Random for each process: two processes with copies of one data folder are told apart by it.
    pub instance: String,
    /// When the process began.
    #[serde(with = "seconds")]
    pub started: SystemTime,
    /// When it said this.
    #[serde(with = "seconds")]
    pub seen: SystemTime,
    /// What it does.
    pub phase: Phase,
    /// The sequence of the bundle that it publishes.
    pub sequence: u64,
    /// The reissue that it orders from its nodes; 0 for none.
    pub round: u64,
    /// What it signs with.
    pub signing: HeldIntermediate,
    /// Whether another replica gave it that, with the key, and signs with it too.
    #[serde(default)]
    pub shared: bool,
    /// The end of what it signs with.
    #[serde(with = "seconds")]
    pub not_after: SystemTime,
    /// The issuer of the certificate that it serves with.
    #[serde(with = "text")]
    pub serving: Fingerprint,
    /// The sequence of the bundle that it believes as a server.
    pub serving_sequence: u64,
    /// Every intermediate that it could sign with.
    pub held: Vec<HeldIntermediate>,
    /// The roots whose keys it has.
    #[serde(with = "prints")]
    pub roots: Vec<Fingerprint>,
    /// The name of its ledger.
    pub ledger: String,
    /// How many entries that has.
    pub entries: u64,
}

/// An intermediate and the root above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldIntermediate {
    /// The intermediate.
    #[serde(with = "text")]
    pub intermediate: Fingerprint,
    /// Its root.
    #[serde(with = "text")]
    pub root: Fingerprint,
}

/// What a replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It issues.
    Serving,
    /// It finishes what was asked, and takes nothing more.
    Draining,
    /// It has ended in order, and signs nothing until it says otherwise.
    Stopped,
}

/// A replica, as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Its name.
    pub id: ReplicaId,
    /// Whether it is this one.
    pub here: bool,
    /// What it said last.
    pub presence: Presence,
}

impl ReplicaState {
    /// Whether it has not been heard of for so long that nobody counts on it. It may sign all the same, cut off from the store.
    pub fn is_gone(&self, now: SystemTime) -> bool {
        !self.here && now.duration_since(self.presence.seen).unwrap_or_default() > GONE
    }

    /// Whether it is another one, which signs at this moment as far as is known.
    pub(crate) fn signs_elsewhere(&self, now: SystemTime) -> bool {
        !self.here && self.presence.phase != Phase::Stopped && !self.is_gone(now)
    }

    /// As people know it.
    pub(crate) fn name(&self) -> String {
        format!("the replica {} on {}", self.id, self.presence.host)
    }
}

/// What this replica knows of all, and its own last word.
pub(crate) struct Presences {
    instance: String,
    host: String,
    phase: watch::Sender<Phase>,
    /// Held while it speaks: the revision of its last word.
    said: tokio::sync::Mutex<Option<Revision>>,
    known: watch::Sender<Arc<Vec<ReplicaState>>>,
    /// Held while it asks the others for an intermediate.
    asking: tokio::sync::Mutex<()>,
}

impl Presences {
    pub(crate) fn new() -> Result<Self, crate::serial::NoRandomness> {
        let host = std::fs::read_to_string(HOST_NAME).unwrap_or_default().trim().to_owned();
        Ok(Self {
            instance: format!("{:016x}", u64::from_be_bytes(random_bytes()?)),
            host,
            phase: watch::Sender::new(Phase::Serving),
            said: tokio::sync::Mutex::default(),
            known: watch::Sender::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// The turn of whoever asks the others for an intermediate.
    pub(super) fn asking(&self) -> &tokio::sync::Mutex<()> {
        &self.asking
    }

    /// Who was there at the last look.
    pub(crate) fn known(&self) -> Arc<Vec<ReplicaState>> {
        self.known.borrow().clone()
    }
}

impl Ca {
    /// The name of this replica.
    pub fn replica(&self) -> &ReplicaId {
        &self.0.folder.replica
    }

    /// Every replica of this CA that has been heard of in the last days, this one first, as it is at this moment.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn replicas(&self) -> Result<Vec<ReplicaState>, RecordError> {
        let own = ReplicaState { id: self.replica().clone(), here: true, presence: self.presence().await };
        let family = prefix(family::REPLICAS)?;
        let mut states = vec![own];
        for entry in self.0.records.store().list(&family).await?.entries {
            let Ok(id) = entry.key().name().parse::<ReplicaId>() else { continue };
            if id != *self.replica() {
                states.push(ReplicaState { id, here: false, presence: read::<Presence>(&entry)?.record });
            }
        }
        self.0.presences.known.send_replace(Arc::new(states.clone()));
        Ok(states)
    }

    /// How this replica is at this moment.
    async fn presence(&self) -> Presence {
        let (hierarchy, serving) = (self.hierarchy(), self.0.serving.borrow().clone());
        let own = HeldIntermediate {
            intermediate: hierarchy.intermediate().info().fingerprint,
            root: hierarchy.root().fingerprint,
        };
        let (mut held, mut roots) = (vec![own], Vec::new());
        // Where the disk cannot be read, what signs is what there is.
        let (files, present) = (self.0.files.clone(), hierarchy.clone());
        if let Ok(found) = blocking(move || files.holdings(present.signing(), present.roots())).await {
            let of = |(intermediate, root)| HeldIntermediate { intermediate, root };
            held.extend(found.intermediates.into_iter().map(of));
            roots = found.roots;
        }
        held.sort_unstable();
        held.dedup();
        let sequence = |bundles: &alcazar_identity::TrustBundles| {
            bundles.get(self.trust_domain()).map_or(0, alcazar_identity::TrustBundle::sequence)
        };
        let issuer = serving.svid().chain().get(1).map(|issuer| Fingerprint::of(issuer));
        let head = self.0.ledger.head();
        let presences = &self.0.presences;
        Presence {
            host: presences.host.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            instance: presences.instance.clone(),
            started: crate::issue::whole_seconds(self.0.started_at),
            seen: crate::issue::whole_seconds((self.0.clock)()),
            phase: *presences.phase.borrow(),
            sequence: sequence(hierarchy.bundles()),
            round: self.0.rotations.reissue.borrow().round,
            signing: own,
            shared: hierarchy.signing().renewal == Renewal::Sharer,
            not_after: hierarchy.intermediate().info().validity.not_after(),
            serving: issuer.unwrap_or(own.intermediate),
            serving_sequence: sequence(serving.bundles()),
            held,
            roots,
            ledger: self.0.ledger.name(),
            entries: head.size,
        }
    }

    /// Says how this replica is.
    ///
    /// # Errors
    /// When the store does not answer, or another process has spoken in this replica's name.
    pub(crate) async fn tell_presence(&self) -> Result<Told, RecordError> {
        // A rotation waits for a replica that is silent: what it must know comes first.
        self.pay_notes().await?;
        let mut said = self.0.presences.said.lock().await;
        let name = self.replica().as_str();
        let presence = self.presence().await;
        let expected = match *said {
            Some(revision) => Expected::At(revision),
            None => match self.0.records.get::<Presence>(family::REPLICAS, name).await? {
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            },
        };
        match self.0.records.put(family::REPLICAS, name, expected, &presence).await {
            Ok(revision) => {
                *said = Some(revision);
                Ok(Told::Said)
            }
            Err(error) if error.is_conflict() => {
                // What was last written and not acknowledged may have been ours.
                *said = None;
                let found = self.0.records.get::<Presence>(family::REPLICAS, name).await?;
                let twin = found.map(|found| found.record).filter(|found| found.instance != presence.instance);
                Ok(twin.map_or(Told::Again, |twin| Told::Twin(twin.host)))
            }
            Err(error) => Err(error),
        }
    }

    /// From now on it says that it drains, or has stopped.
    pub(crate) async fn enter_phase(&self, phase: Phase) {
        self.0.presences.phase.send_replace(phase);
        let told = tokio::time::timeout(LAST_WORD, self.tell_presence()).await;
        if let Ok(Err(error)) = told {
            tracing::debug!(reason = %process::chain(&error), "the others were not told that this replica ends");
        }
    }

    /// Says how this replica is, now and then and at each change, and listens to the others, until the end.
    pub(crate) async fn keep_presence(self, part: Part, shutdown: Shutdown) {
        let (mut hierarchy, mut reissue) = (self.0.hierarchy.subscribe(), self.0.rotations.reissue.subscribe());
        let mut serving = self.0.serving.subscribe();
        let mut forgot: Option<tokio::time::Instant> = None;
        loop {
            let mut pause = EVERY;
            match self.tell_presence().await {
                Ok(Told::Said) => part.ready(),
                Ok(Told::Again) => pause = Duration::ZERO,
                Ok(Told::Twin(host)) => {
                    let what = format!(
                        "another process, on {host}, has a copy of this replica's data folder ({}): stop one of them, and give it a folder of its own",
                        self.replica()
                    );
                    tracing::error!("{what}");
                    part.degraded(what);
                }
                // The store's own state is told by others.
                Err(error) => {
                    tracing::debug!(reason = %process::chain(&error), "the other replicas were not told how this one is");
                }
            }
            if let Err(error) = self.replicas().await {
                tracing::debug!(reason = %process::chain(&error), "how the other replicas are is not known");
            }
            if forgot.is_none_or(|at| at.elapsed() >= HOUR) {
                forgot = Some(tokio::time::Instant::now());
                if let Err(error) = self.forget_gone_replicas().await {
                    tracing::warn!(reason = %process::chain(&error), "records of replicas that are gone were not removed");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                _ = hierarchy.changed() => {}
                _ = reissue.changed() => {}
                _ = serving.changed() => {}
            }
        }
    }

    /// What the operator is told of the replicas.
    pub(crate) fn told_of_replicas(&self) -> Vec<(String, String)> {
        let now = (self.0.clock)();
        self.0.presences.known().iter().map(|state| (state.id.to_string(), describe(state, now))).collect()
    }

    /// Removes what is kept of replicas that have not been heard of for a week. One replica at a time does.
    async fn forget_gone_replicas(&self) -> Result<(), RecordError> {
        let now = (self.0.clock)();
        let lease = match self.0.store.acquire_lease(LEASE, self.replica().as_str(), GONE, now).await {
            Ok(lease) => lease,
            Err(LeaseError::Store(error)) => return Err(error.into()),
            Err(_) => return Ok(()),
        };
        for entry in self.0.records.store().list(&prefix(family::REPLICAS)?).await?.entries {
            let Ok(id) = entry.key().name().parse::<ReplicaId>() else { continue };
            let found = read::<Presence>(&entry)?;
            let silent = now.duration_since(found.record.seen).unwrap_or_default();
            if id == *self.replica() || silent < FORGET {
                continue;
            }
            match self.0.records.delete(family::REPLICAS, id.as_str(), found.revision).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    tracing::info!(replica = %id, host = found.record.host, "a replica has not been heard of for a week, and is forgotten");
                }
            }
        }
        match self.0.store.release_lease(&lease).await {
            Err(LeaseError::Store(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// What came of saying how this replica is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Said,
    /// The store did not say whether the last word was written: it is said once more.
    Again,
    /// Another process, on this machine, has the same name.
    Twin(String),
}

fn describe(state: &ReplicaState, now: SystemTime) -> String {
    let Presence { host, phase, seen, signing, sequence, entries, .. } = &state.presence;
    let ago = now.duration_since(*seen).unwrap_or_default().as_secs();
    let how = match phase {
        _ if state.here => "this one".to_owned(),
        Phase::Stopped => format!("stopped {ago} s ago"),
        _ if state.is_gone(now) => format!("GONE, last heard of {ago} s ago"),
        Phase::Draining => "draining".to_owned(),
        Phase::Serving => format!("heard of {ago} s ago"),
    };
    let intermediate: String = signing.intermediate.to_string().chars().take(16).collect();
    format!("{host}, {how}; signs with {intermediate}…, bundle {sequence}, {entries} entries in its ledger")
}

/// Fingerprints as texts.
mod prints {
    use alcazar_identity::Fingerprint;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(prints: &[Fingerprint], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(prints.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Fingerprint>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

/// How often a replica says that it is there.
const EVERY: Duration = Duration::from_secs(15);
/// Who misses four is gone.
const GONE: Duration = Duration::from_secs(60);
const FORGET: Duration = Duration::from_secs(7 * 24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
/// Nobody waits long for a store that is away to end.
const LAST_WORD: Duration = Duration::from_secs(2);
const LEASE: &str = "replicas";
/// In a container, the container's; in a pod, the pod's.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
