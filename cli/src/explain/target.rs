//! What stands behind the service that is called: as a mesh file says, or as its name suggests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use alcazar_identity::TrustDomain;
use alcazar_yaml::YamlErrors;

use crate::args::ExplainArgs;

/// A workload behind the service, and the port that the call ends at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) labels: BTreeMap<String, String>,
    /// The full host names of the services it is behind.
    pub(super) services: Vec<String>,
    pub(super) trust_domain: TrustDomain,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) is_http: bool,
}

/// Finds the workloads behind the service.
pub(super) fn find(args: &ExplainArgs) -> Result<Vec<Target>, FindTargetError> {
    Ok(vec![assumed(args)])
}

/// Without a mesh: one workload of the service's name, account and `app` label.
fn assumed(args: &ExplainArgs) -> Target {
    let (service, namespace) = (args.to.service.clone(), args.to.namespace.clone());
    let trust_domain = args.trust_domain.clone().unwrap_or_else(default_trust_domain);
    Target {
        services: vec![format!("{service}.{namespace}.svc.cluster.local")],
        labels: BTreeMap::from([("app".to_owned(), service.clone())]),
        service_account: service.clone(),
        name: service,
        namespace,
        trust_domain,
        address: Ipv4Addr::LOCALHOST.into(),
        port: args.port.unwrap_or(80),
        is_http: args.method.is_some(),
    }
}
