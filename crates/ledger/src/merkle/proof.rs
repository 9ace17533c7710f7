//! Proofs: which hashes they are made of, and what they prove.

use thiserror::Error;

use super::{Hash, Node};

/// The root of the tree of the first `size` entries, from its full subtrees.
///
/// # Errors
/// What `node` says.
pub fn root_of<E>(size: u64, mut node: impl FnMut(Node) -> Result<Hash, E>) -> Result<Hash, E> {
    if size == 0 { Ok(Hash::empty()) } else { subtree(0, size, &mut node) }
}

/// The proof that the entry `index` is in the tree of the first `size` entries: the hashes beside its way to the root,
/// lowest first. `None` where there is no such entry.
///
/// **Source**: RFC 9162 §2.1.3.1.
///
/// # Errors
/// What `node` says.
pub fn inclusion<E>(
    index: u64,
    size: u64,
    mut node: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Option<Vec<Hash>>, E> {
    if index >= size {
        return Ok(None);
    }
    let (mut from, mut to) = (0, size);
    let mut path = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(subtree(middle, to, &mut node)?);
            to = middle;
        } else {
            path.push(subtree(from, middle, &mut node)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(Some(path))
}

/// The proof that the tree of the first `old` entries is the beginning of that of the first `new`. `None` where `new` is
/// the smaller one. Where `old` is 0 or `new` there is nothing to prove, and the proof is empty.
///
/// **Source**: RFC 9162 §2.1.4.1.
///
/// # Errors
/// What `node` says.
pub fn consistency<E>(
    old: u64,
    new: u64,
    mut node: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Option<Vec<Hash>>, E> {
    if old > new {
        return Ok(None);
    }
    let mut path = Vec::new();
    if old == 0 {
        return Ok(Some(path));
    }
    let (mut from, mut to) = (0, new);
    while old != to {
        let middle = from + split(to - from);
        if old <= middle {
            path.push(subtree(middle, to, &mut node)?);
            to = middle;
        } else {
            path.push(subtree(from, middle, &mut node)?);
            from = middle;
        }
    }
    // Who checks knows the old root; a subtree to its right must be told.
    if from > 0 {
        path.push(subtree(from, to, &mut node)?);
    }
    path.reverse();
    Ok(Some(path))
}

/// Whether `proof` shows that the entry with this hash is number `index` of the tree with `size` entries and this root.
///
/// **Source**: RFC 9162 §2.1.3.2.
///
/// # Errors
/// Why it does not.
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::NoSuchEntry { index, size });
    }
    let (mut at, mut last) = (index, size - 1);
    let mut hash = leaf;
    for beside in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if at % 2 == 1 || at == last {
            hash = Hash::node(beside, &hash);
            // The last of an incomplete level goes up until it is a right child.
            let up = at.trailing_zeros();
            at >>= up;
            last >>= up;
        } else {
            hash = Hash::node(&hash, beside);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root { found: hash, expected: *root }) }
}

/// Whether `proof` shows that the tree with `old` entries and `old_root` is the beginning of that with `new` entries and
/// `new_root`. Every tree begins with the empty one.
///
/// **Source**: RFC 9162 §2.1.4.2.
///
/// # Errors
/// Why it does not.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Shrunk { old, new });
    }
    if old == new || old == 0 {
        let expected = if old == 0 { Hash::empty() } else { *new_root };
        return match proof {
            [] if *old_root == expected => Ok(()),
            [] => Err(ProofError::OldRoot { found: expected, expected: *old_root }),
            _ => Err(ProofError::Length),
        };
    }
    // A full subtree is its own first hash.
    let (first, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        proof.split_first().map(|(first, rest)| (*first, rest)).ok_or(ProofError::Length)?
    };
    let up = (old - 1).trailing_ones();
    let (mut at, mut last) = ((old - 1) >> up, (new - 1) >> up);
    let (mut old_hash, mut new_hash) = (first, first);
    for beside in rest {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if at % 2 == 1 || at == last {
            old_hash = Hash::node(beside, &old_hash);
            new_hash = Hash::node(beside, &new_hash);
            let up = at.trailing_zeros();
            at >>= up;
            last >>= up;
        } else {
            new_hash = Hash::node(&new_hash, beside);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if old_hash != *old_root {
        return Err(ProofError::OldRoot { found: old_hash, expected: *old_root });
    }
    if new_hash == *new_root { Ok(()) } else { Err(ProofError::Root { found: new_hash, expected: *new_root }) }
}

/// The hash of the entries from `from` to before `to`, where `from` is a multiple of the largest power of two in their
/// number, from full subtrees.
fn subtree<E>(from: u64, to: u64, node: &mut impl FnMut(Node) -> Result<Hash, E>) -> Result<Hash, E> {
    let mut peaks = [None; 64];
    let mut at = from;
    for peak in &mut peaks {
        let Some(level) = (to - at).checked_ilog2() else { break };
        *peak = Some(node(Node { level, index: at >> level })?);
        at += 1 << level;
    }
    let mut peaks = peaks.into_iter().flatten().rev();
    let Some(last) = peaks.next() else { return Ok(Hash::empty()) };
    Ok(peaks.fold(last, |right, left| Hash::node(&left, &right)))
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// Why a proof does not prove.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The tree has no such entry.
    #[error("a log of {size} entries has no entry {index}")]
    NoSuchEntry {
        /// The entry.
        index: u64,
        /// The tree's size.
        size: u64,
    },
    /// It has too few hashes, or too many.
    #[error("the proof has the wrong number of hashes for trees of these sizes")]
    Length,
    /// The log became smaller.
    #[error("the log had {old} entries and has {new} now: an append-only log never shrinks")]
    Shrunk {
        /// The size before.
        old: u64,
        /// The size now.
        new: u64,
    },
    /// It leads to another old root.
    #[error("the proof leads to the old root {found}, not to {expected}: what was in the log has been changed")]
    OldRoot {
        /// Where it leads.
        found: Hash,
        /// The root that is known.
        expected: Hash,
    },
    /// It leads to another root.
    #[error("the proof leads to the root {found}, not to {expected}")]
    Root {
        /// Where it leads.
        found: Hash,
        /// The root that is known.
        expected: Hash,
    },
}
