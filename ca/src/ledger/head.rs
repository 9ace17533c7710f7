//! Tree heads: what the ledger was at a moment, signed by the intermediate.
//!
//! Who keeps one can prove later that nothing before it was changed or taken away: every later head is consistent with it.

use std::time::{Duration, SystemTime};

use alcazar_identity::{
    CertificateDer, Fingerprint, Signatory, StatementError, TrustBundle, TrustDomain, rfc3339, verify_statement,
};
use alcazar_ledger::merkle::Hash;
use thiserror::Error;

use crate::{hierarchy::Hierarchy, records::seconds, signer::SignError};

/// What a ledger was at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// The trust domain of its CA.
    pub trust_domain: TrustDomain,
    /// The cluster of its CA.
    pub cluster: String,
    /// The ledger's own name, which it keeps for ever: each replica of a CA has a ledger of its own.
    pub ledger: String,
    /// How many entries.
    pub size: u64,
    /// The root of the tree of them.
    pub root: Hash,
    /// When, by the CA's clock. A clock can go back; sizes never do.
    pub at: SystemTime,
}

/// A tree head, and the proof of who says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    /// What is said.
    pub head: TreeHead,
    /// The certificate that signed, and those above it, the root excluded.
    pub chain: Vec<CertificateDer<'static>>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// What stands before a tree head when it is signed, so that it is never taken for anything else, nor anything else for it.
pub const HEAD_CONTEXT: &[u8] = b"alcazar ledger tree head v1\n";

impl TreeHead {
    /// The text that is signed: a line for each field, with its name, in a fixed order, and one that names the chain.
    fn text(&self, chain: &[CertificateDer<'_>]) -> String {
        let Self { trust_domain, cluster, ledger, size, root, at } = self;
        let chain: Vec<_> = chain.iter().map(|certificate| Fingerprint::of(certificate).to_string()).collect();
        let (chain, at) = (chain.join(" "), seconds::of(*at));
        // No field can have a line break in it: names are checked where they are made, the rest are numbers.
        format!(
            "trust domain {trust_domain}\ncluster {cluster}\nledger {ledger}\nsize {size}\nroot {root}\ntime {at}\nchain {chain}\n"
        )
    }

    /// Signs it with the intermediate. May block, where the key is in a token.
    pub(crate) fn sign(self, hierarchy: &Hierarchy) -> Result<SignedHead, SignError> {
        self.sign_as(HEAD_CONTEXT, "", hierarchy)
    }

    /// The same, with something said before it, in another context.
    pub(super) fn sign_as(self, context: &[u8], before: &str, hierarchy: &Hierarchy) -> Result<SignedHead, SignError> {
        let chain = hierarchy.upper().to_vec();
        let message = [context, before.as_bytes(), self.text(&chain).as_bytes()].concat();
        let signature = hierarchy.intermediate().signer().sign(&message)?;
        Ok(SignedHead { head: self, chain, signature })
    }
}

impl SignedHead {
    /// Whether an authority of the trust domain signed it, one for the cluster that it names where its certificate names one.
    ///
    /// The signer must have been good when it signed: a head is evidence of that moment, and stays so.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn verify(&self, bundle: &TrustBundle) -> Result<(), HeadError> {
        self.verify_as(HEAD_CONTEXT, "", bundle)
    }

    /// The same, with what was said before it, in another context.
    pub(super) fn verify_as(&self, context: &[u8], before: &str, bundle: &TrustBundle) -> Result<(), HeadError> {
        let TreeHead { trust_domain, cluster, at, .. } = &self.head;
        if trust_domain != bundle.trust_domain() {
            let (head, ours) = (trust_domain.clone(), bundle.trust_domain().clone());
            return Err(HeadError::TrustDomain { head, ours });
        }
        if cluster.contains(char::is_control) || self.head.ledger.contains(char::is_control) {
            return Err(HeadError::Text);
        }
        let text = [before, &self.head.text(&self.chain)].concat();
        let signatory = verify_statement(context, text.as_bytes(), &self.signature, &self.chain, bundle, *at)?;
        match signatory {
            Signatory::Intermediate { cluster: Some(signer), .. } if signer != *cluster => {
                Err(HeadError::Cluster { head: cluster.clone(), signer })
            }
            Signatory::Intermediate { .. } | Signatory::Root(_) => Ok(()),
        }
    }
}

/// Why a tree head proves nothing.
#[derive(Debug, Error)]
pub enum HeadError {
    /// It is of another trust domain.
    #[error("the tree head is of the trust domain {head}, and the roots here are of {ours}")]
    TrustDomain {
        /// The head's.
        head: TrustDomain,
        /// The verifier's.
        ours: TrustDomain,
    },
    /// It is signed for another cluster.
    #[error("the tree head is of the cluster {head}, and is signed by the intermediate of {signer}")]
    Cluster {
        /// The head's.
        head: String,
        /// The signer's.
        signer: String,
    },
    /// A name in it has control characters.
    #[error("a name in the tree head has control characters")]
    Text,
    /// Nobody who is trusted signed it.
    #[error("the tree head is not signed by an authority that is trusted here")]
    Signature(#[from] StatementError),
}

impl std::fmt::Display for TreeHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cluster, ledger, size, root, at, .. } = self;
        write!(f, "{size} entries, root {root}, at {} (cluster {cluster}, ledger {ledger})", rfc3339(*at))
    }
}

/// The moment of this many seconds since 1970, as far as there is one.
pub fn moment(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
