//! One attempt: each way in which the node can prove itself, until one works.

use std::fmt;

use alcazar_service::process::chain;

use super::Node;
use crate::authority::CallError;
use crate::evidence::{Anchor, Evidence, EvidenceError, Holder};
use crate::issued::{Issued, ReplyError, Trust};
use crate::keys::MakeKeyError;
use crate::proof::{self, Failed, NotBySvid, Way};
use crate::saved::SavedError;
use crate::schedule::{Failures, Later};

impl Node {
    /// One attempt at the next certificate, by each way until one works; says which did, and why no other.
    pub(super) async fn attempt(&mut self, failures: Option<&Failures>) -> Result<String, AttemptError> {
        let life = self.saved.current.as_ref().map(|current| *current.life());
        let unanswered = failures.map_or(0, Failures::count);
        let plan = proof::plan(life.as_ref(), &self.sources.configured(), (self.clock)());
        if plan.ways.is_empty() {
            return Err(AttemptError { tried: Vec::new(), not_by_svid: plan.not_by_svid });
        }
        let mut tried = Vec::new();
        for way in plan.ways {
            let error = match self.by(way).await {
                Ok(()) => return Ok(told(way, plan.not_by_svid, &tried)),
                Err(error) => error,
            };
            tracing::debug!(spiffe_id = %self.id, %way, reason = chain(&error), "this does not prove the node");
            let goes_on = proof::goes_on(error.failed(), unanswered);
            tried.push((way, error));
            if !goes_on {
                break;
            }
        }
        Err(AttemptError { tried, not_by_svid: plan.not_by_svid })
    }

    async fn by(&mut self, way: Way) -> Result<(), WayError> {
        let held = self.saved.current.as_ref();
        match (way, held.map(Issued::credentials)) {
            (Way::Svid, Some(credentials)) => {
                let csr = self.request().await?;
                let reply = self.authority.renew(credentials, csr).await?;
                self.take(&reply, Trust::Established, true).await
            }
            (Way::Lineage, Some(credentials)) => {
                self.attest(Evidence::Lineage(Holder::of(&credentials)), Trust::Established, true).await
            }
            _ => {
                let evidence = self.sources.read(way).await?;
                let trust = match &evidence {
                    Evidence::JoinToken(token) => Trust::Pinned(token.pin()),
                    _ => Trust::Established,
                };
                self.attest(evidence, trust, false).await
            }
        }
    }

    async fn attest(&mut self, evidence: Evidence, trust: Trust, goes_on: bool) -> Result<(), WayError> {
        // Before the key is made: the disk is not asked for what cannot be.
        let anchor = match trust {
            Trust::Pinned(pin) => Anchor::Pin(pin),
            Trust::Established => {
                let held = self.saved.current.as_ref().map(Issued::bundles);
                self.sources.anchor(self.id.trust_domain(), held).await?
            }
        };
        let csr = self.request().await?;
        let reply = self.authority.attest(anchor, &evidence, &self.id, csr).await?;
        self.take(&reply, trust, goes_on).await
    }
}

/// Which way worked, and why those before it did not.
fn told(way: Way, not_by_svid: Option<NotBySvid>, tried: &[(Way, WayError)]) -> String {
    let how = if way == Way::Svid { "renewed" } else { "attested" };
    let mut text = format!("{how} by {way}");
    if let Some(why) = not_by_svid {
        text.push_str(&format!(": {why}"));
    }
    for (way, error) in tried {
        text.push_str(&format!("; not by {way}: {}", chain(error)));
    }
    text
}

/// Why an attempt at the node's next certificate failed: each way that was tried, in its order.
#[derive(Debug)]
pub(crate) struct AttemptError {
    tried: Vec<(Way, WayError)>,
    not_by_svid: Option<NotBySvid>,
}

impl AttemptError {
    /// When the CA wants to be asked again, where it said so.
    pub(super) fn later(&self) -> Option<Later> {
        match self.tried.last() {
            Some((_, WayError::Call(error))) => error.later(),
            _ => None,
        }
    }
}

impl std::error::Error for AttemptError {}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<_> = self.not_by_svid.iter().map(ToString::to_string).collect();
        parts.extend(self.tried.iter().map(|(way, error)| format!("by {way}: {}", chain(error))));
        if self.tried.is_empty() {
            parts.push("nothing else that proves it is configured: give it a join token (joinTokenFile)".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

/// Why one way failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WayError {
    #[error("the next key is gone")]
    Key,
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    MakeKey(#[from] MakeKeyError),
    #[error(transparent)]
    Save(#[from] SavedError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

impl WayError {
    fn failed(&self) -> Failed {
        match self {
            Self::Call(error) if error.later().is_some() => Failed::Later,
            Self::Call(error) if error.is_final() => Failed::Refused,
            Self::Evidence(_) => Failed::Refused,
            Self::Call(_) | Self::Reply(_) => Failed::Unanswered,
            Self::Key | Self::MakeKey(_) | Self::Save(_) => Failed::Ours,
        }
    }
}
