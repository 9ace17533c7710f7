//! Other clusters under the same root: how far each is, as its CA states it.
//!
//! Clusters share no store. Each states its own progress, signed by its intermediate, in a document that is served beside the bundle
//! and can be carried by hand. None goes on before all others are as far: a root is left by everybody, or by nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, Fingerprint, Signatory, StatementError, verify_statement};
use alcazar_mtls::{
    Expected as ExpectedPeer,
    web::{FetchError, HttpsUrl, Limits as FetchLimits, ParseHttpsUrlError, WebClient},
};
use alcazar_service::{Shutdown, process};
use alcazar_store::Expected;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Anchor, Class, Kind, Limits, Observations, Observed, Party, Phase, Report, Role, Rotation};
use crate::{
    authority::is_cluster_name,
    ca::Ca,
    config::Config,
    records::{RecordError, family, prefix, read, seconds},
    signer::SignError,
};

/// Another cluster, in `ca.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterConfig {
    /// Its name, as its CA's intermediate states it.
    pub name: String,
    /// The address of its CA's bundle endpoint, of the profile `https_spiffe`: `https://<host>:<port>`. Default: none, and what it
    /// states is brought by hand.
    #[serde(default)]
    pub endpoint: Option<String>,
}

/// How far a cluster is. What a later version adds is not read: clusters are upgraded one after the other, also amid a rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Statement {
    pub(crate) trust_domain: String,
    pub(crate) cluster: String,
    #[serde(with = "seconds")]
    pub(crate) made: SystemTime,
    /// When its CA began to count steps, in seconds since 1970: a store that was lost begins anew, and what it states counts.
    #[serde(default)]
    pub(crate) epoch: u64,
    /// Rises with what it states; of two of one epoch the higher one counts.
    pub(crate) step: u64,
    /// The root above its intermediate.
    pub(crate) signing: Anchor,
    /// Its rotation of the root, under way or over.
    pub(crate) rotation: Option<Progress>,
    /// What it had heard of others when it was made, by their names.
    #[serde(default)]
    pub(crate) heard: BTreeMap<String, Place>,
}

/// How far a cluster has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(super) epoch: u64,
    pub(super) step: u64,
}

/// The cluster that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Us<'a> {
    pub(super) cluster: &'a str,
    pub(super) epoch: u64,
}

/// Where a rotation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    pub(crate) old: Anchor,
    pub(crate) new: Option<Anchor>,
    pub(crate) back: bool,
    pub(crate) phase: Phase,
    /// Whether nobody of the cluster itself is waited for in this phase any more.
    pub(crate) settled: bool,
    /// Whether it has an intermediate under what it goes to.
    pub(crate) able: bool,
}

/// The same, signed. Bytes are in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signed {
    statement: String,
    signature: String,
    chain: Vec<String>,
}

/// What is kept of a cluster. Record `ca/clusters/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    statement: Statement,
    /// The fingerprints of the certificates that it was believed by, the signer's first.
    #[serde(default)]
    path: Vec<String>,
}

impl Progress {
    /// Where a rotation is that is under way, as far as is seen.
    pub(super) fn seen(rotation: &Rotation, seen: &Observations, limits: &Limits) -> Self {
        let settled = rotation.is_settled_at_home(seen, limits);
        Self { settled, able: rotation.to().is_some_and(|to| seen.able.contains(to)), ..Self::over(rotation) }
    }

    /// Where one is that is over.
    pub(super) fn over(rotation: &Rotation) -> Self {
        Self {
            old: rotation.old.clone(),
            new: rotation.new.clone(),
            back: rotation.back,
            phase: rotation.phase,
            settled: true,
            able: rotation.to().is_some(),
        }
    }
}

