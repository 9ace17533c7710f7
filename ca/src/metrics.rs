//! What the CA counts. Names that dashboards know from Istio's CA are kept where they fit; ours begin with `alcazar_ca_`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use alcazar_service::{
    Metrics,
    metrics::{Counter, Counters, Gauge, Gauges, Histogram},
};
use tonic::Code;

use crate::ca::Ca;

/// The CA's metrics. What belongs to a part of it is registered by that part, on [`CaMetrics::registry`].
#[derive(Clone, Debug)]
pub(crate) struct CaMetrics {
    /// Where further metrics are registered.
    pub(crate) registry: Metrics,
    /// Certificates that were asked for.
    pub(crate) asked: Counter,
    /// Requests that were refused because nobody knows who sent them.
    pub(crate) authentication_failures: Counter,
    /// Certificates that were issued.
    pub(crate) issued: Counter,
    /// Requests that are not PKCS#10, or wrongly signed, or of a weak key.
    pub(crate) bad_requests: Counter,
    /// Certificates and JWT-SVIDs that the CA's keys did not sign.
    pub(crate) sign_errors: Counter,
    /// Nodes that were renewed without the store, and lineages of which two holders were found.
    pub(crate) provisional_renewals: Counter,
    pub(crate) forked_lineages: Counter,
    /// JWT-SVIDs that were asked for, and issued, and how long that took.
    pub(crate) tokens_asked: Counter,
    pub(crate) tokens_issued: Counter,
    pub(crate) token_issuance: Histogram,
    /// Requests that came to nothing, by the code of the answer.
    refusals: Counters<1>,
    /// From the request to the reply, record included.
    pub(crate) issuance: Histogram,
    /// When root and chain end, in seconds since 1970.
    pub(crate) root_expiry: Gauge,
    pub(crate) chain_expiry: Gauge,
    /// Seconds that are left, of each certificate that the CA stands on.
    pub(crate) expiry: Gauges<1>,
}

impl CaMetrics {
    pub(crate) fn new(registry: Metrics) -> Self {
        let on = &registry;
        Self {
            asked: on.plain_counter("citadel_server_csr_count", "Certificates that were asked for"),
            authentication_failures: on.plain_counter(
                "citadel_server_authentication_failure_count",
                "Requests that were refused because their sender did not prove who it is",
            ),
            issued: on.plain_counter("citadel_server_success_cert_issuance_count", "Certificates that were issued"),
            bad_requests: on.plain_counter(
                "citadel_server_csr_parsing_err_count",
                "Certificate requests that are malformed, wrongly signed or of a key that is not certified here",
            ),
            sign_errors: on.plain_counter(
                "citadel_server_csr_sign_err_count",
                "Certificates and JWT-SVIDs that the CA's keys did not sign",
            ),
            provisional_renewals: on
                .counter("alcazar_ca_provisional_renewals", "Nodes that were renewed while the store was away"),
            forked_lineages: on
                .counter("alcazar_ca_forked_lineages", "Lineages of nodes of which two holders were found"),
            tokens_asked: on.counter("alcazar_ca_jwt_svids_asked", "JWT-SVIDs that were asked for"),
            tokens_issued: on.counter("alcazar_ca_jwt_svids_issued", "JWT-SVIDs that were issued"),
            token_issuance: on.histogram(
                "alcazar_ca_jwt_issuance_seconds",
                "From the request for a JWT-SVID to its reply, the record included",
                BOUNDS,
            ),
            refusals: on.counters("alcazar_ca_refusals", "Requests that came to nothing, by gRPC code", ["code"]),
            issuance: on.histogram(
                "alcazar_ca_issuance_seconds",
                "From the request for a certificate to its reply, the record included",
                BOUNDS,
            ),
            root_expiry: on.gauge(
                "citadel_server_root_cert_expiry_timestamp",
                "When the root that is signed under ends, in seconds since 1970",
            ),
            chain_expiry: on.gauge(
                "citadel_server_cert_chain_expiry_timestamp",
                "When the first certificate between root and leaves ends, in seconds since 1970",
            ),
            expiry: on.gauges(
                "cert_expiry_seconds",
                "Seconds until a certificate that the CA stands on ends; negative once it has",
                ["resource_name"],
            ),
            registry,
        }
    }

    /// A request came to nothing.
    pub(crate) fn refused(&self, code: Code) {
        self.refusals.with([name(code)]).inc();
        if code == Code::Unauthenticated {
            self.authentication_failures.inc();
        }
    }

    /// How many requests came to nothing, by the code of the answer.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CODES.iter().map(|(_, name)| (*name, self.refusals.with([*name]).value())).filter(|(_, count)| *count > 0)
    }

    /// When which certificate ends, set at `now`.
    fn expiries(&self, ends: &[(&'static str, SystemTime)], now: SystemTime) {
        self.expiry.clear();
        for (name, end) in ends {
            let left = match end.duration_since(now) {
                Ok(left) => whole(left),
                Err(past) => -whole(past.duration()),
            };
            self.expiry.with([*name]).set(left);
        }
    }
}

impl Ca {
    /// What has a value only when somebody asks.
    pub(crate) fn measure_at_scrapes(&self) {
        // The metrics are the CA's own: a strong reference would keep it alive for ever.
        let ca = Arc::downgrade(&self.0);
        self.0.metrics.registry.on_scrape(move || {
            let Some(ca) = ca.upgrade().map(Ca) else { return };
            let prints = ca.fingerprints();
            let (root, intermediate) = (prints.root.validity.not_after(), prints.intermediate.validity.not_after());
            let points = ca.points();
            let first = |name: &str| {
                let ends = points.iter().filter(|point| point.name == name).map(|point| point.validity.not_after());
                ends.min()
            };
            let chain = first("upper").map_or(intermediate, |upper| upper.min(intermediate));
            let metrics = &ca.0.metrics;
            metrics.root_expiry.set(whole(root.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()));
            metrics.chain_expiry.set(whole(chain.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()));
            let mut ends = vec![("root", root), ("intermediate", intermediate)];
            ends.extend(["upper", "serving", "leaf"].into_iter().filter_map(|name| Some((name, first(name)?))));
            metrics.expiries(&ends, (ca.0.clock)());
        });
    }
}

fn whole(seconds: Duration) -> i64 {
    i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX)
}

/// The codes that this CA answers with, by the names that gRPC gives them.
const CODES: &[(Code, &str)] = &[
    (Code::Unauthenticated, "UNAUTHENTICATED"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::Internal, "INTERNAL"),
    (Code::Unknown, OTHER),
];

const OTHER: &str = "OTHER";

fn name(code: Code) -> &'static str {
    CODES.iter().find(|(known, _)| *known == code).map_or(OTHER, |(_, name)| name)
}

/// Half a millisecond to ten seconds.
const BOUNDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
