//! Two replicas of a CA on a real etcd, of which one has the root's key, exchange the root: the other makes the new one, and each is
//! given an intermediate by the one that has the key of the root above it. Nobody helps, and nothing of the old root is left anywhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use alcazar_testkit::{Curl, Etcd, Machine, Process, binary, free_port, openssl_s_client, until};

pub(crate) const PATIENCE: Duration = Duration::from_secs(150);

/// A replica of the CA of the cluster `east`: its machine, and its process.
pub(crate) struct Replica {
    pub(crate) machine: Machine,
    pub(crate) process: Process,
    port: u16,
    admin: u16,
}

impl Replica {
    pub(crate) fn start(home: &Path, etcd: &Etcd, name: &str) -> Self {
        Self::start_once(home, etcd, name, |_| ())
    }

    /// The same, after something was done with its configuration.
    pub(crate) fn start_once(home: &Path, etcd: &Etcd, name: &str, ready: impl FnOnce(&Machine)) -> Self {
        let machine = Machine::new(home, name).unwrap();
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let text = format!(
            "cluster: east\ndataDir: {}\nlisten: 127.0.0.1:{port}\nadmin: 127.0.0.1:{admin}\nstore: {{etcd: {{endpoints: ['{}']}}}}\n\
             replicas: {{secretFile: {}}}\nregistrations:\n- {{id: shop.reviews, node: one, identity: shop/reviews, selectors: ['socket:shop.reviews']}}\n",
            machine.file("data").display(),
            etcd.endpoint(),
            home.join("all/secret").display(),
        );
        machine.write("ca.yaml", &text).unwrap();
        ready(&machine);
        let process = process(&machine, "alcazar-ca", "ca", admin);
        Self { machine, process, port, admin }
    }

    /// Starts it again, after its end.
    pub(crate) fn start_again(&mut self) {
        self.process = process(&self.machine, "alcazar-ca", "ca", self.admin);
    }

    pub(crate) fn is_ready(&self) -> bool {
        Curl::default().get(&format!("http://127.0.0.1:{}/readyz", self.admin)).is_ok_and(|answer| answer.code == 200)
    }

    /// What `alcazar` says when it refuses.
    pub(crate) fn refused(&self, line: &str) -> String {
        self.machine.refused(&format!("{line} --ca {}", self.machine.file("data/admin.sock").display())).unwrap()
    }

    pub(crate) fn alcazar(&self, line: &str) -> String {
        let socket = self.machine.file("data/admin.sock");
        let said = self.machine.alcazar(&format!("{line} --ca {}", socket.display()));
        said.unwrap_or_else(|error| panic!("{error}: {}", self.process.log()))
    }

    fn root(&self) -> String {
        self.stands_on("root")
    }

    /// The fingerprint of its root or of its intermediate.
    pub(crate) fn stands_on(&self, kind: &str) -> String {
        let said = self.alcazar("ca hierarchy");
        said.lines().find_map(|line| line.strip_prefix(kind)?.split_whitespace().next()).unwrap().to_owned()
    }

    /// What it shows is verified by a bundle.
    fn is_verified_by(&self, bundle: &str) -> bool {
        let file = self.machine.file("bundle.pem");
        fs::write(&file, bundle).unwrap();
        let arguments = ["-alpn", "h2", "-CAfile", file.to_str().unwrap(), "-verify_return_error"];
        let said = openssl_s_client(&format!("127.0.0.1:{}", self.port), &arguments).unwrap();
        said.contains("Verify return code: 0 (ok)")
    }

    /// The certificates of authorities in its folder, and those whose keys are there.
    pub(crate) fn holds(&self) -> (usize, BTreeSet<String>) {
        let files = fs::read_dir(self.machine.file("data/hierarchy")).unwrap();
        let names: BTreeSet<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let is_key = |name: &&String| name.ends_with("-key.pem");
        let keys = names.iter().filter(is_key).filter_map(|name| name.split('-').next());
        let keys = keys.filter(|kind| *kind != "jwt").map(str::to_owned).collect();
        (names.iter().filter(|name| name.ends_with(".pem") && !is_key(name)).count(), keys)
    }
}

fn process(machine: &Machine, program: &str, name: &str, admin: u16) -> Process {
    let process = Process::component(program, machine.path(), name).unwrap();
    process.wait_ready(admin).unwrap();
    process
}

#[test]
fn replicas_rotate_a_root_that_one_of_them_made() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let all = Machine::new(home.path(), "all").unwrap();
    all.write("secret", "a secret of at least thirty-two bytes\n").unwrap();
    let (one, two) = (Replica::start(home.path(), &etcd, "one"), Replica::start(home.path(), &etcd, "two"));
    let both = [&one, &two];
    let keys = |replica: &Replica| replica.holds().1;
    let none = BTreeSet::from(["intermediate".to_owned()]);
    let root = BTreeSet::from(["intermediate".to_owned(), "root".to_owned()]);
    assert_eq!((keys(&one), keys(&two)), (root.clone(), none.clone()), "one has the root's key");

    // A node that keeps to both, and is waited for.
    let admin = free_port().unwrap();
    let token = all.run(&binary("alcazar-ca").unwrap(), "token --node one --config ../one/ca.yaml").unwrap();
    assert!(token.status.success(), "{token:?}");
    fs::write(all.file("token"), token.stdout.trim_ascii()).unwrap();
    all.write(
        "agent.yaml",
        &format!(
            "trustDomain: cluster.local\ncluster: east\nnode: one\ncaAddress: '127.0.0.1:{},127.0.0.1:{}'\njoinTokenFile: token\ndataDir: agent\nsocketsDir: sockets\n\
             admin: 127.0.0.1:{admin}\n",
            one.port, two.port
        ),
    )
    .unwrap();
    let agent = process(&all, "alcazar-node-agent", "agent", admin);
    let log = || format!("--- one\n{}--- two\n{}--- agent\n{}", one.process.log(), two.process.log(), agent.log());

    // The one that has no root's key begins, and makes the next root: nobody else looks as soon.
    let mut old = one.root();
    for begins in [&two, &one] {
        let begun = begins.alcazar("root rotate --yes");
        assert!(begun.contains(&old), "{begun}");
        let end = until("the end of the rotation", PATIENCE, || {
            // Whoever holds the bundle of either believes both, at every moment that does not change while it is looked at.
            let bundles = both.map(|replica| replica.alcazar("bundle show --format pem"));
            let verified: Vec<_> =
                both.iter().flat_map(|replica| bundles.iter().map(|bundle| replica.is_verified_by(bundle))).collect();
            let same = both.map(|replica| replica.alcazar("bundle show --format pem")) == bundles;
            assert!(!same || verified.iter().all(|is| *is), "{verified:?}, {bundles:?}\n{}", log());
            begins.alcazar("root rotation").contains("done: the old one is gone").then_some(())
        });
        end.unwrap_or_else(|error| panic!("{error}: {}\n{}", begins.alcazar("root rotation"), log()));
        let new = one.root();
        assert_ne!(new, old);
        assert_eq!(two.root(), new, "{}", log());
        // One of them has the key of the new root, and nothing of the old one is anywhere.
        let gone = until("the old root is gone everywhere", PATIENCE, || {
            both.iter().all(|replica| replica.holds().0 == 2).then_some(())
        });
        gone.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", both.map(Replica::holds), log()));
        let mut held = both.map(keys);
        held.sort();
        assert_eq!(held, [none.clone(), root.clone()], "{}", log());
        old = new;
    }
    // No ledger was taken for one that was tampered with because its signer is trusted no more.
    assert!(!log().contains("is not to be believed"), "{}", log());
}