impl Statement {
    /// What the next one says of when it was made, after one that said `last`: whoever hears of two knows by it which is the newer,
    /// also of two that were made in one second. What a clock said that was ahead for a moment nobody has taken, nor would take what is
    /// counted on from there.
    pub(super) fn next_made(last: Option<SystemTime>, now: SystemTime) -> SystemTime {
        let now = crate::issue::whole_seconds(now);
        last.filter(|last| *last <= now + AHEAD).map_or(now, |last| now.max(last + Duration::from_secs(1)))
    }

    /// Whether it was made later than now, by more than clocks may differ.
    pub(super) fn is_of_the_future(&self, now: SystemTime) -> bool {
        self.made > now + AHEAD
    }

    /// Whether it is to be kept in place of this one. What was taken while the clock here was ahead, too, stands in nobody's way.
    pub(super) fn replaces(&self, held: &Self, now: SystemTime) -> bool {
        held.is_of_the_future(now) || self.is_newer_than(held)
    }

    /// How far it is, as others say that they have heard of it.
    pub(super) fn place(&self) -> Place {
        Place { epoch: self.epoch, step: self.step }
    }

    /// Whether it was made by one who knew that our rotation goes where it goes now. What is stated by one who did not is of a rotation
    /// to the same root that was given up before, or will be taken back: it may sign yet because of what we stated before.
    fn knows_of(&self, rotation: &Rotation, us: Us<'_>) -> bool {
        self.heard.get(us.cluster).is_some_and(|heard| heard.epoch == us.epoch && heard.step >= rotation.turned)
    }

    /// Whether its cluster is where ours goes back to, and has nothing under way that would lead away from there.
    fn is_at_home(&self, rotation: &Rotation) -> bool {
        let rests = self.rotation.as_ref().is_none_or(|other| other.phase == Phase::Done);
        rotation.back && rests && Some(&self.signing) == rotation.to()
    }

    fn is_newer_than(&self, held: &Self) -> bool {
        // A clock that was ahead when an epoch began is not believed for longer than it was.
        let place = |statement: &Self| {
            let made = seconds::of(statement.made);
            (statement.epoch.min(made), statement.step, made)
        };
        place(self) > place(held)
    }
}

impl Signed {
    /// Reads what another cluster has stated. `ours` is the cluster that reads.
    fn read(bytes: &[u8], ca: &Ca, now: SystemTime) -> Result<Kept, StateError> {
        if bytes.len() > LONGEST {
            return Err(StateError::Malformed);
        }
        let signed: Self = serde_json::from_slice(bytes).map_err(|_reason| StateError::Malformed)?;
        let decode = |text: &String| STANDARD.decode(text).map_err(|_reason| StateError::Malformed);
        let (message, signature) = (decode(&signed.statement)?, decode(&signed.signature)?);
        let chain =
            signed.chain.iter().map(|text| decode(text).map(CertificateDer::from)).collect::<Result<Vec<_>, _>>()?;
        let bundles = ca.hierarchy().bundles().clone();
        let bundle = bundles.get(ca.trust_domain()).ok_or(StateError::Malformed)?;
        let signatory = verify_statement(CONTEXT, &message, &signature, &chain, bundle, now)?;
        let statement: Statement = serde_json::from_slice(&message).map_err(|_reason| StateError::Malformed)?;
        let (by, path) = match signatory {
            Signatory::Intermediate { cluster, path, .. } => (cluster.unwrap_or_default(), path),
            Signatory::Root(_) => (String::new(), Vec::new()),
        };
        if let Some(revoked) = path.iter().find(|print| ca.is_revoked_intermediate(**print)) {
            return Err(StateError::Revoked { cluster: by, intermediate: *revoked });
        }
        if statement.trust_domain != ca.trust_domain().as_str() || by != statement.cluster {
            return Err(StateError::NotItsOwn { says: statement.cluster, by });
        }
        if statement.cluster == ca.config().cluster {
            return Err(StateError::Ours);
        }
        if statement.is_of_the_future(now) {
            return Err(StateError::Future(statement.cluster));
        }
        if !ca.config().clusters.iter().any(|known| known.name == statement.cluster) {
            return Err(StateError::Unknown(statement.cluster));
        }
        Ok(Kept { statement, path: path.iter().map(ToString::to_string).collect() })
    }
}

