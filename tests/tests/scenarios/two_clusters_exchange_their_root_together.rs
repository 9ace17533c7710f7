//! Two clusters under one root that is kept offline, each with a CA and a store of its own, exchange it for another one. Each says to
//! the other how far it is, over its bundle endpoint or in a file: neither signs under the new root before both have heard of it, and
//! neither drops the old one before both have left it, on the way there and on the way back. At every step a certificate of each is verified by the other's bundle.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use alcazar_testkit::{Cluster, Turn, Vault, free_port, openssl_s_client, turn, until};

/// Federated trust domains are given the time to fetch the bundle, twice; the rest is a matter of seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// The two, and how what one states comes to the other.
struct Pair {
    east: Cluster,
    west: Cluster,
    by_hand: bool,
}

impl Pair {
    fn both(&self) -> [&Cluster; 2] {
        [&self.east, &self.west]
    }

    /// Both as they are at a moment, verified by each other.
    fn look(&self) -> [View; 2] {
        if self.by_hand {
            for (from, to) in [(&self.east, &self.west), (&self.west, &self.east)] {
                from.alcazar("root rotation --export-state state.json").unwrap();
                from.machine().carry("state.json", to.machine()).unwrap();
                to.alcazar("root rotation --import-state state.json").unwrap();
            }
        }
        until("a moment at which neither changes", PATIENCE, || {
            let before = self.both().map(|one| one.bundle().unwrap());
            for (place, one) in self.both().into_iter().enumerate() {
                verify(one, &before[place], &before[1 - place], self);
            }
            let views = self.both().map(View::of);
            (self.both().map(|one| one.bundle().unwrap()) == before).then_some(views)
        })
        .unwrap()
    }

    fn log(&self) -> String {
        format!("=== east\n{}\n=== west\n{}", self.east.log(), self.west.log())
    }

    /// Looks until it is so. What must hold at every look is checked at each.
    fn until(&self, what: &str, old: &str, new: &str, is_so: impl Fn(&[View; 2]) -> bool) -> [View; 2] {
        let found = until(what, PATIENCE, || {
            let views = self.look();
            for (one, other) in [(&views[0], &views[1]), (&views[1], &views[0])] {
                if one.signs == new {
                    assert!(other.trusts.contains(new), "one signs by what the other has not heard of: {views:?}");
                }
                if other.signs == old {
                    assert!(one.trusts.contains(old), "one has dropped what the other signs by: {views:?}");
                }
            }
            is_so(&views).then_some(views)
        });
        found.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.look(), self.log()))
    }
}

/// What a CA stands on.
#[derive(Debug)]
struct View {
    trusts: BTreeSet<String>,
    signs: String,
    rotation: String,
}

impl View {
    fn of(cluster: &Cluster) -> Self {
        Self {
            trusts: cluster.prints(&cluster.bundle().unwrap()).unwrap(),
            signs: cluster.signs_under().unwrap(),
            rotation: cluster.alcazar("root rotation").unwrap(),
        }
    }

    fn asks(&self) -> bool {
        self.rotation.contains("needs you")
    }

    fn is_back(&self) -> bool {
        self.rotation.contains("aborted: all is as it was before")
    }

    fn is_done(&self) -> bool {
        self.rotation.contains("done: the old one is gone")
    }
}

#[test]
fn two_clusters_exchange_their_root_over_their_endpoints() {
    let ports = [free_port().unwrap(), free_port().unwrap()];
    let more = |own: usize, other: &str| {
        format!(
            "bundleEndpoint: {{listen: '127.0.0.1:{}', refreshHint: 30s, profile: https_spiffe}}\n\
             clusters:\n- {{name: {other}, endpoint: 'https://127.0.0.1:{}'}}\n",
            ports[own],
            ports[1 - own]
        )
    };
    exchange(&more(0, "west"), &more(1, "east"), false);
}

#[test]
fn two_clusters_exchange_their_root_by_what_is_carried() {
    exchange("clusters: [{name: west}]\n", "clusters: [{name: east}]\n", true);
}

