//! What is so, whatever anybody knows of it: any two who are alive must verify each other.

use super::{
    super::{super::Kind, members::Leaf},
    Fleet,
};

impl Fleet {
    /// Everybody who is alive and was not given up: what it believes, and what it shows.
    pub(in super::super) fn live(&self) -> Vec<(String, u64, Option<Leaf>)> {
        let mut live = Vec::new();
        let mut show = |name: String, sequence: u64, leaf: Option<&Leaf>| {
            if let Some(leaf) = leaf.filter(|leaf| leaf.expires > self.now) {
                live.push((name, sequence, Some(leaf.clone())));
            }
        };
        for signer in &self.signers {
            show(signer.name.clone(), signer.view.sequence, Some(&signer.leaf));
        }
        for node in self.nodes.iter().filter(|node| !node.given_up) {
            show(node.name.clone(), node.sequence, node.leaf.as_ref());
            for (slot, proxy) in node.proxies.iter().enumerate() {
                show(format!("proxy {slot} of {}", node.name), proxy.sequence, proxy.leaf.as_ref());
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            show(format!("client {index}"), client.sequence, Some(&client.leaf));
        }
        live.extend(self.federated.iter().map(|federated| ("federated".to_owned(), federated.sequence, None)));
        live
    }

    pub(super) fn check(&self) {
        if self.kind == Kind::Intermediate {
            return;
        }
        let live = self.live();
        self.check_that_all_believe(&live);
    }

    /// Everybody here who is alive believes what these show.
    pub(in super::super) fn check_that_all_believe(&self, others: &[(String, u64, Option<Leaf>)]) {
        for (name, sequence, _) in &self.live() {
            let believed = &self.bundles[sequence];
            for (other, _, leaf) in others {
                if let Some(leaf) = leaf {
                    assert!(
                        believed.contains(&leaf.under),
                        "{name} (sequence {sequence}, {believed:?}) does not believe {other}, under {}, in {:?} at {}",
                        leaf.under,
                        self.record,
                        self.now
                    );
                }
            }
        }
    }
}