/// A cluster as the machine knows it: what it has stated means as much as our own rotation asks of it.
pub(super) fn report(stated: &Statement, rotation: &Rotation, sequence: u64, us: Us<'_>) -> Report {
    let knows = stated.knows_of(rotation, us);
    let to: BTreeSet<_> = rotation.to().cloned().into_iter().collect();
    if knows && stated.is_at_home(rotation) {
        let signing = Some(stated.signing.clone());
        return Report { sequence, round: rotation.step, signing, able: to, ..Report::default() };
    }
    let progress = stated.rotation.as_ref().filter(|other| {
        let same = other.old == rotation.old && other.new == rotation.new && other.back == rotation.back;
        knows && same && other.new.is_some()
    });
    // As far as a phase, and done with it.
    let far = |phase| progress.is_some_and(|other| other.phase > phase || (other.phase == phase && other.settled));
    let reached = |phase| progress.is_some_and(|other| other.phase >= phase);
    let from = rotation.from().cloned();
    let mut report = Report { signing: Some(stated.signing.clone()), ..Report::default() };
    if far(if rotation.phase == Phase::Retire { Phase::Retire } else { Phase::Distribute }) {
        report.sequence = sequence;
    }
    if reached(Phase::Reissue) {
        report.round = rotation.step;
    }
    if !far(Phase::Reissue) {
        report.leaves = from.into_iter().map(|from| (from, 1)).collect();
    }
    if progress.is_some_and(|other| other.able) || reached(Phase::Switch) {
        report.able = to;
    }
    report
}

impl Ca {
    /// Every other cluster under the root, as a party.
    pub(super) async fn clusters(&self, rotation: &Rotation, sequence: u64) -> Result<Vec<Party>, RecordError> {
        if rotation.kind != Kind::Root {
            return Ok(Vec::new());
        }
        let now = (self.0.clock)();
        let us = Us { cluster: &self.config().cluster, epoch: self.0.records.epoch(now).await? };
        let known = self.stated_by_others().await?;
        let party = |(name, stated): (String, Option<Statement>)| {
            let heard = stated.as_ref().map_or(rotation.started, |stated| stated.made);
            let silent = now.duration_since(heard).unwrap_or_else(|ahead| ahead.duration());
            let report = stated.map(|stated| report(&stated, rotation, sequence, us));
            let class = Class::Observed(Observed { role: Role::Cluster, silent, report });
            Party { name: format!("the cluster {name}"), class }
        };
        Ok(known.into_iter().map(party).collect())
    }

    /// What every other cluster in the configuration has stated last.
    async fn stated_by_others(&self) -> Result<BTreeMap<String, Option<Statement>>, RecordError> {
        let mut known: BTreeMap<_, _> = self.config().clusters.iter().map(|one| (one.name.clone(), None)).collect();
        if known.is_empty() {
            return Ok(known);
        }
        for entry in self.0.records.store().list(&prefix(family::CLUSTERS)?).await?.entries {
            let kept = read::<Kept>(&entry)?.record;
            // One that left the configuration is waited for no more; one whose signer was revoked since has said nothing.
            if let Some(stated) = known.get_mut(&kept.statement.cluster).filter(|_| !self.is_revoked(&kept)) {
                *stated = Some(kept.statement);
            }
        }
        Ok(known)
    }

    /// How far each of the others is known to be.
    pub(super) async fn heard_of_others(&self) -> Result<BTreeMap<String, Place>, RecordError> {
        let stated = self.stated_by_others().await?.into_iter();
        Ok(stated.filter_map(|(name, stated)| Some((name, stated?.place()))).collect())
    }

    /// Whether any list takes this intermediate of our trust domain back.
    fn is_revoked_intermediate(&self, intermediate: Fingerprint) -> bool {
        let published = self.follow_revocations().borrow().clone();
        published.revocations.of_intermediate(self.trust_domain(), intermediate).is_some()
    }

