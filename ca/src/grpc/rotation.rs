//! `alcazar.ca.v1.Rotation` for the operator, `alcazar.ca.v1.Adoption` for nodes.

use std::collections::BTreeMap;

use alcazar_api::ca::v1::{self, RotationKind, adoption_server::Adoption, rotation_server::Rotation};
use alcazar_service::{Shutdown, process};
use tonic::{Request, Response, Status};

use super::{
    caller, epoch,
    traced::about,
    watched::{Messages, Sender, watched},
};
use crate::{
    ca::Ca,
    rotation::{Adopted, Kind, Reissue, RotationError, Shown, Standing, StateError, Wait, Why},
};

pub(crate) struct RotationService {
    ca: Ca,
}

impl RotationService {
    pub(crate) fn new(ca: Ca) -> Self {
        Self { ca }
    }
}

#[tonic::async_trait]
impl Rotation for RotationService {
    async fn start_rotation(
        &self,
        request: Request<v1::StartRotationRequest>,
    ) -> Result<Response<v1::RotationStatus>, Status> {
        let kind = match request.get_ref().kind() {
            RotationKind::Intermediate => Kind::Intermediate,
            RotationKind::Root if !request.get_ref().new_root.is_empty() => {
                let roots = request.into_inner().new_root.into_iter().map(Into::into).collect();
                return answer(self.ca.start_rotation_to(roots).await);
            }
            RotationKind::Root => Kind::Root,
            RotationKind::Jwt if request.get_ref().compromised => return answer(self.ca.replace_stolen().await),
            RotationKind::Jwt => Kind::Jwt,
            RotationKind::Unspecified => return Err(Status::invalid_argument("no such kind of rotation")),
        };
        about(format!("{kind}"));
        answer(self.ca.start_rotation(kind).await)
    }

    async fn get_rotation(
        &self,
        _request: Request<v1::GetRotationRequest>,
    ) -> Result<Response<v1::RotationStatus>, Status> {
        match self.ca.rotation().await {
            Ok(None) => Ok(Response::new(v1::RotationStatus::default())),
            Ok(Some(shown)) => answer(Ok(shown)),
            Err(error) => answer(Err(error)),
        }
    }

    async fn abort_rotation(
        &self,
        _request: Request<v1::AbortRotationRequest>,
    ) -> Result<Response<v1::RotationStatus>, Status> {
        answer(self.ca.abort_rotation().await)
    }

    async fn export_cluster_state(
        &self,
        _request: Request<v1::ExportClusterStateRequest>,
    ) -> Result<Response<v1::ClusterState>, Status> {
        let state = self.ca.exported_state().map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(v1::ClusterState { state: state.as_bytes().to_vec() }))
    }

    async fn import_cluster_state(
        &self,
        request: Request<v1::ClusterState>,
    ) -> Result<Response<v1::ImportClusterStateResponse>, Status> {
        let imported = self.ca.import_state(&request.get_ref().state).await;
        let (cluster, news) = imported.map_err(|error| match &error {
            StateError::Records(_) => Status::unavailable(process::chain(&error)),
            _ => Status::invalid_argument(process::chain(&error)),
        })?;
        Ok(Response::new(v1::ImportClusterStateResponse { cluster, news }))
    }

    async fn force_rotation(
        &self,
        request: Request<v1::ForceRotationRequest>,
    ) -> Result<Response<v1::RotationStatus>, Status> {
        let request = request.into_inner();
        let parties: std::collections::BTreeSet<_> = request.parties.into_iter().collect();
        about(format!("past {}", parties.iter().cloned().collect::<Vec<_>>().join(", ")));
        answer(self.ca.force_rotation(request.step, &parties).await)
    }
}

pub(crate) struct AdoptionService {
    ca: Ca,
    shutdown: Shutdown,
}

impl AdoptionService {
    pub(crate) fn new(ca: Ca, shutdown: Shutdown) -> Self {
        Self { ca, shutdown }
    }
}

#[tonic::async_trait]
impl Adoption for AdoptionService {
    async fn report_adoption(
        &self,
        request: Request<v1::ReportAdoptionRequest>,
    ) -> Result<Response<v1::ReportAdoptionResponse>, Status> {
        let node = super::calling(&self.ca, &request, super::Call::Report).await;
        let node = node.map_err(|error| self.ca.refuse(&error, &caller(&request), "ReportAdoption"))?;
        let said = adopted(&self.ca, request.into_inner());
        let kept = self.ca.0.records.put_adopted(&node.id, &said).await;
        kept.map_err(|error| {
            tracing::error!(node = %node.id, reason = %process::chain(&error), "what a node reported was not kept");
            Status::unavailable("try again")
        })?;
        self.ca.0.rotations.wake.notify_one();
        Ok(Response::new(v1::ReportAdoptionResponse {}))
    }

    type WatchReissueStream = Messages<v1::Reissue>;

    async fn watch_reissue(
        &self,
        request: Request<v1::WatchReissueRequest>,
    ) -> Result<Response<Self::WatchReissueStream>, Status> {
        let node = super::calling(&self.ca, &request, super::Call::Watch).await;
        node.map_err(|error| self.ca.refuse(&error, &caller(&request), "WatchReissue"))?;
        let mut reissue = self.ca.0.rotations.reissue.subscribe();
        Ok(watched(&self.shutdown, "reissues for a node", async move |sender: Sender<_>| {
            loop {
                let message = reissue_message(&reissue.borrow_and_update().clone());
                if sender.send(Ok(message)).await.is_err() || reissue.changed().await.is_err() {
                    return;
                }
            }
        }))
    }
}