/// In the middle, with one of them under the new root already, both go back: neither drops what the other signs by on that way either.
#[test]
fn two_clusters_go_back_from_the_middle_of_an_exchange() {
    let exchange = Exchange::begin("clusters: [{name: west}]\n", "clusters: [{name: east}]\n", true);
    let Exchange { vault, pair, old, new, .. } = &exchange;
    // East has gone over, and says that it goes back: by hand, as it went.
    vault.certify(&pair.east, "root", "").unwrap();
    pair.east.alcazar("root rotation abort").unwrap();
    let views = pair.until("east waits for west on its way back", old, new, |[east, _]| {
        east.signs == *old && east.rotation.contains("the cluster west")
    });
    assert!(views.iter().all(|view| view.trusts.contains(new)), "{views:?}");
    pair.west.alcazar("root rotation abort").unwrap();
    let views = pair.until("both are where they were", old, new, |views| views.iter().all(View::is_back));
    assert!(views.iter().all(|view| view.signs == *old && view.trusts == [old.clone()].into()), "{views:?}");
}

fn exchange(east: &str, west: &str, by_hand: bool) {
    let exchange = Exchange::begin(east, west, by_hand);
    let Exchange { vault, pair, old, new, .. } = &exchange;
    let views = pair.until("east waits for west again", old, new, |[east, west]| {
        east.rotation.contains("the cluster west") && west.asks()
    });
    assert_eq!(views[1].signs, *old);
    vault.certify(&pair.west, "new-root", "").unwrap();
    pair.until("both sign under the new root", old, new, |views| views.iter().all(|view| view.signs == *new));
    let views = pair.until("both are done", old, new, |views| views.iter().all(View::is_done));
    assert!(views.iter().all(|view| view.trusts == [new.clone()].into()), "{views:?}");
}

/// An exchange that is under way: one of them signs under the new root.
struct Exchange {
    pair: Pair,
    vault: Vault,
    old: String,
    new: String,
    _folder: tempfile::TempDir,
    _turn: Turn,
}

impl Exchange {
    fn begin(east: &str, west: &str, by_hand: bool) -> Self {
        let turn = turn();
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::new(folder.path()).unwrap();
        let (old, new) = (vault.init("root").unwrap(), vault.init("new-root").unwrap());
        let cluster = |name: &str, more: &str| {
            let mut cluster = Cluster::new(folder.path(), name, more).unwrap();
            vault.certify(&cluster, "root", "").unwrap();
            cluster.start_ca().unwrap();
            cluster.start_agent().unwrap();
            cluster
        };
        let pair = Pair { east: cluster("east", east), west: cluster("west", west), by_hand };
        let views = pair.look();
        assert!(views.iter().all(|view| view.signs == old && view.trusts == [old.clone()].into()), "{views:?}");

        // One has begun, and waits for the other: nobody is asked for anything yet.
        let rotate = |cluster: &Cluster| {
            vault.machine().carry("new-root/root-cert.pem", cluster.machine()).unwrap();
            cluster.alcazar("root rotate --new-root root-cert.pem --yes").unwrap();
        };
        rotate(&pair.east);
        let views = pair.until("east waits for west", &old, &new, |[east, _]| {
            east.rotation.contains("the cluster west") && east.trusts.contains(&new)
        });
        assert!(!views[0].asks() && !views[1].trusts.contains(&new), "{views:?}");
        rotate(&pair.west);
        pair.until("both have heard, and ask for an intermediate", &old, &new, |views| {
            views.iter().all(|view| view.asks() && view.signs == old)
        });

        // One signs under the new root, and drops nothing before the other does, too.
        vault.certify(&pair.east, "new-root", "").unwrap();
        let views = pair.until("east signs under the new root", &old, &new, |[east, _]| east.signs == new);
        assert!(views.iter().all(|view| view.trusts.contains(&old)), "{views:?}");
        Self { pair, vault, old, new, _folder: folder, _turn: turn }
    }
}

/// The certificate that a CA shows is verified by its own bundle and by the other's.
fn verify(cluster: &Cluster, own: &str, other: &str, pair: &Pair) {
    for (name, text) in [("own.pem", own), ("other.pem", other)] {
        let file = cluster.machine().file(name);
        fs::write(&file, text).unwrap();
        let arguments = ["-alpn", "h2", "-CAfile", file.to_str().unwrap(), "-verify_return_error"];
        let said = openssl_s_client(&cluster.address(), &arguments).unwrap();
        let verified = said.contains("Verify return code: 0 (ok)");
        // It may have gone on since its bundle was asked for.
        let same = pair.both().map(|one| one.bundle().unwrap());
        let same = same.contains(&own.to_owned()) && same.contains(&other.to_owned());
        assert!(verified || !same, "{name}: {said}\n{}", pair.log());
    }
}
