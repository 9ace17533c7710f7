//! What a witness makes of a head, and what it signs for it.

use alcazar_identity::TrustBundle;
use alcazar_ledger::merkle::{Hash, ProofError, verify_consistency};
use thiserror::Error;

use super::{HeadError, SignedHead, TreeHead};
use crate::{hierarchy::Hierarchy, signer::SignError};

/// Another replica's word that a ledger has grown into this head from what it saw before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The name of the replica.
    pub replica: String,
    /// The head, with the moment and the signature of the witness.
    pub signed: SignedHead,
}

/// What stands before a head when a witness signs it: it is not the head of whoever keeps the ledger.
pub const WITNESS_CONTEXT: &[u8] = b"alcazar ledger witness v1\n";

impl Witness {
    /// Signs a head as a witness. May block, where the key is in a token.
    pub(crate) fn sign(replica: &str, head: TreeHead, hierarchy: &Hierarchy) -> Result<Self, SignError> {
        let signed = head.sign_as(WITNESS_CONTEXT, &before(replica), hierarchy)?;
        Ok(Self { replica: replica.into(), signed })
    }

    /// Whether an authority of the trust domain and the cluster signed it.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn verify(&self, bundle: &TrustBundle) -> Result<(), HeadError> {
        if self.replica.contains(char::is_control) {
            return Err(HeadError::Text);
        }
        self.signed.verify_as(WITNESS_CONTEXT, &before(&self.replica), bundle)
    }
}

fn before(replica: &str) -> String {
    format!("witness {replica}\n")
}

/// What a head amounts to, for somebody who has seen one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing has changed.
    Same,
    /// The ledger has grown.
    Grown,
    /// It may have grown, and the proof has not come yet.
    Unproven,
}

/// Holds a head against the last one that was seen of the same ledger.
pub(crate) fn judge(seen: Option<&TreeHead>, head: &TreeHead, proof: Option<&[Hash]>) -> Result<Verdict, Fork> {
    let Some(seen) = seen else { return Ok(Verdict::Grown) };
    if head.size < seen.size {
        return Err(Fork::Shrunk { seen: seen.size, found: head.size });
    }
    if head.size == seen.size {
        let (size, found, seen) = (head.size, head.root, seen.root);
        return if found == seen { Ok(Verdict::Same) } else { Err(Fork::Changed { size, seen, found }) };
    }
    // Of nothing everything is the continuation.
    let proof = if seen.size == 0 { Some([].as_slice()) } else { proof };
    let Some(proof) = proof else { return Ok(Verdict::Unproven) };
    match verify_consistency(seen.size, &seen.root, head.size, &head.root, proof) {
        Ok(()) => Ok(Verdict::Grown),
        Err(source) => Err(Fork::Inconsistent { seen: seen.size, found: head.size, source }),
    }
}

/// What is wrong with a ledger of which two heads do not fit.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum Fork {
    /// It had more.
    #[error("it had {seen} entries, and now says that it has {found}")]
    Shrunk { seen: u64, found: u64 },
    /// It had others.
    #[error("of its first {size} entries the root was {seen}, and now it is {found}")]
    Changed { size: u64, seen: Hash, found: Hash },
    /// It does not go on from there.
    #[error("its {found} entries do not go on from the {seen} that were seen before")]
    Inconsistent { seen: u64, found: u64, source: ProofError },
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// The root of so many entries of a ledger, from this one on.
    fn tree(ledger: u8, from: u64, size: u64) -> Hash {
        match size {
            0 => Hash::empty(),
            1 => Hash::leaf(&[&[ledger], from.to_be_bytes().as_slice()].concat()),
            _ => {
                let left = 1 << (size - 1).ilog2();
                Hash::node(&tree(ledger, from, left), &tree(ledger, from + left, size - left))
            }
        }
    }

    fn head(ledger: u8, size: u64) -> TreeHead {
        TreeHead {
            trust_domain: "td".parse().unwrap(),
            cluster: "c".into(),
            ledger: "l".into(),
            size,
            root: tree(ledger, 0, size),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_head_that_does_not_go_on_is_a_fork() {
        let (seen, other) = (head(1, 4), head(2, 4));
        assert_eq!(judge(None, &seen, None), Ok(Verdict::Grown));
        assert_eq!(judge(Some(&seen), &seen, None), Ok(Verdict::Same));
        assert_eq!(judge(Some(&seen), &head(1, 8), None), Ok(Verdict::Unproven));
        assert_eq!(judge(Some(&seen), &head(1, 8), Some(&[tree(1, 4, 4)])), Ok(Verdict::Grown));
        assert_eq!(judge(Some(&head(1, 0)), &seen, None), Ok(Verdict::Grown));
        assert!(matches!(judge(Some(&seen), &other, None), Err(Fork::Changed { size: 4, .. })));
        assert!(matches!(judge(Some(&seen), &head(1, 3), None), Err(Fork::Shrunk { .. })));
        for wrong in [vec![], vec![tree(2, 4, 4)], vec![tree(1, 4, 4); 2]] {
            assert!(matches!(judge(Some(&seen), &head(1, 8), Some(&wrong)), Err(Fork::Inconsistent { .. })));
        }
        assert!(matches!(judge(Some(&other), &head(1, 8), Some(&[tree(1, 4, 4)])), Err(Fork::Inconsistent { .. })));
    }
}
