//! The decision log: one JSON object a line, in a versioned schema that later tools read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The value of [`DecisionRecord::schema`] that this version writes.
pub const DECISION_SCHEMA: &str = "alcazar.decision/v1";

/// One decision, with everything about the request that rules may match.
///
/// Within one schema version fields are added, never renamed or dropped; a reader ignores what it does not know.
/// Absent fields are left out of the JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// [`DECISION_SCHEMA`]. A record of another schema does not deserialize.
    pub schema: Schema,
    /// When the decision was made: RFC 3339, UTC.
    pub time: String,
    /// The decision's id, which the client was given too.
    pub id: String,
    /// Who called, from where.
    pub source: SourceRecord,
    /// Who was called.
    pub destination: DestinationRecord,
    /// What was asked for.
    pub request: RequestRecord,
    /// What happened to the request.
    pub verdict: Verdict,
    /// Why, as a word for machines.
    pub reason: ReasonRecord,
    /// Why, in words for people: the same as `alcazar policy explain` says.
    pub explanation: String,
    /// The rule that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantRecord>,
    /// For a denial: the role that came closest, and what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<MissRecord>,
    /// What the permissive configuration or bindings would have said; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowRecord>,
}

/// The schema's name: serializes as [`DECISION_SCHEMA`], and nothing else deserializes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Schema {
    /// Version 1.
    #[default]
    #[serde(rename = "alcazar.decision/v1")]
    V1,
}

/// The calling side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The verified SPIFFE ID, with `spiffe://`; absent when the caller did not authenticate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<String>,
    /// The address the connection came from.
    pub ip: IpAddr,
}

/// The called side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRecord {
    /// The workload's name.
    pub workload: String,
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's service account.
    pub service_account: String,
    /// The address the connection was made to.
    pub ip: IpAddr,
    /// The port the connection was made to.
    pub port: u16,
}

/// What was asked for: the attributes that rules may match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// `http` or `tcp`.
    pub protocol: ProtocolRecord,
    /// The host, normalised. HTTP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path, normalised, without the query. HTTP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The method. HTTP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The headers that some rule of the workload looks at, each with all its values; no others.
    /// The values of credentials (`authorization`, `cookie`, ...) are replaced by [`REDACTED`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Vec<String>>,
    /// The server name of the TLS handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
}

/// What stands in the log for the value of a header that carries a credential.
pub const REDACTED: &str = "<redacted>";

/// What was spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProtocolRecord {
    /// A request of HTTP/1.x, HTTP/2 or gRPC.
    Http,
    /// A connection.
    Tcp,
}

/// What happened, or would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Passed.
    Allow,
    /// Refused.
    Deny,
}

/// Why, as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonRecord {
    /// Allowed: RBAC is not active for the workload.
    RbacOff,
    /// Allowed: the configuration is permissive. See [`DecisionRecord::shadow`].
    ShadowOnly,
    /// Allowed by [`DecisionRecord::grant`].
    Granted,
    /// Denied: no role that is bound to anyone covers the workload.
    NoRole,
    /// Denied: no role grants it. See [`DecisionRecord::nearest_miss`].
    NoMatch,
}

/// The role, rule, binding and subject that together granted a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// `namespace/name` of the role.
    pub role: String,
    /// The rule's place in the role's `rules`, from 0.
    pub rule: u32,
    /// `namespace/name` of the binding.
    pub binding: String,
    /// The subject's place in the binding's `subjects`, from 0.
    pub subject: u32,
}

/// The role that came closest to granting a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissRecord {
    /// `namespace/name` of the role.
    pub role: String,
    /// The place of its closest rule, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// `namespace/name` of its closest binding; absent when it has none that is enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// The place of that binding's closest subject, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<u32>,
    /// The clauses of that rule and that subject that did not hold.
    pub failed: Vec<FailedRecord>,
}

/// A clause that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRecord {
    /// As the document spells it: `paths`, `notNames`, `constraints[request.headers[x-token]]`.
    pub field: String,
    /// What the clause is about, in words: `path`, `source principal`, `header "x-token"`.
    pub attribute: String,
    /// What the request had; empty: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<String>,
    /// The values of the clause.
    pub expected: Vec<String>,
    /// True when the clause wants none of `expected`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub negated: bool,
    /// True when the clause cannot hold because it is about HTTP and this is TCP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http_only: bool,
}

/// The shadow verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowRecord {
    /// What would have happened.
    pub verdict: Verdict,
    /// By which rule, if it would have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantRecord>,
    /// How it would have failed, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<MissRecord>,
}
