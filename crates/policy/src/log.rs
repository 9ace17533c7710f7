//! From a decision to its line in the decision log.

use crate::compiled::Compiled;
use crate::decision::Decision;
use crate::miss::seen;
use crate::model::Attribute;
use crate::record::{DecisionRecord, DestinationRecord, ProtocolRecord, RequestRecord, Schema, SourceRecord};
use crate::request::{Protocol, Request};

/// What a log line says besides the request and the decision.
#[derive(Debug, Clone, Copy)]
pub struct LogContext<'a> {
    /// RFC 3339, UTC.
    pub time: &'a str,
    /// The decision's id, which the client is given too.
    pub id: &'a str,
    /// The name of the workload that was called.
    pub workload: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub service_account: &'a str,
}

impl Compiled {
    /// The log's record of `decision`, made by this policy about `request`.
    pub fn record(&self, request: &Request<'_>, decision: &Decision, context: LogContext<'_>) -> DecisionRecord {
        let explanation = self.explain_decision(request, decision);
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
            request: self.request_record(request),
            verdict: explanation.verdict,
            reason: explanation.reason,
            explanation: explanation.to_string(),
            grant: explanation.grant,
            nearest_miss: explanation.nearest_miss,
            shadow: explanation.shadow,
        }
    }

    fn request_record(&self, request: &Request<'_>) -> RequestRecord {
        let headers = self.headers().iter().filter_map(|name| {
            let values = seen(&Attribute::Header(name.clone()), request);
            (!values.is_empty()).then(|| (name.clone(), values))
        });
        let (protocol, http) = match request.protocol {
            Protocol::Http(http) => (ProtocolRecord::Http, Some(http)),
            Protocol::Tcp => (ProtocolRecord::Tcp, None),
        };
        RequestRecord {
            protocol,
            host: http.and_then(|http| http.host).map(ToString::to_string),
            path: http.map(|http| http.path.to_string()),
            method: http.map(|http| http.method.to_owned()),
            headers: headers.collect(),
            sni: request.sni.map(str::to_owned),
        }
    }
}
