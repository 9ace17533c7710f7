//! Replicas of a CA on a real etcd exchange their intermediates: one of its own by the replica that has the root's key, one that is
//! shared where it is from; and what is signed with is taken back by force alone.

use std::fs;
use std::path::Path;

use alcazar_testkit::{Etcd, Machine, Vault, until};

use super::replicas_rotate_a_root_that_one_of_them_made::{PATIENCE, Replica};

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let all = Machine::new(home.path(), "all").unwrap();
    all.write("secret", "a secret of at least thirty-two bytes\n").unwrap();
    home
}

fn wait(what: &str, replicas: &[&Replica], look: impl Fn() -> bool) {
    let seen = until(what, PATIENCE, || look().then_some(()));
    let log = || replicas.iter().map(|replica| format!("---\n{}", replica.process.log())).collect::<String>();
    seen.unwrap_or_else(|error| panic!("{error}: {}\n{}", replicas[0].alcazar("ca rotation"), log()));
}

/// Its name, as others know it.
fn id(replica: &Replica) -> String {
    fs::read_to_string(replica.machine.file("data/replica")).unwrap().trim().to_owned()
}

#[test]
fn a_replica_without_the_roots_key_has_its_next_intermediate_from_the_one_that_has_it() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = home();
    let mut one = Replica::start(home.path(), &etcd, "one");
    let two = Replica::start(home.path(), &etcd, "two");
    let signs = |replica: &Replica| replica.stands_on("intermediate");
    let (first, before) = (signs(&one), signs(&two));
    two.alcazar("ca rotate --yes");
    wait("the end of the rotation", &[&two, &one], || two.alcazar("ca rotation").contains("done: the old one is gone"));
    let after = signs(&two);
    assert_ne!(after, before);
    assert_eq!(
        (signs(&one), two.holds().0),
        (first.clone(), 2),
        "nothing of before is left, and the other goes on with its own"
    );

    // What another replica signs with is taken back by force alone, and that replica has another one at once.
    let revoke = format!("revoke --intermediate {after} --reason keyCompromise");
    let refused = one.refused(&revoke);
    assert!(refused.contains(&id(&two)) && refused.contains("--force"), "{refused}");
    assert!(one.alcazar("revocations").contains("nothing is revoked"));
    one.alcazar(&format!("{revoke} --force"));
    wait("another intermediate", &[&two, &one], || signs(&two) != after && two.is_ready());
    assert!(two.alcazar("revocations").contains(&after));
    let after = signs(&two);

    // Nobody who has the root's key is there: it says who would be, and goes on when that one is back.
    one.process.terminate().unwrap();
    two.alcazar("ca rotate --yes");
    wait("what it waits for", &[&two], || {
        let said = two.alcazar("ca rotation");
        said.contains("it cannot go on") && said.contains(&id(&one))
    });
    assert_eq!(signs(&two), after);
    one.start_again();
    wait("the end of the rotation", &[&two, &one], || two.alcazar("ca rotation").contains("done: the old one is gone"));
    assert_ne!(signs(&two), after);
    assert_eq!(signs(&one), first);
}

/// Has the root sign what the machine asks for.
fn certify(vault: &Vault, machine: &Machine, set: &str) {
    machine.alcazar(&format!("ca request --config ca.yaml --out {set}.csr")).unwrap();
    machine.carry(&format!("{set}.csr"), vault.machine()).unwrap();
    let sign = format!("root sign {set}.csr --root root --passphrase-file passphrase --out {set} --yes");
    vault.machine().alcazar(&sign).unwrap();
    vault.machine().carry(set, machine).unwrap();
    machine.alcazar(&format!("ca install {set} --config ca.yaml")).unwrap();
}

fn vault(home: &Path) -> Vault {
    let vault = Vault::new(home).unwrap();
    vault.machine().alcazar("root init --out root --trust-domain cluster.local --passphrase-file passphrase").unwrap();
    vault
}

#[test]
fn replicas_that_share_an_intermediate_leave_it_together() {
    let Some(etcd) = Etcd::start().unwrap() else { return };
    let home = home();
    let vault = vault(home.path());
    let one = Replica::start_once(home.path(), &etcd, "one", |machine| certify(&vault, machine, "first"));
    let two = Replica::start(home.path(), &etcd, "two");
    let signs = |replica: &Replica| replica.stands_on("intermediate");
    let first = signs(&one);
    assert_eq!(signs(&two), first, "the root is kept offline");
    let refused = two.refused("ca rotate --yes");
    assert!(refused.contains("is shared") && refused.contains(&id(&one)), "{refused}");

    // It is exchanged where it is from, and the rotation ends when nobody signs with it any more.
    one.alcazar("ca rotate --yes");
    wait("its turn", &[&one, &two], || one.alcazar("ca rotation").contains("needs you"));
    certify(&vault, &one.machine, "second");
    wait("the end of the rotation", &[&one, &two], || {
        let done = one.alcazar("ca rotation").contains("done: the old one is gone");
        assert!(!done || signs(&two) != first, "it did not wait");
        done
    });
    let second = signs(&one);
    assert_ne!(second, first);
    assert_eq!(signs(&two), second);

    // The same without a rotation, as at half of a life.
    certify(&vault, &one.machine, "third");
    wait("the other to follow", &[&one, &two], || signs(&one) != second && signs(&two) == signs(&one));

    // So nobody is cut off by what is taken back then; what both sign with is not taken.
    let take_back = |print: &str| {
        let revoke = format!(
            "root revoke-intermediate {print} --root root --reason cACompromise --passphrase-file passphrase --yes"
        );
        vault.machine().alcazar(&revoke).unwrap();
        fs::copy(vault.machine().file("root/revocations.pb"), one.machine.file("revocations.pb")).unwrap();
    };
    take_back(&first);
    one.alcazar("revocations import revocations.pb");
    assert!(one.is_ready() && two.is_ready());
    take_back(&signs(&two));
    let refused = one.refused("revocations import revocations.pb");
    assert!(refused.contains("replace it first"), "{refused}");
}
