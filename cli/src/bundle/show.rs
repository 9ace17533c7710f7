//! What is believed.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1::{self, bundles_client::BundlesClient};
use alcazar_identity::{TrustBundle, TrustDomain, rfc3339};

use super::Format;
use crate::operator::{CaArg, OperatorError};
use crate::say;
use crate::table::Table;

pub(super) async fn show(
    ca: &CaArg,
    trust_domain: Option<&TrustDomain>,
    format: Format,
) -> Result<ExitCode, OperatorError> {
    let listed = ask(ca).await?;
    let wanted = match trust_domain {
        Some(name) => listed.into_iter().find(|(bundle, _)| bundle.trust_domain() == name),
        None => listed.into_iter().find(|(_, listed)| listed.source == "own"),
    };
    let Some((bundle, listed)) = wanted else {
        return Err(trust_domain
            .map_or_else(|| OperatorError::Answer("its own bundle is missing".to_owned()), super::no_bundle));
    };
    let text = match format {
        Format::Pem => bundle.to_pem(),
        Format::Spiffe if listed.document.is_empty() => {
            return Err(OperatorError::Nothing(
                "the bundle has a key that cannot stand in a bundle document; print it with --format pem".to_owned(),
            ));
        }
        Format::Spiffe => listed.document + "\n",
    };
    Ok(say(&text))
}

pub(super) async fn list(ca: &CaArg) -> Result<ExitCode, OperatorError> {
    let mut table = Table::new(["TRUST DOMAIN", "SEQUENCE", "ROOTS", "JWT KEYS", "RECEIVED", "FROM"]);
    for (bundle, listed) in ask(ca).await? {
        let received = u64::try_from(listed.received_at).ok().filter(|seconds| *seconds > 0);
        let received = received.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        table.row([
            bundle.trust_domain().to_string(),
            bundle.sequence().to_string(),
            bundle.roots().len().to_string(),
            bundle.jwt_authorities().len().to_string(),
            received.map_or("-".to_owned(), rfc3339_of),
            listed.source,
        ]);
    }
    Ok(say(&table.to_string()))
}

fn rfc3339_of(at: SystemTime) -> String {
    rfc3339(at).to_string()
}

/// Every bundle, with what the CA says of it.
async fn ask(ca: &CaArg) -> Result<Vec<(TrustBundle, v1::ListedBundle)>, OperatorError> {
    let mut client = BundlesClient::new(ca.connect().await?);
    let listed = client.list_bundles(v1::ListBundlesRequest {}).await?.into_inner().bundles;
    let read = |mut listed: v1::ListedBundle| {
        let message = listed.bundle.take().ok_or_else(|| OperatorError::Answer("a bundle is missing".to_owned()))?;
        let bundle = message.try_into().map_err(|error| OperatorError::Answer(format!("{error}")))?;
        Ok((bundle, listed))
    };
    listed.into_iter().map(read).collect()
}