    fn is_revoked(&self, kept: &Kept) -> bool {
        kept.path
            .iter()
            .any(|print| print.parse::<Fingerprint>().is_ok_and(|print| self.is_revoked_intermediate(print)))
    }

    /// States how far this cluster is, signed by its intermediate. `made` is in whole seconds.
    ///
    /// # Errors
    /// When the key does not sign.
    pub(super) async fn state(
        &self,
        rotation: Option<Progress>,
        step: u64,
        made: SystemTime,
        heard: BTreeMap<String, Place>,
    ) -> Result<String, StateError> {
        let hierarchy = self.hierarchy();
        let epoch = self.0.records.epoch((self.0.clock)()).await?;
        let statement = Statement {
            trust_domain: self.trust_domain().to_string(),
            cluster: self.config().cluster.clone(),
            made,
            epoch,
            step,
            signing: hierarchy.root().fingerprint.into(),
            rotation,
            heard,
        };
        let message = serde_json::to_vec(&statement).map_err(|_reason| StateError::Malformed)?;
        self.signed_state(message).await
    }

    /// What is stated, signed.
    pub(super) async fn signed_state(&self, message: Vec<u8>) -> Result<String, StateError> {
        let hierarchy = self.hierarchy();
        let signer = Arc::clone(hierarchy.intermediate().signer());
        let to_be_signed = [CONTEXT, &message].concat();
        let signature = self.0.signing.with(move || signer.sign(&to_be_signed)).await??;
        let chain = hierarchy.upper().iter().map(|one| STANDARD.encode(one)).collect();
        let signed = Signed { statement: STANDARD.encode(message), signature: STANDARD.encode(signature), chain };
        serde_json::to_string(&signed).map_err(|_reason| StateError::Malformed)
    }

