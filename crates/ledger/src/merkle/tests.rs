//! Against the vectors of RFC 6962's reference tree, and against the definition, written as it reads.

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// The definition of RFC 9162 §2.1.1, word for word.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::empty(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(largest_power_below(leaves.len()));
            Hash::node(&naive_root(left), &naive_root(right))
        }
    }
}

/// §2.1.3.1.
fn naive_inclusion(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let k = largest_power_below(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut path, beside) = if index < k {
        (naive_inclusion(index, left), naive_root(right))
    } else {
        (naive_inclusion(index - k, right), naive_root(left))
    };
    path.push(beside);
    path
}

/// §2.1.4.1.
fn naive_consistency(old: usize, leaves: &[Hash], known: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if known { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let k = largest_power_below(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut path, beside) = if old <= k {
        (naive_consistency(old, left, known), naive_root(right))
    } else {
        (naive_consistency(old - k, right, false), naive_root(left))
    };
    path.push(beside);
    path
}

fn largest_power_below(n: usize) -> usize {
    let mut k = 1;
    while k * 2 < n {
        k *= 2;
    }
    k
}

fn leaves(n: usize) -> Vec<Hash> {
    (0..n).map(|i| Hash::leaf(format!("entry {i}").as_bytes())).collect()
}

fn levels(leaves: &[Hash]) -> Levels {
    let mut levels = Levels::default();
    leaves.iter().for_each(|leaf| levels.push(*leaf));
    levels
}

fn node_of(levels: &Levels) -> impl FnMut(Node) -> Result<Hash, Infallible> {
    |node| Ok(levels.node(node).unwrap_or_else(|| panic!("{node:?} is not a full subtree")))
}

#[test]
fn the_vectors_of_the_reference_tree_are_met() {
    let inputs: [&[u8]; 8] = [
        b"",
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
    ];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root().to_string(), roots[0]);
    for (input, root) in inputs.iter().zip(&roots[1..]) {
        frontier.push(Hash::leaf(input));
        assert_eq!(frontier.root().to_string(), *root);
    }

    let all = levels(&inputs.map(Hash::leaf));
    let texts = |hashes: Vec<Hash>| hashes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let Ok(path) = inclusion(5, 8, node_of(&all));
    assert_eq!(
        texts(path.unwrap()),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    let Ok(path) = consistency(6, 8, node_of(&all));
    assert_eq!(
        texts(path.unwrap()),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

#[test]
fn every_root_and_proof_up_to_130_entries_is_that_of_the_definition_and_verifies() {
    let leaves = leaves(130);
    let levels = levels(&leaves);
    let mut frontier = Frontier::default();
    for size in 0..=leaves.len() {
        let tree = &leaves[..size];
        let root = naive_root(tree);
        assert_eq!(frontier.root(), root, "{size}");
        let Ok(found) = root_of(size as u64, node_of(&levels));
        assert_eq!(found, root, "{size}");
        for index in 0..size {
            let Ok(path) = inclusion(index as u64, size as u64, node_of(&levels));
            let path = path.unwrap();
            assert_eq!(path, naive_inclusion(index, tree), "{index} of {size}");
            verify_inclusion(tree[index], index as u64, size as u64, &root, &path).unwrap();
        }
        for old in 1..=size {
            let Ok(path) = consistency(old as u64, size as u64, node_of(&levels));
            let path = path.unwrap();
            assert_eq!(path, naive_consistency(old, tree, true), "{old} in {size}");
            verify_consistency(old as u64, &naive_root(&tree[..old]), size as u64, &root, &path).unwrap();
        }
        if let Some(leaf) = leaves.get(size) {
            frontier.push(*leaf);
        }
    }
}

#[test]
fn what_is_not_in_the_tree_has_no_proof() {
    let levels = levels(&leaves(7));
    let Ok(none) = inclusion(7, 7, node_of(&levels));
    assert_eq!(none, None);
    let Ok(none) = consistency(7, 6, node_of(&levels));
    assert_eq!(none, None);
    let root = naive_root(&leaves(7));
    assert_eq!(verify_inclusion(Hash::empty(), 7, 7, &root, &[]), Err(ProofError::NoSuchEntry { index: 7, size: 7 }));
    assert_eq!(verify_consistency(8, &root, 7, &root, &[]), Err(ProofError::Shrunk { old: 8, new: 7 }));
    assert!(verify_consistency(0, &Hash::empty(), 7, &root, &[]).is_ok());
    assert!(verify_consistency(0, &root, 7, &root, &[]).is_err());
    assert!(verify_consistency(7, &root, 7, &root, &[root]).is_err());
}

proptest! {
    #[test]
    fn a_proof_with_anything_changed_proves_nothing(
        size in 1usize..300, index: prop::sample::Index, old: prop::sample::Index,
        change: prop::sample::Index, bit in 0usize..256, cut: bool,
    ) {
        let leaves = leaves(size);
        let levels = levels(&leaves);
        let root = naive_root(&leaves);
        let (index, old) = (index.index(size), old.index(size) + 1);
        let flip = |hash: Hash| {
            let mut bytes = *hash.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            Hash::from(bytes)
        };
        let spoil = |mut proof: Vec<Hash>| {
            if cut {
                proof.pop();
            } else if !proof.is_empty() {
                let at = change.index(proof.len());
                proof[at] = flip(proof[at]);
            }
            proof
        };
        let (leaf, at, n) = (leaves[index], index as u64, size as u64);
        let Ok(proof) = inclusion(at, n, node_of(&levels));
        let proof = proof.unwrap();
        prop_assert!(verify_inclusion(leaf, at, n, &root, &proof).is_ok());
        prop_assert!(verify_inclusion(flip(leaf), at, n, &root, &proof).is_err());
        prop_assert!(verify_inclusion(leaf, at, n, &flip(root), &proof).is_err());
        if !proof.is_empty() {
            prop_assert!(verify_inclusion(leaf, at, n, &root, &spoil(proof.clone())).is_err());
            prop_assert!(verify_inclusion(leaf, at ^ 1, n, &root, &proof).is_err());
        }
        prop_assert!(verify_inclusion(leaf, at, n, &root, &[&proof[..], &[leaf]].concat()).is_err());

        let (old_root, old) = (naive_root(&leaves[..old]), old as u64);
        let Ok(proof) = consistency(old, n, node_of(&levels));
        let proof = proof.unwrap();
        prop_assert!(verify_consistency(old, &old_root, n, &root, &proof).is_ok());
        prop_assert!(verify_consistency(old, &flip(old_root), n, &root, &proof).is_err());
        prop_assert!(verify_consistency(old, &old_root, n, &flip(root), &proof).is_err());
        if !proof.is_empty() {
            prop_assert!(verify_consistency(old, &old_root, n, &root, &spoil(proof.clone())).is_err());
        }
        prop_assert!(verify_consistency(old, &old_root, n, &root, &[&proof[..], &[root]].concat()).is_err());
    }

    #[test]
    fn a_log_with_a_changed_past_is_never_consistent(size in 2usize..200, changed: prop::sample::Index, old: prop::sample::Index) {
        let honest = leaves(size);
        let old = old.index(size - 1) + 1;
        let mut other = honest.clone();
        let at = changed.index(old);
        other[at] = Hash::leaf(b"something else");
        let levels = levels(&other);
        let Ok(proof) = consistency(old as u64, size as u64, node_of(&levels));
        let outcome = verify_consistency(old as u64, &naive_root(&honest[..old]), size as u64, &naive_root(&other), &proof.unwrap());
        prop_assert!(outcome.is_err());
    }
}
