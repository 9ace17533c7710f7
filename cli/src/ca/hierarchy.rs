//! `alcazar ca hierarchy`: root and intermediate, for people to compare.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1::{self, administration_client::AdministrationClient};
use alcazar_identity::{CertificateDer, Fingerprint, rfc3339};

use crate::operator::{CaArg, OperatorError};
use crate::say;

pub(super) async fn show(ca: &CaArg) -> Result<ExitCode, OperatorError> {
    let mut client = AdministrationClient::new(ca.connect().await?);
    let hierarchy = client.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
    let line = |kind: &str, authority: Option<v1::Authority>| -> Result<String, OperatorError> {
        let authority = authority.ok_or_else(|| OperatorError::Answer(format!("it has no {kind}")))?;
        let end = u64::try_from(authority.not_after)
            .ok()
            .and_then(|end| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end)))
            .ok_or_else(|| OperatorError::Answer(format!("the end of the {kind} is not a time")))?;
        let fingerprint = Fingerprint::of(&CertificateDer::from(authority.certificate));
        Ok(format!("{kind:<13} {fingerprint}  until {}\n", rfc3339(end)))
    };
    let root = line("root", hierarchy.root)?;
    let intermediate = line("intermediate", hierarchy.intermediate)?;
    let head = format!("trust domain  {}\ncluster       {}\n", hierarchy.trust_domain, hierarchy.cluster);
    Ok(say(&format!("{head}{root}{intermediate}")))
}
