//! Machines that hold a certificate of the enterprise's own CA.

use std::{sync::Arc, time::SystemTime};

use alcazar_api::attestation::machine_proof;
use alcazar_identity::{CertificateDer, Fingerprint, SpiffeId, SpiffeIdKind, TrustDomain};
use alcazar_mtls::{Machine, MachineRoots};

use super::{
    CallersError, challenge::Challenges, config::MachineCallers, error::CallerError, roots::RootsFile, rules::Rules,
};

/// The plug for machine certificates.
pub(crate) struct MachinePlug {
    pub(super) roots: Arc<RootsFile<MachineRoots>>,
    rules: Rules,
    trust_domain: TrustDomain,
    cluster: String,
}

/// What a machine shows: its certificate, and a signature over a nonce and the request.
pub(crate) struct MachineEvidence<'a> {
    pub(crate) chain: Vec<CertificateDer<'a>>,
    pub(crate) nonce: &'a [u8],
    pub(crate) signature: &'a [u8],
    pub(crate) csr: &'a [u8],
}

impl MachinePlug {
    pub(super) fn new(
        config: &MachineCallers,
        trust_domain: &TrustDomain,
        cluster: &str,
    ) -> Result<Self, CallersError> {
        let path = config.roots.clone();
        let parse = move |pem: &[u8]| {
            MachineRoots::from_pem(pem).map_err(|source| CallersError::MachineRoots { path: path.clone(), source })
        };
        let roots = Arc::new(RootsFile::open(&config.roots, parse)?);
        let named = config.rules.iter().flat_map(|rule| rule.r#match.keys());
        if let Some(unknown) = named.into_iter().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(CallersError::MachineName(unknown.clone()));
        }
        let of = || "machines".to_owned();
        let rules = Rules::new(&config.rules, cluster).map_err(|source| CallersError::Rules { of: of(), source })?;
        Ok(Self { roots, rules, trust_domain: trust_domain.clone(), cluster: cluster.into() })
    }

    /// Which node the machine is, and the fingerprint of its certificate.
    pub(super) fn node(
        &self,
        evidence: &MachineEvidence<'_>,
        challenges: &Challenges,
        now: SystemTime,
    ) -> Result<(SpiffeId, Fingerprint), CallerError> {
        challenges.check(evidence.nonce, now).map_err(CallerError::Challenge)?;
        let signed = machine_proof(self.trust_domain.as_str(), &self.cluster, evidence.nonce, evidence.csr);
        let machine = self.roots.roots().verify(&evidence.chain, &signed, evidence.signature, now);
        let machine = machine.map_err(CallerError::Machine)?;
        // The key is proved: now, and not before, the nonce is gone.
        challenges.spend(evidence.nonce, now).map_err(CallerError::Challenge)?;
        let id = self.rules.identify(&self.trust_domain, &|name| values(&machine, name)).map_err(CallerError::Rule)?;
        match id.kind() {
            SpiffeIdKind::Node { .. } => Ok((id, machine.fingerprint)),
            _ => Err(CallerError::WrongKind(id)),
        }
    }
}

fn values(machine: &Machine, name: &str) -> Vec<String> {
    match name {
        "commonName" => machine.common_name.iter().cloned().collect(),
        "dns" => machine.dns_names.clone(),
        "uri" => machine.uris.clone(),
        _ => Vec::new(),
    }
}

/// What a rule can match, and take values from.
const NAMES: [&str; 3] = ["commonName", "dns", "uri"];
