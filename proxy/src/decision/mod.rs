//! Decisions: made by policy, told to the caller by id, and to people in full.

mod bucket;
mod ids;
mod log;

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use alcazar_policy::{
    Decision, DecisionRecord, DestinationRecord, Headers, LogContext, Protocol, ProtocolRecord, Reason, ReasonRecord,
    Request, RequestRecord, Schema, SourceRecord, Verdict,
};
use http::{HeaderMap, HeaderName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use ids::Ids;
pub(crate) use log::DecisionLog;
pub use log::OpenLogError;

use bucket::Bucket;

use crate::mesh::Snapshot;

/// Decides for one worker.
pub(crate) struct Decisions {
    ids: Ids,
    log: Option<DecisionLog>,
    explained: Mutex<Bucket>,
}

/// A request that policy denies; the id under which the log has the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) id: String,
}

impl Decisions {
    pub(crate) fn new(ids: Ids, log: Option<DecisionLog>) -> Self {
        Self { ids, log, explained: Mutex::new(Bucket::new()) }
    }

    /// Decides, and writes down what was decided.
    pub(crate) fn decide(&self, snapshot: &Snapshot, request: &Request<'_>, now: SystemTime) -> Result<(), Denied> {
        let decision = snapshot.policy.decide(request);
        let allowed = decision.is_allowed();
        if allowed && self.log.is_none() {
            return Ok(());
        }
        let id = self.ids.next();
        let time = rfc3339(now);
        let workload = &snapshot.workload;
        let context = LogContext {
            time: &time,
            id: &id,
            workload: workload.name(),
            namespace: workload.namespace(),
            service_account: workload.service_account(),
        };
        if let Decision::Deny(denial) = &decision
            && !self.may_explain(now)
        {
            if let Some(log) = &self.log {
                log.write(unexplained(request, denial.reason(), context));
            }
            return Err(Denied { id });
        }
        // Finding the nearest miss looks at every role: once for both logs.
        let record = snapshot.policy.record(request, &decision, context);
        if !allowed {
            tell(snapshot, request, &id, &record.explanation);
        }
        if let Some(log) = &self.log {
            log.write(record);
        }
        if allowed { Ok(()) } else { Err(Denied { id }) }
    }

    /// Whether another denial is explained now; tells how many were not.
    fn may_explain(&self, now: SystemTime) -> bool {
        let mut explained = self.explained.lock().unwrap_or_else(PoisonError::into_inner);
        let may = explained.take(now);
        tell_unexplained(explained.tell(now));
        may
    }

    /// Tells how many denials were not explained, once their flood is over.
    pub(crate) fn tell_unexplained(&self, now: SystemTime) {
        tell_unexplained(self.explained.lock().unwrap_or_else(PoisonError::into_inner).tell(now));
    }

    /// Denies what cannot be decided at all.
    pub(crate) fn deny(&self) -> Denied {
        Denied { id: self.ids.next() }
    }
}

fn tell_unexplained(denied: Option<u64>) {
    if let Some(denied) = denied {
        tracing::warn!(target: "alcazar::decision", denied, "requests were denied; too many to explain each");
    }
}

/// The record of a denial for which nobody looked for the reason.
fn unexplained(request: &Request<'_>, reason: Reason, context: LogContext<'_>) -> DecisionRecord {
    let (protocol, http) = match request.protocol {
        Protocol::Http(http) => (ProtocolRecord::Http, Some(http)),
        Protocol::Tcp => (ProtocolRecord::Tcp, None),
    };
    DecisionRecord {
        schema: Schema::V1,
        time: context.time.to_owned(),
        id: context.id.to_owned(),
        source: SourceRecord {
            spiffe_id: request.source.map(ToString::to_string),
            ip: request.source_ip.to_canonical(),
        },
        destination: DestinationRecord {
            workload: context.workload.to_owned(),
            namespace: context.namespace.to_owned(),
            service_account: context.service_account.to_owned(),
            ip: request.destination.ip().to_canonical(),
            port: request.destination.port(),
        },
        request: RequestRecord {
            protocol,
            host: http.and_then(|http| http.host).map(ToString::to_string),
            path: http.map(|http| http.path.to_string()),
            method: http.map(|http| http.method.to_owned()),
            headers: std::collections::BTreeMap::new(),
            sni: request.sni.map(str::to_owned),
        },
        verdict: Verdict::Deny,
        reason: match reason {
            Reason::NoRole => ReasonRecord::NoRole,
            Reason::NoMatch => ReasonRecord::NoMatch,
        },
        explanation: "denied; the explanation is left out, because there are too many denials".to_owned(),
        grant: None,
        nearest_miss: None,
        shadow: None,
    }
}

/// Says it to whoever follows the log, in the words of `alcazar policy explain`.
fn tell(snapshot: &Snapshot, request: &Request<'_>, id: &str, explanation: &str) {
    let source = request.source.map_or("unauthenticated", |id| id.as_str());
    let (method, host, path) = match &request.protocol {
        Protocol::Http(http) => (http.method, http.host.map(|host| host.as_str()), http.path.as_str()),
        Protocol::Tcp => ("TCP", None, ""),
    };
    tracing::warn!(
        target: "alcazar::decision",
        id,
        source,
        source_ip = %request.source_ip,
        namespace = snapshot.workload.namespace(),
        workload = snapshot.workload.name(),
        port = request.destination.port(),
        method,
        host,
        path,
        reason = explanation,
        "a request was denied"
    );
}

/// The headers of a request as rules look them up.
pub(crate) struct HeaderView<'a>(pub(crate) &'a HeaderMap);

impl Headers for HeaderView<'_> {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return };
        for value in self.0.get_all(name) {
            if !visit(value.as_bytes()) {
                return;
            }
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    // To the millisecond: what orders decisions for a reader.
    let at = at.replace_nanosecond(at.millisecond() as u32 * 1_000_000).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}
