//! `alcazar.ca.v1.Status`: how the CA is, for its operator.

use alcazar_api::ca::v1::{self, status_server::Status as StatusRpc};
use alcazar_service::{Health, Readiness, process};
use tonic::{Request, Response, Status};

use super::epoch;
use crate::ca::Ca;

pub(crate) struct StatusService {
    ca: Ca,
    readiness: Readiness,
}

impl StatusService {
    pub(crate) fn new(ca: Ca, readiness: Readiness) -> Self {
        Self { ca, readiness }
    }

    fn issuance(&self) -> v1::Issuance {
        let (metrics, admission) = (&self.ca.0.metrics, &self.ca.0.admission);
        let count = |name: &str, count| v1::Count { name: name.into(), count };
        v1::Issuance {
            asked: metrics.asked.value(),
            issued: metrics.issued.value(),
            refused_by_code: metrics.refusals().map(|(name, number)| count(name, number)).collect(),
            waiting: u64::try_from(admission.waiting()).unwrap_or(u64::MAX),
            overload_refusals: admission.refusals().map(|(name, number)| count(name, number)).collect(),
        }
    }
}

#[tonic::async_trait]
impl StatusRpc for StatusService {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::CaStatus>, Status> {
        let ca = &self.ca.0;
        let now = (ca.clock)();
        if let Err(error) = self.ca.look_for_the_oldest_leaf().await {
            tracing::debug!(reason = %process::chain(&error), "the oldest leaf is not known");
        }
        let horizon = self.ca.points().into_iter().map(|point| v1::HorizonPoint {
            name: point.of.as_ref().map_or_else(|| point.name.into(), |of| format!("{} of {of}", point.name)),
            fingerprint: point.fingerprint.to_string(),
            not_before: epoch(point.validity.not_before()),
            not_after: epoch(point.validity.not_after()),
            percent_left: point.percent_left(now),
        });
        let parts = self.readiness.parts().into_iter().map(|(name, health)| {
            let (state, reason) = match health {
                Health::Ready => ("ready", String::new()),
                Health::Degraded(reason) => ("degraded", reason),
                Health::NotReady(reason) => ("not ready", reason),
            };
            v1::PartHealth { name, state: state.into(), reason }
        });
        let troubles =
            ca.troubles.last().into_iter().map(|trouble| v1::Trouble { at: epoch(trouble.at), what: trouble.what });
        let facts = self.ca.facts().await.into_iter();
        let facts = facts.map(|fact| v1::Fact { part: fact.part.into(), name: fact.name, value: fact.value });
        Ok(Response::new(v1::CaStatus {
            trust_domain: ca.config.trust_domain.to_string(),
            cluster: ca.config.cluster.clone(),
            now: epoch(now),
            started_at: epoch(ca.started_at),
            horizon: horizon.collect(),
            issuance: Some(self.issuance()),
            parts: parts.collect(),
            troubles: troubles.collect(),
            facts: facts.collect(),
        }))
    }
}