    /// Keeps what another cluster has stated; its name, and whether it is news.
    ///
    /// # Errors
    /// When it is not what that cluster's CA has signed, or the store does not answer.
    pub(crate) async fn import_state(&self, bytes: &[u8]) -> Result<(String, bool), StateError> {
        let now = (self.0.clock)();
        let kept = Signed::read(bytes, self, now)?;
        let name = kept.statement.cluster.clone();
        loop {
            let found = self.0.records.get::<Kept>(family::CLUSTERS, &name).await?;
            // What somebody with a revoked key has stated stands in nobody's way.
            let expected = match &found {
                Some(found) if self.stands(&found.record, &kept.statement, now) => return Ok((name, false)),
                Some(found) => Expected::At(found.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::CLUSTERS, &name, expected, &kept).await {
                Err(error) if error.is_conflict() => {}
                outcome => {
                    outcome?;
                    self.0.rotations.wake.notify_one();
                    return Ok((name, true));
                }
            }
        }
    }

    /// Whether what is kept is not to be replaced by this.
    fn stands(&self, held: &Kept, next: &Statement, now: SystemTime) -> bool {
        !self.is_revoked(held) && !next.replaces(&held.statement, now)
    }

    /// Asks the other clusters how far they are, until the end: often while a rotation of the root is under way, and at times to know of
    /// theirs, so that they need not wait for one that has nothing under way.
    pub(crate) async fn follow_clusters(self, shutdown: Shutdown) {
        let clusters = self.config().clusters.clone();
        let mut said: BTreeMap<String, String> = BTreeMap::new();
        for round in 0u64.. {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let found = self.0.records.rotation().await.ok().flatten().map(|found| found.record.rotation);
            let rotates = found.is_some_and(|rotation| rotation.kind == Kind::Root && !rotation.is_over());
            if !rotates && !round.is_multiple_of(SELDOM) {
                continue;
            }
            for (name, endpoint) in clusters.iter().filter_map(|one| Some((&one.name, one.endpoint.as_ref()?))) {
                let fetched = tokio::select! {
                    () = shutdown.cancelled() => return,
                    fetched = self.fetch_state(endpoint) => fetched,
                };
                match fetched {
                    Ok(_) => drop(said.remove(name)),
                    Err(error) => {
                        let reason = process::chain(&error);
                        if said.insert(name.clone(), reason.clone()).as_ref() != Some(&reason) {
                            tracing::warn!(target: "alcazar::rotation", cluster = name, endpoint, reason, "another cluster does not say how far it is; the rotation waits for it");
                        }
                    }
                }
            }
        }
    }

    async fn fetch_state(&self, endpoint: &str) -> Result<bool, StateError> {
        let url: HttpsUrl = format!("{}{PATH}", endpoint.trim_end_matches('/')).parse()?;
        // Every CA of the trust domain has the same name; what it states is signed by its own intermediate.
        let client = WebClient::spiffe(
            self.hierarchy().bundles().clone(),
            ExpectedPeer::id(self.id()),
            Arc::clone(&self.0.clock),
        )
        .with_revocations(self.revocations());
        let document = client.with_limits(FetchLimits { bytes: LONGEST, deadline: DEADLINE }).fetch(&url).await?;
        Ok(self.import_state(&document.bytes).await?.1)
    }
}

/// Whether the clusters in the configuration can be.
pub(crate) fn check(config: &Config) -> Result<(), ClusterConfigError> {
    for (place, one) in config.clusters.iter().enumerate() {
        if !is_cluster_name(&config.trust_domain, &one.name) {
            return Err(ClusterConfigError::Name(one.name.clone()));
        }
        if one.name == config.cluster || config.clusters.iter().take(place).any(|other| other.name == one.name) {
            return Err(ClusterConfigError::Twice(one.name.clone()));
        }
        let wrong = |source| ClusterConfigError::Endpoint { name: one.name.clone(), source };
        one.endpoint.as_ref().map(|url| url.parse::<HttpsUrl>()).transpose().map_err(wrong)?;
    }
    Ok(())
}

/// What of it makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClusterConfigError {
    /// Not the name of a cluster.
    #[error("clusters: {0:?} is not the name of a cluster")]
    Name(String),
    /// This one, or one that stands there twice.
    #[error("clusters: {0} stands twice, or is this one")]
    Twice(String),
    /// Not an address.
    #[error("clusters: {name}: endpoint")]
    Endpoint {
        /// The cluster.
        name: String,
        /// What is wrong.
        source: ParseHttpsUrlError,
    },
}

/// Why the state of another cluster was not taken.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("it is not the state of a cluster; alcazar root rotation --export-state writes one")]
    Malformed,
    #[error("it is not signed by an intermediate under a root that is trusted here")]
    Statement(#[from] StatementError),
    #[error("it speaks of the cluster {says:?} and is signed by that of {by:?}")]
    NotItsOwn { says: String, by: String },
    #[error("it is of this cluster")]
    Ours,
    #[error("the state of the cluster {0} was made later than now, by the clock here; set the clocks")]
    Future(String),
    #[error(
        "the cluster {0} is not among the clusters: in ca.yaml; nobody waits for it, so what it states means nothing here"
    )]
    Unknown(String),
    #[error("it is signed by {intermediate}, an intermediate of the cluster {cluster:?} that was revoked")]
    Revoked { cluster: String, intermediate: Fingerprint },
    #[error("this cluster's own state cannot be signed")]
    Sign(#[from] SignError),
    #[error("the address of the endpoint")]
    Url(#[from] ParseHttpsUrlError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Records(#[from] RecordError),
}

/// Where it is served, beside the bundle.
pub(crate) const PATH: &str = "/rotation-state.json";
const CONTEXT: &[u8] = b"alcazar cluster state 1\n";
const LONGEST: usize = 64 << 10;
const DEADLINE: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(5);
/// Once in so many times, where there is no hurry.
const SELDOM: u64 = 12;
/// Clocks may differ.
const AHEAD: Duration = Duration::from_secs(300);
