//! Two things cannot listen on one address: found in the file, before anything is started.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use alcazar_yaml::{Reader, Span, YamlError};

use super::workload::Stated;

/// Notes addresses that are claimed twice.
pub(super) fn check(reader: &mut Reader<'_>, workloads: &[Stated]) {
    let mut claimed: BTreeMap<(Option<IpAddr>, SocketAddr), Claim> = BTreeMap::new();
    for workload in workloads {
        let machine = machine(workload);
        for claim in claims(workload) {
            let is_local = claim.address.ip().is_loopback() || claim.address.ip().is_unspecified();
            let key = (is_local.then_some(machine), claim.address);
            match claimed.get(&key) {
                None => drop(claimed.insert(key, claim)),
                Some(first) => {
                    let error = YamlError::new(
                        reader.file(),
                        claim.span.clone(),
                        format!("{} is taken: it is {}", claim.address, first.what),
                    );
                    let help = match claim.is_application {
                        true => "give one of the applications another number, or another `address` such as 127.0.0.2",
                        false => "state another port, or leave it out to have one chosen",
                    };
                    let error = error.with_label(format!("as {}", claim.what));
                    reader.push(error.with_also(first.span.clone(), "taken here").with_help(help));
                }
            }
        }
    }
}

/// Every port that the file claims, wherever: not to be chosen for something else.
pub(crate) fn claimed_ports(workloads: &[Stated]) -> impl Iterator<Item = u16> {
    workloads.iter().flat_map(claims).map(|claim| claim.address.port())
}

struct Claim {
    address: SocketAddr,
    span: Span,
    what: String,
    is_application: bool,
}

fn claims(workload: &Stated) -> Vec<Claim> {
    let key = workload.key();
    let mut claims = Vec::new();
    for port in &workload.ports {
        claims.push(Claim {
            address: SocketAddr::new(workload.address, port.number.value),
            span: port.number.span.clone(),
            what: format!("the port `{}` of {key}", port.name.text),
            is_application: true,
        });
    }
    let proxy = [("inbound", &workload.inbound), ("outbound", &workload.outbound)];
    for (what, stated) in proxy {
        claims.extend(stated.iter().map(|address| Claim {
            address: address.value,
            span: address.span.clone(),
            what: format!("`{what}` of {key}"),
            is_application: false,
        }));
    }
    claims.extend(workload.forwards.iter().map(|forward| Claim {
        address: forward.listen.value,
        span: forward.listen.span.clone(),
        what: format!("a forward of {key}"),
        is_application: false,
    }));
    claims
}

/// Which machine a workload's loopback is on: its proxy's mesh address tells machines apart.
fn machine(workload: &Stated) -> IpAddr {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    workload.inbound().map_or(here, |inbound| if inbound.ip().is_loopback() { here } else { inbound.ip() })
}