/// What a node says, in the form in which it is kept: bounded, whatever it sends.
fn adopted(ca: &Ca, message: v1::ReportAdoptionRequest) -> Adopted {
    let now = (ca.0.clock)();
    let mut leaves = BTreeMap::new();
    for leaf in message.leaves.iter().filter(|leaf| leaf.not_after > epoch(now)) {
        // What cannot be read counts as somebody's whom nobody knows.
        let issuer = match leaf.issuer.len() {
            32 => leaf.issuer.iter().map(|byte| format!("{byte:02x}")).collect(),
            _ => UNKNOWN.to_owned(),
        };
        if leaves.len() < ISSUERS || leaves.contains_key(&issuer) {
            *leaves.entry(issuer).or_insert(0) += 1;
        } else {
            *leaves.entry(UNKNOWN.to_owned()).or_insert(0) += 1;
        }
    }
    let short = |text: String| text.chars().take(NAME).collect();
    let behind = message.behind.into_iter().take(NAMED).map(short).collect();
    Adopted { heard: now, sequence: message.sequence, round: message.round, leaves, behind }
}

fn reissue_message(reissue: &Reissue) -> v1::Reissue {
    v1::Reissue {
        round: reissue.round,
        issuers: reissue.issuers.iter().map(|issuer| issuer.as_bytes().to_vec()).collect(),
        spread_milliseconds: u32::try_from(reissue.spread.as_millis()).unwrap_or(u32::MAX),
    }
}

fn answer(outcome: Result<Shown, RotationError>) -> Result<Response<v1::RotationStatus>, Status> {
    let shown = outcome.map_err(|error| match error {
        RotationError::None
        | RotationError::UnderWay(_)
        | RotationError::MovedOn(_)
        | RotationError::Plugged(_)
        | RotationError::Shared(_)
        | RotationError::WhichRoot(_)
        | RotationError::RootOver { .. }
        | RotationError::Abort(_)
        | RotationError::Force(_) => Status::failed_precondition(error.to_string()),
        RotationError::NotARoot(_) | RotationError::UnfitRoot { .. } => {
            Status::invalid_argument(process::chain(&error).to_string())
        }
        other => Status::unavailable(process::chain(&other).to_string()),
    })?;
    let rotation = &shown.rotation;
    let kind = match rotation.kind {
        Kind::Root => RotationKind::Root,
        Kind::Intermediate => RotationKind::Intermediate,
        Kind::Jwt => RotationKind::Jwt,
    };
    Ok(Response::new(v1::RotationStatus {
        kind: kind.into(),
        phase: rotation.phase.to_string(),
        back: rotation.back,
        started: epoch(rotation.started),
        entered: epoch(rotation.entered),
        old: rotation.old.to_string(),
        new: rotation.new.as_ref().map(ToString::to_string).unwrap_or_default(),
        waits: shown.waits.iter().map(|wait| wait_message(wait, rotation.kind)).collect(),
        problem: shown.problem.unwrap_or_default(),
        step: rotation.step,
    }))
}

fn wait_message(wait: &Wait, kind: Kind) -> v1::RotationWait {
    let person = if kind == Kind::Root { BRING } else { BRING_ANOTHER };
    let (standing, span) = match wait.standing {
        Standing::Awaited => ("awaited", None),
        Standing::Unreachable(silent) => ("unreachable", Some(silent)),
        Standing::Timed(left) => ("timed", Some(left)),
        Standing::Person => ("person", None),
    };
    v1::RotationWait {
        party: wait.party.clone(),
        standing: standing.into(),
        seconds: span.map_or(0, |span| i64::try_from(span.as_secs()).unwrap_or(i64::MAX)),
        why: if wait.standing == Standing::Person { person.into() } else { why(&wait.why) },
        forceable: wait.is_forceable(),
    }
}

fn why(why: &Why) -> String {
    let of = |behind: &[String]| match behind {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    };
    match why {
        Why::Unheard => "has never reported".into(),
        Why::Bundle { holds, wanted, behind } => {
            format!("enforces the trust bundle of sequence {holds}, not {wanted}{}", of(behind))
        }
        Why::Signer => "does not sign by the new one yet".into(),
        Why::Round => "has not heard of the reissue yet".into(),
        Why::Leaves { count, behind } => format!("{count} certificates are not issued anew yet{}", of(behind)),
        Why::BundleLife => "looks at the trust bundle no more often than that".into(),
        Why::LeafLife => "what was issued to it lives no longer than that".into(),
        Why::Intermediate => "it has no key of its own under the new one yet".into(),
    }
}

/// What a person is asked for.
const BRING: &str =
    "plug in an intermediate under the new root: alcazar ca request, alcazar root sign, alcazar ca install";
/// The same where the root stays.
const BRING_ANOTHER: &str = "plug in another intermediate: alcazar ca request, alcazar root sign, alcazar ca install";
/// No node has leaves of more issuers than that at a time.
const ISSUERS: usize = 64;
const UNKNOWN: &str = "unknown";
const NAMED: usize = 16;
const NAME: usize = 256;
