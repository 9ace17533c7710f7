//! A CA's answers, as values that can be verified.

use std::time::SystemTime;

use alcazar_api::ca::v1;
use alcazar_ca::ledger::{SignedHead, TreeHead, moment};
use alcazar_identity::rfc3339;
use alcazar_ledger::merkle::Hash;

use crate::operator::OperatorError;

pub(super) fn head(message: v1::SignedTreeHead) -> Result<SignedHead, OperatorError> {
    let trust_domain = message.trust_domain.parse();
    let trust_domain = trust_domain.map_err(|_reason| unreadable("the trust domain of the tree head"))?;
    let at = at(message.time).ok_or_else(|| unreadable("the time of the tree head"))?;
    let head = TreeHead {
        trust_domain,
        cluster: message.cluster,
        ledger: message.ledger,
        size: message.size,
        root: hash(&message.root)?,
        at,
    };
    let chain = message.chain.into_iter().map(Into::into).collect();
    Ok(SignedHead { head, chain, signature: message.signature })
}

pub(super) fn hashes(hashes: &[Vec<u8>]) -> Result<Vec<Hash>, OperatorError> {
    hashes.iter().map(|bytes| hash(bytes)).collect()
}

fn hash(bytes: &[u8]) -> Result<Hash, OperatorError> {
    bytes.try_into().map_err(|_length| unreadable("a hash"))
}

fn unreadable(what: &str) -> OperatorError {
    OperatorError::Answer(what.to_owned())
}

fn at(seconds: i64) -> Option<SystemTime> {
    u64::try_from(seconds).ok().and_then(moment)
}

/// A moment of an answer, for people.
pub(super) fn time(seconds: i64) -> String {
    at(seconds).map_or_else(|| seconds.to_string(), rfc3339)
}
